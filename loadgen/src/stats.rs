//! Statistics for the comparison of runs. The unit of replication is a run or a pair of runs, never a request: requests
//! of one run are as alike as the minute they were measured in.
//!
//! - [`bootstrap`]: intervals without an assumption about the shape of the noise, seeded;
//! - [`rank`]: exact probabilities of ranks, small samples being the rule;
//! - [`holm`]: several metrics, one error rate;
//! - [`noise`]: what the procedure says about nothing;
//! - [`blocks`]: the inside of one run, by the second.

pub mod blocks;
pub mod bootstrap;
pub mod holm;
pub mod noise;
pub mod rank;

/// The middle of them, or the mean of the two in the middle. 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        _ => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Nearest rank of a sorted, non-empty slice.
fn at(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}
