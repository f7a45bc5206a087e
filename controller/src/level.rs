//! A meter above containers (group, host), shared by workers.

mod bounds;

use alloc::sync::Arc;

use crate::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use crate::limits::{LimitError, Limits};
use crate::share::{Child, ChildRequest, Share};

/// Thresholds of a level. Pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelConfig {
    /// Pressure ends at or below.
    pub low: u64,
    /// Pressure starts above.
    pub soft: u64,
    /// Hard maximum; `u64::MAX` means no limit.
    pub hard: u64,
}

impl From<Limits> for LevelConfig {
    fn from(limits: Limits) -> Self {
        let Limits { low, soft, hard } = limits;
        Self { low, soft, hard }
    }
}

/// The state of a level at one moment. Pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelStats {
    /// Thresholds as set.
    pub limits: LevelConfig,
    /// Pages charged.
    pub usage: u64,
    /// `max(hard, usage)`: after `hard` was lowered below usage, it falls with usage (K6).
    pub hard_effective: u64,
    /// The most ever charged.
    pub watermark: u64,
    /// Charges refused at this level.
    pub failcnt: u64,
    /// The part of usage that is reservations.
    pub fixed: u64,
    /// The part of usage that is open windows of idle flows.
    pub idle: u64,
    /// Over soft.
    pub pressure: bool,
}

/// One atomic meter. A chain has at most three levels (four with the container's budget).
///
/// Usage, the pressure flag and the waiters' bits share one word, so every change of usage decides
/// the flag in the same step. A charge is added only once it fits: a reader never sees usage above
/// the limit, and a large request never makes a small racing one fail at the same level.
#[derive(Debug)]
pub struct Level {
    word: AtomicU64,
    low: AtomicU64,
    soft: AtomicU64,
    hard: AtomicU64,
    fixed: AtomicU64,
    idle: AtomicU64,
    /// Guarantees of the budgets below.
    mins: AtomicU64,
    share: AtomicU64,
    /// Sum of the children's weights.
    weights: AtomicU64,
    /// Sum of the children's maxima, each as [`summable`].
    hards: AtomicU64,
    watermark: AtomicU64,
    failcnt: AtomicU64,
    /// Its own weight among its siblings.
    weight: u32,
    parent: Option<Arc<Self>>,
}

/// A budget waits for room at this level or above.
const WAITING: u64 = 1 << 63;
/// Room was released since `WAITING` was set.
const FREED: u64 = 1 << 62;
/// Over soft.
const PRESSURE: u64 = 1 << 61;
/// Pages charged.
const USAGE: u64 = PRESSURE - 1;

const fn freed_if_waiting(word: u64) -> u64 {
    if word & WAITING != 0 { word | FREED } else { word }
}

/// When a change of usage decides the pressure flag. `Later`: reservations change with it, and the
/// flag is decided once both are known ([`Level::shift_reservations`]); otherwise admitting a flow, which
/// adds nothing elastic, could set the flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SoftTest {
    Now,
    Later,
}

/// What a budget reports to the levels above, or the change of it. Pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reservations {
    /// Reservations.
    pub(crate) fixed: i64,
    /// Open windows of idle flows.
    pub(crate) idle: i64,
    /// The guarantee (`min`).
    pub(crate) min: i64,
}

impl core::ops::Sub for Reservations {
    type Output = Self;

    fn sub(self, of: Self) -> Self {
        Self { fixed: self.fixed - of.fixed, idle: self.idle - of.idle, min: self.min - of.min }
    }
}

/// Weight of a level that is given none.
const WEIGHT: u32 = 1;

/// Levels above a budget, at most.
pub(crate) const DEPTH_MAX: u8 = 3;

impl Level {
    /// A level below `parent`, of weight 1.
    ///
    /// # Errors
    /// As [`Self::weighted`].
    pub fn new(config: LevelConfig, parent: Option<Arc<Self>>) -> Result<Arc<Self>, LimitError> {
        Self::weighted(config, WEIGHT, parent)
    }

    /// A level below `parent`, with a weight among the levels and budgets there.
    ///
    /// # Errors
    /// `Disorder` for limits out of order, `TooDeep` below the third level, `ZeroWeight`.
    pub fn weighted(
        config: LevelConfig,
        weight: u32,
        parent: Option<Arc<Self>>,
    ) -> Result<Arc<Self>, LimitError> {
        let LevelConfig { low, soft, hard } = config;
        Limits::new(low, soft, hard)?;
        if parent.as_ref().is_some_and(|p| p.depth() >= DEPTH_MAX) {
            return Err(LimitError::TooDeep);
        }
        if weight == 0 {
            return Err(LimitError::ZeroWeight);
        }
        if let Some(parent) = &parent {
            parent.join(weight, hard);
        }
        Ok(Arc::new(Self {
            word: AtomicU64::new(0),
            low: AtomicU64::new(low),
            soft: AtomicU64::new(soft),
            hard: AtomicU64::new(hard),
            fixed: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            mins: AtomicU64::new(0),
            share: AtomicU64::new(Share::NONE.0),
            weights: AtomicU64::new(0),
            hards: AtomicU64::new(0),
            watermark: AtomicU64::new(0),
            failcnt: AtomicU64::new(0),
            weight,
            parent,
        }))
    }

    // ---- charging ----

    /// Charges `n` pages here and at every level above, or nothing.
    ///
    /// # Errors
    /// The position of the level that refused; 0 is this level.
    pub fn try_charge(&self, n: u64) -> Result<(), u8> {
        self.charge_below(n, None, SoftTest::Now)
    }

    /// Charges `n` pages at every level without a test (linux rules only).
    pub fn charge_forced(&self, n: u64) {
        for level in self.chain_to(None) {
            let after = level.update(|word| level.flagged(word + n));
            level.watermark.fetch_max(after & USAGE, Relaxed);
        }
    }

    /// Uncharges `n` pages at every level.
    pub fn uncharge(&self, n: u64) {
        self.uncharge_below(n, None, SoftTest::Now);
    }

    /// As [`Self::try_charge`], only at the levels below `end`.
    pub(crate) fn charge_below(
        &self,
        n: u64,
        end: Option<&Self>,
        test: SoftTest,
    ) -> Result<(), u8> {
        // Test all levels before charging any: a refusal high up then does not show at the levels
        // below it, races apart.
        let alone = self.parent.is_none();
        let short = |(_, level): &(usize, &Self)| n > level.free();
        if !alone && let Some((at, level)) = self.chain_to(end).enumerate().find(short) {
            level.note_refusal();
            return Err(at as u8);
        }
        for (at, level) in self.chain_to(end).enumerate() {
            if !level.add(n, test) {
                level.note_refusal();
                // A racing worker took the room: undo the levels below.
                for below in self.chain_to(Some(level)) {
                    below.sub(n, test);
                }
                return Err(at as u8);
            }
        }
        Ok(())
    }

    /// As [`Self::uncharge`], only at the levels below `end`.
    pub(crate) fn uncharge_below(&self, n: u64, end: Option<&Self>, test: SoftTest) {
        for level in self.chain_to(end) {
            level.sub(n, test);
        }
    }

    /// Charges one level if `n` pages fit; returns whether they did.
    fn add(&self, n: u64, test: SoftTest) -> bool {
        let mut word = self.word.load(Relaxed);
        loop {
            let usage = word & USAGE;
            if n > self.hard.load(Relaxed).saturating_sub(usage) {
                return false;
            }
            // The exchange fails if the usage changed since the test for room.
            let next = self.tested(word + n, test);
            match self.word.compare_exchange_weak(word, next, SeqCst, Relaxed) {
                Ok(_) => {
                    self.watermark.fetch_max(usage + n, Relaxed);
                    return true;
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Uncharges one level, and marks that room was released if a budget waits.
    fn sub(&self, n: u64, test: SoftTest) {
        self.update(|word| {
            debug_assert!(word & USAGE >= n, "level would go negative");
            self.tested(freed_if_waiting(word - n), test)
        });
    }

    /// Applies `change` to the word; returns the new word.
    fn update(&self, change: impl Fn(u64) -> u64) -> u64 {
        let mut word = self.word.load(Relaxed);
        loop {
            let next = change(word);
            // Do not write a shared cache line without a change.
            if next == word {
                return word;
            }
            match self.word.compare_exchange_weak(word, next, SeqCst, Relaxed) {
                Ok(_) => return next,
                Err(seen) => word = seen,
            }
        }
    }

    /// The word after the soft test, if it is made now.
    fn tested(&self, word: u64, test: SoftTest) -> u64 {
        match test {
            SoftTest::Now => self.flagged(word),
            SoftTest::Later => word,
        }
    }

    /// The soft test on the elastic part (K7): the ratios of the thresholds to `hard`, applied to
    /// the room that reservations leave.
    fn flagged(&self, word: u64) -> u64 {
        let hard = self.hard.load(Relaxed);
        // A level without a limit is never flagged.
        if hard == u64::MAX {
            return word & !PRESSURE;
        }
        let fixed = self.fixed.load(Relaxed);
        let elastic = (word & USAGE).saturating_sub(fixed).saturating_sub(self.idle.load(Relaxed));
        // Multiplied instead of divided: no rounding decides the flag.
        let room = u128::from(hard.saturating_sub(fixed));
        let scaled = u128::from(elastic) * u128::from(hard);
        if scaled > room * u128::from(self.soft.load(Relaxed)) {
            word | PRESSURE
        } else if scaled <= room * u128::from(self.low.load(Relaxed)) {
            word & !PRESSURE
        } else {
            // Between the two thresholds the flag keeps its value.
            word
        }
    }

    // ---- waiting ----

    /// Marks that a budget waits for room at this level or above. The caller tests the room once
    /// more afterwards (H8).
    pub fn mark_waiting(&self) {
        for level in self.chain_to(None) {
            level.update(|word| word | WAITING);
        }
    }

    /// Whether room was released here since `mark_waiting`; clears the mark. The caller then wakes
    /// the workers with budgets below this level.
    pub fn take_wake(&self) -> bool {
        let both = WAITING | FREED;
        // Read first: without waiters no worker writes the shared word.
        if self.word.load(SeqCst) & both != both {
            return false;
        }
        // If several workers race, exactly one sees both bits and wakes the others.
        self.word.fetch_and(!both, SeqCst) & both == both
    }

    // ---- getters ----

    /// The next level towards the host.
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// Pages charged.
    pub fn usage(&self) -> u64 {
        self.word.load(SeqCst) & USAGE
    }

    /// Pages that one more charge could take, at this level alone.
    pub fn free(&self) -> u64 {
        self.hard.load(SeqCst).saturating_sub(self.usage())
    }

    /// Over soft.
    pub fn under_pressure(&self) -> bool {
        self.word.load(Relaxed) & PRESSURE != 0
    }

    /// The fair level last published.
    pub fn share(&self) -> Share {
        Share(self.share.load(Relaxed))
    }

    /// Charges refused at this level.
    pub fn failcnt(&self) -> u64 {
        self.failcnt.load(Relaxed)
    }

    /// All values at once; not of one moment while other workers run.
    pub fn stats(&self) -> LevelStats {
        let (usage, hard) = (self.usage(), self.hard.load(Relaxed));
        LevelStats {
            limits: LevelConfig {
                low: self.low.load(Relaxed),
                soft: self.soft.load(Relaxed),
                hard,
            },
            usage,
            hard_effective: hard.max(usage),
            watermark: self.watermark.load(Relaxed),
            failcnt: self.failcnt.load(Relaxed),
            fixed: self.fixed.load(Relaxed),
            idle: self.idle.load(Relaxed),
            pressure: self.under_pressure(),
        }
    }

    pub(crate) fn note_refusal(&self) {
        self.failcnt.fetch_add(1, Relaxed);
    }

    pub(crate) fn depth(&self) -> u8 {
        self.chain_to(None).count() as u8
    }

    /// Usage, guarantees and weight for [`fair_level`](crate::share::fair_level) at the level above.
    /// As for a budget, the usage has room to grow by an eighth.
    pub fn as_child(&self) -> Child {
        let usage = self.usage();
        let usage = usage.saturating_add(usage / 8);
        Child { usage, min: self.mins.load(Relaxed), weight: self.weight }
    }

    /// Weight among its siblings.
    pub(crate) fn weight(&self) -> u32 {
        self.weight
    }

    /// This level as the level above it sees it.
    pub(crate) fn as_request(&self) -> ChildRequest {
        let hard = self.hard.load(Relaxed);
        ChildRequest { held: self.usage(), weight: self.weight, hard }
    }

    /// This level and the levels above it, up to `end` exclusive.
    pub(crate) fn chain_to<'a>(&'a self, end: Option<&'a Self>) -> impl Iterator<Item = &'a Self> {
        core::iter::successors(Some(self), |level| level.parent.as_deref())
            .take_while(move |level| !end.is_some_and(|end| core::ptr::eq(*level, end)))
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        if let Some(parent) = &self.parent {
            parent.leave(self.weight, self.hard.load(Relaxed));
        }
    }
}
