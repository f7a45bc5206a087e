//! CPU throttle of a container that shares a thread with others.
//!
//! Under pressure a container moves its bytes in the smallest pieces, on hundreds of flows at once, and takes the whole
//! thread. CPU time is not buffer memory, but the containers beside it notice its loss alike. So, while another
//! container is active, a container under pressure pauses after each turn for a multiple of the CPU time of that turn
//! (`Throttle::pause_factor`). Only its own throughput falls.
//!
//! The memory budget does not limit the rate of new connections: a connection costs a dozen system calls before it
//! holds a byte, and a refused one is closed after them. So, while another container is active, each connection pauses
//! further admissions of the container for a fixed time. Its established flows run on.

use std::time::Duration;

use skbudget_controller::Instant;

/// Shorter turns cause no pause: a pause costs a wake-up at its end, which is worth more than such a turn.
const TURN_LEAST: Duration = Duration::from_micros(5);
/// Longest pause: bounds the latency that the throttle adds to a flow.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// Pause of admissions for each connection: at most 6,600 connections a second, a tenth of a core.
const PAUSE_PER_CONNECT: Duration = Duration::from_micros(150);

/// A container that did not run for this time does not count as an active neighbour.
const NEIGHBOUR_FOR: Duration = Duration::from_millis(10);

/// The container that ran last, and the last one before it that is another.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    last: Option<(usize, Instant)>,
    other: Option<(usize, Instant)>,
}

impl Neighbours {
    /// Records that a container ran.
    pub(super) fn ran(&mut self, container: usize, now: Instant) {
        if self.last.is_some_and(|(last, _)| last != container) {
            self.other = self.last;
        }
        self.last = Some((container, now));
    }

    /// The pause of a container that is under pressure and ran for this time: `factor` times that; `None`: it may run
    /// on.
    pub(super) fn pause(
        &self,
        container: usize,
        turn: Duration,
        factor: u32,
        now: Instant,
    ) -> Option<Duration> {
        let pauses = turn >= TURN_LEAST && self.beside_a_neighbour(container, now);
        pauses.then(|| (turn * factor).min(PAUSE_MAX))
    }

    /// The pause of admissions of a container after a turn with this number of connects; `None`: none is needed.
    pub(super) fn admission_pause(
        &self,
        container: usize,
        connects: u32,
        now: Instant,
    ) -> Option<Duration> {
        (connects > 0 && self.beside_a_neighbour(container, now))
            .then(|| PAUSE_PER_CONNECT * connects)
    }

    /// Whether another container ran lately. Two entries suffice: `last` and `other` are never the same container.
    fn beside_a_neighbour(&self, container: usize, now: Instant) -> bool {
        let neighbour =
            [self.last, self.other].into_iter().flatten().find(|(other, _)| *other != container);
        neighbour.is_some_and(|(_, at)| now.since(at) < NEIGHBOUR_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn only_beside_a_neighbour_at_work_and_never_long() {
        let mut neighbours = Neighbours::default();
        neighbours.ran(1, Instant(MS));
        neighbours.ran(1, Instant(2 * MS));
        assert_eq!(
            neighbours.pause(1, Duration::from_millis(1), 8, Instant(2 * MS)),
            None,
            "alone"
        );
        neighbours.ran(2, Instant(3 * MS));
        neighbours.ran(1, Instant(4 * MS));
        neighbours.ran(1, Instant(5 * MS));
        let pause = |us, at| neighbours.pause(1, Duration::from_micros(us), 8, Instant(at));
        assert_eq!(pause(100, 5 * MS), Some(Duration::from_micros(800)));
        assert_eq!(pause(1, 5 * MS), None, "turn too short");
        assert_eq!(pause(100_000, 5 * MS), Some(PAUSE_MAX));
        assert_eq!(pause(1000, 13 * MS), None, "neighbour idle");
    }

    #[test]
    fn connections_are_paid_for_beside_a_neighbour_at_work() {
        let mut neighbours = Neighbours::default();
        neighbours.ran(1, Instant(MS));
        assert_eq!(neighbours.admission_pause(1, 2, Instant(MS)), None, "alone");
        neighbours.ran(2, Instant(2 * MS));
        neighbours.ran(1, Instant(3 * MS));
        let pause = |connects, at| neighbours.admission_pause(1, connects, Instant(at));
        assert_eq!(pause(2, 3 * MS), Some(2 * PAUSE_PER_CONNECT));
        assert_eq!(pause(0, 3 * MS), None);
        assert_eq!(pause(2, 12 * MS), None, "neighbour idle");
    }
}
