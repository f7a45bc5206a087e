//! The meters above all budgets: that of the host, and those of groups of containers, in a tree. The workers share
//! them. They wake the waiters of all workers when memory is released at a level, and publish the shares of its
//! children while it is under pressure (H5).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::Waker;
use skbudget_controller::share::Child;
use skbudget_controller::{
    Instant, Level, LevelConfig, LevelStats, PAGE_SIZE, Pressure, ShareClock,
};

use crate::stats::Meter;
use crate::types::{DaemonError, GroupConfig};

/// Most groups of a daemon. A worker checks each in every turn, which costs a few loads.
pub(crate) const GROUPS_MAX: usize = 64;

/// All levels. They exist as long as the daemon.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    /// Parents before children.
    nodes: Vec<Node>,
    /// One for each worker, by its index.
    wakers: Mutex<Vec<Arc<Waker>>>,
}

#[derive(Debug)]
struct Node {
    /// `None`: the host.
    group: Option<GroupConfig>,
    /// The meter itself: budgets charge it without a lock.
    level: Arc<Level>,
    /// By worker: its budgets directly below, when it last published the shares.
    budgets: Mutex<Vec<Vec<Child>>>,
}

impl Levels {
    /// Creates the levels. The parent of a group must be before it in the list.
    pub(crate) fn new(
        host: Option<LevelConfig>,
        groups: Vec<GroupConfig>,
    ) -> Result<Self, DaemonError> {
        let mut levels = Self::default();
        if let Some(host) = host {
            let level = Level::new(host, None).map_err(DaemonError::Limits)?;
            levels.nodes.push(Node { group: None, level, budgets: Mutex::default() });
        }
        for group in groups {
            let parent = match &group.parent {
                Some(parent) => Some(levels.group(parent)?),
                None => levels.host(),
            };
            let parent = parent.map(Arc::clone);
            // Refuses a fourth level.
            let level = Level::weighted(group.limits, group.weight, parent);
            let level = level.map_err(DaemonError::Limits)?;
            levels.nodes.push(Node { group: Some(group), level, budgets: Mutex::default() });
        }
        Ok(levels)
    }

    /// The host's level.
    pub(crate) fn host(&self) -> Option<&Arc<Level>> {
        self.nodes.iter().find(|node| node.group.is_none()).map(|node| &node.level)
    }

    /// The level of a group.
    pub(crate) fn group(&self, name: &str) -> Result<&Arc<Level>, DaemonError> {
        let named = |node: &&Node| node.group.as_ref().is_some_and(|group| group.name == name);
        let node = self.nodes.iter().find(named).map(|node| &node.level);
        node.ok_or_else(|| DaemonError::NoSuchGroup(name.to_owned()))
    }

    /// The level directly above a container: that of its group, or the host's.
    pub(crate) fn above(&self, group: Option<&str>) -> Result<Option<Arc<Level>>, DaemonError> {
        match group {
            Some(group) => self.group(group).map(|level| Some(Arc::clone(level))),
            None => Ok(self.host().map(Arc::clone)),
        }
    }

    /// Every group with its meter, parents first.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&GroupConfig, Meter)> {
        self.nodes.iter().filter_map(|node| Some((node.group.as_ref()?, node.level.stats().into())))
    }

    /// Number of levels.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Adds a worker. Workers must join in the order of their indices.
    pub(crate) fn join(&self, waker: Arc<Waker>) {
        locked(&self.wakers).push(waker);
        self.nodes.iter().for_each(|node| locked(&node.budgets).push(Vec::new()));
    }

    /// After a turn of worker `own`: publishes the shares of each level if they are due by the worker's clock of that
    /// level, and wakes the other workers if memory was released at any. True when worker `own` must poll its waiters
    /// for the same reason. `budgets`: the worker's budgets directly below a level.
    pub(crate) fn on_turn(
        &self,
        own: usize,
        clocks: &mut [ShareClock],
        budgets: impl Fn(&Level) -> Vec<Child>,
        now: Instant,
    ) -> bool {
        // Every level is checked, also after one that released memory: a mark that stays would wake the workers again.
        let mut released = false;
        for (node, clock) in self.nodes.iter().zip(clocks) {
            clock.on_turn(&node.level, || self.children(node, own, budgets(&node.level)), now);
            released |= node.level.take_wake();
        }
        if released {
            self.wake(Some(own));
        }
        released
    }

    /// Updates the budgets of worker `own` below a level. Returns all children of the level.
    fn children(&self, node: &Node, own: usize, budgets: Vec<Child>) -> Vec<Child> {
        let mut all = locked(&node.budgets);
        if let Some(budgets_of_own) = all.get_mut(own) {
            *budgets_of_own = budgets;
        }
        let below = |child: &&Node| {
            child.level.parent().is_some_and(|parent| Arc::ptr_eq(parent, &node.level))
        };
        let groups = self.nodes.iter().filter(below).map(|child| child.level.as_child());
        all.iter().flatten().copied().chain(groups).collect()
    }

    /// Wakes all workers but `except`, so that they poll their waiters.
    pub(crate) fn wake(&self, except: Option<usize>) {
        for (index, waker) in locked(&self.wakers).iter().enumerate() {
            if Some(index) != except {
                // Fails only for a worker that has ended.
                let _ = waker.wake();
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: LevelConfig = LevelConfig { low: 500, soft: 660, hard: 1000 };

    fn group(name: &str, parent: Option<&str>, weight: u32) -> GroupConfig {
        let (name, parent) = (name.to_owned(), parent.map(str::to_owned));
        GroupConfig { name, parent, limits: PAGES, weight }
    }

    #[test]
    fn groups_are_a_tree_below_the_host() {
        let groups = vec![group("prod", None, 1), group("web", Some("prod"), 1)];
        let levels = Levels::new(Some(PAGES), groups).unwrap();
        levels.group("web").unwrap().try_charge(10).unwrap();
        let usage: Vec<u64> = levels.groups().map(|(_, meter)| meter.usage_bytes).collect();
        assert_eq!(usage, [40_960; 2]);
        assert_eq!(levels.host().unwrap().usage(), 10);
        let refused = |groups: Vec<GroupConfig>| Levels::new(Some(PAGES), groups).unwrap_err();
        let unknown = refused(vec![group("web", Some("prod"), 1)]);
        assert!(matches!(unknown, DaemonError::NoSuchGroup(name) if name == "prod"));
        let deep = ["a", "b", "c"]
            .map(|n| group(n, (n != "a").then_some(if n == "b" { "a" } else { "b" }), 1));
        assert!(matches!(refused(deep.to_vec()), DaemonError::Limits(_)));
    }

    #[test]
    fn a_level_under_pressure_is_divided_among_its_groups_by_weight() {
        let levels =
            Levels::new(Some(PAGES), vec![group("a", None, 300), group("b", None, 100)]).unwrap();
        let (a, b) = (levels.group("a").unwrap(), levels.group("b").unwrap());
        let mut clocks: Vec<ShareClock> =
            (0..levels.len()).map(|_| ShareClock::default()).collect();
        a.try_charge(350).unwrap();
        b.try_charge(350).unwrap();
        assert!(levels.host().unwrap().under_pressure());
        levels.on_turn(0, &mut clocks, |_| Vec::new(), Instant(0));
        // Of 660 pages, `a` uses 393 with its room to grow, and `b` gets the rest.
        let children: Vec<Child> = [a, b].iter().map(|level| level.as_child()).collect();
        let share = skbudget_controller::share::fair_level(&children, 660);
        assert_eq!((share.of(300) >= 393, share.of(100)), (true, 267));
    }
}
