//! When the loop that runs budgets publishes the shares of the level above them (H5).

use alloc::vec::Vec;
use core::time::Duration;

use crate::level::Level;
use crate::share::{Child, Share, fair_level};
use crate::units::Instant;

/// Interval between two publications while the level is under pressure.
const SHARE_EVERY: Duration = Duration::from_millis(5);

/// Publishes the shares of a level. Each loop with budgets below the level has one, and calls it in
/// every turn.
#[derive(Debug, Default)]
pub struct ShareClock {
    /// When the shares were last published; `None` while the level is not under pressure.
    published_at: Option<Instant>,
}

impl ShareClock {
    /// Publishes the fair level at once when the level has come under pressure, then every 5 ms
    /// while the pressure lasts, and lifts the shares when it has ended. `children`: all budgets
    /// below the level; called only when they are needed.
    pub fn on_turn(&mut self, level: &Level, children: impl FnOnce() -> Vec<Child>, now: Instant) {
        match (level.under_pressure(), self.published_at) {
            (true, Some(at)) if now.since(at) < SHARE_EVERY => {}
            (true, _) => {
                self.published_at = Some(now);
                // Both sides include the reservations: the usage of each budget, and the memory
                // that is divided.
                level.publish_share(fair_level(&children(), level.soft_effective()));
            }
            // Without pressure every budget may grow freely.
            (false, Some(_)) => {
                self.published_at = None;
                level.publish_share(Share::NONE);
            }
            (false, None) => {}
        }
    }
}
