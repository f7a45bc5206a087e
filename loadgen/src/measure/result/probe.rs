//! The outcome of a probe's requests.

use serde::{Deserialize, Serialize};

/// A percentile of all requests. A request that did not complete counts with its waiting time, which its latency
/// exceeds; so the value is a lower bound wherever such requests may change it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantile {
    pub ns: u64,
    /// The percentile may exceed `ns` by more than 1 %.
    pub at_least: bool,
    /// With `at_least`: upper bound, whatever the latency of the missing requests. Absent: no upper bound is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most_ns: Option<u64>,
}

impl Quantile {
    pub fn exact(ns: u64) -> Self {
        Self { ns, at_least: false, at_most_ns: None }
    }
    /// Upper bound, if one is known.
    pub fn upper_ns(&self) -> Option<u64> {
        if self.at_least { self.at_most_ns } else { Some(self.ns) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpectrumRow {
    pub quantile_ppb: u64,
    pub ns: u64,
    pub count: u64,
    /// As in [`Quantile`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub at_least: bool,
}

fn is_false(b: &bool) -> bool {
    !*b
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbePhase {
    pub intended: u64,
    pub completed: u64,
    pub outstanding: u64,
    pub shed: u64,
    pub failed: u64,
    pub in_deadline: u64,
    /// Requests above the histogram's 60 s.
    pub saturated: u64,
    pub delivered_ppm: Option<u64>,
    pub p50: Option<Quantile>,
    pub p99: Option<Quantile>,
    pub p999: Option<Quantile>,
    pub max: Option<Quantile>,
    pub mean_ns: u64,
    pub stddev_ns: u64,
    /// Latency by percentile; requests that did not complete count with their lower bound.
    pub spectrum: Vec<SpectrumRow>,
    /// From the first byte that the socket accepted to the last byte of the response: the latency that a closed-loop
    /// client would measure.
    #[serde(default)]
    pub service: Latency,
    /// From the intended start to the moment the generator handled the request: its own lag.
    #[serde(default)]
    pub lag: Latency,
    /// Completed responses in nanoseconds: base64 of a compressed V2 HdrHistogram. Merges without loss.
    #[serde(default)]
    pub hdr: String,
    /// The same for requests that did not complete, with their lower bounds. Empty if there are none.
    #[serde(default)]
    pub hdr_missing: String,
    /// Both, by the second in which each became known; a request that did not complete is in the last second of its
    /// phase. Seconds without a sample are omitted.
    #[serde(default)]
    pub intervals: Vec<IntervalHdr>,
}

/// Length of each interval, nanoseconds.
pub const BLOCK_NS: u64 = 1_000_000_000;

/// The samples that became known in one interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalHdr {
    /// Since the start of the run.
    pub start_ns: u64,
    pub length_ns: u64,
    pub hdr: String,
}

/// A latency without censoring: each of its samples was observed completely.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub p50_ns: Option<u64>,
    pub p99_ns: Option<u64>,
    pub p999_ns: Option<u64>,
    pub max_ns: Option<u64>,
}
