//! Benchmark trackers: github-action-benchmark and Bencher.
//!
//! github-action-benchmark knows one direction per file and compares `value` with the previous entry only: hence two
//! files, and metrics without a fixed direction are turned into a loss (`unfairness`, `not-delivered`). Bencher draws
//! bounds: they are the 95 % interval of a bootstrap over one-second blocks, if the run is long enough to have blocks.

use std::collections::BTreeMap;

use serde::Serialize;

use super::OutputFile;
use super::json::pretty;
use crate::exit::Failure;
use crate::judge::metrics::{Better, METRICS, Metric, MetricUnit, Reading};
use crate::judge::stats::blocks;
use crate::measure::result::{ArmResult, RunResult};

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    unit: &'static str,
    value: f64,
    extra: String,
}

/// `gab.json` for `customSmallerIsBetter`, `gab-bigger.json` for `customBiggerIsBetter`.
pub(crate) fn github_action_benchmark(result: &RunResult) -> Result<Vec<OutputFile>, Failure> {
    let of = |better| -> Vec<Entry> {
        let readings = readings(result).filter(|(_, m, _)| m.better == better);
        readings.map(|(arm, m, r)| entry(result, arm, m, r)).collect()
    };
    let file = |name: &str, better| Ok((name.to_owned(), pretty(name, &of(better))?));
    Ok(vec![file("gab.json", Better::Smaller)?, file("gab-bigger.json", Better::Bigger)?])
}

/// Every metric that has a value, by arm.
fn readings(result: &RunResult) -> impl Iterator<Item = (&ArmResult, &'static Metric, Reading)> {
    result.arms.iter().flat_map(move |arm| {
        METRICS.iter().filter_map(move |m| Some((arm, m, m.read(result, arm)?)))
    })
}

/// One entry, in the unit that trackers show.
fn entry(result: &RunResult, arm: &ArmResult, m: &Metric, r: Reading) -> Entry {
    let (unit, scale) = match m.unit {
        MetricUnit::Nanos => ("ms", 1e-6),
        MetricUnit::BitsPerSecond => ("Mbit/s", 1e-6),
        MetricUnit::Bytes => ("bytes", 1.0),
        MetricUnit::Ratio => ("x", 1.0),
        MetricUnit::Part => ("%", 100.0),
    };
    let bound = if r.at_least { "\nat least: only this lower bound is known" } else { "" };
    Entry {
        name: format!("{} / {} / {}", result.scenario, arm.name, m.key),
        unit,
        value: round(r.value * scale),
        extra: format!("{}\nseed {}, {}{bound}", m.about, result.seed, result.target),
    }
}

/// Rounds to six decimal places: 1 ns in milliseconds.
fn round(v: f64) -> f64 {
    (v * 1e6).round() / 1e6
}

#[derive(Debug, Serialize)]
struct Measure {
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lower_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upper_value: Option<f64>,
}

/// Bencher Metric Format: benchmark, then measure, then value. The percentiles of the contended phase have bounds.
pub(crate) fn bencher(result: &RunResult) -> Result<String, Failure> {
    let mut out: BTreeMap<String, BTreeMap<&'static str, Measure>> = BTreeMap::new();
    for (arm, m, r) in readings(result) {
        // Only percentiles have histograms per second to resample.
        let bounds = match m.key {
            "p50-contended" => blocks::worst_victim(arm, 0.5)?,
            "p99-contended" => blocks::worst_victim(arm, 0.99)?,
            _ => None,
        };
        // A value known only as a lower bound is its own lower bound and has no upper one.
        let (lower, upper) = match r.at_least {
            true => (Some(r.value), None),
            false => (bounds.map(|b| b.0.min(r.value)), bounds.map(|b| b.1.max(r.value))),
        };
        let measure = Measure { value: r.value, lower_value: lower, upper_value: upper };
        let name = format!("{}/{}", result.scenario, arm.name);
        out.entry(name).or_default().insert(m.key, measure);
    }
    pretty("bmf.json", &out)
}
