//! A connection as the relay and the container use it: the bytes of both directions, and the few steps that neither a
//! segment nor a timer starts. Both halves of the block are private to `tcp`.

use std::io::{IoSlice, IoSliceMut};

use crate::io::HostError;
use crate::queue::MemCtx;
use crate::queue::send::Filled;
use crate::tcp::Tcb;
use crate::wire::seq::Seq;

/// Values of a connection for [`FlowInfo`](crate::FlowInfo); the units are in the names or those of `tcp_info`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcbInfo {
    pub(crate) cwnd: u32,
    pub(crate) ssthresh: u32,
    pub(crate) srtt_us: u64,
    pub(crate) rttvar_us: u64,
    pub(crate) rto_us: u64,
    pub(crate) retrans: u64,
    pub(crate) snd_wnd: u32,
    pub(crate) rcv_wnd: u32,
    pub(crate) mss: u16,
    pub(crate) unacked: u32,
    pub(crate) drops: u32,
    pub(crate) active: bool,
    pub(crate) rcv_target: u64,
    pub(crate) snd_target: u64,
}

impl Tcb {
    // ---- received data ----

    /// Bytes that arrived in order since the connection opened.
    pub(crate) fn received(&self) -> u64 {
        self.rcv.q.nxt()
    }

    /// In-order bytes that the host has not taken.
    pub(crate) fn unread(&self) -> u64 {
        self.rcv.q.unread()
    }

    /// The first `parts` pieces of the unread bytes; [`Tcb::consume`] removes them.
    pub(crate) fn readable(&self, parts: usize) -> impl Iterator<Item = IoSlice<'_>> {
        self.rcv.q.readable(parts)
    }

    /// The guest's FIN arrived, and every byte before it.
    pub(crate) fn guest_ended(&self) -> bool {
        self.rcv.fin_taken
    }

    /// Sequence number of the guest's SYN.
    pub(crate) fn irs(&self) -> Seq {
        self.rcv.irs
    }

    // ---- data to send ----

    /// Bytes for the guest that it has not acknowledged, sent or not.
    pub(crate) fn queued(&self) -> u64 {
        self.snd.q.len() as u64
    }

    /// Requests memory for `want` bytes and fills it by `read` for the guest. See `SendQueue::fill`.
    pub(crate) fn fill(
        &mut self,
        want: usize,
        mem: &mut MemCtx<'_>,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, HostError>,
    ) -> Filled {
        self.snd.q.fill(want, mem, read)
    }

    /// The budget refused memory to send: the target of the send queue drops.
    pub(crate) fn moderate_send_target(&mut self) {
        self.snd.moderate_target();
    }

    // ---- steps of the container ----

    /// The next `output` sends an ACK.
    pub(crate) fn request_ack(&mut self) {
        self.rcv.ack_now = true;
    }

    /// The next `output` requests credit for the window again: memory has returned.
    pub(crate) fn retry_window(&mut self) {
        self.rcv.moved = true;
    }

    /// Releases the credit of the window (H3); its edge stays advertised. Returns the number of chunks.
    pub(crate) fn release_credit(&mut self, mem: &mut MemCtx<'_>) -> u32 {
        self.rcv.q.close_to(0, mem)
    }

    /// No data moved for the idle period: both targets return to their first values.
    pub(crate) fn on_idle(&mut self) {
        self.rcv.on_idle();
        self.snd.on_idle();
    }

    /// True unless the guest's FIN was acknowledged, as after a simultaneous close.
    pub(crate) fn owes_ack(&self) -> bool {
        self.rcv.ack_sent != self.rcv.nxt()
    }

    pub(crate) fn info(&self) -> TcbInfo {
        let (snd, rcv) = (&self.snd, &self.rcv);
        TcbInfo {
            cwnd: snd.cc.cwnd,
            ssthresh: snd.cc.ssthresh,
            srtt_us: snd.rtt.srtt().map_or(0, |d| d.as_micros() as u64),
            rttvar_us: snd.rtt.rttvar().as_micros() as u64,
            rto_us: snd.rtt.rto().as_micros() as u64,
            retrans: snd.retrans.into(),
            snd_wnd: snd.wnd,
            rcv_wnd: rcv.wnd(),
            mss: snd.mss as u16,
            unacked: snd.board.outstanding(),
            drops: rcv.drops,
            active: self.active,
            rcv_target: rcv.target,
            snd_target: snd.target as u64,
        }
    }
}
