//! Reads the clocks; no other file does. All other code gets an [`Instant`] as argument.

use nix::time::{ClockId, clock_gettime};
use skbudget_controller::Instant;

/// The monotonic clock, nanoseconds.
pub fn now() -> Instant {
    Instant(read(ClockId::CLOCK_MONOTONIC))
}

/// CPU time of the calling thread, nanoseconds. Time in which the thread was preempted is not in it.
pub fn thread_cpu_ns() -> u64 {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Wall clock minus monotonic clock, nanoseconds: converts an `Instant` to the timestamps of a capture.
pub fn epoch_offset_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

fn read(clock: ClockId) -> u64 {
    // Every Linux that this runs on has these clocks. Zero would only stop the timers; no data depends on it.
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
