//! The noise floor: the size of the effect that the procedure reports between a build and itself.
//!
//! Neighbouring runs of the same build differ only by noise. The procedure draws as many of those differences as there
//! are pairs, gives them random signs, and takes the median; the floor is the 95 % quantile of such medians. An effect
//! below it may be real, but it cannot be distinguished from noise in this session.

use skbudget_sim::Rng;

use super::{at, median};

const DRAWS: usize = 2000;

/// `differences`: log ratios of runs of the same build. `None` without any.
pub(crate) fn floor(differences: &[f64], pairs: usize, seed: u64) -> Option<f64> {
    if differences.is_empty() {
        return None;
    }
    let mut rng = Rng::new(seed);
    let mut draw = |_| {
        let d = differences[rng.below(differences.len() as u64) as usize];
        if rng.chance(500_000) { d } else { -d }
    };
    let mut medians: Vec<f64> = (0..DRAWS)
        .map(|_| median(&(0..pairs.max(1)).map(&mut draw).collect::<Vec<f64>>()).abs())
        .collect();
    medians.sort_by(f64::total_cmp);
    Some(at(&medians, 0.95))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_pairs_lower_the_floor_and_no_noise_has_none() {
        let noisy: Vec<f64> = (0..20).map(|i| f64::from(i - 10) / 100.0).collect();
        let of = |pairs| floor(&noisy, pairs, 1).unwrap();
        // The median of more pairs varies less.
        assert!(of(6) > of(24) && of(24) > 0.0);
        assert_eq!(floor(&[0.0; 5], 6, 1), Some(0.0));
        assert_eq!(floor(&[], 6, 1), None);
    }
}
