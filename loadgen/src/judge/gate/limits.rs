//! The cost that a neighbour may cause to a victim.

/// Limits of the cost to a victim: tight in virtual time, with tolerance for a busy machine on the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Limit of the throughput slowdown, thousandths.
    pub slowdown_milli: u64,
    /// Limit of contended over solo p99, thousandths.
    pub p99_inflation_milli: u64,
    /// Limit of the difference as well; `None`: only the ratio counts.
    pub p99_delta_ns: Option<u64>,
    /// Added to the longest stall of the solo phase.
    pub stall_ns: u64,
    /// Least share of requests completed within the deadline, millionths.
    pub delivered_ppm: u64,
    /// Limit of the bytes charged beyond a hard limit.
    pub overshoot_bytes: u64,
    /// Limit of the time from the departure of the hog to 95 % of the solo goodput.
    pub recovery_ns: u64,
}

impl Thresholds {
    /// For virtual time. `step_ns`: length of a recovery step.
    pub const fn exact(rtt_ns: u64, step_ns: u64) -> Self {
        Self {
            slowdown_milli: 1050,
            p99_inflation_milli: 1200,
            p99_delta_ns: None,
            // Four round trips, at least 1 ms.
            stall_ns: if 4 * rtt_ns > 1_000_000 { 4 * rtt_ns } else { 1_000_000 },
            delivered_ppm: 1_000_000,
            overshoot_bytes: 0,
            recovery_ns: 2 * step_ns,
        }
    }
    // For wall-clock targets: scheduling noise of a shared CI machine must not fail a build.
    /// For the wall clock. `step_ns`: length of a recovery step.
    pub fn wall(step_ns: u64) -> Self {
        Self {
            slowdown_milli: 1150,
            p99_inflation_milli: 2000,
            // Ratio and difference must both hold: twice a long p99 would permit too much.
            p99_delta_ns: Some(500_000),
            stall_ns: 50_000_000,
            delivered_ppm: 999_000,
            overshoot_bytes: 0,
            // 200 ms, but at least the two steps that a recovery needs.
            recovery_ns: 200_000_000.max(2 * step_ns),
        }
    }
}
