//! The worker loop in virtual time: one event queue, one fixed order of steps.

use std::net::SocketAddr;

use skbudget_controller::{Budget, Instant, MemberId, Refusal};
use skbudget_seed::Rng;
use skbudget_stack::{ChunkPool, Container, ContainerConfig, Ctx, FlowId, HostCaps, WakeKey};

use crate::event_queue::{Event, EventQueue, What};
use crate::frame::{Frame, FramePool};
use crate::guest::Guest;
use crate::host::SimHost;
use crate::link::{Link, LinkConfig};
use crate::link_port::{DownPort, send};
use crate::server::Server;

/// Names a budget of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetId(usize);

/// Names a container of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeId(usize);

/// One container with its links, guest and host.
#[derive(Debug)]
pub struct NodeConfig {
    /// Configuration of its stack.
    pub container: ContainerConfig,
    /// The budget that it is charged to.
    pub budget: BudgetId,
    /// From the guest to the stack.
    pub up: LinkConfig,
    /// From the stack to the guest.
    pub down: LinkConfig,
    /// The guest.
    pub guest: Box<dyn Guest>,
    /// Its host sockets.
    pub host: SimHost,
}

#[derive(Debug)]
struct Node {
    container: Container,
    budget: usize,
    guest: Box<dyn Guest>,
    host: SimHost,
    up: Link,
    down: Link,
    alive: bool,
    stack_dirty: bool,
    guest_dirty: bool,
    /// Earliest pending timer event of the stack, the guest and the host.
    armed: [Option<Instant>; 3],
}

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

/// Containers, their budgets, guests and hosts on one virtual clock.
#[derive(Debug)]
pub struct World {
    seed: u64,
    now: Instant,
    events: EventQueue,
    budgets: Vec<Budget>,
    nodes: Vec<Node>,
    pool: ChunkPool,
    frames: FramePool,
    outbox: Vec<Frame>,
    /// Nodes with an event since their timers were set: only these can have work.
    touched: Vec<usize>,
    /// The same nodes, sorted, while they are settled.
    settling: Vec<usize>,
    stats: WorldStats,
}

/// Rounds in which stack, guests and budgets wake each other at one instant. More rounds are a livelock.
const ROUNDS_MAX: usize = 100_000;

const STACK: usize = 0;
const GUEST: usize = 1;
const HOST: usize = 2;

impl World {
    /// An empty world at time zero. The seed decides all faults of links.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            now: Instant::default(),
            events: EventQueue::default(),
            budgets: Vec::new(),
            nodes: Vec::new(),
            pool: ChunkPool::new(),
            frames: FramePool::default(),
            outbox: Vec::new(),
            touched: Vec::new(),
            settling: Vec::new(),
            stats: WorldStats::default(),
        }
    }

    // ---- making it ----

    /// Adds a budget for one or more containers.
    pub fn add_budget(&mut self, budget: Budget) -> BudgetId {
        self.budgets.push(budget);
        BudgetId(self.budgets.len() - 1)
    }

    /// Adds a container to its budget and charges its device queue.
    pub fn add_container(&mut self, config: NodeConfig) -> Result<NodeId, Refusal> {
        let NodeConfig { container, budget, up, down, guest, mut host } = config;
        let id = self.nodes.len();
        let member = self.budgets[budget.0].add_member(container.dev_queue_bytes)?;
        host.set_now(self.now);
        self.nodes.push(Node {
            container: Container::new(container, member),
            budget: budget.0,
            guest,
            host,
            // Each link draws from its own stream, so that a new node does not change the faults of others.
            up: Link::new(up, Rng::fork(self.seed, 2 * id as u64)),
            down: Link::new(down, Rng::fork(self.seed, 2 * id as u64 + 1)),
            alive: true,
            stack_dirty: true,
            guest_dirty: true,
            armed: [None; 3],
        });
        self.touched.push(id);
        Ok(NodeId(id))
    }

    // ---- running it ----

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Processes all events up to and including `until`; the time is then `until`.
    pub fn run_until(&mut self, until: Instant) {
        self.settle();
        while let Some(at) = self.events.next_at().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            while self.events.next_at().is_some_and(|a| a <= self.now) {
                let Some(event) = self.events.pop() else { break };
                self.dispatch(event);
            }
            self.settle();
        }
        self.now = self.now.max(until);
    }

    /// Delivers one event. It only marks nodes; `settle` does the work.
    fn dispatch(&mut self, event: Event) {
        self.stats.events += 1;
        let Self { now, budgets, nodes, pool, events, frames, touched, .. } = self;
        let node = &mut nodes[event.node];
        if !node.alive {
            return;
        }
        touched.push(event.node);
        match event.what {
            What::ToStack(frame) => {
                node.with(event.node, *now, budgets, pool, events, frames, |container, cx| {
                    container.on_frame(cx, &frame.vnet, frame.bytes());
                });
                frames.give(frame);
                node.stack_dirty = true;
            }
            What::ToGuest(frame) => {
                node.guest.on_frame(*now, frame);
                node.guest_dirty = true;
            }
            What::Timer(kind) => {
                // An older event for the same timer may still be queued; it only marks the node.
                if node.armed[kind] == Some(event.at) {
                    node.armed[kind] = None;
                }
                match kind {
                    STACK => node.stack_dirty = true,
                    GUEST => node.guest_dirty = true,
                    HOST => node.host.advance(*now),
                    other => unreachable!("timer {other}"),
                }
            }
            What::Room => {
                node.stack_dirty = true;
                node.guest_dirty |= node.guest.is_blocked();
            }
        }
    }

    /// Lets all nodes with work at `now` do it, in a fixed order, until none has any.
    fn settle(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "the world never comes to rest at {:?}", self.now);
            self.note_touched();
            // The order of the real worker loop: stacks, then waiters; guests are other processes there.
            let mut busy = self.settle_stacks();
            busy |= self.settle_wakes();
            busy |= self.settle_guests();
            if !busy {
                break;
            }
        }
        self.note_touched();
        for n in 0..self.settling.len() {
            self.arm(self.settling[n]);
        }
        self.settling.clear();
    }

    /// Adds newly touched nodes to those being settled, in the order of their numbers.
    fn note_touched(&mut self) {
        if !self.touched.is_empty() {
            self.settling.append(&mut self.touched);
            self.settling.sort_unstable();
            self.settling.dedup();
        }
    }

    /// Reports host events to each dirty stack and runs one turn of it.
    fn settle_stacks(&mut self) -> bool {
        let mut busy = false;
        for n in 0..self.settling.len() {
            let i = self.settling[n];
            let Self { now, budgets, nodes, pool, events, frames, touched, stats, .. } = self;
            let node = &mut nodes[i];
            if !node.alive {
                continue;
            }
            while let Some((flow, ready)) = node.host.poll_ready() {
                node.container.on_host_ready(flow, ready);
                node.stack_dirty = true;
            }
            while let Some(flow) = node.host.poll_broken() {
                node.container.on_host_broken(flow);
                node.stack_dirty = true;
            }
            if !std::mem::take(&mut node.stack_dirty) {
                continue;
            }
            touched.push(i);
            stats.turns += 1;
            busy = true;
            // One turn per round: guests and waiters run before the next.
            node.stack_dirty = node.with(i, *now, budgets, pool, events, frames, Container::turn);
        }
        busy
    }

    /// Wakes waiters of each budget in which memory may have returned.
    fn settle_wakes(&mut self) -> bool {
        let mut busy = false;
        // Without a common level, a release in one budget makes no room in another.
        let apart = self.budgets.iter().all(|b| b.parent().is_none());
        let mut concerned: Vec<usize> = if apart {
            self.settling.iter().map(|i| self.nodes[*i].budget).collect()
        } else {
            (0..self.budgets.len()).collect()
        };
        // Fixed order, each budget once.
        concerned.sort_unstable();
        concerned.dedup();
        for b in concerned {
            while let Some(key) = self.budgets[b].poll_wake(self.now) {
                let key = WakeKey(key);
                let of =
                    |n: &Node| n.alive && n.budget == b && n.container.member() == key.member();
                // The container of the waiter has stopped.
                let Some(i) = self.nodes.iter().position(of) else { continue };
                self.nodes[i].container.on_wake(key);
                self.nodes[i].stack_dirty = true;
                self.touched.push(i);
                self.stats.wakes += 1;
                busy = true;
            }
        }
        busy
    }

    /// Polls each dirty guest and sends its frames.
    fn settle_guests(&mut self) -> bool {
        let mut busy = false;
        for n in 0..self.settling.len() {
            let i = self.settling[n];
            let Self { now, nodes, events, frames, outbox, touched, stats, .. } = self;
            let node = &mut nodes[i];
            if !node.alive || !std::mem::take(&mut node.guest_dirty) {
                continue;
            }
            touched.push(i);
            stats.guest_polls += 1;
            busy = true;
            // The guest needs the room beforehand: a frame that it produced cannot be put back.
            let room = node.up.room(*now);
            node.guest.poll(*now, room, frames, outbox);
            if node.guest.is_blocked() {
                node.up.want_room();
            }
            for frame in outbox.drain(..) {
                send(&mut node.up, *now, frame, events, frames, i, What::ToStack);
            }
        }
        busy
    }

    /// Sets the timers of a node after it was settled.
    fn arm(&mut self, i: usize) {
        let Self { now, nodes, events, .. } = self;
        let node = &mut nodes[i];
        if !node.alive {
            return;
        }
        let due =
            [node.container.next_deadline(), node.guest.next_deadline(), node.host.next_deadline()];
        for (kind, due) in due.into_iter().enumerate() {
            // A deadline in the past is due next, but not again at this instant.
            let Some(at) = due.map(|d| d.max(Instant(now.0 + 1))) else { continue };
            if node.armed[kind].is_none_or(|armed| at < armed) {
                node.armed[kind] = Some(at);
                events.add(at, i, What::Timer(kind));
            }
        }
        for link in [&mut node.up, &mut node.down] {
            if let Some(at) = link.take_room_at() {
                events.add(at.max(*now), i, What::Room);
            }
        }
    }

    // ---- acting on it ----

    /// Whether a client of a published port would be accepted now.
    pub fn can_accept(&mut self, id: NodeId) -> bool {
        let Self { now, budgets, nodes, pool, events, frames, .. } = self;
        let node = &mut nodes[id.0];
        node.host.set_now(*now);
        node.with(id.0, *now, budgets, pool, events, frames, Container::can_accept)
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
        let Self { now, budgets, nodes, pool, events, frames, touched, .. } = self;
        let node = &mut nodes[id.0];
        node.host.set_now(*now);
        let (flow, _) = node.with(id.0, *now, budgets, pool, events, frames, |container, cx| {
            container.on_accept(cx, guest_port, peer, 0).ok()
        })?;
        node.host.adopt(flow, guest_port, server, caps);
        node.stack_dirty = true;
        touched.push(id.0);
        Some(flow)
    }

    /// Ends a container: aborts its flows and removes it from its budget.
    pub fn stop(&mut self, id: NodeId) {
        let Self { now, budgets, nodes, pool, events, frames, touched, .. } = self;
        let node = &mut nodes[id.0];
        if !std::mem::take(&mut node.alive) {
            return;
        }
        node.with(id.0, *now, budgets, pool, events, frames, Container::abort_all);
        budgets[node.budget].remove_member(node.container.member(), *now);
        // The released memory may wake others of the same budget; the next settling does that.
        touched.push(id.0);
    }

    /// Changes a guest's applications and marks it for a poll.
    pub fn with_guest<G: 'static, R>(&mut self, id: NodeId, f: impl FnOnce(&mut G) -> R) -> R {
        let node = &mut self.nodes[id.0];
        node.guest_dirty = true;
        self.touched.push(id.0);
        let guest = node.guest.as_any().downcast_mut::<G>();
        f(guest.expect("the guest is of the type it was made of"))
    }

    // ---- inspecting it ----

    /// A container's stack.
    pub fn container(&self, id: NodeId) -> &Container {
        &self.nodes[id.0].container
    }
    /// A container's member of its budget.
    pub fn member(&self, id: NodeId) -> MemberId {
        self.nodes[id.0].container.member()
    }
    /// A budget.
    pub fn budget(&self, id: BudgetId) -> &Budget {
        &self.budgets[id.0]
    }
    /// For draining events (`Budget::poll_event`) and similar.
    pub fn budget_mut(&mut self, id: BudgetId) -> &mut Budget {
        &mut self.budgets[id.0]
    }
    /// A container's host sockets.
    pub fn host(&self, id: NodeId) -> &SimHost {
        &self.nodes[id.0].host
    }
    /// The links: up, down.
    pub fn links(&mut self, id: NodeId) -> (&mut Link, &mut Link) {
        let node = &mut self.nodes[id.0];
        (&mut node.up, &mut node.down)
    }
    /// Chunks that any queue holds.
    pub fn live_chunks(&self) -> usize {
        self.pool.live()
    }
    /// A copy of the counters.
    pub fn stats(&self) -> WorldStats {
        self.stats
    }
}

/// Ends all containers: a ledger that is dropped without release panics.
impl Drop for World {
    fn drop(&mut self) {
        for i in 0..self.nodes.len() {
            self.stop(NodeId(i));
        }
    }
}

impl Node {
    /// Calls the container with its context.
    #[expect(clippy::too_many_arguments, reason = "the fields of the world, borrowed apart")]
    fn with<R>(
        &mut self,
        index: usize,
        now: Instant,
        budgets: &mut [Budget],
        pool: &mut ChunkPool,
        events: &mut EventQueue,
        frames: &mut FramePool,
        f: impl FnOnce(&mut Container, &mut Ctx<'_>) -> R,
    ) -> R {
        self.host.set_now(now);
        let mut device = DownPort { link: &mut self.down, now, events, frames, node: index };
        let mut cx = Ctx {
            now,
            budget: &mut budgets[self.budget],
            pool,
            host: &mut self.host,
            device: &mut device,
        };
        f(&mut self.container, &mut cx)
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
