//! The meter above all budgets, shared by the workers: who is woken when room comes back there, and what share each
//! budget has while it is under pressure (pressure model H5).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mio::Waker;
use skbudget_controller::share::{Child, Share, fair_level};
use skbudget_controller::{Instant, Level, LevelStats, PAGE_SIZE, Pressure};

use crate::stats::Meter;

/// How often a worker computes the shares while the level is flagged.
const SHARE_EVERY: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct HostLevel {
    pub(crate) level: Arc<Level>,
    workers: Mutex<Vec<Seen>>,
}

/// What the others know of a worker.
#[derive(Debug)]
struct Seen {
    waker: Arc<Waker>,
    /// Its budgets, as it last said.
    budgets: Vec<Child>,
}

impl HostLevel {
    pub(crate) fn new(level: Arc<Level>) -> Self {
        Self { level, workers: Mutex::default() }
    }

    /// Workers join in the order of their numbers.
    pub(crate) fn join(&self, waker: Arc<Waker>) {
        self.workers().push(Seen { waker, budgets: Vec::new() });
    }

    /// After a turn of worker `own`: true when its waiters are to be asked, because room came back here. The other
    /// workers are told.
    pub(crate) fn on_turn(
        &self,
        own: usize,
        shared: &mut Option<Instant>,
        budgets: impl FnOnce() -> Vec<Child>,
        now: Instant,
    ) -> bool {
        match (self.level.under_pressure(), *shared) {
            (true, Some(at)) if now.since(at) < SHARE_EVERY => {}
            (true, _) => {
                *shared = Some(now);
                self.share(own, budgets());
            }
            (false, Some(_)) => {
                *shared = None;
                self.level.publish_share(Share::NONE);
            }
            (false, None) => {}
        }
        if !self.level.take_wake() {
            return false;
        }
        for (index, other) in self.workers().iter().enumerate() {
            if index != own {
                // It cannot be woken when it is gone.
                let _ = other.waker.wake();
            }
        }
        true
    }

    fn share(&self, own: usize, budgets: Vec<Child>) {
        let mut workers = self.workers();
        if let Some(seen) = workers.get_mut(own) {
            seen.budgets = budgets;
        }
        let all: Vec<_> = workers.iter().flat_map(|seen| seen.budgets.iter().copied()).collect();
        // Reservations are in both: in what each holds, and in what is divided.
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
