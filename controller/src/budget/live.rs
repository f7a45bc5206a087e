//! Changes of limits, guarantee and parent while flows live (B13, K6).

use alloc::sync::Arc;

use super::{Budget, Rules};
use crate::level::{Level, Reservations, SoftTest};
use crate::limits::{LimitError, Limits};
use crate::meter::Refusal;
use crate::units::{Instant, PAGE_SIZE, pages};

impl Budget {
    /// New limits, at any time. Lowering below usage is legal: `max(hard, usage)` then falls with
    /// usage, growth is refused until usage is below `hard`, and nothing that is held is taken
    /// away. Limits out of order are not refused: `soft` is cut to `hard`, and `low` to `soft`.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        self.at(now);
        let Limits { low, soft, hard } = limits;
        let soft = soft.min(hard);
        let low = low.min(soft);
        // The parent sums its children's maxima. Add before subtracting: the sum never dips below.
        if let Some(level) = &self.chain.leaf {
            level.join(0, hard);
            level.leave(0, self.meter.limits.hard);
        }
        self.meter.limits = Limits { low, soft, hard };
        (self.pool.low, self.pool.pressure, self.pool.high) = (low, soft, hard);
        // Waiters may fit under the new limit.
        self.releases += 1;
        self.update_thresholds(self.first_member());
    }

    /// Sets the guarantee, rounded up to pages.
    ///
    /// # Errors
    /// `MinAboveHard`; `MinDoesNotFit` when a level above has no room. Nothing changes then.
    pub fn set_min(&mut self, min_bytes: u64, now: Instant) -> Result<(), LimitError> {
        self.at(now);
        let min = pages(min_bytes);
        if min > self.meter.limits.hard {
            let hard_bytes = self.meter.limits.hard_bytes();
            return Err(LimitError::MinAboveHard { min_bytes, hard_bytes });
        }
        let usage = self.usage();
        // The levels above count `max(usage, min)`, so only the change of that is charged.
        let (old, new) = (usage.max(self.meter.min), usage.max(min));
        if let Some(level) = self.chain.leaf.as_deref()
            && self.rules == Rules::Strict
        {
            if new > old && level.charge_below(new - old, None, SoftTest::Later).is_err() {
                // Report what the tightest level still allows.
                let room = level.chain_to(None).map(Level::free).min().unwrap_or(0);
                let room_bytes = (room + old - usage).saturating_mul(PAGE_SIZE);
                return Err(LimitError::MinDoesNotFit { min_bytes, room_bytes });
            }
            if new < old {
                level.uncharge_below(old - new, None, SoftTest::Later);
            }
        }
        self.meter.min = min;
        // Waiters below the new guarantee may fit.
        self.releases += 1;
        self.update_thresholds(self.first_member());
        Ok(())
    }

    /// Moves the budget with its charge under another level: whole or not at all. Levels above both
    /// the old and the new place see no change (B13, K6).
    ///
    /// # Errors
    /// `Ancestor` when a new level has no room; nothing changes then.
    pub fn set_parent(&mut self, to: Option<Arc<Level>>, now: Instant) -> Result<(), Refusal> {
        self.at(now);
        self.relocate(to, self.meter.min)
    }

    /// Moves the budget as [`Self::set_parent`], with another guarantee at the new place: both or
    /// neither. One after the other could be refused where both together fit.
    ///
    /// # Errors
    /// `Hard` when the guarantee is above the budget's own limit, `Ancestor` when a level has no
    /// room; nothing changes then.
    pub fn set_parent_and_min(
        &mut self,
        to: Option<Arc<Level>>,
        min_bytes: u64,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.at(now);
        let min = pages(min_bytes);
        if min > self.meter.limits.hard {
            return Err(Refusal::Hard);
        }
        self.relocate(to, min)?;
        self.update_thresholds(self.first_member());
        Ok(())
    }

    /// Moves the charge to the levels above another place, where the guarantee is `min` pages.
    fn relocate(&mut self, to: Option<Arc<Level>>, min: u64) -> Result<(), Refusal> {
        let before = self.charged_up();
        let after = match self.rules {
            Rules::Strict => self.usage().max(min),
            Rules::Linux => before,
        };
        let from = self.chain.leaf.as_deref();
        let common = common_level(from, to.as_deref());
        // Charge the new levels before the old ones are uncharged: a refusal there needs no undo.
        if let Some(level) = to.as_deref()
            && let Err(at) = level.charge_below(after, common, SoftTest::Later)
        {
            return Err(Refusal::Ancestor(at));
        }
        if let Some(level) = common {
            let more = after.saturating_sub(before);
            if more > 0
                && let Err(at) = level.charge_below(more, None, SoftTest::Later)
            {
                let new = to.as_deref().into_iter().flat_map(|level| level.chain_to(common));
                let below = new.count() as u8;
                if let Some(level) = to.as_deref() {
                    level.uncharge_below(after, common, SoftTest::Later);
                }
                return Err(Refusal::Ancestor(below + at));
            }
            level.uncharge_below(before.saturating_sub(after), None, SoftTest::Later);
        }
        if let Some(level) = from {
            level.uncharge_below(before, common, SoftTest::Later);
        }
        // Reservations move with the charge; the levels' soft tests are made here.
        self.meter.min = min;
        let reported = match self.rules {
            Rules::Strict => self.meter.reservations(),
            Rules::Linux => Reservations::default(),
        };
        self.meter.move_reservations(from, to.as_deref(), common, reported);
        self.chain.leaf = to;
        self.releases += 1;
        Ok(())
    }
}

/// The lowest level above both `a` and `b`, if any.
pub(super) fn common_level<'a>(a: Option<&'a Level>, b: Option<&'a Level>) -> Option<&'a Level> {
    let (a, b) = (a?, b?);
    a.chain_to(None).find(|of_a| b.chain_to(None).any(|of_b| core::ptr::eq(*of_a, of_b)))
}
