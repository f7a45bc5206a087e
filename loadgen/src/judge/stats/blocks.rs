//! Bounds of a percentile from within one run: draws whole seconds with replacement, as many as there are, and reads
//! the percentile again (block bootstrap, Kuensch 1989). Single requests are not independent: what delays one delays
//! the next.

use std::collections::BTreeMap;

use skbudget_sim::Rng;

use super::at;
use crate::exit::Failure;
use crate::judge::metrics::victims;
use crate::measure::hdr;
use crate::measure::result::{ArmResult, IntervalHdr, ProbePhase};
use crate::scenario::plan::CONTENDED;

/// Fewer blocks give no usable estimate of their spread.
const BLOCKS_MIN: usize = 6;
const DRAWS: usize = 1000;

/// The middle 95 % of a percentile of a phase; `None` with too few blocks.
pub(crate) fn bounds(
    intervals: &[IntervalHdr],
    q: f64,
    seed: u64,
) -> Result<Option<(f64, f64)>, String> {
    // For each value, the blocks that contain it and its count in each: the percentile of a draw needs no merged
    // histogram.
    let mut values: BTreeMap<u64, Vec<(usize, u64)>> = BTreeMap::new();
    let mut totals = Vec::new();
    for (i, interval) in intervals.iter().enumerate() {
        let Some(counts) = hdr::decode(&interval.hdr)? else { continue };
        // Skipped empty blocks count with 0 samples.
        totals.resize(i + 1, 0);
        totals[i] = counts.len();
        for v in counts.iter_recorded() {
            let at = values.entry(v.value_iterated_to()).or_default();
            at.push((i, u64::from(v.count_at_value())));
        }
    }
    if totals.len() < BLOCKS_MIN {
        return Ok(None);
    }
    let mut rng = Rng::new(seed);
    let mut drawn = vec![0u64; totals.len()];
    let mut percentile = |_| {
        drawn.fill(0);
        (0..totals.len()).for_each(|_| drawn[rng.below(totals.len() as u64) as usize] += 1);
        let total: u64 = drawn.iter().zip(&totals).map(|(d, t)| d * t).sum();
        let rank = ((q * total as f64).ceil() as u64).max(1);
        // Cumulative count over ascending values, until the rank is reached.
        let mut seen = 0;
        let reached = values.iter().find(|(_, at)| {
            seen += at.iter().map(|(i, n)| drawn[*i] * n).sum::<u64>();
            seen >= rank
        });
        reached.map_or(0.0, |(v, _)| *v as f64)
    };
    let mut read: Vec<f64> = (0..DRAWS).map(&mut percentile).collect();
    read.sort_by(f64::total_cmp);
    Ok(Some((at(&read, 0.025), at(&read, 0.975))))
}

/// Bounds for the victim with the worst percentile beside the hog.
pub(crate) fn worst_victim(arm: &ArmResult, q: f64) -> Result<Option<(f64, f64)>, Failure> {
    let probes = victims(arm).filter_map(|c| c.phases.get(CONTENDED)?.probe.as_ref());
    let quantile = |p: &ProbePhase| if q > 0.9 { p.p99 } else { p.p50 };
    let worst = probes.max_by_key(|p| quantile(p).map(|q| q.ns));
    let Some(worst) = worst else { return Ok(None) };
    bounds(&worst.intervals, q, 1).map_err(|e| Failure::Io(format!("{}: {e}", arm.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::hdr::Counts;

    fn block(i: u64, ns: u64) -> IntervalHdr {
        let mut counts = Counts::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        (0..100).for_each(|_| counts.record(ns).unwrap());
        let hdr = hdr::encode(&counts);
        IntervalHdr { start_ns: i, length_ns: 1, hdr }
    }

    #[test]
    fn bounds_span_the_blocks_and_few_blocks_have_none() {
        let blocks: Vec<_> = (0..20).map(|i| block(i, 1000 + 50 * i)).collect();
        let (low, high) = bounds(&blocks, 0.5, 1).unwrap().unwrap();
        assert!(
            (1100.0..1500.0).contains(&low) && (1500.0..1900.0).contains(&high),
            "{low} {high}"
        );
        assert_eq!(bounds(&blocks[..5], 0.5, 1).unwrap(), None);
        // Blocks without any spread have an interval of one value.
        let alike: Vec<_> = (0..8).map(|i| block(i, 777)).collect();
        assert_eq!(bounds(&alike, 0.99, 1).unwrap(), Some((777.0, 777.0)));
    }
}
