//! Shares of containers while a level above them is under pressure. Pages.

/// The fair level X (H5): pages per unit of weight, in fractions, so that weights beyond the number
/// of pages still count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub(crate) u64);

/// Bits after the binary point.
const UNIT_BITS: u32 = 16;

impl Share {
    /// No bound: all demand fits.
    pub const NONE: Self = Self(u64::MAX);

    /// A share of `pages` whole pages per unit of weight.
    pub const fn pages(pages: u64) -> Self {
        Self(pages.saturating_mul(1 << UNIT_BITS))
    }

    /// Pages for a child of this weight; `u64::MAX` means no bound.
    pub const fn of(self, weight: u32) -> u64 {
        let pages = (self.0 as u128 * weight as u128) >> UNIT_BITS;
        if self.0 == u64::MAX || pages > u64::MAX as u128 { u64::MAX } else { pages as u64 }
    }
}

/// One child of a level, as input of [`fair_level`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// Pages, with the room to grow ([`crate::Budget::as_child`]).
    pub usage: u64,
    /// Guarantee, pages, used or not.
    pub min: u64,
    /// Weight among its siblings; at least 1.
    pub weight: u32,
}

/// The fair level X (H5): the largest `x` with `sum(max(min, min(usage, x * weight))) <= soft`.
///
/// `Share::NONE` when all children fit without a bound. A child that uses less than its weight
/// allows keeps room to grow: no child is refused while the excess of another child could cover its
/// need.
///
/// [`crate::ShareClock`] decides when it is computed and published. The cost is the number of
/// children times the bits of the largest usage.
pub fn fair_level(children: &[Child], soft: u64) -> Share {
    let held = |x: u64| {
        children.iter().fold(0_u64, |sum, &Child { usage, min, weight }| {
            sum.saturating_add(usage.min(Share(x).of(weight)).max(min))
        })
    };
    // At a share of the largest usage no child of weight 1 or more is bounded.
    let most = children.iter().map(|child| child.usage).max().unwrap_or(0);
    let most = Share::pages(most).0;
    if held(most) <= soft {
        return Share::NONE;
    }
    // Binary search: `held(low) <= soft < held(high)`.
    let (mut low, mut high) = (0, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if held(middle) <= soft { low = middle } else { high = middle }
    }
    Share(low)
}

/// A child that requests growth, as its level sees it. Pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChildRequest {
    /// Pages that the level counts for it.
    pub(crate) held: u64,
    pub(crate) weight: u32,
    /// Its own maximum.
    pub(crate) hard: u64,
}

/// Sums over all children of a level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChildTotals {
    pub(crate) weights: u64,
    /// Sum of the maxima, each as [`summable`].
    pub(crate) hards: u64,
}

/// The part of `hard` that a child may take whatever its siblings use: by its weight, or more where
/// the siblings' maxima leave more.
pub(crate) fn guaranteed_part(hard: u64, child: ChildRequest, all: ChildTotals) -> u64 {
    if hard == u64::MAX {
        return hard;
    }
    let weight = u64::from(child.weight);
    let by_weight = u128::from(hard) * u128::from(weight) / u128::from(all.weights.max(weight));
    // Room beyond the siblings' maxima can serve no other child.
    let others = all.hards.saturating_sub(summable(child.hard));
    u64::try_from(by_weight).unwrap_or(u64::MAX).max(hard.saturating_sub(others))
}

/// A maximum that can be summed without overflow: 2^48 pages are more than any machine has.
pub(crate) fn summable(hard: u64) -> u64 {
    hard.min(1 << 48)
}
