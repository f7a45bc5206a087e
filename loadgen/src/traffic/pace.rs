//! Wall-clock time, counted from the start of the run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// The monotonic clock, which all processes of a run share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// Start of the run on this clock.
    pub epoch_ns: u64,
}

impl Clock {
    /// Nanoseconds since the start of the run; zero before it.
    pub(crate) fn now(self) -> u64 {
        skbudget::clock::now().as_nanos().saturating_sub(self.epoch_ns)
    }

    /// Sleeps; returns false if the run was stopped first.
    pub(crate) fn sleep_until(self, at_ns: u64, stop: &AtomicBool) -> bool {
        loop {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            let now = skbudget::clock::now().as_nanos();
            let left = (self.epoch_ns + at_ns).saturating_sub(now);
            if left == 0 {
                return true;
            }
            // In short steps, so that a stop is noticed.
            thread::sleep(Duration::from_nanos(left).min(super::STOP_CHECK_EVERY));
        }
    }
}

/// Limits a stream to a rate on an absolute schedule, so that a late wake-up is caught up, within a bound.
#[derive(Debug)]
pub(crate) struct Pacer {
    bytes_per_second: u64,
    due_ns: u64,
}

/// Limit of the time that a delayed thread catches up.
const CATCH_UP_NS: u64 = 5_000_000;

impl Pacer {
    pub(crate) fn new(bits_per_second: u64, now_ns: u64) -> Self {
        Self { bytes_per_second: (bits_per_second / 8).max(1), due_ns: now_ns }
    }

    /// Records that `n` bytes were moved at `now`; returns the time of the next piece.
    pub(crate) fn moved(&mut self, n: usize, now_ns: u64) -> u64 {
        let takes = n as u64 * 1_000_000_000 / self.bytes_per_second;
        // Absolute, so that late pieces are caught up; a backlog beyond the bound is dropped.
        self.due_ns = self.due_ns.max(now_ns.saturating_sub(CATCH_UP_NS)) + takes;
        self.due_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_piece_is_caught_up_but_not_a_long_absence() {
        let mut p = Pacer::new(8_000_000_000, 0);
        assert_eq!(p.moved(1000, 0), 1000);
        // 4 us late: caught up.
        assert_eq!(p.moved(1000, 5000), 2000);
        // A second late: caught up by `CATCH_UP_NS` only.
        let late = 1_000_000_000;
        assert_eq!(p.moved(1000, late), late - CATCH_UP_NS + 1000);
    }
}
