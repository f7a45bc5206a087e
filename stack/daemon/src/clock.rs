//! The only reader of clocks. Everything else is handed an [`Instant`].

use nix::time::{ClockId, clock_gettime};
use skbudget_controller::Instant;

/// The monotonic clock, nanoseconds.
pub fn now() -> Instant {
    Instant(read(ClockId::CLOCK_MONOTONIC))
}

/// CPU time of the calling thread, nanoseconds: what a container's work really cost, preemption left out.
pub fn thread_cpu_ns() -> u64 {
    read(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Time of day less monotonic clock, for captures.
pub fn epoch_offset_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

fn read(clock: ClockId) -> u64 {
    // These clocks exist on every Linux this runs on; zero would only freeze timers, never corrupt anything.
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
