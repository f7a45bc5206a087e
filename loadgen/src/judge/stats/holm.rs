//! Holm's step-down correction (1979): keeps the chance of any false alarm over all metrics below alpha.

/// Adjusted p values, in the given order: reject those that are at most alpha.
pub(crate) fn adjust(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut so_far = 0.0f64;
    for (i, at) in order.iter().enumerate() {
        // The running maximum keeps the adjusted values in the order of the raw ones.
        so_far = so_far.max((p[*at] * (p.len() - i) as f64).min(1.0));
        adjusted[*at] = so_far;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_down_and_never_up_again() {
        let adjusted = adjust(&[0.01, 0.04, 0.03, 0.005]);
        let want = [0.03, 0.06, 0.06, 0.02];
        assert!(adjusted.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{adjusted:?}");
        assert_eq!(adjust(&[0.9, 0.8]), [1.0, 1.0]);
        assert!(adjust(&[]).is_empty());
    }
}
