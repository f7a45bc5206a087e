//! Limits as users give them: bytes in, pages inside.

/// Three thresholds of a domain in pages, `low <= soft <= hard`. Kernel words: tcp_mem low / pressure / high.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub low: u64,
    pub soft: u64,
    pub hard: u64,
}

/// Why limits were refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitError {
    /// `low <= soft <= hard` does not hold (pages).
    Disorder { low: u64, soft: u64, hard: u64 },
    /// `hard` cannot hold one flow and the device queue: the least that can, in bytes.
    TooSmall { hard_bytes: u64, least_bytes: u64 },
    /// The sum of guarantees (`min`) does not fit the level above.
    MinDoesNotFit { min_bytes: u64, room_bytes: u64 },
    /// A container's `min` above its own `hard`.
    MinAboveHard { min_bytes: u64, hard_bytes: u64 },
    /// More than four levels.
    TooDeep,
    /// Weight zero.
    ZeroWeight,
}

impl Limits {
    /// No limit at all (`--isolation off`, a host without a limit).
    pub const NONE: Self = Self { low: u64::MAX, soft: u64::MAX, hard: u64::MAX };

    /// Missing limits follow from those given (pressure model A): from `hard`: soft = 2/3, low = 1/2;
    /// from `hard` and `soft`: low = min(hard/2, 3*soft/4). Bytes in, floored to pages.
    pub fn from_bytes(hard: u64, soft: Option<u64>, low: Option<u64>) -> Result<Self, LimitError> {
        let _ = (hard, soft, low);
        todo!()
    }
}

/// `tcp_rmem` / `tcp_wmem`: min, default, max of one flow's buffers, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SockLimits {
    pub rmem: [u32; 3],
    pub wmem: [u32; 3],
}

impl Default for SockLimits {
    fn default() -> Self {
        Self { rmem: [4096, 131_072, 6 << 20], wmem: [4096, 16_384, 4 << 20] }
    }
}
