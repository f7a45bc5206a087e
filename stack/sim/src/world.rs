//! The worker loop in virtual time: one event queue, and the schedule that the daemon's workers use.

mod inspect;
mod node;
mod siblings;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use skbudget_controller::{Budget, Instant, Level, Refusal, ShareClock};
use skbudget_seed::Rng;
use skbudget_stack::schedule::{Schedule, Step, Used};
use skbudget_stack::{Container, FlowId, HostCaps, Siblings, Throttle, WakeKey};

use crate::event_queue::{Event, What};
use crate::frame::Frame;
use crate::link::Link;
use crate::server::Server;

pub use node::NodeConfig;
use node::{Common, GUEST, HOST, Node, due_after};

/// Names a budget of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetId(usize);

/// Names a container of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeId(usize);

/// Amount of work done, for performance notes and tests of the simulator itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorldStats {
    /// Events delivered.
    pub events: u64,
    /// Turns of stacks.
    pub turns: u64,
    /// Polls of guests.
    pub guest_polls: u64,
    /// Waiters woken.
    pub wakes: u64,
}

/// Containers, their budgets, guests and hosts on one virtual clock. All of them run on one worker.
#[derive(Debug)]
pub struct World {
    seed: u64,
    common: Common,
    budgets: Vec<Budget>,
    nodes: Vec<Node>,
    /// Containers are named by their place in `nodes`, budgets by theirs in `budgets`.
    schedule: Schedule,
    siblings: Siblings,
    /// The level above the budgets, if there is one.
    level: Option<Arc<Level>>,
    share_clock: ShareClock,
    outbox: Vec<Frame>,
    /// Nodes with an event since their timers were set: only these can have host events or guests to poll.
    touched: Vec<usize>,
    /// The same nodes, sorted, while they are settled.
    settling: Vec<usize>,
    stats: WorldStats,
}

/// Turns of the loop in which stack, guests and budgets wake each other at one instant. More turns are a livelock.
const ROUNDS_MAX: usize = 100_000;

impl World {
    /// An empty world at time zero. The seed decides all faults of links.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            common: Common::default(),
            budgets: Vec::new(),
            nodes: Vec::new(),
            schedule: Schedule::default(),
            siblings: Siblings::default(),
            level: None,
            share_clock: ShareClock::default(),
            outbox: Vec::new(),
            touched: Vec::new(),
            settling: Vec::new(),
            stats: WorldStats::default(),
        }
    }

    // ---- making it ----

    /// Adds a budget for one or more containers. Budgets below a level are all below the same one, as a daemon's are.
    pub fn add_budget(&mut self, budget: Budget) -> BudgetId {
        if let Some(parent) = budget.parent() {
            let level = self.level.get_or_insert_with(|| Arc::clone(parent));
            assert!(Arc::ptr_eq(level, parent), "a world has one level above its budgets");
        }
        self.budgets.push(budget);
        BudgetId(self.budgets.len() - 1)
    }

    /// Adds a container to its budget and charges its device queue.
    pub fn add_container(&mut self, config: NodeConfig) -> Result<NodeId, Refusal> {
        let NodeConfig { container, budget, up, down, guest, mut host } = config;
        let index = self.nodes.len();
        let member = self.budgets[budget.0].add_member(container.dev_queue_bytes)?;
        host.set_now(self.common.now);
        self.siblings.add(index, &format!("c{index}"), &container, "default");
        self.nodes.push(Node {
            index,
            container: Container::new(container, member),
            budget: budget.0,
            guest,
            host,
            // Each link draws from its own stream, so that a new node does not change the faults of others.
            up: Link::new(up, Rng::fork(self.seed, 2 * index as u64)),
            down: Link::new(down, Rng::fork(self.seed, 2 * index as u64 + 1)),
            alive: true,
            device: VecDeque::new(),
            guest_dirty: true,
            armed: [None; 2],
        });
        self.schedule.add_container(index);
        self.touched.push(index);
        Ok(NodeId(index))
    }

    // ---- running it ----

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.common.now
    }

    /// Processes all events up to and including `until`; the time is then `until`.
    pub fn run_until(&mut self, until: Instant) {
        self.settle();
        while let Some(at) = self.next_at().filter(|at| *at <= until) {
            self.common.now = self.common.now.max(at);
            let now = self.common.now;
            while self.common.events.next_at().is_some_and(|at| at <= now) {
                let Some(event) = self.common.events.pop() else { break };
                self.dispatch(event);
            }
            self.settle();
        }
        self.common.now = self.common.now.max(until);
    }

    /// Time of the next event, or of the next deadline of a stack.
    fn next_at(&self) -> Option<Instant> {
        let times = [self.common.events.next_at(), self.schedule.next_deadline()];
        times.into_iter().flatten().min()
    }

    /// Delivers one event. It only marks nodes; `settle` does the work.
    fn dispatch(&mut self, event: Event) {
        self.stats.events += 1;
        let now = self.common.now;
        let node = &mut self.nodes[event.node];
        if !node.alive {
            return;
        }
        self.touched.push(event.node);
        match event.what {
            What::ToStack(frame) => {
                node.device.push_back(frame);
                self.schedule.activate(event.node);
            }
            What::ToGuest(frame) => {
                node.guest.on_frame(now, frame);
                node.guest_dirty = true;
            }
            What::Timer(kind) => {
                // An older event for the same timer may still be queued; it only marks the node.
                if node.armed[kind] == Some(event.at) {
                    node.armed[kind] = None;
                }
                match kind {
                    GUEST => node.guest_dirty = true,
                    HOST => node.host.advance(now),
                    other => unreachable!("timer {other}"),
                }
            }
            What::Room => {
                self.schedule.activate(event.node);
                node.guest_dirty |= node.guest.is_blocked();
            }
        }
    }

    /// Runs the loop at `now` until nothing has work. Time does not advance between two of its turns.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "the world never comes to rest at {:?}", self.common.now);
            self.note_touched();
            self.take_host_events();
            // Last: the guests of a daemon are other processes, which run beside its loop.
            let mut busy = self.turn();
            busy |= self.poll_guests();
            if !busy {
                break;
            }
        }
        self.note_touched();
        for index in self.settling.drain(..) {
            let node = &mut self.nodes[index];
            if node.alive {
                node.arm(self.common.now, &mut self.common.events);
            }
        }
    }

    /// Adds newly touched nodes to those being settled, in the order of their numbers.
    fn note_touched(&mut self) {
        if !self.touched.is_empty() {
            self.settling.append(&mut self.touched);
            self.settling.sort_unstable();
            self.settling.dedup();
        }
    }

    /// Activates the containers with events of their host sockets.
    fn take_host_events(&mut self) {
        for index in &self.settling {
            let node = &mut self.nodes[*index];
            if node.alive && node.take_host_events() {
                self.schedule.activate(*index);
            }
        }
    }

    /// One turn of the loop. True when something ran, or has work.
    fn turn(&mut self) -> bool {
        let now = self.common.now;
        let before = (self.stats.turns, self.stats.wakes);
        self.schedule.start(now);
        while let Some(step) = self.schedule.next_step(now) {
            match step {
                Step::Turn(index) => self.run_container(index, true),
                Step::Level => self.check_level(),
                Step::Wake(budget) => self.wake_waiters(budget),
                Step::StackTurn(index) => self.run_container(index, false),
                // Those that run the world read the events.
                Step::Events(_) => {}
            }
        }
        before != (self.stats.turns, self.stats.wakes) || self.schedule.has_work()
    }

    /// Runs a container's stack, and before it the device unless the container was only woken.
    fn run_container(&mut self, index: usize, device: bool) {
        let node = &mut self.nodes[index];
        self.stats.turns += 1;
        self.touched.push(index);
        let frames_left =
            device && node.take_frames(&mut self.common, &mut self.budgets[node.budget]);
        // Before the stack's turn: one ACK then acknowledges the data and opens the window again.
        let passes_left = self.run_siblings(index);
        let node = &mut self.nodes[index];
        let budget = &mut self.budgets[node.budget];
        let more = node.with(&mut self.common, budget, Container::turn);
        let more = self.has_sibling_work(index) || passes_left || frames_left || more;
        let Self { common, budgets, nodes, schedule, .. } = self;
        let node = &mut nodes[index];
        let budget = &mut budgets[node.budget];
        schedule.poll_budget(node.budget);
        let used = Used {
            // The loop takes no time in this world: only memory, links and pauses of admissions slow a flow down.
            cpu: Duration::ZERO,
            connects: node.container.take_connects(),
            pause_factor: Throttle::of(budget).pause_factor,
        };
        if let Some(until) = schedule.ran(index, &used, common.now) {
            node.container.hold_admissions(until);
        }
        let deadline = node.container.next_deadline().map(|at| due_after(common.now, at));
        schedule.finish(index, deadline, more);
    }

    /// Publishes the shares of the level above the budgets, and polls all budgets if memory was released there.
    fn check_level(&mut self) {
        let Some(level) = &self.level else { return };
        let children = || self.budgets.iter().map(Budget::as_child).collect();
        self.share_clock.on_turn(level, children, self.common.now);
        if level.take_wake() {
            (0..self.budgets.len()).for_each(|budget| self.schedule.poll_budget(budget));
        }
    }

    /// Notifies the waiters of a budget that now have room.
    fn wake_waiters(&mut self, budget: usize) {
        while let Some(key) = self.budgets[budget].poll_wake(self.common.now) {
            let key = WakeKey(key);
            let of = |node: &Node| {
                node.alive && node.budget == budget && node.container.member() == key.member()
            };
            // The container of the waiter has stopped.
            let Some(index) = self.nodes.iter().position(of) else { continue };
            self.nodes[index].container.on_wake(key);
            self.schedule.woken(index);
            self.touched.push(index);
            self.stats.wakes += 1;
        }
    }

    /// Polls each dirty guest and sends its frames.
    fn poll_guests(&mut self) -> bool {
        self.note_touched();
        let mut busy = false;
        for index in &self.settling {
            let node = &mut self.nodes[*index];
            if !node.alive || !std::mem::take(&mut node.guest_dirty) {
                continue;
            }
            self.stats.guest_polls += 1;
            busy = true;
            node.poll_guest(&mut self.common, &mut self.outbox);
        }
        busy
    }

    // ---- acting on it ----

    /// Whether a client of a published port would be accepted now.
    pub fn can_accept(&mut self, id: NodeId) -> bool {
        let node = &mut self.nodes[id.0];
        node.with(&mut self.common, &mut self.budgets[node.budget], Container::can_accept)
    }

    /// A client connects to a published port. Returns the flow towards `guest_port`, or `None` if the stack has no
    /// room. `server` describes the client.
    pub fn accept(
        &mut self,
        id: NodeId,
        guest_port: u16,
        peer: SocketAddr,
        server: Server,
        caps: HostCaps,
    ) -> Option<FlowId> {
        let node = &mut self.nodes[id.0];
        let budget = &mut self.budgets[node.budget];
        let (flow, _) = node.with(&mut self.common, budget, |container, cx| {
            container.on_accept(cx, guest_port, peer, 0).ok()
        })?;
        node.host.adopt(flow, guest_port, server, caps);
        self.schedule.activate(id.0);
        self.touched.push(id.0);
        Some(flow)
    }

    /// Ends a container: aborts its flows and removes it from its budget.
    pub fn stop(&mut self, id: NodeId) {
        let node = &mut self.nodes[id.0];
        if !node.alive {
            return;
        }
        let budget = &mut self.budgets[node.budget];
        node.with(&mut self.common, budget, Container::abort_all);
        self.remove_sibling(id.0);
        let node = &mut self.nodes[id.0];
        let budget = &mut self.budgets[node.budget];
        node.alive = false;
        budget.remove_member(node.container.member(), self.common.now);
        node.device.drain(..).for_each(|frame| self.common.frames.give(frame));
        self.schedule.remove_container(id.0);
        // The released memory may wake others of the same budget; the next turn does that.
        self.schedule.poll_budget(node.budget);
    }

    /// Changes a guest's applications and marks it for a poll.
    pub fn with_guest<G: 'static, R>(&mut self, id: NodeId, f: impl FnOnce(&mut G) -> R) -> R {
        let node = &mut self.nodes[id.0];
        node.guest_dirty = true;
        self.touched.push(id.0);
        let guest = node.guest.as_any().downcast_mut::<G>();
        f(guest.expect("the guest is of the type it was made of"))
    }
}

/// Ends all containers: a ledger that is dropped without release panics.
impl Drop for World {
    fn drop(&mut self) {
        for index in 0..self.nodes.len() {
            self.stop(NodeId(index));
        }
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
