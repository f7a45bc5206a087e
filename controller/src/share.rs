//! Shares between containers under pressure of a level above them. Pages.

/// The fair level X (H5): the largest `x` with `sum(min(usage, x * weight)) <= soft` over the
/// children of a level. `u64::MAX` when they fit without a bound. Whoever uses less than `x *
/// weight` keeps room to grow, so that nothing is refused to one child while another's excess could
/// cover it.
///
/// To be computed when the level is flagged and at most every few milliseconds while it is, and
/// handed to [`crate::Level::publish_share`]. Costs the number of children times the bits of the
/// largest usage.
pub fn fair_level(children: &[(u64, u32)], soft: u64) -> u64 {
    let held = |x: u64| {
        children.iter().fold(0_u64, |sum, &(usage, weight)| {
            sum.saturating_add(usage.min(x.saturating_mul(u64::from(weight))))
        })
    };
    let most = children.iter().map(|child| child.0).max().unwrap_or(0);
    if held(most) <= soft {
        return u64::MAX;
    }
    // held(low) <= soft < held(high)
    let (mut low, mut high) = (0, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if held(middle) <= soft { low = middle } else { high = middle }
    }
    low
}

/// The first form of the share (B5), kept for comparison: grows iff `hard * weight > weights *
/// usage_after`. It is neither work-conserving nor protective; [`fair_level`] replaces it.
pub fn proportional_allows(hard: u64, weight: u32, weights: u64, usage_after: u64) -> bool {
    u128::from(hard) * u128::from(weight) > u128::from(weights) * u128::from(usage_after)
}
