//! Limits as users set them: bytes outside, pages inside.

use core::fmt;

use crate::units::PAGE_SIZE;

/// Three thresholds of a domain in pages, `low <= soft <= hard`: the kernel's `tcp_mem` low,
/// pressure, high.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pressure ends at or below.
    pub low: u64,
    /// Pressure starts above.
    pub soft: u64,
    /// Charges beyond are refused. `u64::MAX` means no limit.
    pub hard: u64,
}

/// Why limits were refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitError {
    /// `low <= soft <= hard` does not hold (pages).
    Disorder {
        /// As given.
        low: u64,
        /// As given.
        soft: u64,
        /// As given.
        hard: u64,
    },
    /// `hard` is less than `least_bytes`: less than a page. Bytes.
    TooSmall {
        /// As given.
        hard_bytes: u64,
        /// The least that would fit.
        least_bytes: u64,
    },
    /// The sum of guarantees (`min`) does not fit the level above.
    MinDoesNotFit {
        /// As given.
        min_bytes: u64,
        /// Room of the tightest level above.
        room_bytes: u64,
    },
    /// A container's `min` is above its own `hard`.
    MinAboveHard {
        /// As given.
        min_bytes: u64,
        /// As given.
        hard_bytes: u64,
    },
    /// More than four levels, the container included.
    TooDeep,
    /// A weight of zero.
    ZeroWeight,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disorder { low, soft, hard } => {
                write!(f, "limits out of order: low {low} <= soft {soft} <= hard {hard} pages")
            }
            Self::TooSmall { hard_bytes, least_bytes } => {
                write!(f, "hard {hard_bytes} B is too small: at least {least_bytes} B")
            }
            Self::MinDoesNotFit { min_bytes, room_bytes } => {
                write!(f, "min {min_bytes} B does not fit: {room_bytes} B left above")
            }
            Self::MinAboveHard { min_bytes, hard_bytes } => {
                write!(f, "min {min_bytes} B is above hard {hard_bytes} B")
            }
            Self::TooDeep => f.write_str("more than four levels"),
            Self::ZeroWeight => f.write_str("weight 0"),
        }
    }
}

impl core::error::Error for LimitError {}

impl Limits {
    /// No limit (`--isolation off`, a host without a limit).
    pub const NONE: Self = Self { low: u64::MAX, soft: u64::MAX, hard: u64::MAX };

    /// Thresholds in pages.
    ///
    /// # Errors
    /// `Disorder` unless `low <= soft <= hard`.
    pub const fn new(low: u64, soft: u64, hard: u64) -> Result<Self, LimitError> {
        if low <= soft && soft <= hard {
            Ok(Self { low, soft, hard })
        } else {
            Err(LimitError::Disorder { low, soft, hard })
        }
    }

    /// Thresholds from bytes, rounded down to pages. Missing ones follow from those given (A2):
    /// from `hard` alone, soft is 2/3 and low 1/2; from `hard` and `soft`, low is `min(hard/2,
    /// 3*soft/4)`.
    ///
    /// # Errors
    /// `Disorder` as in [`Self::new`]; `TooSmall` when `hard` is less than a page.
    pub fn from_bytes(hard: u64, soft: Option<u64>, low: Option<u64>) -> Result<Self, LimitError> {
        let hard_pages = hard / PAGE_SIZE;
        if hard_pages == 0 {
            return Err(LimitError::TooSmall { hard_bytes: hard, least_bytes: PAGE_SIZE });
        }
        let soft_pages = soft.map_or_else(|| two_thirds(hard_pages), |bytes| bytes / PAGE_SIZE);
        let low_pages = match (low, soft) {
            (Some(bytes), _) => bytes / PAGE_SIZE,
            // `3 * soft / 4` without overflow.
            (None, Some(_)) => (hard_pages / 2).min(soft_pages / 4 * 3 + soft_pages % 4 * 3 / 4),
            (None, None) => hard_pages / 2,
        };
        Self::new(low_pages, soft_pages, hard_pages)
    }

    /// `hard` in bytes, saturating.
    pub const fn hard_bytes(&self) -> u64 {
        self.hard.saturating_mul(PAGE_SIZE)
    }
}

/// `2 * x / 3` without overflow.
const fn two_thirds(x: u64) -> u64 {
    x / 3 * 2 + x % 3 * 2 / 3
}

/// `tcp_rmem` / `tcp_wmem`: minimum, initial value and maximum of one flow's buffers, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SockLimits {
    /// Receive: guarantee, initial cap, cap of autotuning.
    pub rmem: [u32; 3],
    /// Send: guarantee, initial cap, cap of autotuning.
    pub wmem: [u32; 3],
}

impl Default for SockLimits {
    fn default() -> Self {
        Self { rmem: [4096, 131_072, 6 << 20], wmem: [4096, 16_384, 4 << 20] }
    }
}
