//! The meter above all budgets, shared by the workers. It wakes the waiters of all workers when memory is released
//! there, and publishes each budget's share while the level is under pressure (H5).

use std::sync::{Arc, Mutex, PoisonError};

use mio::Waker;
use skbudget_controller::share::Child;
use skbudget_controller::{Instant, Level, LevelStats, PAGE_SIZE, Pressure, ShareClock};

use crate::stats::Meter;

#[derive(Debug)]
pub(crate) struct HostLevel {
    /// The meter itself: budgets charge it without a lock.
    pub(crate) level: Arc<Level>,
    /// One entry for each worker, by its index.
    workers: Mutex<Vec<Seen>>,
}

/// A worker as the others see it.
#[derive(Debug)]
struct Seen {
    waker: Arc<Waker>,
    /// Its budgets when it last computed the shares.
    budgets: Vec<Child>,
}

impl HostLevel {
    pub(crate) fn new(level: Arc<Level>) -> Self {
        Self { level, workers: Mutex::default() }
    }

    /// Adds a worker. Workers must join in the order of their indices.
    pub(crate) fn join(&self, waker: Arc<Waker>) {
        self.workers().push(Seen { waker, budgets: Vec::new() });
    }

    /// After a turn of worker `own`: publishes the shares if they are due by the worker's clock, and wakes the other
    /// workers if memory was released at this level. True when worker `own` must poll its waiters for the same reason.
    pub(crate) fn on_turn(
        &self,
        own: usize,
        clock: &mut ShareClock,
        budgets: impl FnOnce() -> Vec<Child>,
        now: Instant,
    ) -> bool {
        clock.on_turn(&self.level, || self.update(own, budgets()), now);
        if !self.level.take_wake() {
            return false;
        }
        for (index, other) in self.workers().iter().enumerate() {
            if index != own {
                // Fails only for a worker that has ended.
                let _ = other.waker.wake();
            }
        }
        true
    }

    /// Updates the budgets of worker `own`. Returns those of all workers.
    fn update(&self, own: usize, budgets: Vec<Child>) -> Vec<Child> {
        let mut workers = self.workers();
        if let Some(seen) = workers.get_mut(own) {
            seen.budgets = budgets;
        }
        workers.iter().flat_map(|seen| seen.budgets.iter().copied()).collect()
    }

    fn workers(&self) -> std::sync::MutexGuard<'_, Vec<Seen>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<LevelStats> for Meter {
    fn from(stats: LevelStats) -> Self {
        let LevelStats { limits, usage, hard_effective, watermark, failcnt, pressure, .. } = stats;
        let bytes = |pages: u64| pages.saturating_mul(PAGE_SIZE);
        let limit = |pages: u64| (pages != u64::MAX).then(|| bytes(pages));
        Self {
            low_bytes: limit(limits.low),
            soft_bytes: limit(limits.soft),
            hard_bytes: limit(limits.hard),
            hard_effective_bytes: limit(hard_effective),
            usage_bytes: bytes(usage),
            max_usage_bytes: bytes(watermark),
            pressure: if pressure { Pressure::Soft } else { Pressure::None },
            failcnt,
            ..Self::NONE
        }
    }
}
