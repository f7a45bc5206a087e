//! A guest that is itself a container's stack, mirrored: the guest of one is the gateway of the other. Both ends of
//! every connection are then our code, and so are all losses, delays and timers between them.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;

use skbudget_controller::{Budget, Instant};
use skbudget_stack::vnet::VnetHdr;
use skbudget_stack::{ChunkPool, Container, ContainerConfig, Ctx, Device, WakeKey};

use crate::ACCEPTED_CAPS;
use crate::frame::{Frame, FramePool};
use crate::guest::Guest;
use crate::host::SimHost;
use crate::server::Server;

/// A guest that is a container's stack of our own.
#[derive(Debug)]
pub struct PeerStack {
    container: Container,
    budget: Budget,
    pool: ChunkPool,
    host: SimHost,
    inbox: VecDeque<Frame>,
    /// Connections to open: time, port, and the server at this end.
    todo: VecDeque<(Instant, u16, Server)>,
    now: Instant,
    deadline: Option<Instant>,
    blocked: bool,
}

/// The device of one poll: takes as many frames as the link has room for.
struct Outbox<'a> {
    room: usize,
    refused: bool,
    frames: &'a mut FramePool,
    out: &'a mut Vec<Frame>,
}

impl Device for Outbox<'_> {
    fn send(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> bool {
        if self.room == 0 {
            self.refused = true;
            return false;
        }
        self.room -= 1;
        self.out.push(self.frames.gather(vnet, parts));
        true
    }
}

impl PeerStack {
    /// `config` is that of the container that this is the guest of. IPv4 only.
    ///
    /// # Panics
    /// When the budget has no room for the device queue.
    pub fn new(config: &ContainerConfig, mut budget: Budget, host: SimHost) -> Self {
        let mut peer = config.clone();
        // Mirrored: each stack sees the other as the guest.
        (peer.guest_ip, peer.gateway_ip) = (config.gateway_ip, config.guest_ip);
        peer.our_mac = [0x02, 0x74, 0x77, 0x69, 0x6e, 0x00];
        // Another secret, so that the two ends choose different ISNs.
        peer.secret = [!config.secret[0], !config.secret[1]];
        peer.ipv6 = None;
        let member = budget.add_member(peer.dev_queue_bytes).expect("room for the device queue");
        Self {
            container: Container::new(peer, member),
            budget,
            pool: ChunkPool::new(),
            host,
            inbox: VecDeque::new(),
            todo: VecDeque::new(),
            now: Instant::default(),
            deadline: Some(Instant::default()),
            blocked: false,
        }
    }

    /// Opens a connection to `port` at `at`, or later when there is room. Connections open in the order of the calls.
    pub fn open(&mut self, at: Instant, port: u16, client: Server) {
        self.todo.push_back((at, port, client));
    }

    /// Its stack.
    pub fn container(&self) -> &Container {
        &self.container
    }
    /// The budget of its stack.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }
    /// The host sockets of its stack.
    pub fn host(&self) -> &SimHost {
        &self.host
    }
    /// Chunks that its queues hold.
    pub fn live_chunks(&self) -> usize {
        self.pool.live()
    }

    fn with<R>(
        &mut self,
        now: Instant,
        device: &mut Outbox<'_>,
        f: impl FnOnce(&mut Container, &mut Ctx<'_>) -> R,
    ) -> R {
        let Self { container, budget, pool, host, .. } = self;
        f(container, &mut Ctx { now, budget, pool, host, device })
    }

    /// Opens the connections that are due, as accepted connections of a published port.
    fn begin(&mut self, now: Instant, device: &mut Outbox<'_>) {
        while let Some((at, port, client)) = self.todo.front().cloned() {
            if at > now || !self.with(now, device, Container::can_accept) {
                return;
            }
            // A client on the loopback appears as the gateway, which is the stack under test.
            let from = SocketAddr::new([127, 0, 0, 1].into(), 40_000 + port);
            let accepted =
                self.with(now, device, |container, cx| container.on_accept(cx, port, from, 0));
            let Ok((flow, _)) = accepted else { return };
            self.todo.pop_front();
            self.host.adopt(flow, port, client, ACCEPTED_CAPS);
        }
    }

    /// One turn of the worker loop. Returns true if another is due.
    fn turn(&mut self, now: Instant, device: &mut Outbox<'_>) -> bool {
        while let Some(frame) = self.inbox.pop_front() {
            self.with(now, device, |c, cx| c.on_frame(cx, &frame.vnet, frame.bytes()));
            device.frames.give(frame);
        }
        self.begin(now, device);
        let mut busy = false;
        while let Some((flow, ready)) = self.host.poll_ready() {
            self.container.on_host_ready(flow, ready);
            busy = true;
        }
        busy |= self.with(now, device, Container::turn);
        while let Some(key) = self.budget.poll_wake(now) {
            self.container.on_wake(WakeKey(key));
            busy = true;
        }
        busy
    }
}

impl Guest for PeerStack {
    fn on_frame(&mut self, _: Instant, frame: Frame) {
        self.inbox.push_back(frame);
    }

    fn poll(&mut self, now: Instant, room: usize, frames: &mut FramePool, out: &mut Vec<Frame>) {
        self.now = now;
        self.host.advance(now);
        let mut device = Outbox { room, refused: false, frames, out };
        for round in 0.. {
            assert!(round < 100_000, "the peer never comes to rest at {now:?}");
            if !self.turn(now, &mut device) {
                break;
            }
        }
        self.blocked = device.refused;
        let begins = self.todo.front().map(|(at, ..)| *at).filter(|at| *at > now);
        let due = [self.container.next_deadline(), self.host.next_deadline(), begins];
        self.deadline = due.into_iter().flatten().min();
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn is_blocked(&self) -> bool {
        self.blocked
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Ends all flows: a ledger that is dropped without release panics.
impl Drop for PeerStack {
    fn drop(&mut self) {
        let (mut frames, mut out) = (FramePool::default(), Vec::new());
        let mut device = Outbox { room: 0, refused: false, frames: &mut frames, out: &mut out };
        self.with(self.now, &mut device, Container::abort_all);
    }
}
