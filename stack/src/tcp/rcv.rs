//! Receive half: the advertised edge, the window target and when to acknowledge.
//!
//! Strict rules: the edge moves only over slots that the budget charged ([`RxQueue::open`]), never back, and in steps
//! worth a segment (silly-window avoidance, RFC 9293 section 3.8.6.2.2). The target starts small and doubles each time
//! the host side has taken half of it: the window follows the rate at which the host reads, fast enough for a guest in
//! slow start, which doubles its rate each round trip. A flow with a host that does not read keeps its first window.
//! Under pressure the target does not grow.
//!
//! Linux rules: the window follows rcvbuf, and a refused charge moves the edge back (`linux.rs`).

mod linux;

use std::time::Duration;

use skbudget_controller::{Budget, CHUNK_SIZE, Counter, Instant, Rules};

use crate::pressure::{FlowBound, Throttle};
use crate::queue::MemCtx;
use crate::queue::chunk::PAYLOAD;
use crate::queue::receive::RxQueue;
use crate::wire::seq::Seq;

/// Window of a new flow, bytes: four chunks, about 10 segments of 1460 (B8).
pub(crate) const TARGET_INITIAL: u64 = 4 * 4032;
/// How long an ACK waits for a reply that can carry it. The kernel waits 40 ms to save a frame on a wire; here a frame
/// costs one system call.
const DELAYED_ACK: Duration = Duration::from_millis(4);

/// Validity of TS.Recent (RFC 7323 section 5.5).
const TS_VALID: Duration = Duration::from_secs(24 * 86_400);

/// Receive variables of a flow.
#[derive(Debug)]
pub(crate) struct Rcv {
    /// Received data: in order up to RCV.NXT and out of order beyond it.
    pub(crate) q: RxQueue,
    /// The guest's initial sequence number.
    pub(crate) irs: Seq,
    /// Stream position of the advertised right edge.
    pub(crate) edge: u64,
    /// The edge in the last segment that left.
    edge_sent: u64,
    /// Window field of the last segment that left.
    advertised_field: u16,
    /// Shift of the windows that this side advertises.
    pub(crate) wscale: u8,
    /// MSS that this side advertised, bytes.
    pub(crate) mss: u32,
    /// Stream position of the guest's FIN, once it arrived.
    pub(crate) fin: Option<u64>,
    /// The FIN is in order: RCV.NXT is beyond it.
    pub(crate) fin_taken: bool,
    /// TS.Recent (RFC 7323), and when it was set.
    pub(crate) ts_recent: u32,
    ts_recent_at: Instant,
    /// Last.ACK.sent (RFC 7323).
    pub(crate) ack_sent: Seq,
    /// Window that the flow is to have open, bytes.
    pub(crate) target: u64,
    /// Bytes that the host took since `target` last grew.
    taken: u64,
    /// Linux rules: `rcv_ssthresh`.
    pub(crate) ssthresh: u32,
    /// Linux rules: the last charge was refused; the next ACK advertises a zero window.
    nomem: bool,
    /// Bytes received since the last ACK left.
    unacked: u32,
    /// An ACK is to be sent in this turn.
    pub(crate) ack_now: bool,
    /// When the delayed ACK is due.
    pub(crate) delack_at: Option<Instant>,
    /// Replies follow requests, so an ACK can be carried by the reply.
    pub(crate) pingpong: bool,
    /// The host took data since the window was last computed.
    pub(crate) moved: bool,
    /// Segments that were dropped, at least in part, because no memory was granted for them.
    pub(crate) drops: u32,
    /// Range that arrived twice: the first SACK block of the next ACK (RFC 2883 section 4).
    pub(crate) duplicate: Option<(Seq, Seq)>,
}

impl Rcv {
    pub(crate) fn new(mss: u32, wscale: u8) -> Self {
        Self {
            q: RxQueue::default(),
            irs: Seq(0),
            edge: 0,
            edge_sent: 0,
            advertised_field: 0,
            wscale,
            mss,
            fin: None,
            fin_taken: false,
            ts_recent: 0,
            ts_recent_at: Instant(0),
            ack_sent: Seq(0),
            target: TARGET_INITIAL,
            taken: 0,
            ssthresh: 65_535,
            nomem: false,
            unacked: 0,
            ack_now: false,
            delack_at: None,
            pingpong: false,
            moved: false,
            drops: 0,
            duplicate: None,
        }
    }

    /// RCV.NXT
    pub(crate) fn nxt(&self) -> Seq {
        self.irs + 1 + self.q.nxt() as u32 + u32::from(self.fin_taken)
    }

    /// RCV.WND: bytes that the guest may still send.
    pub(crate) fn wnd(&self) -> u32 {
        (self.edge - self.q.nxt()) as u32
    }

    /// Window field of the next segment.
    pub(crate) fn window_field(&self) -> u16 {
        // Rounded down: never more than is charged. Data up to the exact edge is accepted.
        u16::try_from(self.wnd() >> self.wscale).unwrap_or(u16::MAX)
    }

    /// PAWS, RFC 7323 section 5.3 R1: `tsval` is older than TS.Recent. TS.Recent expires after 24 days, because the
    /// clock may have wrapped (section 5.5).
    pub(crate) fn is_stale(&self, tsval: u32, now: Instant) -> bool {
        Seq(tsval).lt(Seq(self.ts_recent)) && now.since(self.ts_recent_at) < TS_VALID
    }

    /// Sets TS.Recent.
    pub(crate) fn note_timestamp(&mut self, tsval: u32, now: Instant) {
        (self.ts_recent, self.ts_recent_at) = (tsval, now);
    }

    /// The host took `n` bytes: the window may follow, and the target may grow up to `target_max`.
    pub(crate) fn on_taken(&mut self, n: u64, budget: &Budget, target_max: u64) {
        self.moved = true;
        self.taken += n;
        if self.taken >= self.target / 2 {
            self.taken = 0;
            let grows = budget.may_grow(self.target);
            let doubled = if grows { self.target * 2 } else { self.target };
            self.target = doubled.min(target_max.max(TARGET_INITIAL));
        }
    }

    /// The flow was idle for a while: it starts with a small window again. Slots that were advertised stay charged
    /// until the flow is demoted (H3).
    pub(crate) fn on_idle(&mut self) {
        self.target = TARGET_INITIAL;
        self.taken = 0;
    }

    /// Moves the edge as far as target and budget allow. Returns true if the budget granted less than the flow wanted.
    pub(crate) fn advance_edge(&mut self, mem: &mut MemCtx<'_>) -> bool {
        self.moved = false;
        // No byte can follow the FIN.
        if self.fin_taken {
            return false;
        }
        if mem.budget.rules() == Rules::Linux {
            self.select_window(mem);
            return false;
        }
        let field_max = u64::from(u16::MAX) << self.wscale;
        let (target, want) = match Throttle::of(mem.budget).window {
            FlowBound::Reserve => {
                // Only data that was passed to a sibling leaves such a queue.
                self.q.rebase_if_empty(mem);
                let reserve = mem.ledger.rmem_min() / CHUNK_SIZE;
                (reserve * PAYLOAD as u64, self.q.room_within(reserve as usize))
            }
            // The target bounds the whole queue, so bytes that the host has not taken yet count.
            _ => (self.target, self.target.saturating_sub(self.q.unread())),
        };
        let want = want.min(field_max);
        let nxt = self.q.nxt();
        // Half of the target, not of the bytes that remain: a nearly full queue opens no window of a few bytes.
        let step = u64::from(self.mss).min(target / 2);
        // RFC 9293 section 3.8.6.2.2: the edge stays until it can move by a whole step.
        if nxt + want < self.edge + step {
            return false;
        }
        let open = self.q.open(want, mem).min(want);
        // The budget may grant less than was requested, so the step is checked again.
        if nxt + open >= self.edge + step {
            // A whole multiple of the scale's unit, so that the field represents this edge exactly.
            let unit = 1u64 << self.wscale;
            self.edge = self.edge.max(nxt + open / unit * unit);
        }
        // Short of two segments' worth: the guest would be held up, so the caller waits for memory.
        open < want.min(u64::from(2 * self.mss))
    }

    /// `len` bytes from `start` on arrived. Records the bytes below RCV.NXT or stored already as a duplicate; the first
    /// duplicate of a turn is reported.
    pub(crate) fn note_duplicate(&mut self, start: Seq, len: usize) {
        let nxt = self.nxt();
        let end = start + len as u32;
        let offset = start.diff(nxt);
        // Below RCV.NXT the duplicate ends there; beyond it only a range that is stored completely counts.
        let twice = if offset < 0 {
            Some((start, if end.gt(nxt) { nxt } else { end }))
        } else {
            let from = self.q.nxt() + u64::from(offset.unsigned_abs());
            self.q.has(from, from + len as u64).then_some((start, end))
        };
        self.duplicate = self.duplicate.or(twice);
    }

    /// A segment with data arrived, and at least a part of it was stored.
    pub(crate) fn on_data(&mut self, bytes: u32, in_order: bool, now: Instant) {
        self.unacked = self.unacked.saturating_add(bytes);
        // Linux rules: the edge may have moved back below data stored beyond a hole, which is in order now.
        self.edge = self.edge.max(self.q.nxt());
        // RFC 5681 section 4.2: out of order or filling a hole, at once; every second full segment, at once. An ACK is
        // delayed only in an exchange of requests and replies.
        if !in_order || self.q.has_holes() || self.unacked >= 2 * self.mss || !self.pingpong {
            self.ack_now = true;
        } else if self.delack_at.is_none() {
            self.delack_at = Some(now + DELAYED_ACK);
        }
    }

    /// The delayed-ACK timer fired: no reply carried the ACK, so the exchange of requests and replies is over.
    pub(crate) fn on_delack(&mut self) {
        self.delack_at = None;
        self.ack_now = true;
        self.pingpong = false;
    }

    /// A window update is due although nothing arrived: the edge moved by a step, or the guest cannot send a segment
    /// into the window it knows.
    pub(crate) fn wants_update(&self) -> bool {
        let gained = self.edge.saturating_sub(self.edge_sent);
        if gained == 0 {
            return false;
        }
        // The window that the guest knows, less the data received since.
        let left = self.edge_sent.saturating_sub(self.q.nxt());
        gained >= (self.target / 2).max(u64::from(self.mss)) || left < u64::from(self.mss)
    }

    /// A segment with ACK left, with or without data.
    pub(crate) fn on_ack_sent(&mut self, with_data: bool) {
        // Data that leaves together with a pending ACK is a reply to a request.
        if with_data && self.unacked > 0 {
            self.pingpong = true;
        }
        self.ack_sent = self.nxt();
        self.edge_sent = self.edge;
        self.advertised_field = self.window_field();
        self.unacked = 0;
        self.ack_now = false;
        self.delack_at = None;
        self.nomem = false;
        self.duplicate = None;
    }

    /// Window field of the last segment that left.
    pub(crate) fn advertised_field(&self) -> u16 {
        self.advertised_field
    }

    /// Counts windows that closed or opened between two segments, by the kernel's names. `before`: the field of the
    /// earlier one.
    pub(crate) fn count_window(&self, before: u16, mem: &mut MemCtx<'_>) {
        let after = self.advertised_field;
        if before > 0 && after == 0 {
            mem.count(Counter::TCPToZeroWindowAdv, 1);
        } else if before == 0 && after > 0 {
            mem.count(Counter::TCPFromZeroWindowAdv, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::chunk::ChunkPool;
    use crate::queue::tests::{NOW, SIZES};
    use crate::test_budget::Setting;

    #[test]
    fn a_hole_filled_beyond_an_edge_that_was_taken_back_leaves_a_closed_window() {
        let mut budget = Setting::Linux.budget();
        let member = budget.add_member(0).unwrap();
        let now = NOW;
        let mut ledger = budget.admit(member, &SIZES, now).unwrap();
        let mut pool = ChunkPool::new();
        let mut rcv = Rcv::new(1460, 7);
        let mut mem = MemCtx { now, budget: &mut budget, pool: &mut pool, ledger: &mut ledger };
        rcv.advance_edge(&mut mem);
        let mut store = |rcv: &mut Rcv, offset, len| {
            let stored = rcv.q.store(offset, &vec![0; len], &mut mem);
            rcv.on_data(len as u32, stored.advanced > 0, now);
        };
        store(&mut rcv, 9000, 1000);
        // Refused memory moves the edge back; it opens again, but not as far as the data beyond the hole.
        rcv.edge = 9500;
        store(&mut rcv, 0, 9000);
        assert_eq!((rcv.q.nxt(), rcv.wnd(), rcv.window_field()), (10_000, 0, 0));
        rcv.q.clear(&mut pool);
        budget.release(ledger, now);
    }
}
