//! Limits of a level, and how far its children may grow (H5, K6).

use super::{Level, LevelConfig, Reservations, freed_if_waiting};
use crate::atomic::Ordering::{Relaxed, SeqCst};
use crate::limits::{LimitError, Limits};
use crate::share::{ChildRequest, ChildTotals, Share, guaranteed_part, summable};
use crate::units::scale;

impl Level {
    /// New limits, at any time. Below usage is legal: growth stops and the effective maximum falls
    /// with usage (K6). A charge that races with the change counts as made before it.
    ///
    /// # Errors
    /// `Disorder`; nothing changes then.
    pub fn set_limits(&self, config: LevelConfig) -> Result<(), LimitError> {
        let LevelConfig { low, soft, hard } = config;
        Limits::new(low, soft, hard)?;
        self.low.store(low, Relaxed);
        self.soft.store(soft, Relaxed);
        let before = self.hard.swap(hard, SeqCst);
        if let Some(parent) = &self.parent {
            // Add before subtracting: the parent's sum never dips below.
            parent.join(0, hard);
            parent.leave(0, before);
        }
        // Waiters may fit under the new limits.
        self.update(|word| self.flagged(freed_if_waiting(word)));
        Ok(())
    }

    /// Adds a child's weight and maximum to the sums.
    pub(crate) fn join(&self, weight: u32, hard: u64) {
        self.weights.fetch_add(u64::from(weight), Relaxed);
        self.hards.fetch_add(summable(hard), Relaxed);
    }

    /// Subtracts a child's weight and maximum from the sums.
    pub(crate) fn leave(&self, weight: u32, hard: u64) {
        self.weights.fetch_sub(u64::from(weight), Relaxed);
        self.hards.fetch_sub(summable(hard), Relaxed);
    }

    /// Sets the fair level X (H5): while this level is flagged, a child grows only up to `X *
    /// weight`, or up to its `min`. `Share::NONE`: all usage fits, no bound. See
    /// [`crate::share::fair_level`].
    pub fn publish_share(&self, share: Share) {
        self.share.store(share.0, Relaxed);
        // A larger share may let a waiter proceed.
        self.update(freed_if_waiting);
    }

    /// Pages by which a child may grow: no bound without pressure, then up to the fair level. While
    /// no fair level is published, or it is no bound, up to the child's part ([`Self::room_to_part`]).
    pub(crate) fn fair_room(&self, child: ChildRequest) -> u64 {
        // Flagged, but without a fair level that bounds: the parts apply.
        if self.under_pressure() && self.share() == Share::NONE {
            return self.room_to_part(child, self.soft_effective());
        }
        self.published_room(child)
    }

    /// As [`Self::fair_room`], for a child that only takes what its sibling releases: without a
    /// published fair level there is no bound.
    pub(crate) fn published_room(&self, child: ChildRequest) -> u64 {
        if !self.under_pressure() {
            return u64::MAX;
        }
        self.share().of(child.weight).saturating_sub(child.held)
    }

    /// As [`Self::fair_room`] for a flow's reservation, which may stay for good, used or not. It
    /// never sets the flag, so the room above soft is kept free of it here.
    pub(crate) fn reservation_room(&self, child: ChildRequest) -> u64 {
        let (hard, soft) = (self.hard.load(Relaxed), self.soft.load(Relaxed));
        let mins = self.mins.load(Relaxed);
        let most = mins.saturating_add(scale(hard.saturating_sub(mins), soft, hard));
        self.fair_room(child).min(self.room_to_part(child, most))
    }

    /// Pages by which a child may grow to its part, or until the level holds `most`, whichever is
    /// more: the room between `most` and `hard` is for children below their part.
    fn room_to_part(&self, child: ChildRequest, most: u64) -> u64 {
        let all =
            ChildTotals { weights: self.weights.load(Relaxed), hards: self.hards.load(Relaxed) };
        let part = guaranteed_part(self.hard.load(Relaxed), child, all);
        part.saturating_sub(child.held).max(most.saturating_sub(self.usage()))
    }

    /// Pages at which this level's flag is set; the fair level divides them.
    pub fn soft_effective(&self) -> u64 {
        let (hard, soft) = (self.hard.load(Relaxed), self.soft.load(Relaxed));
        if hard == u64::MAX || hard == 0 {
            return soft;
        }
        let fixed = self.fixed.load(Relaxed);
        let room = scale(hard.saturating_sub(fixed), soft, hard);
        fixed.saturating_add(self.idle.load(Relaxed)).saturating_add(room)
    }

    /// Adds a change of a child's reservations, idle credit or guarantee. Then makes the soft test.
    pub(crate) fn shift_reservations(&self, by: Reservations, end: Option<&Self>) {
        for level in self.chain_to(end) {
            if by != Reservations::default() {
                // A negative change wraps around: two's complement subtracts it.
                level.fixed.fetch_add(by.fixed as u64, Relaxed);
                level.idle.fetch_add(by.idle as u64, Relaxed);
                level.mins.fetch_add(by.min as u64, Relaxed);
            }
            level.update(|word| level.flagged(word));
        }
    }
}
