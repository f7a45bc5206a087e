//! What a victim may pay.

/// What a victim may pay for its neighbour. Exact in virtual time, with room for a busy machine on the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    pub slowdown_milli: u64,
    pub p99_inflation_milli: u64,
    /// And the difference is at most this; `None` asks for the ratio alone.
    pub p99_delta_ns: Option<u64>,
    /// Beyond the longest stall alone.
    pub stall_ns: u64,
    pub delivered_ppm: u64,
    pub overshoot_bytes: u64,
    /// Back at 95 % of solo within this after the hog left.
    pub recovery_ns: u64,
}

impl Thresholds {
    /// `step_ns`: of the recovery.
    pub const fn exact(rtt_ns: u64, step_ns: u64) -> Self {
        Self {
            slowdown_milli: 1050,
            p99_inflation_milli: 1200,
            p99_delta_ns: None,
            stall_ns: if 4 * rtt_ns > 1_000_000 { 4 * rtt_ns } else { 1_000_000 },
            delivered_ppm: 1_000_000,
            overshoot_bytes: 0,
            recovery_ns: 2 * step_ns,
        }
    }
    pub fn wall(step_ns: u64) -> Self {
        Self {
            slowdown_milli: 1150,
            p99_inflation_milli: 2000,
            p99_delta_ns: Some(500_000),
            stall_ns: 50_000_000,
            delivered_ppm: 999_000,
            overshoot_bytes: 0,
            recovery_ns: 200_000_000.max(2 * step_ns),
        }
    }
}
