//! CPU is not buffer memory, but the neighbours feel it alike: a container at its soft limit moves its bytes in the
//! smallest pieces, hundreds of flows at once, and would take the whole thread for it. So beside neighbours who are at
//! work it rests after each turn for eight times as long as the turn took. It pays with its own speed.
//!
//! A connection is a dozen system calls before it has a byte, and a refused one is gone when they are done: no memory
//! holds back who opens one after the other. So beside neighbours at work a container opens so many a second; what it
//! has goes on meanwhile.

use std::time::Duration;

use skbudget_controller::Instant;

const REST_FACTOR: u32 = 8;
/// A shorter turn is not worth a rest, nor the look at the container that ends one.
const TURN_LEAST: Duration = Duration::from_micros(5);
const REST_MAX: Duration = Duration::from_millis(2);

/// Beside neighbours at work: 6,600 connections a second, a tenth of a core.
const REST_OF_A_CONNECT: Duration = Duration::from_micros(150);

/// A neighbour that did not run for so long is none to be considerate of.
const NEIGHBOUR_FOR: Duration = Duration::from_millis(10);

/// Who ran last, and who before them.
#[derive(Debug, Default)]
pub(super) struct Recent {
    last: Option<(u16, Instant)>,
    other: Option<(u16, Instant)>,
}

impl Recent {
    pub(super) fn ran(&mut self, seat: u16, now: Instant) {
        if self.last.is_some_and(|(last, _)| last != seat) {
            self.other = self.last;
        }
        self.last = Some((seat, now));
    }

    /// How long `seat`, which is under pressure and ran for `cpu_ns`, leaves the thread to others.
    pub(super) fn rest(&self, seat: u16, cpu_ns: u64, now: Instant) -> Option<Duration> {
        let turn = Duration::from_nanos(cpu_ns);
        let rests = turn >= TURN_LEAST && self.beside_a_neighbour(seat, now);
        rests.then(|| (turn * REST_FACTOR).min(REST_MAX))
    }

    /// How long `seat`, which began so many connections in its turn, begins no other.
    pub(super) fn rest_of_connects(&self, seat: u16, begun: u32, now: Instant) -> Option<Duration> {
        (begun > 0 && self.beside_a_neighbour(seat, now)).then(|| REST_OF_A_CONNECT * begun)
    }

    fn beside_a_neighbour(&self, seat: u16, now: Instant) -> bool {
        let neighbour = [self.last, self.other].into_iter().flatten().find(|(who, _)| *who != seat);
        neighbour.is_some_and(|(_, at)| now.since(at) < NEIGHBOUR_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn only_beside_a_neighbour_at_work_and_never_long() {
        let mut recent = Recent::default();
        recent.ran(1, Instant(MS));
        recent.ran(1, Instant(2 * MS));
        assert_eq!(recent.rest(1, MS, Instant(2 * MS)), None, "alone");
        recent.ran(2, Instant(3 * MS));
        recent.ran(1, Instant(4 * MS));
        recent.ran(1, Instant(5 * MS));
        let rest = |cpu, at| recent.rest(1, cpu, Instant(at));
        assert_eq!(rest(MS / 10, 5 * MS), Some(Duration::from_micros(800)));
        assert_eq!(rest(1000, 5 * MS), None, "for next to nothing");
        assert_eq!(rest(100 * MS, 5 * MS), Some(REST_MAX));
        assert_eq!(rest(MS, 13 * MS), None, "the neighbour has nothing to do");
    }

    #[test]
    fn connections_are_paid_for_beside_a_neighbour_at_work() {
        let mut recent = Recent::default();
        recent.ran(1, Instant(MS));
        assert_eq!(recent.rest_of_connects(1, 2, Instant(MS)), None, "alone");
        recent.ran(2, Instant(2 * MS));
        recent.ran(1, Instant(3 * MS));
        let rest = |begun, at| recent.rest_of_connects(1, begun, Instant(at));
        assert_eq!(rest(2, 3 * MS), Some(2 * REST_OF_A_CONNECT));
        assert_eq!(rest(0, 3 * MS), None);
        assert_eq!(rest(2, 12 * MS), None, "the neighbour has nothing to do");
    }
}
