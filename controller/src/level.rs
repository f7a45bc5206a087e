//! A meter above the container (group, host), shared by workers.

use alloc::sync::Arc;

use crate::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use crate::limits::{LimitError, Limits};
use crate::share::{Asking, Family, Share, countable, part};
use crate::units::scale;

/// How a level is made. Pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelConfig {
    /// Pressure ends at or below.
    pub low: u64,
    /// Pressure begins above.
    pub soft: u64,
    /// Hard maximum; `u64::MAX` = no limit.
    pub hard: u64,
}

/// A level at one moment, pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelStats {
    /// Thresholds as set.
    pub limits: LevelConfig,
    /// Charged.
    pub usage: u64,
    /// `max(hard, usage)`: a lowered limit falls with usage (K6).
    pub hard_effective: u64,
    /// The most ever charged.
    pub watermark: u64,
    /// Charges refused here.
    pub failcnt: u64,
    /// Part of usage that is reservations.
    pub fixed: u64,
    /// Part of usage that is open windows of idle flows.
    pub idle: u64,
    /// Over soft.
    pub pressure: bool,
}

/// One atomic meter. Parent chain at most three long (with the container: four levels).
///
/// Usage, the pressure flag and the waiters' bits share one word, so every change of usage decides
/// the flag in the same step. Nothing is added before it is known to fit: a reader never sees usage
/// above the limit, and a large request never makes a small racing one fail at the same level.
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
    weight: AtomicU32,
    /// Sums over the children.
    weights: AtomicU64,
    hards: AtomicU64,
    watermark: AtomicU64,
    failcnt: AtomicU64,
    parent: Option<Arc<Self>>,
}

/// Somebody waits for room at this level.
const WAITING: u64 = 1 << 63;
/// Room was given back since somebody began to wait.
const FREED: u64 = 1 << 62;
/// Over soft.
const PRESSURE: u64 = 1 << 61;
/// Pages charged.
const USAGE: u64 = PRESSURE - 1;

const fn freed_if_waiting(word: u64) -> u64 {
    if word & WAITING != 0 { word | FREED } else { word }
}

/// When a change of usage decides the pressure flag. `Later`: reservations change with it, and the
/// flag is decided once both are known ([`Level::shift_static`]); else admitting a flow, which adds
/// nothing elastic, could set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SoftTest {
    Now,
    Later,
}

/// What a level is told of a budget below it, or a change of it: pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Static {
    /// Reservations.
    pub(crate) fixed: i64,
    /// Windows of idle flows.
    pub(crate) idle: i64,
    /// The guarantee.
    pub(crate) min: i64,
}

impl core::ops::Sub for Static {
    type Output = Self;

    fn sub(self, of: Self) -> Self {
        Self { fixed: self.fixed - of.fixed, idle: self.idle - of.idle, min: self.min - of.min }
    }
}

/// Levels above a container.
pub(crate) const DEPTH_MAX: u8 = 3;

impl Level {
    /// Fails on disordered limits and on more than three levels.
    pub fn new(config: LevelConfig, parent: Option<Arc<Self>>) -> Result<Arc<Self>, LimitError> {
        let LevelConfig { low, soft, hard } = config;
        Limits::new(low, soft, hard)?;
        if parent.as_ref().is_some_and(|p| p.depth() >= DEPTH_MAX) {
            return Err(LimitError::TooDeep);
        }
        if let Some(parent) = &parent {
            parent.join(1, hard);
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
            weight: AtomicU32::new(1),
            weights: AtomicU64::new(0),
            hards: AtomicU64::new(0),
            watermark: AtomicU64::new(0),
            failcnt: AtomicU64::new(0),
            parent,
        }))
    }

    // ---- charging ----

    /// Charges `n` pages here and at every level above, or nothing. The error names the level that
    /// refused, 0 = this.
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

    /// Gives `n` pages back at every level.
    pub fn uncharge(&self, n: u64) {
        self.uncharge_below(n, None, SoftTest::Now);
    }

    /// As [`Self::try_charge`], but only at the levels below `end`.
    pub(crate) fn charge_below(
        &self,
        n: u64,
        end: Option<&Self>,
        test: SoftTest,
    ) -> Result<(), u8> {
        // Looking first keeps a refusal far up from showing at the levels below it, races aside.
        let alone = self.parent.is_none();
        let short = |(_, level): &(usize, &Self)| n > level.free();
        if !alone && let Some((at, level)) = self.chain_to(end).enumerate().find(short) {
            level.note_refusal();
            return Err(at as u8);
        }
        for (at, level) in self.chain_to(end).enumerate() {
            if !level.add(n, test) {
                level.note_refusal();
                for below in self.chain_to(Some(level)) {
                    below.sub(n, test);
                }
                return Err(at as u8);
            }
        }
        Ok(())
    }

    pub(crate) fn uncharge_below(&self, n: u64, end: Option<&Self>, test: SoftTest) {
        for level in self.chain_to(end) {
            level.sub(n, test);
        }
    }

    /// One level: charge if it fits.
    fn add(&self, n: u64, test: SoftTest) -> bool {
        let mut word = self.word.load(Relaxed);
        loop {
            let usage = word & USAGE;
            if n > self.hard.load(Relaxed).saturating_sub(usage) {
                return false;
            }
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

    /// One level: give back, and leave a mark for whoever waits.
    fn sub(&self, n: u64, test: SoftTest) {
        self.update(|word| {
            debug_assert!(word & USAGE >= n, "level would go negative");
            self.tested(freed_if_waiting(word - n), test)
        });
    }

    /// Applies `change` to the word. Returns the new word.
    fn update(&self, change: impl Fn(u64) -> u64) -> u64 {
        let mut word = self.word.load(Relaxed);
        loop {
            let next = change(word);
            if next == word {
                return word;
            }
            match self.word.compare_exchange_weak(word, next, SeqCst, Relaxed) {
                Ok(_) => return next,
                Err(seen) => word = seen,
            }
        }
    }

    fn tested(&self, word: u64, test: SoftTest) -> u64 {
        match test {
            SoftTest::Now => self.flagged(word),
            SoftTest::Later => word,
        }
    }

    /// The soft test on the elastic part (K7): the user's ratios to `hard`, applied to the room
    /// reservations leave.
    fn flagged(&self, word: u64) -> u64 {
        let hard = self.hard.load(Relaxed);
        if hard == u64::MAX {
            return word & !PRESSURE;
        }
        let fixed = self.fixed.load(Relaxed);
        let elastic = (word & USAGE).saturating_sub(fixed).saturating_sub(self.idle.load(Relaxed));
        let room = u128::from(hard.saturating_sub(fixed));
        let scaled = u128::from(elastic) * u128::from(hard);
        if scaled > room * u128::from(self.soft.load(Relaxed)) {
            word | PRESSURE
        } else if scaled <= room * u128::from(self.low.load(Relaxed)) {
            word & !PRESSURE
        } else {
            word
        }
    }

    // ---- limits and shares ----

    /// New limits, at any time; below usage is legal: growth stops and the effective maximum falls
    /// with usage (K6). A charge that races with the change counts as made before it.
    pub fn set_limits(&self, config: LevelConfig) -> Result<(), LimitError> {
        let LevelConfig { low, soft, hard } = config;
        Limits::new(low, soft, hard)?;
        self.low.store(low, Relaxed);
        self.soft.store(soft, Relaxed);
        let before = self.hard.swap(hard, SeqCst);
        if let Some(parent) = &self.parent {
            parent.join(0, hard);
            parent.leave(0, before);
        }
        self.update(|word| self.flagged(freed_if_waiting(word)));
        Ok(())
    }

    /// Weight of this level among its siblings under the same parent. 1 unless set; 0 is taken as
    /// 1.
    pub fn set_weight(&self, weight: u32) {
        let new = weight.max(1);
        let old = self.weight.swap(new, Relaxed);
        if let Some(parent) = &self.parent {
            parent.join(new, 0);
            parent.leave(old, 0);
        }
    }

    /// A child of that weight and maximum is there.
    pub(crate) fn join(&self, weight: u32, hard: u64) {
        self.weights.fetch_add(u64::from(weight), Relaxed);
        self.hards.fetch_add(countable(hard), Relaxed);
    }

    /// A child of that weight and maximum is gone.
    pub(crate) fn leave(&self, weight: u32, hard: u64) {
        self.weights.fetch_sub(u64::from(weight), Relaxed);
        self.hards.fetch_sub(countable(hard), Relaxed);
    }

    /// The fair level X (H5): while this level is flagged a child grows only up to `X * weight`, or
    /// up to its `min`. `Share::NONE`: all that is used fits. See [`crate::share::fair_level`].
    pub fn publish_share(&self, share: Share) {
        self.share.store(share.0, Relaxed);
        self.update(freed_if_waiting);
    }

    /// Pages by which a child may grow: no bound without pressure, then up to the fair level. Until
    /// that is known, and while all fit below it, as [`Self::spread`].
    pub(crate) fn fair_room(&self, child: Asking) -> u64 {
        if self.under_pressure() && self.share() == Share::NONE {
            return self.spread(child, self.soft_effective());
        }
        self.published_room(child)
    }

    /// As [`Self::fair_room`], for a child that takes what its sibling gives back.
    pub(crate) fn published_room(&self, child: Asking) -> u64 {
        if !self.under_pressure() {
            return u64::MAX;
        }
        self.share().of(child.weight).saturating_sub(child.held)
    }

    /// As [`Self::fair_room`] for what may be there for good, used or not: a flow's reservation. It
    /// never sets the flag, so the head room is kept free of it here.
    pub(crate) fn reservation_room(&self, child: Asking) -> u64 {
        let (hard, soft) = (self.hard.load(Relaxed), self.soft.load(Relaxed));
        let mins = self.mins.load(Relaxed);
        let most = mins.saturating_add(scale(hard.saturating_sub(mins), soft, hard));
        self.fair_room(child).min(self.spread(child, most))
    }

    /// The head room between `most` and `hard` is for those below their part: up to that a child
    /// grows, or until the level holds `most`.
    fn spread(&self, child: Asking, most: u64) -> u64 {
        let all = Family { weights: self.weights.load(Relaxed), hards: self.hards.load(Relaxed) };
        let part = part(self.hard.load(Relaxed), child, all);
        part.saturating_sub(child.held).max(most.saturating_sub(self.usage()))
    }

    /// Pages at which this level's flag is set: what the fair level divides.
    pub fn soft_effective(&self) -> u64 {
        let (hard, soft) = (self.hard.load(Relaxed), self.soft.load(Relaxed));
        if hard == u64::MAX || hard == 0 {
            return soft;
        }
        let fixed = self.fixed.load(Relaxed);
        let room = scale(hard.saturating_sub(fixed), soft, hard);
        fixed.saturating_add(self.idle.load(Relaxed)).saturating_add(room)
    }

    /// What a child holds for good changed. Then the soft test.
    pub(crate) fn shift_static(&self, by: Static, end: Option<&Self>) {
        for level in self.chain_to(end) {
            if by != Static::default() {
                level.fixed.fetch_add(by.fixed as u64, Relaxed);
                level.idle.fetch_add(by.idle as u64, Relaxed);
                level.mins.fetch_add(by.min as u64, Relaxed);
            }
            level.update(|word| level.flagged(word));
        }
    }

    // ---- waiting ----

    /// Says that somebody waits for room at this level or above it. Look at the room once more
    /// afterwards.
    pub fn mark_waiting(&self) {
        for level in self.chain_to(None) {
            level.update(|word| word | WAITING);
        }
    }

    /// Whether room was given back here since somebody began to wait; asking clears the mark. The
    /// caller then wakes the workers whose budgets are below this level.
    pub fn take_wake(&self) -> bool {
        let both = WAITING | FREED;
        if self.word.load(SeqCst) & both != both {
            return false;
        }
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

    /// Pages one more charge could take at this level alone.
    pub fn free(&self) -> u64 {
        self.hard.load(SeqCst).saturating_sub(self.usage())
    }

    /// Over soft.
    pub fn under_pressure(&self) -> bool {
        self.word.load(Relaxed) & PRESSURE != 0
    }

    /// Whether somebody waits for room here.
    pub fn has_waiters(&self) -> bool {
        self.word.load(SeqCst) & WAITING != 0
    }

    /// The published fair level.
    pub fn share(&self) -> Share {
        Share(self.share.load(Relaxed))
    }

    /// Weight among its siblings.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Charges refused at this level.
    pub fn failcnt(&self) -> u64 {
        self.failcnt.load(Relaxed)
    }

    /// All numbers at once; not one moment in time while other workers run.
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

    /// As the level above sees it.
    pub(crate) fn asking(&self) -> Asking {
        let hard = self.hard.load(Relaxed);
        Asking { held: self.usage(), weight: self.weight(), hard }
    }

    /// This level and those above it, up to `end` exclusive.
    pub(crate) fn chain_to<'a>(&'a self, end: Option<&'a Self>) -> impl Iterator<Item = &'a Self> {
        core::iter::successors(Some(self), |level| level.parent.as_deref())
            .take_while(move |level| !end.is_some_and(|end| core::ptr::eq(*level, end)))
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        if let Some(parent) = &self.parent {
            parent.leave(self.weight(), self.hard.load(Relaxed));
        }
    }
}
