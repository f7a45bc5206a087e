//! Histograms of times, as the probes record them.

use super::hdr::{self, Counts};
use super::result::Latency;

/// Resolution of the histograms. Runs with many containers use coarse ones to limit memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digits {
    /// 108 KiB per histogram.
    Three,
    /// 10.5 KiB per histogram; values start at 1 us.
    Two,
}

impl Digits {
    /// A new histogram with values up to 60 s in nanoseconds.
    pub(super) fn histogram(self) -> Counts {
        let (low, digits) = match self {
            // Lowest value in nanoseconds, and significant digits.
            Self::Three => (1, 3),
            Self::Two => (1000, 2),
        };
        Counts::new_with_bounds(low, 60_000_000_000, digits).expect("bounds are in order")
    }
}

/// A histogram that allocates its memory with the first sample, and keeps the exact maximum.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    digits: Digits,
    pub(super) counts: Option<Counts>,
    pub(super) max_ns: u64,
}

impl Histogram {
    pub(super) fn new(digits: Digits) -> Self {
        Self { digits, counts: None, max_ns: 0 }
    }
    pub(super) fn record(&mut self, ns: u64) {
        let counts = self.counts.get_or_insert_with(|| self.digits.histogram());
        counts.saturating_record(ns);
        self.max_ns = self.max_ns.max(ns);
    }
    pub(super) fn len(&self) -> u64 {
        self.counts.as_ref().map_or(0, Counts::len)
    }
    /// Adds an encoded histogram, which may be coarser than this one.
    pub(super) fn absorb(&mut self, encoded: &str) -> Result<(), String> {
        let Some(counts) = hdr::decode(encoded)? else { return Ok(()) };
        let sum = self.counts.get_or_insert_with(|| self.digits.histogram());
        sum.add(&counts).map_err(|e| format!("histogram: {e}"))
    }
    pub(super) fn latency(&self) -> Latency {
        // The value of a bucket is its upper end, which may exceed the largest sample.
        let at = |q| self.counts.as_ref().map(|c| c.value_at_quantile(q).min(self.max_ns));
        Latency {
            count: self.len(),
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: self.counts.as_ref().map(|_| self.max_ns),
        }
    }
}
