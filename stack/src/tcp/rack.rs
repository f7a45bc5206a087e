//! RACK loss detection (RFC 8985 section 6): data is lost when something sent later has arrived and the reordering
//! window has passed. One rule covers the first hole, the last one, lost retransmissions and links that reorder;
//! counting duplicate ACKs (RFC 6675) covers only the first.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::tcp::scoreboard::{Run, Scoreboard};
use crate::wire::seq::Seq;

/// Recoveries that a widened reordering window outlives (RFC 8985 section 6.2 step 4).
const PERSIST: u8 = 16;
/// Largest reordering window, in quarters of the smallest round trip. RFC 8985 bounds the window by SRTT, so a larger
/// multiple has no effect.
const MULT_MAX: u8 = 64;
/// Least time for which a smallest round trip counts.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(300);

/// RACK state of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rack {
    /// RACK.xmit_ts and RACK.end_seq: when the most recently sent of the delivered runs left, and where it ends.
    at: Instant,
    end: Seq,
    /// RACK.rtt: the round trip of this run.
    rtt: Duration,
    /// RACK.fack: highest sequence number that arrived.
    fack: Seq,
    /// RACK.reordering_seen: a run sent once arrived after a higher one.
    reordering: bool,
    /// RACK.reo_wnd_mult, in quarters of the smallest round trip, and RACK.reo_wnd_persist: recoveries until it is 1
    /// again.
    mult: u8,
    persist: u8,
    /// RACK.dsack_round: SND.NXT when the window was last widened (one step per round trip).
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

    /// The smallest round trip of the last minutes; zero before the first sample.
    pub(crate) fn min_rtt(&self) -> Duration {
        self.min_rtt.least().unwrap_or_default()
    }

    /// Steps 1 to 3: `run` arrived. `before_resent`: returns true if the guest's echo is older than a transmission at
    /// the given time. Returns the round trip if it is unambiguous.
    pub(crate) fn on_arrival(
        &mut self,
        run: Run,
        now: Instant,
        before_resent: impl FnOnce(Instant) -> bool,
    ) -> Option<Duration> {
        let rtt = now.since(run.at);
        if run.again {
            // Step 2: an answer faster than any before, or with an older echo, is to the original, so it proves nothing
            // about the retransmission.
            if before_resent(run.at) || self.min_rtt.least().is_some_and(|min| rtt < min) {
                return None;
            }
        } else if !run.mixed {
            // Not for a mixed run: it appears faster than it was; the minimum would keep that error for minutes.
            self.min_rtt.on_sample(rtt, now);
        }
        if self.sent_before(run.at, run.end) {
            // Sent later than everything that arrived before.
            (self.at, self.end, self.rtt) = (run.at, run.end, rtt);
        }
        // Step 3: a run below the highest one arrived and was never retransmitted, so the network reordered.
        if run.end.gt(self.fack) {
            self.fack = run.end;
        } else if run.end.lt(self.fack) && !run.again {
            self.reordering = true;
        }
        (!run.again && !run.mixed).then_some(rtt)
    }

    /// A transmission at `at` that ends at `end` is later than the most recently sent one that arrived. The sequence
    /// number decides within one instant.
    fn sent_before(&self, at: Instant, end: Seq) -> bool {
        at > self.at || (at == self.at && end.gt(self.end))
    }

    /// Step 4: a DSACK shows a spurious retransmission, so the reordering window was too small. Widens it once per
    /// round trip.
    pub(crate) fn on_duplicate(&mut self, una: Seq, nxt: Seq) {
        if self.dsack_round.is_some_and(|round| una.lt(round)) {
            return;
        }
        self.dsack_round = Some(nxt);
        self.mult = (self.mult + 1).min(MULT_MAX);
        self.persist = PERSIST;
    }

    /// A recovery ended: a widened window shrinks after [`PERSIST`] of them.
    pub(crate) fn on_recovered(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.mult = 1;
        }
    }

    /// Step 4, the reordering window: how much later than its successor a run may arrive. `sure`: in recovery, or three
    /// segments are SACKed; the window is then zero unless the path has reordered before.
    fn window(&self, srtt: Duration, sure: bool) -> Duration {
        if sure && !self.reordering {
            return Duration::ZERO;
        }
        let quarter = self.min_rtt.least().unwrap_or(srtt) / 4;
        (quarter * u32::from(self.mult)).min(srtt)
    }

    /// Step 5: marks lost runs. Returns their bytes, and the time until a further run may be lost.
    pub(crate) fn detect(
        &self,
        board: &mut Scoreboard,
        srtt: Duration,
        sure: bool,
        now: Instant,
    ) -> (u32, Option<Duration>) {
        let wait = self.rtt + self.window(srtt, sure);
        let mut more: Option<Duration> = None;
        let lost = board.mark_lost(|run| {
            // Sent after the most recently sent one that arrived: nothing is known about it.
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

    /// RFC 8985 section 6.3, at a timeout: the first run is lost, and so are all that are older than a round trip and
    /// the reordering window.
    pub(crate) fn detect_on_timeout(&self, board: &mut Scoreboard, srtt: Duration, now: Instant) {
        let wait = self.rtt + self.window(srtt, false);
        let mut first = true;
        board.mark_lost(|run| std::mem::take(&mut first) || run.at + wait <= now);
    }
}

/// The smallest round trip of the last five to ten minutes, kept in two halves.
#[derive(Debug, Clone, Copy, Default)]
struct MinRtt {
    /// Minimum of the current half.
    now: Option<Duration>,
    /// Minimum of the half before.
    before: Option<Duration>,
    /// Start of the current half.
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
