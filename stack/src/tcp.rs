//! TCP towards the guest: one [`Tcb`] per flow (RFC 9293). It does no I/O, reads no clock, draws no random number and
//! holds no uncharged queue.
//!
//! API by group:
//!
//! - Events: `on_segment`, `on_timer` and the notices from the host side (`on_host_connected`, `finish`) change the
//!   block and return a [`Disposition`], which is what the caller must do.
//! - Output: `output` sends the segments that the block wants sent.
//! - Timer: `deadline` returns when to call `on_timer` next.
//!
//! The order in a turn is always: events, relay, `output`. The functions in `tcp/input.rs` are in the order of the
//! checks of RFC 9293 section 3.10.7.4.

use std::time::Duration;

use skbudget_controller::{Budget, Instant};

use crate::config::{Algorithm, ContainerConfig, OFFLOAD_MSS};
use crate::pressure::FlowBound;
use crate::queue::MemCtx;
use crate::queue::chunk::{ChunkPool, PAYLOAD};
use crate::sizes::{HEADERS_V4, HEADERS_V6};
use crate::wire::segment::{Flags, Options, Outgoing, Segment};
use crate::wire::seq::Seq;

mod access;
mod ack;
pub(crate) mod congestion;
pub(crate) mod ecn;
mod input;
mod keepalive;
mod output;
mod pass;
mod pmtu;
mod rack;
pub(crate) mod rcv;
mod recovery;
mod rtt;
mod scoreboard;
pub(crate) mod snd;
pub(crate) mod state;
mod timers;
mod tlp;

use rcv::Rcv;
use snd::Snd;
use state::{Cause, State};

/// Smallest MSS that a guest can make this side use, bytes (Linux `tcp_min_snd_mss`).
const MSS_MIN: u16 = 48;
/// Longest time between two reads of one device under load, ms: the data of one turn is in the device queue at once.
const TURN_MS: u64 = 10;
/// Window scale that this side advertises: 65535 << 7 is above every window that the budget grants.
const WSCALE: u8 = 7;

/// What the caller does after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Nothing beyond `output`.
    Output,
    /// Answer the segment with RST and drop it; the flow stays.
    Refuse,
    /// Answer the segment with a challenge ACK if the container's rate limit allows it (RFC 5961).
    Challenge,
    /// The segment is a keep-alive probe: check the host side, then answer.
    KeepAlive,
    /// The guest reset the flow: reset the host side and remove the flow.
    Reset,
    /// A timer gave up: send RST to the guest and reset the host side.
    Abort,
    /// Both directions are closed and nothing remains to be sent: remove the flow.
    Closed,
    /// Both directions are closed, but the guest may retransmit its FIN: replace the flow by a TIME-WAIT entry.
    TimeWait,
}

/// Parameters of a flow that follow from the link and the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// MSS that this side advertises, bytes.
    pub(crate) mss: u16,
    /// Largest payload of one segment to the guest, bytes, TCP options included: MTU less the fixed headers.
    pub(crate) segment_max: u16,
    /// MSS of a guest that sends no MSS option, bytes.
    pub(crate) mss_default: u16,
    /// The device takes super-frames of up to 64 KiB (TSO).
    pub(crate) offload: bool,
    /// Idle time before the first keep-alive probe.
    pub(crate) keepalive: Duration,
    /// Time without an answer from the guest after which the flow is aborted.
    pub(crate) user_timeout: Duration,
    /// Largest send queue, bytes.
    pub(crate) snd_target_max: usize,
    pub(crate) congestion: Algorithm,
}

/// MSS of a guest that announces none (RFC 9293 section 3.7.1), bytes.
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;

impl Link {
    /// Parameters that all flows of a family share.
    pub(crate) fn new(config: &ContainerConfig, ipv6: bool, wmem_max: u32) -> Self {
        let headers = if ipv6 { HEADERS_V6 } else { HEADERS_V4 };
        // The MTU bounds what is sent to the guest; the smaller advertised MSS bounds what it sends.
        let segment_max = config.mtu.saturating_sub(headers).max(1);
        // Without offload each segment is a frame: a full MSS keeps their number small.
        let mss = if config.offload { segment_max.min(OFFLOAD_MSS) } else { segment_max };
        Self {
            mss,
            segment_max,
            mss_default: if ipv6 { MSS_DEFAULT_V6 } else { MSS_DEFAULT_V4 },
            offload: config.offload,
            keepalive: config.keepalive,
            user_timeout: config.user_timeout,
            snd_target_max: wmem_max as usize,
            congestion: config.congestion,
        }
    }
}

/// State of a closed connection that is needed to answer the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeWaitEntry {
    pub(crate) snd_nxt: Seq,
    pub(crate) rcv_nxt: Seq,
    pub(crate) wnd: u16,
    /// Offset of our timestamp clock, and TS.Recent.
    pub(crate) ts: Option<(u32, u32)>,
}

/// Transmission control block: state of one TCP connection with the guest.
#[derive(Debug)]
pub(crate) struct Tcb {
    pub(crate) state: State,
    snd: Snd,
    rcv: Rcv,
    link: Link,
    /// Offset of the timestamp clock (RFC 7323 section 5.4), ms. `None`: timestamps are not in use.
    ts: Option<u32>,
    /// The guest permits SACK. True until the SYN is negotiated: this side offers SACK.
    sack: bool,
    ecn: ecn::Ecn,
    /// This side opened the connection, to a published port.
    active: bool,
    /// A SYN or SYN-ACK is to be sent, for the first time or again.
    syn_due: bool,
    /// A tail loss probe is to be sent.
    tail_probe_due: bool,
    /// The persist timer fired while the window was open but small: the next `output` fills this window all the same.
    force_small: bool,
    /// A zero-window or keep-alive probe is to be sent.
    probe_due: bool,
    /// When the last acceptable segment arrived.
    last_heard: Instant,
    /// When the guest's last keep-alive probe arrived.
    probed_at: Instant,
    /// Keep-alive probes sent since the last acceptable segment.
    keepalive_sent: u32,
    /// Timeouts since the last acceptable segment, and the time of the first of them.
    silent: u32,
    silent_since: Instant,
    /// When the last ACK for an unacceptable segment was sent (rate limit, `OOW_INTERVAL`).
    oow_at: Option<Instant>,
}

impl Tcb {
    /// A block for a SYN from the guest. It is answered only when the host side is connected.
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

    /// A block for a connection to a published port: this side opens towards the guest.
    pub(crate) fn active(link: Link, iss: Seq, ts_offset: u32, now: Instant) -> Self {
        let mut tcb = Self::new(link, State::SynSent, iss, now);
        tcb.ts = Some(ts_offset);
        tcb.syn_due = true;
        // Runs from the start, although the SYN may not leave yet: without a guest on the link the flow must time out,
        // too.
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
            active: state == State::SynSent,
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

    /// Takes the options of the guest's SYN or SYN-ACK. `ts_offset`: `None` if timestamps are not to be used. An option
    /// is in use when both ends sent it.
    fn negotiate(&mut self, options: &Options, ts_offset: Option<u32>, now: Instant) {
        self.ts = options.ts.and(ts_offset);
        // The first value of TS.Recent (RFC 7323 section 4.3); a SYN is always the newest segment.
        if let Some((tsval, _)) = options.ts {
            self.rcv.note_timestamp(tsval, now);
        }
        self.sack = options.sack_permitted;
        // RFC 7323 section 2.2: scaling is in use in both directions or in neither.
        match options.wscale {
            Some(shift) => self.snd.wscale = shift,
            None => self.rcv.wscale = 0,
        }
        let mss =
            options.mss.unwrap_or(self.link.mss_default).max(MSS_MIN).min(self.link.segment_max);
        // Timestamps ride on every segment (RFC 7323 section 3.2), so the send MSS excludes them for good.
        let ts_len = if self.ts.is_some() { 12 } else { 0 };
        self.snd.mss = u32::from(mss.saturating_sub(ts_len).max(1));
        // The initial window depends on the MSS (RFC 6928), which is known only now.
        self.snd.cc = congestion::Congestion::new(self.link.congestion, self.snd.mss, self.snd.iss);
    }

    /// The host side is connected: the next `output` sends the SYN-ACK.
    pub(crate) fn on_host_connected(&mut self) {
        if let Some(next) = self.state.next(Cause::HostConnected) {
            self.state = next;
            self.syn_due = true;
        }
    }

    /// The host's stream ended: a FIN follows the last byte.
    pub(crate) fn finish(&mut self) {
        self.snd.fin = true;
    }

    /// The host reset the connection: RST once the guest has acknowledged everything, FIN included. An earlier RST
    /// would make the guest's kernel discard the bytes it holds behind a hole.
    pub(crate) fn reset_when_acknowledged(&mut self) {
        self.snd.reset = true;
    }

    /// The RST of [`Self::reset_when_acknowledged`] is due now.
    pub(crate) fn reset_is_due(&self) -> bool {
        let snd = &self.snd;
        let acknowledged = snd.q.is_empty() && snd.board.outstanding() == 0;
        snd.reset && acknowledged && (!snd.fin || self.state == State::FinWait2)
    }

    /// TCP with the guest is over: frees unsent and unacknowledged data, data beyond a hole and the credit of the
    /// window. Bytes that arrived in order stay queued for the host.
    pub(crate) fn abandon(&mut self, mem: &mut MemCtx<'_>) {
        let unsent = self.snd.q.len();
        self.snd.q.acked(unsent, mem);
        self.rcv.q.drop_ofo(mem);
        self.rcv.q.close_to(0, mem);
    }

    /// The guest's stream ended and the host took every byte of it.
    pub(crate) fn drained(&self) -> bool {
        self.rcv.fin_taken && self.rcv.q.is_empty()
    }

    /// Bytes that may be queued for the guest now.
    pub(crate) fn send_room(&self, bound: FlowBound) -> usize {
        let ended = self.snd.fin || self.snd.reset;
        if !matches!(self.state, State::Established | State::CloseWait) || ended {
            return 0;
        }
        match (bound, self.snd.q.len()) {
            // One chunk is the reserve; after that only the free bytes of the tail chunk, which is charged already.
            (FlowBound::Reserve, 0) => PAYLOAD,
            (FlowBound::Reserve, _) => self.snd.q.tail_room(),
            (_, queued) => self.snd.target.saturating_sub(queued),
        }
    }

    /// The host took `n` in-order bytes: frees their chunks and lets the window follow. `queue_share`: bytes of the
    /// device queue for this flow, which bound its window.
    pub(crate) fn consume(&mut self, n: usize, queue_share: u64, mem: &mut MemCtx<'_>) {
        self.rcv.q.consume(n, mem);
        let window_max = self.window_max(queue_share, mem.budget);
        self.rcv.on_taken(n as u64, mem.budget, window_max);
    }

    /// Bound of the receive window, bytes. The whole window of a guest on this machine may be in the device queue at
    /// once, so the flow's share of that queue is the bound. Of a farther guest only the bytes of one loop turn
    /// ([`TURN_MS`]) are in the queue, so its window may be larger by the ratio of its round trip to a turn.
    fn window_max(&self, queue_share: u64, budget: &Budget) -> u64 {
        let far = self.snd.rack.min_rtt().as_millis() as u64 / TURN_MS;
        let most = u64::from(budget.sock_limits().rmem[2]);
        queue_share.saturating_mul(far.max(1)).min(most)
    }

    /// An RST that the guest accepts, for a flow that this side gives up.
    pub(crate) fn reset_segment(&self) -> Outgoing {
        Outgoing {
            // RCV.NXT of the guest if everything arrived. A SYN that was not answered has no sequence number of this
            // side: RST with SEQ 0 and ACK (RFC 9293 section 3.10.7.1).
            seq: if self.state == State::Connecting { Seq(0) } else { self.snd.nxt() },
            ack: self.rcv.nxt(),
            flags: Flags::RST_ACK,
            wnd: 0,
            options: Options::default(),
            mss: 0,
            ect: false,
        }
    }

    /// The ACK of the guest's FIN, sent once before a TIME-WAIT entry replaces the flow.
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

    /// The fields that the TIME-WAIT entry of this flow keeps.
    pub(crate) fn time_wait_entry(&self) -> TimeWaitEntry {
        TimeWaitEntry {
            snd_nxt: self.snd.nxt(),
            rcv_nxt: self.rcv.nxt(),
            wnd: self.rcv.window_field(),
            ts: self.ts.map(|offset| (offset, self.rcv.ts_recent)),
        }
    }

    /// Returns every chunk to the pool; the owner of the ledger releases the charge.
    pub(crate) fn clear(&mut self, pool: &mut ChunkPool) {
        self.rcv.q.clear(pool);
        self.snd.q.clear(pool);
    }

    /// Timestamp clock of this side at `now`: milliseconds plus the offset of the flow (RFC 7323 section 5.4).
    fn ts_now(&self, now: Instant) -> u32 {
        ack::ts_at(now, self.ts.unwrap_or(0))
    }
}
