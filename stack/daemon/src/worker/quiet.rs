//! Reports a lasting failure when it starts, and then once a minute.

use std::time::Duration;

use skbudget_controller::Instant;

/// Interval between two reports of a failure that lasts.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// One kind of failure of one container.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    reported: Option<Instant>,
    left_out: u64,
}

impl Quiet {
    /// Records one occurrence. `Some` when it is to be reported: the number of occurrences not reported since the last
    /// one.
    pub(super) fn note(&mut self, now: Instant) -> Option<u64> {
        if self.reported.is_some_and(|at| now.since(at) < AGAIN_AFTER) {
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

    #[test]
    fn twenty_a_second_are_one_report_a_minute_with_their_number() {
        let mut quiet = Quiet::default();
        let reports: Vec<_> = (0..3600)
            .filter_map(|i| Some((i, quiet.note(Instant::from_millis(50 * i))?)))
            .collect();
        assert_eq!(reports, [(0, 0), (1200, 1199), (2400, 1199)]);
    }

    #[test]
    fn what_happens_seldom_is_always_reported() {
        let mut quiet = Quiet::default();
        for minute in 1..=5 {
            assert_eq!(quiet.note(Instant::from_millis(60_000 * minute)), Some(0));
        }
    }
}
