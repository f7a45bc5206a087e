//! Room that is held back from growth for flows that are about to arrive (H1).
//!
//! The reservations of queued SYNs are known. But a guest that opens hundreds of connections may be interrupted in the
//! middle, and the flows opened by then would fill the memory with bytes that cannot be reclaimed. So for one period
//! the stack expects as many flows again as arrived in the last period.

use std::time::Duration;

use skbudget_controller::{Budget, Instant};

use super::Container;

/// The period: two scheduler rounds of a busy machine. Short enough that a guest that opens a connection now and then
/// is not expected to open more.
const MOMENT: Duration = Duration::from_millis(100);

/// Arrivals in this period and in the one before: SYNs and accepted connections.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    until: Instant,
    now: u64,
    before: u64,
}

impl Crowd {
    fn arrive(&mut self, now: Instant) {
        self.advance(now);
        self.now += 1;
    }

    fn advance(&mut self, now: Instant) {
        if now < self.until {
            return;
        }
        // After a gap of a whole period or more, the old count no longer predicts anything.
        let follows = now < self.until + MOMENT;
        self.before = if follows { std::mem::take(&mut self.now) } else { 0 };
        self.now = 0;
        self.until = now + MOMENT;
    }

    fn expected(&self) -> u64 {
        self.now.max(self.before)
    }

    /// When the expectation may fall.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.expected() > 0).then_some(self.until)
    }
}

impl Container {
    /// Counts a flow that arrived, whether or not it is admitted yet.
    pub(super) fn join_crowd(&mut self, budget: &mut Budget, now: Instant) {
        self.admission.crowd.arrive(now);
        self.hold_for_admission(budget);
    }

    /// Lowers the expectation as time passes.
    pub(super) fn watch_crowd(&mut self, budget: &mut Budget, now: Instant) {
        if self.admission.crowd.deadline().is_some_and(|at| at <= now) {
            self.admission.crowd.advance(now);
            self.hold_for_admission(budget);
        }
    }

    /// Sets the room that the budget holds back from growth: a reservation for each queued and each expected flow.
    pub(super) fn hold_for_admission(&self, budget: &mut Budget) {
        let flows = self.admission.backlog.len() as u64 + self.admission.crowd.expected();
        budget.hold_for_admission(self.member, flows * self.config.sizes.total());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_expected_as_came_a_moment_ago_and_none_after_two() {
        let mut crowd = Crowd::default();
        assert_eq!((crowd.expected(), crowd.deadline()), (0, None));
        for i in 0..150 {
            crowd.arrive(Instant::from_millis(1000 + i / 2));
        }
        assert_eq!(crowd.expected(), 150);
        let ends = crowd.deadline().unwrap();
        crowd.advance(ends);
        assert_eq!(crowd.expected(), 150);
        crowd.arrive(ends);
        crowd.advance(crowd.deadline().unwrap());
        assert_eq!(crowd.expected(), 1);
        crowd.advance(crowd.deadline().unwrap());
        assert_eq!((crowd.expected(), crowd.deadline()), (0, None));
    }
}
