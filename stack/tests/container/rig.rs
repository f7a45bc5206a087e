//! Test rig for one container's stack: a scripted host, a device that keeps every frame, a clock that the test moves.

use std::io::IoSlice;
use std::net::SocketAddr;

use skbudget_sim::fake_host::FakeHost;
use skbudget_stack::controller::{
    Budget, BudgetConfig, Counter, Instant, Limits, MemberStats, Rules, SockLimits,
};
use skbudget_stack::{
    Algorithm, ChunkPool, Container, ContainerConfig, Ctx, Device, FlowId, FlowInfo, HostError,
    Ready, VnetHdr, WakeKey,
};

use crate::wire::{Seg, Sent, sent};

pub(crate) use skbudget_sim::fake_host::Sock;
pub(crate) use skbudget_sim::packet::{GATEWAY, GATEWAY6, GUEST, GUEST6};

#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) frames: Vec<(VnetHdr, Vec<u8>)>,
    /// Frames that the device takes before it is full.
    pub(crate) room: usize,
}

impl Device for Wire {
    fn send(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.frames.push((*vnet, parts.iter().flat_map(|p| p.to_vec()).collect()));
        true
    }
}

/// Configuration of a rig. `Setup::default()` has plenty of memory, strict rules, MTU 1500, no offload.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) rules: Rules,
    pub(crate) hard: u64,
    pub(crate) soft: Option<u64>,
    pub(crate) mtu: u16,
    pub(crate) offload: bool,
    pub(crate) sock: SockLimits,
    pub(crate) secret: [u64; 2],
    pub(crate) start: Instant,
    pub(crate) congestion: Algorithm,
    pub(crate) host_loopback: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            rules: Rules::Strict,
            hard: 64 << 20,
            soft: None,
            mtu: 1500,
            offload: false,
            sock: SockLimits::default(),
            secret: [7, 11],
            start: Instant::from_millis(1000),
            congestion: Algorithm::default(),
            host_loopback: true,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) stack: Container,
    pub(crate) budget: Budget,
    pub(crate) pool: ChunkPool,
    pub(crate) host: FakeHost,
    pub(crate) wire: Wire,
    pub(crate) now: Instant,
    pub(crate) setup: Setup,
    /// Usage without a flow: the device queue and the list of waiting SYNs.
    pub(crate) empty: u64,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Setup::default())
    }

    pub(crate) fn with(setup: Setup) -> Self {
        Self::build(setup, |_| ())
    }

    /// As `new`, with other changes of the configuration.
    pub(crate) fn configured(change: impl FnOnce(&mut ContainerConfig)) -> Self {
        Self::build(Setup::default(), change)
    }

    fn build(setup: Setup, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        let config = BudgetConfig {
            rules: setup.rules,
            limits: Limits::from_bytes(setup.hard, setup.soft, None).unwrap(),
            sock: setup.sock,
            min_bytes: 0,
            weight: 100,
        };
        let mut budget = Budget::new(config, None).unwrap();
        let (mtu, offload) = (setup.mtu, setup.offload);
        let mut container = ContainerConfig::new(mtu, offload, Some(setup.hard), setup.secret);
        container.congestion = setup.congestion;
        container.host_loopback = setup.host_loopback;
        change(&mut container);
        let member = budget.add_member(container.dev_queue_bytes).unwrap();
        let mut rig = Self {
            stack: Container::new(container, member),
            budget,
            pool: ChunkPool::new(),
            host: FakeHost::new(setup.start),
            wire: Wire { frames: Vec::new(), room: usize::MAX },
            now: setup.start,
            setup,
            empty: 0,
        };
        rig.turn();
        rig.empty = rig.usage();
        rig
    }

    /// Calls the stack with the rig's host, device, budget and time.
    pub(crate) fn with_cx<R>(&mut self, f: impl FnOnce(&mut Container, &mut Ctx<'_>) -> R) -> R {
        self.host.now = self.now;
        let mut cx = Ctx {
            now: self.now,
            budget: &mut self.budget,
            pool: &mut self.pool,
            host: &mut self.host,
            device: &mut self.wire,
        };
        f(&mut self.stack, &mut cx)
    }

    /// Passes a frame to the stack, without a turn.
    pub(crate) fn frame(&mut self, frame: &[u8]) {
        self.with_cx(|stack, cx| stack.on_frame(cx, &VnetHdr::default(), frame));
    }

    /// Runs turns until the stack has no work; returns the frames that it sent.
    pub(crate) fn turn(&mut self) -> Vec<Sent> {
        for round in 0.. {
            assert!(round < 10_000, "the stack never comes to rest");
            let mut more = self.with_cx(Container::turn);
            // As the worker does after each turn: woken flows run in the same pass (B9).
            while let Some(key) = self.budget.poll_wake(self.now) {
                self.stack.on_wake(WakeKey(key));
                more = true;
            }
            if !more {
                break;
            }
        }
        self.taken()
    }

    /// The frames sent since the last call.
    pub(crate) fn taken(&mut self) -> Vec<Sent> {
        let setup = &self.setup;
        self.wire.frames.drain(..).map(|(v, f)| sent(&v, &f, setup.mtu, setup.offload)).collect()
    }

    /// Passes one segment and runs a turn; returns the segments sent.
    pub(crate) fn send(&mut self, seg: Seg) -> Vec<Seg> {
        let frame = seg.frame();
        self.frame(&frame);
        segs(self.turn())
    }

    /// Passes several segments and runs one turn.
    pub(crate) fn send_all(&mut self, segs_in: &[Seg]) -> Vec<Seg> {
        for seg in segs_in {
            let frame = seg.frame();
            self.frame(&frame);
        }
        segs(self.turn())
    }

    /// Lets `ms` pass, deadline by deadline; returns the frames sent and when (milliseconds from now).
    pub(crate) fn pass(&mut self, ms: u64) -> Vec<(u64, Sent)> {
        let (start, end) = (self.now, Instant(self.now.0 + ms * 1_000_000));
        let mut out = Vec::new();
        for round in 0.. {
            assert!(round < 100_000, "deadlines that are never met");
            let Some(at) = self.stack.next_deadline().filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            let after = self.now.since(start).as_millis() as u64;
            out.extend(self.turn().into_iter().map(|s| (after, s)));
            assert!(self.stack.next_deadline() != Some(at), "a deadline that stays");
        }
        self.now = end;
        out
    }

    /// As [`Self::pass`], TCP segments only.
    pub(crate) fn pass_segs(&mut self, ms: u64) -> Vec<(u64, Seg)> {
        let only = |(at, s)| if let Sent::Tcp(seg) = s { Some((at, seg)) } else { None };
        self.pass(ms).into_iter().filter_map(only).collect()
    }

    /// A remote client connects to a published port; its socket has no data yet.
    pub(crate) fn accept(&mut self, guest_port: u16, from: SocketAddr) -> FlowId {
        let accepted = self.with_cx(|stack, cx| stack.on_accept(cx, guest_port, from, 0));
        let (flow, _) = accepted.expect("room");
        self.host.socks.insert(flow, Sock::open());
        flow
    }

    pub(crate) fn ready(&mut self, flow: FlowId, readable: bool, writable: bool) -> Vec<Seg> {
        self.stack.on_host_ready(flow, Ready { readable, writable });
        segs(self.turn())
    }

    /// The host socket receives `data` from its peer.
    pub(crate) fn host_sends(&mut self, flow: FlowId, data: &[u8]) -> Vec<Seg> {
        self.host.sock(flow).incoming.extend(data);
        self.ready(flow, true, false)
    }

    pub(crate) fn host_ends(&mut self, flow: FlowId) -> Vec<Seg> {
        self.host.sock(flow).ends = true;
        self.ready(flow, true, false)
    }

    pub(crate) fn host_breaks(&mut self, flow: FlowId, how: HostError) -> Vec<Seg> {
        self.host.sock(flow).broken = Some(how);
        self.stack.on_host_broken(flow);
        self.ready(flow, true, true)
    }

    pub(crate) fn sock(&mut self, flow: FlowId) -> &mut Sock {
        self.host.sock(flow)
    }

    pub(crate) fn flow(&self, id: FlowId) -> Option<FlowInfo> {
        self.stack.flows().into_iter().find(|f| f.id == id)
    }

    pub(crate) fn state(&self, id: FlowId) -> &'static str {
        self.flow(id).map_or("GONE", |f| f.state)
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        let stats = self.stack.stats();
        stats.counters.iter().find(|c| c.0 == name).unwrap_or_else(|| panic!("{name}")).1
    }

    pub(crate) fn memory(&self) -> MemberStats {
        self.budget.member_stats(self.stack.member())
    }

    pub(crate) fn counter(&self, counter: Counter) -> u64 {
        self.memory().counters[counter as usize]
    }

    pub(crate) fn usage(&self) -> u64 {
        self.budget.meter_stats(self.now).usage_bytes
    }

    /// Asserts that nothing of any flow is left: no chunk, no charge, no timer.
    pub(crate) fn assert_empty(&mut self) {
        // Longer than TIME-WAIT and the retry timers.
        self.pass(3000);
        let stats = self.stack.stats();
        let flows = self.stack.flows();
        assert_eq!((stats.flows, stats.syn_backlog, stats.time_wait), (0, 0, 0), "{flows:#?}");
        assert_eq!(self.pool.live(), 0, "chunks nobody holds");
        assert_eq!(self.usage(), self.empty, "charges nobody holds: {:?}", self.memory());
        assert_eq!(self.stack.next_deadline(), None, "a timer of nobody");
        assert!(self.host.socks.values().all(|s| s.closed.is_some()), "a host socket left open");
        assert!(self.host.datagrams.values().all(|s| s.closed), "a datagram socket left open");
    }
}

impl Drop for Rig {
    /// Releases the ledgers, after a failed assertion too.
    fn drop(&mut self) {
        self.with_cx(Container::abort_all);
    }
}

pub(crate) fn segs(sent: Vec<Sent>) -> Vec<Seg> {
    sent.into_iter().filter_map(|s| if let Sent::Tcp(seg) = s { Some(seg) } else { None }).collect()
}

/// The only segment of a list.
#[track_caller]
pub(crate) fn one(mut segs: Vec<Seg>) -> Seg {
    assert_eq!(segs.len(), 1, "{segs:?}");
    segs.remove(0)
}
