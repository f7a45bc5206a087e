//! Reads the clocks; no other file does. All other code gets an [`Instant`] as argument.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use skbudget_controller::Instant;

/// The monotonic clock, nanoseconds.
pub fn now() -> Instant {
    Instant(read(ClockId::CLOCK_MONOTONIC))
}

/// CPU time of the calling thread since it started. Time in which the thread was preempted is not in it.
fn thread_cpu() -> Duration {
    Duration::from_nanos(read(ClockId::CLOCK_THREAD_CPUTIME_ID))
}

/// Measures the CPU time of pieces of work on one thread. A reading is a system call, so work that follows directly on
/// other work starts at the reading that ended it.
#[derive(Debug, Default)]
pub struct CpuMeter {
    last: Option<Duration>,
}

impl CpuMeter {
    /// Work starts.
    pub fn start(&mut self) {
        self.last.get_or_insert_with(thread_cpu);
    }

    /// Work ends: the CPU time since `start`.
    pub fn stop(&mut self) -> Duration {
        let now = thread_cpu();
        now.saturating_sub(self.last.replace(now).unwrap_or(now))
    }

    /// Something follows that belongs to no piece of work: the next piece does not start at the last reading.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

/// Wall clock minus monotonic clock, nanoseconds: converts an `Instant` to the timestamps of a capture.
pub fn epoch_offset_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

/// The time of day, nanoseconds since 1970.
pub fn unix_time_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> u64 {
    // Every Linux that this runs on has these clocks. Zero would only stop the timers; no data depends on it.
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
