//! One limit over TCP memory and user memory (pressure model C1 to C6). Arithmetic only:
//! who reads the cgroup, writes its limits and calls this is the daemon.
//!
//! `user` is `memory.current` of the container's cgroup, its own sockets included (C1): this
//! process is elsewhere, so nothing is counted twice. All in pages; 256 pages are 1 MiB.

use core::time::Duration;

use crate::limits::Limits;
use crate::units::Instant;

/// 1 MiB: least change of a written limit, least reclaim, least margin.
pub const STEP: u64 = 256;

/// Least time between two lowerings of a written limit.
pub const LOWER_EVERY: Duration = Duration::from_millis(250);

/// The total and the floors that divide it.
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

/// Thresholds of the TCP side, and by how much both sides together exceed the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// `H/2, 2H/3, H`.
    pub limits: Limits,
    /// `user + H - total`: positive only when H stands on its floor, the one declared exception.
    pub over_total: u64,
}

/// What to do about a need of the TCP side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It fits.
    Grant,
    /// Ask the container's user memory for this much, then look again. The charge is refused now
    /// and its flow waits (C6): reclaim blocks.
    Reclaim {
        /// Pages.
        pages: u64,
    },
    /// Nothing can be reclaimed.
    Refuse,
}

/// What the TCP side can give back without dropping a byte it acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spare {
    /// Charged and unused: `forward_alloc`, spare capacity.
    pub fwd: u64,
    /// Out of order.
    pub ofo: u64,
    /// Autotuned window that is not in use.
    pub window: u64,
}

/// How much of each to give back, in that order; intake stops when it is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GiveBack {
    /// What to take.
    pub take: Spare,
    /// Still too much: no more intake until the relay has drained this.
    pub drain: u64,
}

impl Composite {
    /// Refused when the floors exceed the total.
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

    /// TCP holds `tcp` and needs `need` more; `gap` is all it is known to want, `reclaimable` what
    /// the container's user memory could give. Steps of `max(need, 1 MiB, gap / 8)` (C6), at most
    /// `min(reclaimable, user - user_min)`.
    pub fn ask(&self, tcp: u64, need: u64, gap: u64, user: u64, reclaimable: u64) -> Answer {
        let hard = self.split(user, 0).limits.hard;
        if tcp + need <= hard {
            return Answer::Grant;
        }
        let most = reclaimable.min(user.saturating_sub(self.user_min));
        let pages = need.max(STEP).max(gap / 8).min(most);
        if pages == 0 { Answer::Refuse } else { Answer::Reclaim { pages } }
    }

    /// TCP holds `tcp`, which may be more than H allows now: what to give back.
    pub fn give_back(&self, tcp: u64, user: u64, spare: Spare) -> GiveBack {
        let mut excess = tcp.saturating_sub(self.split(user, 0).limits.hard);
        let mut take = |have: u64| {
            let part = have.min(excess);
            excess -= part;
            part
        };
        let take = Spare { fwd: take(spare.fwd), ofo: take(spare.ofo), window: take(spare.window) };
        GiveBack { take, drain: excess }
    }

    /// The `memory.high` that keeps user memory out of what TCP holds: `total - max(tcp, tcp_min)`,
    /// but never below `user + batch`, where the container's own readers would be throttled (C5).
    pub fn user_high(&self, tcp: u64, user: u64, batch: u64) -> u64 {
        self.total.saturating_sub(tcp.max(self.tcp_min)).max(user + batch)
    }
}

/// Room under an ancestor with a limit of its own: `limit - usage of its other children`; the
/// composite total is the least over all ancestors.
pub fn total_under(limit: u64, others: u64) -> u64 {
    limit.saturating_sub(others)
}

/// Hard maximum of the counter level that stands for an ancestor (C2): what the user memory below
/// it leaves.
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
    /// Whether to write `wanted` now: changes of less than 1 MiB wait, lowerings come at least 250
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
