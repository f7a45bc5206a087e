//! The meter above all budgets, shared by the workers. It wakes the waiters of all workers when memory is released
//! there, and publishes each budget's share while the level is under pressure (H5).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mio::Waker;
use skbudget_controller::share::{Child, Share, fair_level};
use skbudget_controller::{Instant, Level, LevelStats, PAGE_SIZE, Pressure};

use crate::stats::Meter;

/// Interval at which a worker computes the shares while the level is flagged.
const SHARE_EVERY: Duration = Duration::from_millis(5);

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

    /// After a turn of worker `own`: publishes the shares if they are due, and wakes the other workers if memory was
    /// released at this level. True when worker `own` must poll its waiters for the same reason.
    pub(crate) fn on_turn(
        &self,
        own: usize,
        computed_at: &mut Option<Instant>,
        budgets: impl FnOnce() -> Vec<Child>,
        now: Instant,
    ) -> bool {
        match (self.level.under_pressure(), *computed_at) {
            // Flagged, and computed lately.
            (true, Some(at)) if now.since(at) < SHARE_EVERY => {}
            // Newly flagged, or due again.
            (true, _) => {
                *computed_at = Some(now);
                self.share(own, budgets());
            }
            // The flag was cleared since: without pressure every budget may grow freely.
            (false, Some(_)) => {
                *computed_at = None;
                self.level.publish_share(Share::NONE);
            }
            (false, None) => {}
        }
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

    /// Updates the budgets of worker `own` and publishes the share computed from those of all workers.
    fn share(&self, own: usize, budgets: Vec<Child>) {
        let mut workers = self.workers();
        if let Some(seen) = workers.get_mut(own) {
            seen.budgets = budgets;
        }
        let all: Vec<_> = workers.iter().flat_map(|seen| seen.budgets.iter().copied()).collect();
        // Both sides include the reservations: the usage of each budget, and the memory that is divided.
        self.level.publish_share(fair_level(&all, self.level.soft_effective()));
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
