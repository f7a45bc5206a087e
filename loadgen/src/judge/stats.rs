//! Statistics for the comparison of runs. The unit of replication is a run or a pair of runs, never a request: all
//! requests of one run share the conditions of the minute in which they were measured.
//!
//! - [`bootstrap`]: intervals without an assumption about the shape of the noise, seeded;
//! - [`rank`]: exact probabilities of ranks, because samples are small;
//! - [`holm`]: several metrics, one error rate;
//! - [`noise`]: the effects that the procedure reports without a change;
//! - [`blocks`]: resampling within one run, by the second.

pub(crate) mod blocks;
pub(crate) mod bootstrap;
pub(crate) mod holm;
pub(crate) mod noise;
pub(crate) mod rank;

/// The median; of an even number of values, the mean of the middle two. 0 for no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        _ => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Nearest-rank quantile of a sorted, non-empty slice.
fn at(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}
