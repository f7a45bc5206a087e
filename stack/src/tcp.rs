//! TCP towards the guest: one `Tcb` a flow (RFC 9293), no I/O, no clock, no random number, no uncharged queue.
//!
//! Grammar: `on_segment`, `on_timer` and the host-side notices (`on_host_connected`, `finish`) change the block and
//! say what the caller must do as a [`Disposition`]; `output` sends what the block then wants sent; `deadline` says
//! when to look again. The order is always: events, relay, `output`.
//!
//! RFC 9293 section 3.10.7.4's order of checks is the order of functions in `tcp/input.rs`.

use std::time::Duration;

use skbudget_controller::{Budget, Instant, Ledger};

use crate::chunk::{ChunkPool, PAYLOAD};
use crate::counters::Stats;
use crate::segment::{Flags, Options, Outgoing, Segment};
use crate::seq::Seq;

mod ack;
mod board;
pub(crate) mod congestion;
pub(crate) mod ecn;
mod input;
mod keepalive;
mod output;
mod pmtu;
mod rack;
pub(crate) mod rcv;
mod recovery;
mod rtt;
pub(crate) mod snd;
pub(crate) mod state;
mod timers;
mod tlp;

use rcv::Rcv;
use snd::Snd;
use state::{Cause, State};

/// Smallest MSS a guest can make us use (Linux' tcp_min_snd_mss).
const MSS_MIN: u16 = 48;
/// Milliseconds in which a loop that has much to do comes back to a device at the latest.
const TURN_MS: u64 = 10;
/// Shift of our windows: 65535 << 7 is above every window the budget grants.
const WSCALE: u8 = 7;

/// Memory and time, as every operation of a `Tcb` needs them.
pub(crate) struct Mem<'a> {
    pub(crate) now: Instant,
    pub(crate) budget: &'a mut Budget,
    pub(crate) pool: &'a mut ChunkPool,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) stats: &'a mut Stats,
    /// Largest receive window of one flow now, bytes: its share of what the device queue holds.
    pub(crate) window_max: u64,
}

/// What the caller does after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Nothing beyond `output`.
    Continue,
    /// The handshake with the guest is complete.
    Established,
    /// Answer the segment with RST and forget it; the flow stays.
    Refuse,
    /// Answer the segment with a challenge ACK, if the container's limit allows it (RFC 5961).
    Challenge,
    /// The guest asks whether its peer is still there.
    KeepAlive,
    /// The guest reset the flow: reset the host side, forget the flow.
    Reset,
    /// We give up: RST to the guest, reset the host side.
    Abort,
    /// Both directions are closed: nothing is left to say.
    Closed,
    /// Both directions are closed, the guest may still ask: leave a TIME-WAIT entry.
    TimeWait,
}

/// What the link and the configuration say about a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// MSS we advertise.
    pub(crate) mss: u16,
    /// Largest payload of one segment to the guest, options not taken off (MTU - 40).
    pub(crate) segment_max: u16,
    /// MSS of a guest that does not say its own.
    pub(crate) mss_default: u16,
    /// Super-frames up to 64 KiB may be sent.
    pub(crate) offload: bool,
    pub(crate) keepalive: Duration,
    pub(crate) user_timeout: Duration,
    /// Largest send queue, bytes.
    pub(crate) snd_target_max: usize,
    pub(crate) congestion: congestion::Algorithm,
}

#[derive(Debug)]
pub(crate) struct Tcb {
    pub(crate) state: State,
    pub(crate) snd: Snd,
    pub(crate) rcv: Rcv,
    link: Link,
    /// Timestamps are in use; value added to the millisecond clock.
    ts: Option<u32>,
    sack: bool,
    ecn: ecn::Ecn,
    /// SYN (or SYN-ACK) is to be sent, first or again.
    syn_due: bool,
    /// A tail loss probe is to be sent.
    tail_probe_due: bool,
    /// The persist timer ran out on a window that is open but small: send into it all the same.
    force_small: bool,
    /// A zero-window or keep-alive probe is to be sent.
    probe_due: bool,
    last_heard: Instant,
    /// The guest's last keep-alive probe.
    probed_at: Instant,
    keepalive_sent: u32,
    /// Timeouts since anything acceptable was heard, and the first of them.
    silent: u32,
    silent_since: Instant,
    /// The last ACK that answered an unacceptable segment.
    oow_at: Option<Instant>,
}

impl Tcb {
    /// A SYN came from the guest; the host side is still to be asked.
    pub(crate) fn passive(
        link: Link,
        iss: Seq,
        ts_offset: u32,
        syn: &Segment<'_>,
        now: Instant,
    ) -> Self {
        let mut tcb = Self::new(link, State::Connecting, iss, now);
        tcb.negotiate(&syn.options, Some(ts_offset), now);
        tcb.ecn.negotiate(syn);
        tcb.rcv.irs = syn.seq;
        tcb.snd.wl1 = syn.seq;
        // RFC 7323 section 2.2: the window of a SYN is never scaled.
        tcb.snd.wnd = u32::from(syn.wnd);
        tcb.snd.wnd_max = tcb.snd.wnd;
        tcb
    }

    /// A published port was connected to: we open towards the guest.
    pub(crate) fn active(link: Link, iss: Seq, ts_offset: u32, now: Instant) -> Self {
        let mut tcb = Self::new(link, State::SynSent, iss, now);
        tcb.ts = Some(ts_offset);
        tcb.syn_due = true;
        // Runs from the start: the SYN may find no guest to leave for, and that must end, too.
        tcb.snd.restart_timer(now);
        tcb
    }

    fn new(link: Link, state: State, iss: Seq, now: Instant) -> Self {
        let mss = u32::from(link.segment_max.min(link.mss_default));
        Self {
            state,
            snd: Snd::new(iss, mss, link.congestion),
            rcv: Rcv::new(u32::from(link.mss), WSCALE),
            link,
            ts: None,
            sack: true,
            ecn: ecn::Ecn::default(),
            syn_due: false,
            tail_probe_due: false,
            force_small: false,
            probe_due: false,
            last_heard: now,
            probed_at: now,
            keepalive_sent: 0,
            silent: 0,
            silent_since: now,
            oow_at: None,
        }
    }

    /// Takes the options of the guest's SYN (or SYN-ACK). `offered`: we answer, so an option is used if it came.
    fn negotiate(&mut self, options: &Options, ts_offset: Option<u32>, now: Instant) {
        self.ts = options.ts.and(ts_offset);
        if let Some((tsval, _)) = options.ts {
            self.rcv.note_timestamp(tsval, now);
        }
        self.sack = options.sack_permitted;
        match options.wscale {
            Some(shift) => self.snd.wscale = shift,
            None => self.rcv.wscale = 0,
        }
        let mss =
            options.mss.unwrap_or(self.link.mss_default).max(MSS_MIN).min(self.link.segment_max);
        let ts_len = if self.ts.is_some() { 12 } else { 0 };
        self.snd.mss = u32::from(mss.saturating_sub(ts_len).max(1));
        self.snd.cc = congestion::Congestion::new(self.link.congestion, self.snd.mss, self.snd.iss);
    }

    /// The host side is connected: answer the SYN.
    pub(crate) fn on_host_connected(&mut self) {
        if let Some(next) = self.state.next(Cause::HostConnected) {
            self.state = next;
            self.syn_due = true;
        }
    }

    /// The host's stream ended: FIN after the last byte.
    pub(crate) fn finish(&mut self) {
        self.snd.fin = true;
    }

    /// The host reset the connection: RST when the guest has acknowledged everything, FIN included. Earlier it would
    /// make the guest's kernel forget what lies behind a hole.
    pub(crate) fn reset_when_acknowledged(&mut self) {
        self.snd.reset = true;
    }

    /// That moment has come.
    pub(crate) fn reset_is_due(&self) -> bool {
        let snd = &self.snd;
        let acknowledged = snd.q.is_empty() && snd.board.outstanding() == 0;
        snd.reset && acknowledged && (!snd.fin || self.state == State::FinWait2)
    }

    /// TCP with the guest is over: what was to be sent, what is beyond a hole and the window go back. What arrived in
    /// order stays, for the host.
    pub(crate) fn abandon(&mut self, mem: &mut Mem<'_>) {
        let unsent = self.snd.q.len();
        self.snd.q.acked(unsent, mem.pool, mem.budget, mem.ledger, mem.now);
        self.rcv.q.prune_ofo(mem.pool, mem.budget, mem.ledger, mem.now);
        self.rcv.q.close_to(0, mem.budget, mem.ledger, mem.now);
    }

    /// The guest's stream ended and every byte of it was handed to the host.
    pub(crate) fn drained(&self) -> bool {
        self.rcv.fin_taken && self.rcv.q.is_empty()
    }

    /// What may be queued for the guest now, bytes. Under pressure nothing beyond the reserve is asked for: what is
    /// left between soft and hard is for flows yet to be admitted, whose guarantee it is.
    pub(crate) fn send_room(&self, pressure: bool) -> usize {
        let ended = self.snd.fin || self.snd.reset;
        if !matches!(self.state, State::Established | State::CloseWait) || ended {
            return 0;
        }
        match (pressure, self.snd.q.len()) {
            (true, 0) => PAYLOAD,
            (true, _) => self.snd.q.tail_room(),
            (false, queued) => self.snd.target.saturating_sub(queued),
        }
    }

    /// The host took `n` in-order bytes.
    pub(crate) fn consume(&mut self, n: usize, mem: &mut Mem<'_>) {
        self.rcv.q.consume(n, mem.pool, mem.budget, mem.ledger, mem.now);
        let window_max = self.window_max(mem);
        self.rcv.on_taken(n as u64, mem.budget, window_max);
    }

    /// The share of the device queue bounds the window of a guest next door, whose whole window may stand in it. Of one
    /// that is further away only what arrives in a turn of the loop does: its window may be as many times larger as its
    /// round trip is longer than that.
    fn window_max(&self, mem: &Mem<'_>) -> u64 {
        let far = self.snd.rack.min_rtt().as_millis() as u64 / TURN_MS;
        let most = u64::from(mem.budget.sock_limits().rmem[2]);
        mem.window_max.saturating_mul(far.max(1)).min(most)
    }

    /// An RST that the guest accepts, for a flow we give up.
    pub(crate) fn reset_segment(&self) -> Outgoing {
        Outgoing {
            // Where the guest stands if all arrived; a SYN that was not answered has no number of ours to stand at
            // (RFC 9293 section 3.10.7.1).
            seq: if self.state == State::Connecting { Seq(0) } else { self.snd.nxt() },
            ack: self.rcv.nxt(),
            flags: Flags::RST_ACK,
            wnd: 0,
            options: Options::default(),
            mss: 0,
            ect: false,
        }
    }

    /// The ACK that closes the connection, said once before the flow becomes a TIME-WAIT entry.
    pub(crate) fn time_wait_ack(&self, now: Instant) -> Outgoing {
        let ts = self.ts.map(|_| (self.ts_now(now), self.rcv.ts_recent));
        Outgoing {
            seq: self.snd.nxt(),
            ack: self.rcv.nxt(),
            flags: Flags::ACK,
            wnd: self.rcv.window_field(),
            options: Options { ts, ..Options::default() },
            mss: 0,
            ect: false,
        }
    }

    pub(crate) fn time_wait_entry(&self) -> crate::timewait::Entry {
        crate::timewait::Entry {
            snd_nxt: self.snd.nxt(),
            rcv_nxt: self.rcv.nxt(),
            wnd: self.rcv.window_field(),
            ts: self.ts.map(|offset| (offset, self.rcv.ts_recent)),
        }
    }

    /// Every chunk goes back; the ledger is released by its owner.
    pub(crate) fn clear(&mut self, pool: &mut ChunkPool) {
        self.rcv.q.clear(pool);
        self.snd.q.clear(pool);
    }

    /// Our timestamp clock: milliseconds, offset per flow (RFC 7323 section 5.4).
    fn ts_now(&self, now: Instant) -> u32 {
        ack::ts_at(now, self.ts.unwrap_or(0))
    }
}
