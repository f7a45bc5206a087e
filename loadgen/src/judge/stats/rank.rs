//! Exact rank tests. With few runs the normal approximation is wrong where it matters, so the distributions are counted
//! out: Wilcoxon's signed ranks for pairs, Mann and Whitney's rank sum for two groups, mid-ranks for ties.

/// Maximum number of values: time and memory for counting out grow with the third power. Callers refuse more.
pub(crate) const VALUES_MAX: usize = 200;

/// Twice the mid-rank of each value, so that ties have whole numbers.
fn doubled_ranks(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0; values.len()];
    let mut from = 0;
    while from < order.len() {
        let same = |i: &usize| values[*i] == values[order[from]];
        let count = order[from..].iter().take_while(|i| same(i)).count();
        // Ties share the mean of the ranks from+1 ..= from+count.
        for i in &order[from..from + count] {
            ranks[*i] = 2 * from + 1 + count;
        }
        from += count;
    }
    ranks
}

/// Two-sided p of paired differences by signed ranks. Zero differences are discarded; if none remain, p is 1.
pub(crate) fn signed_rank(differences: &[f64]) -> f64 {
    let real: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let sizes: Vec<f64> = real.iter().map(|d| d.abs()).collect();
    let ranks = doubled_ranks(&sizes);
    let total: usize = ranks.iter().sum();
    let seen: usize = ranks.iter().zip(&real).filter(|(_, d)| **d > 0.0).map(|(r, _)| r).sum();
    // Probability of each rank sum when every sign is a coin toss.
    let mut chance = vec![0.0; total + 1];
    chance[0] = 1.0;
    for r in ranks {
        for sum in (0..=total).rev() {
            let with = if sum >= r { chance[sum - r] } else { 0.0 };
            chance[sum] = f64::midpoint(chance[sum], with);
        }
    }
    two_sided(&chance, seen)
}

/// Two-sided p of two groups: the share of random splits with a rank sum at least as extreme as the observed one.
pub(crate) fn rank_sum(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let ranks = doubled_ranks(&all);
    let (n, total): (usize, usize) = (b.len(), ranks.iter().sum());
    let seen: usize = ranks[a.len()..].iter().sum();
    // ways[k][sum]: number of subsets of k ranks with this sum.
    let mut ways = vec![vec![0.0f64; total + 1]; n + 1];
    ways[0][0] = 1.0;
    for r in &ranks {
        // Downwards, so that each rank is used once per subset.
        for k in (1..=n).rev() {
            for sum in (*r..=total).rev() {
                ways[k][sum] += ways[k - 1][sum - r];
            }
        }
    }
    let subsets: f64 = ways[n].iter().sum();
    let chance: Vec<f64> = ways[n].iter().map(|w| w / subsets).collect();
    two_sided(&chance, seen)
}

/// Two-sided p of an observed sum under a distribution.
fn two_sided(chance: &[f64], seen: usize) -> f64 {
    let below: f64 = chance[..=seen].iter().sum();
    let above: f64 = chance[seen..].iter().sum();
    // Twice the smaller tail. Both tails include the observed sum, so the result may exceed 1.
    (2.0 * below.min(above)).min(1.0)
}

/// The smallest p that `pairs` pairs can reach.
pub(crate) fn least_p(pairs: usize) -> f64 {
    2.0 * 0.5f64.powi(pairs.min(1000) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    /// Known least probabilities: 6 pairs 0.03125, 5 pairs 0.0625; groups of 3, 4, 5 and 6: 0.1, 0.0286, 0.0079,
    /// 0.0022.
    #[test]
    fn the_least_probabilities_are_the_known_ones() {
        near(signed_rank(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 0.03125);
        near(signed_rank(&[-1.0, -2.0, -3.0, -4.0, -5.0]), 0.0625);
        near(least_p(6), 0.03125);
        for (n, ways) in [(3, 20.0), (4, 70.0), (5, 252.0), (6, 924.0)] {
            let a: Vec<f64> = (0..n).map(f64::from).collect();
            let b: Vec<f64> = (n..2 * n).map(f64::from).collect();
            near(rank_sum(&a, &b), 2.0 / ways);
            near(rank_sum(&b, &a), 2.0 / ways);
        }
    }

    /// W+ = 40 of 55 at n = 10 has p = 0.232 in published tables.
    #[test]
    fn a_table_value() {
        let d = [1.0, 2.0, -3.0, 4.0, -5.0, 6.0, -7.0, 8.0, 9.0, 10.0];
        assert_eq!(d.iter().filter(|x| **x > 0.0).sum::<f64>(), 40.0);
        assert!((signed_rank(&d) - 0.232).abs() < 0.001);
    }

    #[test]
    fn equal_values_and_ties_have_their_known_p() {
        near(signed_rank(&[0.0; 9]), 1.0);
        near(signed_rank(&[]), 1.0);
        near(rank_sum(&[1.0; 6], &[1.0; 6]), 1.0);
        // All of one size: only the signs decide, 2 (1/2)^6.
        near(signed_rank(&[0.5; 6]), 0.03125);
        near(rank_sum(&[], &[1.0]), 1.0);
    }
}
