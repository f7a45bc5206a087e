//! The outcome of a probe's requests.

use serde::{Deserialize, Serialize};

/// A percentile of all requests. A request that did not complete counts with its waiting time, which its latency
/// exceeds; so the value is a lower bound wherever such requests may change it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantile {
    /// The percentile, or its lower bound, nanoseconds.
    pub ns: u64,
    /// The percentile may exceed `ns` by more than 1 %.
    pub at_least: bool,
    /// With `at_least`: upper bound, whatever the latency of the missing requests. Absent: no upper bound is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most_ns: Option<u64>,
}

impl Quantile {
    /// A percentile that no missing request may change.
    pub fn exact(ns: u64) -> Self {
        Self { ns, at_least: false, at_most_ns: None }
    }
    /// Upper bound, if one is known.
    pub fn upper_ns(&self) -> Option<u64> {
        if self.at_least { self.at_most_ns } else { Some(self.ns) }
    }
}

/// One row of the latency by percentile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpectrumRow {
    /// The quantile in billionths.
    pub quantile_ppb: u64,
    /// Latency at that quantile, nanoseconds.
    pub ns: u64,
    /// Number of requests up to that latency.
    pub count: u64,
    /// As in [`Quantile`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub at_least: bool,
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// The requests of one probe in one phase: each is completed, outstanding, shed or failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbePhase {
    /// Requests due in the phase.
    pub intended: u64,
    /// Requests with a complete response before the phase was closed.
    pub completed: u64,
    /// Requests sent, or waiting to be sent, when the phase was closed.
    pub outstanding: u64,
    /// Requests never sent, because too many were outstanding.
    pub shed: u64,
    /// Requests that failed with their connection.
    pub failed: u64,
    /// Requests completed within the deadline.
    pub in_deadline: u64,
    /// Requests above the histogram's 60 s.
    pub saturated: u64,
    /// `in_deadline` over `intended`, in millionths; `null`: none was intended.
    pub delivered_ppm: Option<u64>,
    /// Median of all requests.
    pub p50: Option<Quantile>,
    /// 99th percentile of all requests.
    pub p99: Option<Quantile>,
    /// 99.9th percentile of all requests.
    pub p999: Option<Quantile>,
    /// Longest latency, or waiting time.
    pub max: Option<Quantile>,
    /// Mean of all requests, nanoseconds.
    pub mean_ns: u64,
    /// Standard deviation of all requests, nanoseconds.
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
    /// [`BLOCK_NS`].
    pub length_ns: u64,
    /// The samples, encoded as in [`ProbePhase`].
    pub hdr: String,
}

/// A latency without censoring: each of its samples was observed completely.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Number of samples.
    pub count: u64,
    /// Median, nanoseconds.
    pub p50_ns: Option<u64>,
    /// 99th percentile, nanoseconds.
    pub p99_ns: Option<u64>,
    /// 99.9th percentile, nanoseconds.
    pub p999_ns: Option<u64>,
    /// Maximum, nanoseconds.
    pub max_ns: Option<u64>,
}
