//! The receive half: the advertised edge, the window target and when to acknowledge.
//!
//! Strict rules: the edge moves only over slots that the budget charged (`RxQueue::open`), never backwards, and in
//! steps worth sending into (silly-window avoidance, RFC 9293 section 3.8.6.2.2). The target begins small and doubles
//! each time the host side has taken half a target's worth: the window follows what the host takes, soon enough for a
//! guest in slow start, which sends twice as much each round trip; and a flow whose host does not read keeps what it
//! began with. Under pressure the target does not grow.
//!
//! Linux rules: the window is `__tcp_select_window` over rcvbuf; a refused charge advertises zero and takes the edge
//! back (L6).

use std::time::Duration;

use skbudget_controller::{Budget, CHUNK_SIZE, Counter, Instant, Ledger, Rules};

use crate::chunk::PAYLOAD;
use crate::rxq::RxQueue;
use crate::seq::Seq;

/// A new flow's window: four chunks, about 10 segments of 1460 (pressure model B8).
pub(crate) const TARGET_INITIAL: u64 = 4 * 4032;
/// How long an ACK waits for a reply to ride on. The kernel waits 40 ms to spare a wire; this link is a system call.
const DELAYED_ACK: Duration = Duration::from_millis(4);

/// RFC 7323 section 5.5.
const TS_VALID: Duration = Duration::from_secs(24 * 86_400);

#[derive(Debug)]
pub(crate) struct Rcv {
    pub(crate) q: RxQueue,
    pub(crate) irs: Seq,
    /// Stream position of the advertised right edge.
    pub(crate) edge: u64,
    /// What the guest was last told of it.
    edge_sent: u64,
    /// Window field it was last told.
    said: u16,
    /// Shift of the windows we advertise.
    pub(crate) wscale: u8,
    /// MSS we advertised.
    pub(crate) mss: u32,
    /// Stream position of the guest's FIN, once seen.
    pub(crate) fin: Option<u64>,
    /// The FIN is in order: RCV.NXT stands behind it.
    pub(crate) fin_taken: bool,
    pub(crate) ts_recent: u32,
    /// When it came.
    ts_recent_at: Instant,
    pub(crate) ack_sent: Seq,
    /// Window in bytes the flow should have open.
    pub(crate) target: u64,
    /// Bytes the host took since `target` grew.
    taken: u64,
    /// Linux rules: rcv_ssthresh.
    pub(crate) ssthresh: u32,
    /// Linux rules: the last charge was refused; the next ACK advertises zero.
    nomem: bool,
    /// Bytes received since the last ACK.
    unacked: u32,
    pub(crate) ack_now: bool,
    pub(crate) delack_at: Option<Instant>,
    /// Replies follow requests: an ACK can ride on the reply.
    pub(crate) pingpong: bool,
    /// The host took data since the last window computation.
    pub(crate) moved: bool,
    /// What the guest sent twice: the first SACK block of the next ACK (RFC 2883 section 4).
    pub(crate) duplicate: Option<(Seq, Seq)>,
}

impl Rcv {
    pub(crate) fn new(mss: u32, wscale: u8) -> Self {
        Self {
            q: RxQueue::default(),
            irs: Seq(0),
            edge: 0,
            edge_sent: 0,
            said: 0,
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
            duplicate: None,
        }
    }

    /// RCV.NXT
    pub(crate) fn nxt(&self) -> Seq {
        self.irs + 1 + self.q.nxt() as u32 + u32::from(self.fin_taken)
    }

    /// RCV.WND: bytes the guest may still send.
    pub(crate) fn wnd(&self) -> u32 {
        (self.edge - self.q.nxt()) as u32
    }

    /// The window field of the next segment.
    pub(crate) fn window_field(&self) -> u16 {
        // Rounded down: the guest is never told more than is paid for. What it sends up to the true edge is taken.
        u16::try_from(self.wnd() >> self.wscale).unwrap_or(u16::MAX)
    }

    /// RFC 7323 section 5.3 R1: older than the last. After 24 days the clock may have come round, and nothing is known
    /// (section 5.5).
    pub(crate) fn is_stale(&self, tsval: u32, now: Instant) -> bool {
        Seq(tsval).lt(Seq(self.ts_recent)) && now.since(self.ts_recent_at) < TS_VALID
    }

    pub(crate) fn note_timestamp(&mut self, tsval: u32, now: Instant) {
        (self.ts_recent, self.ts_recent_at) = (tsval, now);
    }

    /// The host took `n` bytes.
    pub(crate) fn on_taken(&mut self, n: u64, budget: &Budget, target_max: u64) {
        self.moved = true;
        self.taken += n;
        if self.taken >= self.target / 2 {
            self.taken = 0;
            let doubled = if grows_by(budget, self.target) { self.target * 2 } else { self.target };
            self.target = doubled.min(target_max.max(TARGET_INITIAL));
        }
    }

    /// Without data for a while the flow begins small again; slots already advertised stay charged until demoted.
    pub(crate) fn on_idle(&mut self) {
        self.target = TARGET_INITIAL;
        self.taken = 0;
    }

    /// Moves the edge as far as target and budget allow. True: the flow wanted more than it was given.
    pub(crate) fn advance_edge(
        &mut self,
        budget: &mut Budget,
        ledger: &mut Ledger,
        now: Instant,
    ) -> bool {
        self.moved = false;
        if self.fin_taken {
            return false;
        }
        if budget.rules() == Rules::Linux {
            self.select_window(budget, ledger, now);
            return false;
        }
        let field_max = u64::from(u16::MAX) << self.wscale;
        // What the host did not take yet counts: the target bounds the whole queue, not what comes on top of it.
        // Under pressure nothing beyond the reserve is asked for (see `Tcb::send_room`).
        let (target, want) = if budget.under_pressure() {
            let reserve = ledger.rmem_min() / CHUNK_SIZE;
            (reserve * PAYLOAD as u64, self.q.room_within(reserve as usize))
        } else {
            (self.target, self.target.saturating_sub(self.q.unread()))
        };
        let want = want.min(field_max);
        let nxt = self.q.nxt();
        // Half of the target, not of what is left of it: a queue that is nearly full opens no window of a few bytes.
        let step = u64::from(self.mss).min(target / 2);
        if nxt + want < self.edge + step {
            return false;
        }
        let open = self.q.open(want, budget, ledger, now).min(want);
        if nxt + open >= self.edge + step {
            // Whole units of the scale, so that the field says exactly this edge.
            let unit = 1u64 << self.wscale;
            self.edge = self.edge.max(nxt + open / unit * unit);
        }
        open < want.min(u64::from(2 * self.mss))
    }

    fn select_window(&mut self, budget: &mut Budget, ledger: &mut Ledger, now: Instant) {
        let nxt = self.q.nxt();
        if self.nomem {
            self.edge = nxt;
            return;
        }
        let (pressure, arrived) = (budget.under_pressure(), self.unacked > 0);
        let picked = linux_window(ledger, self.mss, &mut self.ssthresh, pressure, arrived);
        let field_max = u64::from(u16::MAX) << self.wscale;
        let window = picked.min(field_max);
        // Never shrunk (tcp_select_window): what is open stays open.
        self.edge = self.edge.max(nxt + window);
        self.q.open(self.edge - nxt, budget, ledger, now);
    }

    /// Linux rules: memory for arriving data was refused.
    pub(crate) fn on_nomem(&mut self) {
        self.nomem = true;
        self.ack_now = true;
    }

    /// `len` bytes from `start` on came; those before RCV.NXT, or kept already, came twice. The first of a turn is
    /// told.
    pub(crate) fn note_duplicate(&mut self, start: Seq, len: usize) {
        let nxt = self.nxt();
        let end = start + len as u32;
        let offset = start.diff(nxt);
        let twice = if offset < 0 {
            Some((start, if end.gt(nxt) { nxt } else { end }))
        } else {
            let from = self.q.nxt() + u64::from(offset.unsigned_abs());
            self.q.has(from, from + len as u64).then_some((start, end))
        };
        self.duplicate = self.duplicate.or(twice);
    }

    /// Segment with data arrived and was taken (at least in part).
    pub(crate) fn on_data(&mut self, bytes: u32, in_order: bool, now: Instant) {
        self.unacked = self.unacked.saturating_add(bytes);
        // Linux rules take the edge back, perhaps behind what was kept beyond a hole.
        self.edge = self.edge.max(self.q.nxt());
        // RFC 5681 section 4.2: out of order, or filling a hole: at once. Every second full segment: at once.
        // Only in an exchange of requests and replies is an ACK held back.
        if !in_order || self.q.has_holes() || self.unacked >= 2 * self.mss || !self.pingpong {
            self.ack_now = true;
        } else if self.delack_at.is_none() {
            self.delack_at = Some(now + DELAYED_ACK);
        }
    }

    /// The delayed-ACK timer fired: the reply it waited for did not come.
    pub(crate) fn on_delack(&mut self) {
        self.delack_at = None;
        self.ack_now = true;
        self.pingpong = false;
    }

    /// Should a window update go out although nothing arrived? When the edge moved by enough to matter, or from a
    /// window the guest cannot send into.
    pub(crate) fn wants_update(&self) -> bool {
        let gained = self.edge.saturating_sub(self.edge_sent);
        if gained == 0 {
            return false;
        }
        let left = self.edge_sent.saturating_sub(self.q.nxt());
        gained >= (self.target / 2).max(u64::from(self.mss)) || left < u64::from(self.mss)
    }

    /// A segment with the ACK bit left.
    pub(crate) fn on_ack_sent(&mut self, with_data: bool) {
        if with_data && self.unacked > 0 {
            self.pingpong = true;
        }
        self.ack_sent = self.nxt();
        self.edge_sent = self.edge;
        self.said = self.window_field();
        self.unacked = 0;
        self.ack_now = false;
        self.delack_at = None;
        self.nomem = false;
        self.duplicate = None;
    }

    /// The window field of the last segment that left.
    pub(crate) fn window_said(&self) -> u16 {
        self.said
    }

    /// Counts what the window did between two segments, by the kernel's names.
    pub(crate) fn count_window(&self, before: u16, budget: &mut Budget, ledger: &Ledger) {
        let after = self.said;
        if before > 0 && after == 0 {
            budget.count(ledger.member(), Counter::TCPToZeroWindowAdv, 1);
        } else if before == 0 && after > 0 {
            budget.count(ledger.member(), Counter::TCPFromZeroWindowAdv, 1);
        }
    }
}

/// Autotuning takes at most a quarter of what is left before soft pressure begins: many flows take such steps at once,
/// and a container must not put itself under pressure by being fast.
pub(crate) fn grows_by(budget: &Budget, bytes: u64) -> bool {
    budget.calm_room() / 4 >= bytes
}

/// `__tcp_select_window` with a ratio of one half: free space clamped to rcv_ssthresh, nothing below one MSS.
fn linux_window(
    ledger: &Ledger,
    mss: u32,
    ssthresh: &mut u32,
    pressure: bool,
    arrived: bool,
) -> u64 {
    let full = u64::from(ledger.rcvbuf()) / 2;
    let free = u64::from(ledger.rcvbuf()).saturating_sub(ledger.rmem() + ledger.ofo()) / 2;
    if pressure {
        if free < full / 2 {
            *ssthresh = (*ssthresh).min(4 * mss);
        }
    } else if arrived && free > u64::from(*ssthresh) {
        // `tcp_grow_window`: data that came in full segments earns room for two more.
        *ssthresh += (2 * mss).min((free - u64::from(*ssthresh)) as u32);
    }
    if free < full / 16 || free < u64::from(mss) { 0 } else { free.min(u64::from(*ssthresh)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkPool;
    use crate::queue_tests::{NOW, SIZES};
    use crate::seeded::Setting;

    #[test]
    fn a_hole_filled_beyond_an_edge_that_was_taken_back_leaves_a_closed_window() {
        let mut budget = Setting::Linux.budget();
        let member = budget.add_member(0).unwrap();
        let now = NOW;
        let mut ledger = budget.admit(member, &SIZES, now).unwrap();
        let mut pool = ChunkPool::new();
        let mut rcv = Rcv::new(1460, 7);
        rcv.advance_edge(&mut budget, &mut ledger, now);
        let mut store = |rcv: &mut Rcv, offset, len| {
            let stored =
                rcv.q.store(offset, &vec![0; len], &mut pool, &mut budget, &mut ledger, now);
            rcv.on_data(len as u32, stored.advanced > 0, now);
        };
        store(&mut rcv, 9000, 1000);
        // Refused memory takes the edge back; it opens again, but not as far as what was kept behind the hole.
        rcv.edge = 9500;
        store(&mut rcv, 0, 9000);
        assert_eq!((rcv.q.nxt(), rcv.wnd(), rcv.window_field()), (10_000, 0, 0));
        rcv.q.clear(&mut pool);
        budget.release(ledger, now);
    }
}
