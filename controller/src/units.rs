//! Bytes, pages, chunks and time.

use core::time::Duration;

/// Bytes in a page: the unit of every meter.
pub const PAGE_SIZE: u64 = 4096;
/// True size of one chunk: the memory that a buffer of the stack takes, and the step of every
/// charge.
pub const CHUNK_SIZE: u64 = 4096;
/// Payload bytes of one chunk.
pub const CHUNK_PAYLOAD: u32 = 4032;

/// `SOCK_MIN_SNDBUF`: 2 * (2048 + 256) bytes, the least send cap that Linux grants.
pub const SNDBUF_MIN: u32 = 4608;

// A chunk is a whole number of pages: credit and queues never straddle the rounding of a meter.
const _: () = assert!(CHUNK_SIZE.is_multiple_of(PAGE_SIZE));

/// `ceil(bytes / 4096)`.
pub const fn pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_SIZE)
}

/// `room * part / hard`, rounded down.
pub(crate) fn scale(room: u64, part: u64, hard: u64) -> u64 {
    if hard == 0 {
        return 0;
    }
    match room.checked_mul(part) {
        Some(product) => product / hard,
        // The product overflows 64 bits when a limit is near `u64::MAX`.
        None => {
            let wide = u128::from(room) * u128::from(part) / u128::from(hard);
            u64::try_from(wide).unwrap_or(u64::MAX)
        }
    }
}

/// A point on the caller's monotonic clock, in nanoseconds. The controller reads no clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Milliseconds since the clock's zero.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms * 1_000_000)
    }
    /// Microseconds since the clock's zero.
    pub const fn from_micros(us: u64) -> Self {
        Self(us * 1_000)
    }
    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
    /// Time since `earlier`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Instant {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}
