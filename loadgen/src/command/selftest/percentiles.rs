//! Percentiles with requests that did not complete: they rise with their rank, lie between their lower and upper
//! bounds, and are the same in every file.

use skbudget_sim::{Observer as _, Rng};

use super::SECOND;
use crate::measure::hdr::{self, Counts};
use crate::measure::result::{ProbePhase, Quantile};
use crate::measure::{PhaseLatency, ProbeRecorder};
use crate::output::export::hgrm;
use crate::scenario::plan::Phase;

const CASES: u64 = 200;
const MS: u64 = 1_000_000;

pub(super) fn all() -> Result<String, String> {
    let mut censored = 0;
    for seed in 0..CASES {
        let (log, truth) = case(seed);
        let latency = &log.latencies()[0];
        let p = latency.summary();
        censored += p.intended - p.completed;
        rising(latency)
            .and_then(|()| bounded(latency, &truth))
            .and_then(|()| agreeing(&p))
            .map_err(|e| {
                format!("case {seed}, {} of {} completed: {e}", p.completed, p.intended)
            })?;
    }
    Ok(format!("{CASES} cases, {censored} requests without a response"))
}

/// Some hundred requests, and the true latency of each. Whether a request completes, and how long the others wait, is
/// independent of its latency.
fn case(seed: u64) -> (ProbeRecorder, Vec<u64>) {
    let mut rng = Rng::new(seed);
    let phase = Phase { name: "all".to_owned(), start_ns: 0, end_ns: SECOND };
    let mut log = ProbeRecorder::new(&[phase], SECOND);
    let count = 1 + rng.below(400);
    // Latencies up to about 900 ms, and from none to all of the requests missing.
    let (slowest, missing) = (1 + rng.below(900), rng.below(101));
    let mut truth = Vec::new();
    for id in 0..count {
        let at = rng.below(SECOND);
        let takes = MS + rng.below(slowest * MS);
        log.intend(id, at);
        let (fate, waited) = (rng.below(100), SECOND - at);
        if fate >= missing {
            log.complete(id, at + takes);
        } else if fate % 3 == 0 {
            log.shed(id);
        }
        // A request that waits longer than its latency would complete, so the latency exceeds the waiting time.
        truth.push(if fate >= missing { takes } else { takes.max(waited + 1) });
    }
    log.close(0, SECOND);
    truth.sort_unstable();
    (log, truth)
}

fn ascending(what: &str, values: &[u64]) -> Result<(), String> {
    if values.is_sorted() { Ok(()) } else { Err(format!("{what} fall: {values:?}")) }
}

fn rising(latency: &PhaseLatency) -> Result<(), String> {
    let levels = [0.0, 0.1, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0];
    let read: Option<Vec<Quantile>> = levels.iter().map(|q| latency.quantile(*q)).collect();
    let read = read.ok_or("there is no percentile")?;
    let p = latency.summary();
    let named = [p.p50, latency.quantile(0.9), p.p99, p.p999, p.max];
    let named: Option<Vec<u64>> = named.iter().map(|q| q.map(|q| q.ns)).collect();
    ascending("p50, p90, p99, p99.9 and max", &named.ok_or("a percentile is missing")?)?;
    ascending("percentiles", &read.iter().map(|q| q.ns).collect::<Vec<_>>())?;
    // Without an upper bound at one rank, there is none at a higher rank.
    let most: Vec<u64> = read.iter().map(|q| q.upper_ns().unwrap_or(u64::MAX)).collect();
    ascending("bounds from above", &most)?;
    ascending("rows", &p.spectrum.iter().map(|r| r.ns).collect::<Vec<_>>())
}

/// `truth`: the true latencies, sorted.
fn bounded(latency: &PhaseLatency, truth: &[u64]) -> Result<(), String> {
    for q in [0.5, 0.9, 0.99] {
        let rank = ((q * truth.len() as f64).ceil() as usize).clamp(1, truth.len());
        let (real, read) = (truth[rank - 1], latency.quantile(q).ok_or("no percentile")?);
        // Tolerance: a bucket of three digits; and 1 % where both bounds are that close.
        let low = read.ns <= real + real / 500;
        let high = read.upper_ns().is_none_or(|ns| ns + ns / 80 >= real);
        if !(low && high) {
            return Err(format!("p{} is {real}, said to be {read:?}", q * 100.0));
        }
    }
    Ok(())
}

/// Compares the summary, the rows of the percentile file, and the samples of the interval log.
fn agreeing(p: &ProbePhase) -> Result<(), String> {
    let named = [(0.5, p.p50), (0.99, p.p99), (0.999, p.p999)];
    let mut log: Option<Counts> = None;
    for i in &p.intervals {
        let Some(counts) = hdr::decode(&i.hdr)? else { continue };
        match &mut log {
            Some(sum) => sum.add(&counts).map_err(|e| e.to_string())?,
            None => log = Some(counts),
        }
    }
    let log = log.ok_or("the interval log is empty")?;
    let rows = rows(&hgrm::render(p));
    for (level, quantile) in named {
        let want = quantile.ok_or("a percentile is missing")?.ns;
        let row = rows.iter().find(|r| (r.0 - level).abs() < 1e-9).map(|r| r.1);
        // A named percentile has its own row only if enough samples lie beyond it.
        if row.is_some_and(|ms| (ms - want as f64 / 1e6).abs() > 0.0006) {
            return Err(format!("p{} is {want}, in the percentile file {row:?} ms", level * 100.0));
        }
        let rank = ((level * log.len() as f64).ceil()).max(1.0);
        let seen = log.value_at_quantile((rank - 0.5) / log.len() as f64);
        if seen.abs_diff(want) > want / 500 {
            return Err(format!("p{} is {want}, in the interval log {seen}", level * 100.0));
        }
    }
    let found = p.intended < 2 || rows.iter().any(|r| (r.0 - 0.5).abs() < 1e-9);
    if found { Ok(()) } else { Err("the percentile file has no row for p50".to_owned()) }
}

/// Percentile and milliseconds of each row.
fn rows(text: &str) -> Vec<(f64, f64)> {
    let fields = text.lines().filter(|l| !l.starts_with('#')).map(|l| {
        let mut fields = l.split_whitespace();
        let ms = fields.next()?.parse::<f64>().ok()?;
        Some((fields.next()?.parse::<f64>().ok()?, ms))
    });
    fields.flatten().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_case_holds() {
        let text = super::all().unwrap();
        assert!(text.starts_with("200 cases"), "{text}");
    }
}
