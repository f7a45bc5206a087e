//! When is what was not acknowledged lost? RACK (RFC 8985 section 6): when something that left later has arrived and
//! the time by which packets may overtake each other has passed. One rule covers the first hole, the last one, lost
//! retransmissions and links that reorder; counting duplicates (RFC 6675) covers the first only.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::seq::Seq;
use crate::tcp::board::{Board, Run};

/// RFC 8985 section 6.2 step 4: how many recoveries a widened window outlives.
const PERSIST: u8 = 16;
/// The window grows to a round trip at most, in quarters of the smallest (same place): no more makes a difference.
const MULT_MAX: u8 = 64;
/// How long a smallest round trip counts.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rack {
    /// Of what arrived, what was sent last: when, and where it ends.
    at: Instant,
    end: Seq,
    /// Its round trip.
    rtt: Duration,
    /// Highest sequence number that arrived.
    fack: Seq,
    /// Something sent once arrived after what was sent later.
    reordering: bool,
    /// Quarters of the smallest round trip in the reordering window, and recoveries until it is one again.
    mult: u8,
    persist: u8,
    /// The window was widened in the round that ends here (one step a round).
    dsack_round: Option<Seq>,
    min_rtt: MinRtt,
}

impl Rack {
    pub(crate) fn new(iss: Seq) -> Self {
        Self {
            at: Instant(0),
            end: iss,
            rtt: Duration::ZERO,
            fack: iss,
            reordering: false,
            mult: 1,
            persist: 0,
            dsack_round: None,
            min_rtt: MinRtt::default(),
        }
    }

    /// The smallest round trip of the last minutes; zero before the first.
    pub(crate) fn min_rtt(&self) -> Duration {
        self.min_rtt.least().unwrap_or_default()
    }

    /// Steps 1 to 3: `run` arrived. `before_resent`: the guest's timestamp shows that it answers something older than
    /// the retransmission. Returns a round trip that is not ambiguous.
    pub(crate) fn on_arrival(
        &mut self,
        run: Run,
        now: Instant,
        before_resent: impl FnOnce(Instant) -> bool,
    ) -> Option<Duration> {
        let rtt = now.since(run.at);
        if run.again {
            // Step 2: an answer sooner than any yet, or to an older segment, is to the original.
            if before_resent(run.at) || self.min_rtt.least().is_some_and(|min| rtt < min) {
                return None;
            }
        } else if !run.mixed {
            self.min_rtt.on_sample(rtt, now);
        }
        if self.sent_before(run.at, run.end) {
            // Sent later than anything that arrived so far.
            (self.at, self.end, self.rtt) = (run.at, run.end, rtt);
        }
        if run.end.gt(self.fack) {
            self.fack = run.end;
        } else if run.end.lt(self.fack) && !run.again {
            self.reordering = true;
        }
        (!run.again && !run.mixed).then_some(rtt)
    }

    /// What arrived last was sent before this.
    fn sent_before(&self, at: Instant, end: Seq) -> bool {
        at > self.at || (at == self.at && end.gt(self.end))
    }

    /// Step 4: the guest had a segment twice, so one was sent again for nothing. Once a round.
    pub(crate) fn on_duplicate(&mut self, una: Seq, nxt: Seq) {
        if self.dsack_round.is_some_and(|round| una.lt(round)) {
            return;
        }
        self.dsack_round = Some(nxt);
        self.mult = (self.mult + 1).min(MULT_MAX);
        self.persist = PERSIST;
    }

    /// A recovery ended.
    pub(crate) fn on_recovered(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.mult = 1;
        }
    }

    /// Step 4: how much later than its successor a packet may come. `sure`: in recovery, or the guest has three
    /// segments and more behind the hole; then nothing is waited for unless this path is known to reorder.
    fn window(&self, srtt: Duration, sure: bool) -> Duration {
        if sure && !self.reordering {
            return Duration::ZERO;
        }
        let quarter = self.min_rtt.least().unwrap_or(srtt) / 4;
        (quarter * u32::from(self.mult)).min(srtt)
    }

    /// Step 5: marks what is lost; its bytes, and how long until more may be.
    pub(crate) fn detect(
        &self,
        board: &mut Board,
        srtt: Duration,
        sure: bool,
        now: Instant,
    ) -> (u32, Option<Duration>) {
        let wait = self.rtt + self.window(srtt, sure);
        let mut more: Option<Duration> = None;
        let lost = board.lose(|run| {
            if self.sent_before(run.at, run.end) || (run.at, run.end) == (self.at, self.end) {
                return false;
            }
            let due = run.at + wait;
            if due <= now {
                return true;
            }
            more = more.max(Some(due.since(now)));
            false
        });
        (lost, more)
    }

    /// Section 6.3, on a timeout: the first segment and what was sent a round trip and more ago.
    pub(crate) fn detect_on_timeout(&self, board: &mut Board, srtt: Duration, now: Instant) {
        let wait = self.rtt + self.window(srtt, false);
        let mut first = true;
        board.lose(|run| std::mem::take(&mut first) || run.at + wait <= now);
    }
}

/// The smallest of the last five to ten minutes, in two halves.
#[derive(Debug, Clone, Copy, Default)]
struct MinRtt {
    now: Option<Duration>,
    before: Option<Duration>,
    since: Instant,
}

impl MinRtt {
    fn on_sample(&mut self, rtt: Duration, now: Instant) {
        if now.since(self.since) > MIN_RTT_WINDOW {
            (self.before, self.now, self.since) = (self.now, None, now);
        }
        self.now = Some(self.now.map_or(rtt, |least| least.min(rtt)));
    }

    fn least(&self) -> Option<Duration> {
        match (self.now, self.before) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}
