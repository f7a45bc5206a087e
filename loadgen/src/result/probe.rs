//! What became of the requests of a probe.

use serde::{Deserialize, Serialize};

/// A percentile of all requests. One that never came back counts with the time it was waited for, which its latency
/// exceeds; so what is read is a bound from below wherever such requests may change it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantile {
    pub ns: u64,
    /// The percentile may be larger than `ns`, by more than 1 %.
    pub at_least: bool,
    /// With `at_least`: it is no larger than this, whatever became of the missing requests. Absent: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most_ns: Option<u64>,
}

impl Quantile {
    pub fn exact(ns: u64) -> Self {
        Self { ns, at_least: false, at_most_ns: None }
    }
    /// Known from above.
    pub fn upper_ns(&self) -> Option<u64> {
        if self.at_least { self.at_most_ns } else { Some(self.ns) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpectrumRow {
    pub quantile_ppb: u64,
    pub ns: u64,
    pub count: u64,
    /// As of a percentile.
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
    /// Above the histogram's 60 s.
    pub saturated: u64,
    pub delivered_ppm: Option<u64>,
    pub p50: Option<Quantile>,
    pub p99: Option<Quantile>,
    pub p999: Option<Quantile>,
    pub max: Option<Quantile>,
    pub mean_ns: u64,
    pub stddev_ns: u64,
    /// Latency by percentile; what did not come back counts with what is known of it from below.
    pub spectrum: Vec<SpectrumRow>,
    /// From the first byte that the socket took to the last of the response: what a client that waits for its own
    /// requests would have measured.
    #[serde(default)]
    pub service: Latency,
    /// From the intended start to the moment the generator looked at the request: its own lateness.
    #[serde(default)]
    pub lag: Latency,
    /// The completed responses, nanoseconds: base64 of a compressed V2 HdrHistogram. Merges without loss.
    #[serde(default)]
    pub hdr: String,
    /// The same of those that did not come back: what is known of each from below. Empty where there are none.
    #[serde(default)]
    pub hdr_missing: String,
    /// Both of them by the second in which they became known, that of what never came back being the last of its
    /// phase. Seconds without a sample are left out.
    #[serde(default)]
    pub intervals: Vec<IntervalHdr>,
}

/// The samples that became known in one interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalHdr {
    /// Since the start of the run.
    pub start_ns: u64,
    pub length_ns: u64,
    pub hdr: String,
}

/// A latency without censoring: what it is taken of has happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub p50_ns: Option<u64>,
    pub p99_ns: Option<u64>,
    pub p999_ns: Option<u64>,
    pub max_ns: Option<u64>,
}
