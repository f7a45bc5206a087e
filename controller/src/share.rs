//! Shares between containers under pressure of a level above them. Pages.

/// The fair level X (H5): pages that a unit of weight stands for, in fractions, so that weights
/// beyond the number of pages mean something, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub(crate) u64);

/// Fractions of a page.
const UNIT_BITS: u32 = 16;

impl Share {
    /// All that is wanted fits: no bound.
    pub const NONE: Self = Self(u64::MAX);

    /// So many whole pages a unit of weight.
    pub const fn pages(pages: u64) -> Self {
        Self(pages.saturating_mul(1 << UNIT_BITS))
    }

    /// Pages for a child of this weight; `u64::MAX` = no bound.
    pub const fn of(self, weight: u32) -> u64 {
        let pages = (self.0 as u128 * weight as u128) >> UNIT_BITS;
        if self.0 == u64::MAX || pages > u64::MAX as u128 { u64::MAX } else { pages as u64 }
    }
}

/// One child of a level, as [`fair_level`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// Pages.
    pub usage: u64,
    /// Pages that are its own whether used or not.
    pub min: u64,
    /// Among its siblings; at least 1.
    pub weight: u32,
}

/// The fair level X (H5): the largest `x` with `sum(max(min, min(usage, x * weight))) <= soft`.
///
/// `Share::NONE` when all children fit without a bound. Whoever uses less than its weight's worth
/// keeps room to grow, so that nothing is refused to one child while another's excess could cover
/// it.
///
/// To be computed when the level is flagged and at most every few milliseconds while it is, and
/// handed to [`crate::Level::publish_share`]. Costs the number of children times the bits of the
/// largest usage.
pub fn fair_level(children: &[Child], soft: u64) -> Share {
    let held = |x: u64| {
        children.iter().fold(0_u64, |sum, &Child { usage, min, weight }| {
            sum.saturating_add(usage.min(Share(x).of(weight)).max(min))
        })
    };
    let most = children.iter().map(|child| child.usage).max().unwrap_or(0);
    let most = Share::pages(most).0;
    if held(most) <= soft {
        return Share::NONE;
    }
    // held(low) <= soft < held(high)
    let (mut low, mut high) = (0, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if held(middle) <= soft { low = middle } else { high = middle }
    }
    Share(low)
}

/// A child as its level sees it when it asks to grow. Pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking {
    /// What the level counts for it.
    pub(crate) held: u64,
    pub(crate) weight: u32,
    /// Its own maximum.
    pub(crate) hard: u64,
}

/// Sums over the children of a level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    pub(crate) weights: u64,
    /// Of maxima, each as [`countable`].
    pub(crate) hards: u64,
}

/// The part of `hard` that is a child's whoever else uses what: by its weight, or more where the
/// others' maxima leave more.
pub(crate) fn part(hard: u64, child: Asking, all: Family) -> u64 {
    if hard == u64::MAX {
        return hard;
    }
    let weight = u64::from(child.weight);
    let by_weight = u128::from(hard) * u128::from(weight) / u128::from(all.weights.max(weight));
    let others = all.hards.saturating_sub(countable(child.hard));
    u64::try_from(by_weight).unwrap_or(u64::MAX).max(hard.saturating_sub(others))
}

/// A maximum that can be summed up: none is more than any machine has.
pub(crate) fn countable(hard: u64) -> u64 {
    hard.min(1 << 48)
}

/// The first form of the share (B5), kept for comparison: grows iff `hard * weight > weights *
/// usage_after`. It is neither work-conserving nor protective; [`fair_level`] replaces it.
pub fn proportional_allows(hard: u64, weight: u32, weights: u64, usage_after: u64) -> bool {
    u128::from(hard) * u128::from(weight) > u128::from(weights) * u128::from(usage_after)
}
