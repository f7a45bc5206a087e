//! How much memory is kept free of growth for flows that are to come (H1).
//!
//! What parked SYNs are going to reserve is known. A guest that opens hundreds of connections may be interrupted at any
//! of them, though, and those it opened by then would fill the memory meanwhile, with bytes that nothing takes from
//! them again. So as many again as came a moment ago are expected, too, for as long as a moment lasts.

use std::time::Duration;

use skbudget_controller::{Budget, Instant};

use super::Container;

/// A moment. Two scheduler rounds of a busy machine; and a guest that opens a connection now and then is not held to
/// have more in mind.
const MOMENT: Duration = Duration::from_millis(100);

/// Flows that came in this moment and in the one before: SYNs and accepted connections.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    until: Instant,
    now: u64,
    before: u64,
}

impl Crowd {
    fn arrived(&mut self, now: Instant) {
        self.advance(now);
        self.now += 1;
    }

    fn advance(&mut self, now: Instant) {
        if now < self.until {
            return;
        }
        let follows = now < self.until + MOMENT;
        self.before = if follows { std::mem::take(&mut self.now) } else { 0 };
        self.now = 0;
        self.until = now + MOMENT;
    }

    fn expected(&self) -> u64 {
        self.now.max(self.before)
    }

    /// When fewer may be expected.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.expected() > 0).then_some(self.until)
    }
}

impl Container {
    /// A flow came, admitted already or not.
    pub(super) fn join_crowd(&mut self, budget: &mut Budget, now: Instant) {
        self.crowd.arrived(now);
        self.hold_for_admission(budget);
    }

    /// As time passes.
    pub(super) fn watch_crowd(&mut self, budget: &mut Budget, now: Instant) {
        if self.crowd.deadline().is_some_and(|at| at <= now) {
            self.crowd.advance(now);
            self.hold_for_admission(budget);
        }
    }

    pub(super) fn hold_for_admission(&self, budget: &mut Budget) {
        let flows = self.parked.len() as u64 + self.crowd.expected();
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
            crowd.arrived(Instant::from_millis(1000 + i / 2));
        }
        assert_eq!(crowd.expected(), 150);
        let ends = crowd.deadline().unwrap();
        crowd.advance(ends);
        assert_eq!(crowd.expected(), 150);
        crowd.arrived(ends);
        crowd.advance(crowd.deadline().unwrap());
        assert_eq!(crowd.expected(), 1);
        crowd.advance(crowd.deadline().unwrap());
        assert_eq!((crowd.expected(), crowd.deadline()), (0, None));
    }
}
