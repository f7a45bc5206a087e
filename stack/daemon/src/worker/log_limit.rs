//! Reports what happens often when it starts, and then once an interval, with the number of times between.

use std::time::Duration;

use skbudget_controller::Instant;

/// Rate limit of one kind of log line of one container or budget.
#[derive(Debug)]
pub(super) struct LogLimit {
    interval: Duration,
    reported: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// Permits one report in each interval.
    pub(super) fn every(interval: Duration) -> Self {
        Self { interval, reported: None, left_out: 0 }
    }

    /// Records one occurrence. `Some` when it is to be reported: the number of occurrences not reported since the last
    /// one.
    pub(super) fn note(&mut self, now: Instant) -> Option<u64> {
        if self.reported.is_some_and(|at| now.since(at) < self.interval) {
            self.left_out += 1;
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn twenty_a_second_are_one_report_a_minute_with_their_number() {
        let mut limit = LogLimit::every(MINUTE);
        let reports: Vec<_> = (0..3600)
            .filter_map(|i| Some((i, limit.note(Instant::from_millis(50 * i))?)))
            .collect();
        assert_eq!(reports, [(0, 0), (1200, 1199), (2400, 1199)]);
    }

    #[test]
    fn what_happens_seldom_is_always_reported() {
        let mut limit = LogLimit::every(MINUTE);
        for minute in 1..=5 {
            assert_eq!(limit.note(Instant::from_millis(60_000 * minute)), Some(0));
        }
    }
}
