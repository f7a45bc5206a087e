//! CPU is not buffer memory, but the neighbours feel it alike: a container at its soft limit moves its bytes in the
//! smallest pieces, hundreds of flows at once, and would take the whole thread for it. So beside neighbours who are at
//! work it rests after each turn for eight times as long as the turn took. It pays with its own speed.

use std::time::Duration;

use skbudget_controller::Instant;

const REST_FACTOR: u32 = 8;
/// A shorter turn is not worth a rest, nor the look at the container that ends one.
const TURN_LEAST: Duration = Duration::from_micros(5);
const REST_MAX: Duration = Duration::from_millis(2);

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
        let neighbour = [self.last, self.other].into_iter().flatten().find(|(who, _)| *who != seat);
        let (_, at) = neighbour?;
        let turn = Duration::from_nanos(cpu_ns);
        let rests = turn >= TURN_LEAST && now.since(at) < NEIGHBOUR_FOR;
        rests.then(|| (turn * REST_FACTOR).min(REST_MAX))
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
}
