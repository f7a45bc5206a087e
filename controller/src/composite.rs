//! One limit over TCP memory and user memory (pressure model C1 to C6). Arithmetic only: the caller
//! reads the cgroup and writes its limits.
//!
//! `user` is `memory.current` of the container's cgroup, its own sockets included (C1). skbudget is
//! another process, so nothing is counted twice. All values in pages; 256 pages are 1 MiB.

use core::time::Duration;

use crate::limits::Limits;
use crate::units::Instant;

/// 1 MiB: the least change of a written limit, the least reclaim, the least margin. Pages.
pub const STEP: u64 = 256;

/// Least time between two lowerings of a written limit.
pub const LOWER_EVERY: Duration = Duration::from_millis(250);

/// The total, and the floors of its two parts. Pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Composite {
    total: u64,
    tcp_min: u64,
    user_min: u64,
}

/// Why a composite limit was refused: the floors exceed the total (C3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloorsExceedTotal {
    /// Sum of the floors.
    pub floors: u64,
    /// The total.
    pub total: u64,
}

/// Thresholds of the TCP side, and the excess of both sides together over the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// `H/2, 2H/3, H`.
    pub limits: Limits,
    /// `user + H - total`: positive only when H is at its floor, the one declared exception.
    pub over_total: u64,
}

/// Decision about a request of the TCP side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It fits.
    Grant,
    /// Reclaim this much of the container's user memory, then retry. The charge is refused now and
    /// its flow waits (C6), because reclaim blocks.
    Reclaim {
        /// Pages.
        pages: u64,
    },
    /// Nothing can be reclaimed.
    Refuse,
}

/// What the TCP side can give back without dropping acknowledged data. Pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spare {
    /// Charged and unused: `forward_alloc`, spare capacity.
    pub fwd: u64,
    /// Out of order.
    pub ofo: u64,
    /// Autotuned window that no data uses.
    pub window: u64,
}

/// How much of each to give back, in that order; intake stops when that is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GiveBack {
    /// The part to give back now.
    pub take: Spare,
    /// The excess beyond that: no more intake until the relay has drained it.
    pub drain: u64,
}

impl Composite {
    /// A limit of `total` pages with these floors.
    ///
    /// # Errors
    /// The floors exceed the total.
    pub const fn new(total: u64, tcp_min: u64, user_min: u64) -> Result<Self, FloorsExceedTotal> {
        let floors = tcp_min.saturating_add(user_min);
        if floors > total {
            return Err(FloorsExceedTotal { floors, total });
        }
        Ok(Self { total, tcp_min, user_min })
    }

    /// `H = clamp(total - user - margin, tcp_min, total - user_min)`. `margin` is the most that
    /// `user` grew within one tick so far (C4); 0 for the bare formula.
    pub fn split(&self, user: u64, margin: u64) -> Split {
        let Self { total, tcp_min, user_min } = *self;
        let left = total.saturating_sub(user).saturating_sub(margin);
        let hard = left.clamp(tcp_min, total - user_min);
        let limits = Limits { low: hard / 2, soft: 2 * hard / 3, hard };
        Split { limits, over_total: (user + hard).saturating_sub(total) }
    }

    /// Decides whether TCP, which holds `tcp`, may take `need` more. `gap` is all that TCP is known
    /// to want, `reclaimable` what the container's user memory could give. Reclaims in steps of
    /// `max(need, 1 MiB, gap / 8)` (C6), at most `min(reclaimable, user - user_min)`.
    pub fn ask(&self, tcp: u64, need: u64, gap: u64, user: u64, reclaimable: u64) -> Answer {
        let hard = self.split(user, 0).limits.hard;
        if tcp + need <= hard {
            return Answer::Grant;
        }
        let most = reclaimable.min(user.saturating_sub(self.user_min));
        let pages = need.max(STEP).max(gap / 8).min(most);
        if pages == 0 { Answer::Refuse } else { Answer::Reclaim { pages } }
    }

    /// What TCP gives back when it holds `tcp`, which may exceed H by now.
    pub fn give_back(&self, tcp: u64, user: u64, spare: Spare) -> GiveBack {
        let mut excess = tcp.saturating_sub(self.split(user, 0).limits.hard);
        // Cheapest first: unused pages cost nothing, out-of-order data a retransmission.
        let mut take = |have: u64| {
            let part = have.min(excess);
            excess -= part;
            part
        };
        let take = Spare { fwd: take(spare.fwd), ofo: take(spare.ofo), window: take(spare.window) };
        GiveBack { take, drain: excess }
    }

    /// The `memory.high` that keeps user memory out of what TCP holds: `total - max(tcp, tcp_min)`.
    /// Never below `user + batch`, because that would throttle the container's own readers (C5).
    pub fn user_high(&self, tcp: u64, user: u64, batch: u64) -> u64 {
        self.total.saturating_sub(tcp.max(self.tcp_min)).max(user + batch)
    }
}

/// Room under an ancestor with its own limit: `limit - usage of its other children`. The composite
/// total is the least over all ancestors.
pub fn total_under(limit: u64, others: u64) -> u64 {
    limit.saturating_sub(others)
}

/// Hard maximum of the level that represents an ancestor (C2): its limit less the user memory below
/// it.
pub fn level_max(limit: u64, user_below: u64) -> u64 {
    limit.saturating_sub(user_below)
}

/// A limit written to a cgroup file, with hysteresis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// In force.
    pub value: u64,
    /// When it was last lowered.
    pub lowered_at: Instant,
}

impl Written {
    /// Whether to write `wanted` now. Changes of less than 1 MiB wait, lowerings are at least 250
    /// ms apart, raising is never delayed (C5, C6).
    pub fn update(&mut self, wanted: u64, now: Instant) -> bool {
        if wanted.abs_diff(self.value) < STEP {
            return false;
        }
        if wanted < self.value {
            if now.since(self.lowered_at) < LOWER_EVERY {
                return false;
            }
            self.lowered_at = now;
        }
        self.value = wanted;
        true
    }
}
