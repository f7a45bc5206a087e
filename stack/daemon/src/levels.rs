//! The meters above all budgets: that of the host, and those of groups of containers, in a tree. The workers share
//! them. They wake the waiters of all workers when memory is released at a level, and publish the shares of its
//! children while it is under pressure (H5).
//!
//! A change of the tree makes a new list. Each worker has a list of its own, which it compares by a number in every
//! turn: without a change a turn takes no lock and writes nothing that workers share.

use std::sync::atomic::{AtomicU64, Ordering};
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

/// All levels. Groups can be added and removed while workers run.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    /// Parents before children. Replaced whole by a change.
    nodes: Mutex<Nodes>,
    /// Changes with `nodes`, so that a worker takes the lock only after a change.
    version: AtomicU64,
    /// One for each worker, by its index.
    wakers: Mutex<Vec<Arc<Waker>>>,
}

type Nodes = Arc<Vec<Arc<Node>>>;

#[derive(Debug)]
struct Node {
    /// `None`: the host.
    group: Option<GroupConfig>,
    /// The meter itself: budgets charge it without a lock.
    level: Arc<Level>,
    /// By worker: its budgets directly below, when it last published the shares.
    budgets: Mutex<Vec<Vec<Child>>>,
}

/// The levels as one worker knows them.
#[derive(Debug, Default)]
pub(crate) struct View {
    version: u64,
    nodes: Nodes,
    /// When the worker publishes the shares of each level.
    clocks: Vec<ShareClock>,
}

impl Levels {
    /// Creates the levels. The parent of a group must be before it in the list.
    pub(crate) fn new(
        host: Option<LevelConfig>,
        groups: Vec<GroupConfig>,
    ) -> Result<Self, DaemonError> {
        let levels = Self::default();
        if let Some(host) = host {
            let level = Level::new(host, None).map_err(DaemonError::Limits)?;
            levels.replace(|nodes| nodes.push(Arc::new(Node::new(None, level, 0))));
        }
        for group in groups {
            levels.add(group)?;
        }
        Ok(levels)
    }

    /// Adds a group.
    pub(crate) fn add(&self, group: GroupConfig) -> Result<(), DaemonError> {
        if self.group(&group.name).is_ok() {
            return Err(DaemonError::NameInUse(group.name));
        }
        let parent = self.above(group.parent.as_deref())?;
        // Refuses a fourth level.
        let level = Level::weighted(group.limits, group.weight, parent);
        let level = level.map_err(DaemonError::Limits)?;
        let workers = locked(&self.wakers).len();
        self.replace(|nodes| nodes.push(Arc::new(Node::new(Some(group), level, workers))));
        self.wake(None);
        Ok(())
    }

    /// Removes a group without containers and without groups in it.
    pub(crate) fn remove(&self, name: &str) -> Result<(), DaemonError> {
        let mut removed = Err(DaemonError::NoSuchGroup(name.to_owned()));
        self.replace(|nodes| {
            let Some(at) = nodes.iter().position(|node| node.is_group(name)) else { return };
            // Budgets and levels below hold the level, and get it under this lock.
            removed = if Arc::strong_count(&nodes[at].level) == 1 {
                nodes.remove(at);
                Ok(())
            } else {
                Err(DaemonError::GroupInUse(name.to_owned()))
            };
        });
        // Each worker still has the level, and with it its weight at the parent, until its next turn.
        self.wake(None);
        removed
    }

    /// Replaces the list by a changed one.
    fn replace(&self, change: impl FnOnce(&mut Vec<Arc<Node>>)) {
        let mut nodes = locked(&self.nodes);
        let mut changed = Vec::clone(&nodes);
        change(&mut changed);
        *nodes = Arc::new(changed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The host's level.
    pub(crate) fn host(&self) -> Option<Arc<Level>> {
        let nodes = locked(&self.nodes);
        nodes.iter().find(|node| node.group.is_none()).map(|node| Arc::clone(&node.level))
    }

    /// The level of a group.
    pub(crate) fn group(&self, name: &str) -> Result<Arc<Level>, DaemonError> {
        let nodes = locked(&self.nodes);
        let level = nodes.iter().find(|node| node.is_group(name));
        let level = level.map(|node| Arc::clone(&node.level));
        level.ok_or_else(|| DaemonError::NoSuchGroup(name.to_owned()))
    }

    /// The level directly above a container: that of its group, or the host's.
    pub(crate) fn above(&self, group: Option<&str>) -> Result<Option<Arc<Level>>, DaemonError> {
        match group {
            Some(group) => self.group(group).map(Some),
            None => Ok(self.host()),
        }
    }

    /// Every group with its meter, parents first.
    pub(crate) fn groups(&self) -> Vec<(GroupConfig, Meter)> {
        let nodes = Arc::clone(&locked(&self.nodes));
        let group = |node: &Arc<Node>| Some((node.group.clone()?, node.level.stats().into()));
        nodes.iter().filter_map(group).collect()
    }

    /// Adds a worker. Workers must join in the order of their indices.
    pub(crate) fn join(&self, waker: Arc<Waker>) {
        locked(&self.wakers).push(waker);
        let nodes = Arc::clone(&locked(&self.nodes));
        nodes.iter().for_each(|node| locked(&node.budgets).push(Vec::new()));
    }

    /// Updates a worker's view. False when there is no level.
    pub(crate) fn refresh(&self, view: &mut View) -> bool {
        if view.version != self.version.load(Ordering::Acquire) {
            let nodes = locked(&self.nodes);
            view.version = self.version.load(Ordering::Acquire);
            view.nodes = Arc::clone(&nodes);
            drop(nodes);
            // A level that moves in the list gets the clock of another one, which only changes when its shares are
            // published next.
            view.clocks.resize_with(view.nodes.len(), ShareClock::default);
        }
        !view.nodes.is_empty()
    }

    /// After a turn of worker `own`: publishes the shares of each level if they are due by the worker's clock of that
    /// level, and wakes the other workers if memory was released at any. True when worker `own` must poll its waiters
    /// for the same reason. `budgets`: the worker's budgets directly below a level.
    pub(crate) fn on_turn(
        &self,
        own: usize,
        view: &mut View,
        budgets: impl Fn(&Level) -> Vec<Child>,
        now: Instant,
    ) -> bool {
        // Every level is checked, also after one that released memory: a mark that stays would wake the workers again.
        let mut released = false;
        let View { nodes, clocks, .. } = view;
        for (node, clock) in nodes.iter().zip(clocks) {
            let children = || children(nodes, node, own, budgets(&node.level));
            clock.on_turn(&node.level, children, now);
            released |= node.level.take_wake();
        }
        if released {
            self.wake(Some(own));
        }
        released
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

impl Node {
    fn new(group: Option<GroupConfig>, level: Arc<Level>, workers: usize) -> Self {
        Self { group, level, budgets: Mutex::new(vec![Vec::new(); workers]) }
    }

    fn is_group(&self, name: &str) -> bool {
        self.group.as_ref().is_some_and(|group| group.name == name)
    }
}

/// Updates the budgets of worker `own` below a level. Returns all children of the level.
fn children(nodes: &[Arc<Node>], node: &Node, own: usize, budgets: Vec<Child>) -> Vec<Child> {
    let mut all = locked(&node.budgets);
    if let Some(budgets_of_own) = all.get_mut(own) {
        *budgets_of_own = budgets;
    }
    let below = |child: &&Arc<Node>| {
        child.level.parent().is_some_and(|parent| Arc::ptr_eq(parent, &node.level))
    };
    let groups = nodes.iter().filter(below).map(|child| child.level.as_child());
    all.iter().flatten().copied().chain(groups).collect()
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
        let groups = levels.groups();
        let usage: Vec<u64> = groups.iter().map(|(_, meter)| meter.usage_bytes).collect();
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
        let mut view = View::default();
        assert!(levels.refresh(&mut view));
        a.try_charge(350).unwrap();
        b.try_charge(350).unwrap();
        assert!(levels.host().unwrap().under_pressure());
        levels.on_turn(0, &mut view, |_| Vec::new(), Instant(0));
        // Of 660 pages, `a` uses 393 with its room to grow, and `b` gets the rest.
        let children: Vec<Child> = [&a, &b].iter().map(|level| level.as_child()).collect();
        let share = skbudget_controller::share::fair_level(&children, 660);
        assert_eq!((share.of(300) >= 393, share.of(100)), (true, 267));
    }

    #[test]
    fn a_group_is_removed_when_nothing_is_in_it_and_workers_see_the_change() {
        let levels = Levels::new(None, Vec::new()).unwrap();
        let mut view = View::default();
        assert!(!levels.refresh(&mut view));
        levels.add(group("a", None, 1)).unwrap();
        levels.add(group("b", Some("a"), 1)).unwrap();
        assert!(levels.refresh(&mut view) && view.clocks.len() == 2);
        assert!(matches!(levels.add(group("a", None, 1)), Err(DaemonError::NameInUse(_))));
        assert!(matches!(levels.remove("a"), Err(DaemonError::GroupInUse(_))));
        let used = levels.group("b").unwrap();
        assert!(matches!(levels.remove("b"), Err(DaemonError::GroupInUse(_))));
        drop(used);
        levels.remove("b").unwrap();
        // The view still has the level, and with it the parent.
        assert!(levels.refresh(&mut view) && view.nodes.len() == 1);
        levels.remove("a").unwrap();
        assert!(!levels.refresh(&mut view));
        assert!(matches!(levels.remove("a"), Err(DaemonError::NoSuchGroup(_))));
    }
}
