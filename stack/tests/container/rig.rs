//! A container stack on a bench: a host that does what it is told, a device that keeps every frame, a clock by hand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};

use skbudget_stack::controller::{
    Budget, BudgetConfig, Counter, Instant, Limits, MemberStats, Rules, SockLimits,
};
use skbudget_stack::{
    ChunkPool, Close, Container, ContainerConfig, Ctx, Device, FlowId, FlowInfo, Host, HostCaps,
    HostError, Ready, VnetHdr, WakeKey,
};

use crate::wire::{Seg, Sent, sent};

pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// One host socket.
#[derive(Debug, Default)]
pub struct Sock {
    pub to: Option<SocketAddrV4>,
    /// `None`: connect(2) is under way.
    pub outcome: Option<Result<(), HostError>>,
    /// What the host has to say, and whether it ends after it.
    pub says: VecDeque<u8>,
    pub ends: bool,
    pub broken: Option<HostError>,
    /// What it heard, and how much more it takes.
    pub heard: Vec<u8>,
    pub room: usize,
    pub shut: bool,
    pub closed: Option<Close>,
    pub caps: Option<HostCaps>,
    pub writes: usize,
}

#[derive(Debug)]
pub struct FakeHost {
    pub socks: BTreeMap<FlowId, Sock>,
    /// What connect(2) answers at once, and what comes of it.
    pub connect: Result<(), HostError>,
    pub outcome: Option<Result<(), HostError>>,
    /// Flows in the order of their connect(2).
    pub connects: Vec<FlowId>,
}

impl FakeHost {
    fn sock(&mut self, flow: FlowId) -> &mut Sock {
        self.socks.get_mut(&flow).expect("a flow the host knows")
    }
}

impl Host for FakeHost {
    fn connect(&mut self, flow: FlowId, to: SocketAddrV4, caps: HostCaps) -> Result<(), HostError> {
        self.connects.push(flow);
        let sock = Sock {
            to: Some(to),
            outcome: self.outcome,
            room: usize::MAX,
            caps: Some(caps),
            ..Sock::default()
        };
        assert!(self.socks.insert(flow, sock).is_none(), "an id is used once");
        self.connect
    }
    fn connect_outcome(&mut self, flow: FlowId) -> Option<Result<(), HostError>> {
        self.sock(flow).outcome
    }
    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let sock = self.sock(flow);
        assert!(!sock.shut && sock.closed.is_none(), "a write after the end");
        sock.writes += 1;
        if let Some(e) = sock.broken {
            return Err(e);
        }
        let mut n = 0;
        for part in parts {
            let take = part.len().min(sock.room);
            sock.heard.extend_from_slice(&part[..take]);
            sock.room -= if sock.room == usize::MAX { 0 } else { take };
            n += take;
        }
        if n == 0 { Err(HostError::WouldBlock) } else { Ok(n) }
    }
    fn read(&mut self, flow: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError> {
        let sock = self.sock(flow);
        assert!(parts.iter().any(|p| !p.is_empty()), "a read of nothing");
        if let Some(e) = sock.broken {
            return Err(e);
        }
        if sock.says.is_empty() {
            return if sock.ends { Ok(0) } else { Err(HostError::WouldBlock) };
        }
        let mut n = 0;
        for part in parts {
            for to in part.iter_mut() {
                let Some(b) = sock.says.pop_front() else { return Ok(n) };
                *to = b;
                n += 1;
            }
        }
        Ok(n)
    }
    fn shutdown_write(&mut self, flow: FlowId) {
        let sock = self.sock(flow);
        assert!(!sock.shut, "shut down once");
        sock.shut = true;
    }
    fn set_caps(&mut self, flow: FlowId, caps: HostCaps) {
        self.sock(flow).caps = Some(caps);
    }
    fn lower_caps(&mut self, _: FlowId, caps: HostCaps) -> HostCaps {
        caps
    }
    fn close(&mut self, flow: FlowId, how: Close) {
        let sock = self.sock(flow);
        assert!(sock.closed.is_none(), "closed once");
        sock.closed = Some(how);
    }
}

#[derive(Debug, Default)]
pub struct Wire {
    pub frames: Vec<(VnetHdr, Vec<u8>)>,
    /// Frames it takes before it is full.
    pub room: usize,
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

/// How a rig is made; `Setup::default()` is plenty of memory, strict rules, MTU 1500, no offload.
#[derive(Debug, Clone)]
pub struct Setup {
    pub rules: Rules,
    pub hard: u64,
    pub soft: Option<u64>,
    pub mtu: u16,
    pub offload: bool,
    pub sock: SockLimits,
    pub secret: [u64; 2],
    pub start: Instant,
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
        }
    }
}

#[derive(Debug)]
pub struct Rig {
    pub stack: Container,
    pub budget: Budget,
    pub pool: ChunkPool,
    pub host: FakeHost,
    pub wire: Wire,
    pub now: Instant,
    pub setup: Setup,
    /// Usage when there is nothing but the device queue and the list of parked SYNs.
    pub empty: u64,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        let config = BudgetConfig {
            rules: setup.rules,
            limits: Limits::from_bytes(setup.hard, setup.soft, None).unwrap(),
            sock: setup.sock,
            min_bytes: 0,
            weight: 100,
        };
        let mut budget = Budget::new(config, None).unwrap();
        let (mtu, offload) = (setup.mtu, setup.offload);
        let container = ContainerConfig::new(mtu, offload, Some(setup.hard), setup.secret);
        let member = budget.add_member(container.dev_queue_bytes).unwrap();
        let mut rig = Self {
            stack: Container::new(container, member),
            budget,
            pool: ChunkPool::new(),
            host: FakeHost {
                socks: BTreeMap::new(),
                connect: Ok(()),
                outcome: Some(Ok(())),
                connects: Vec::new(),
            },
            wire: Wire { frames: Vec::new(), room: usize::MAX },
            now: setup.start,
            setup,
            empty: 0,
        };
        rig.turn();
        rig.empty = rig.usage();
        rig
    }

    /// Calls the stack with everything it is given.
    pub fn with_cx<R>(&mut self, f: impl FnOnce(&mut Container, &mut Ctx<'_>) -> R) -> R {
        let mut cx = Ctx {
            now: self.now,
            budget: &mut self.budget,
            pool: &mut self.pool,
            host: &mut self.host,
            device: &mut self.wire,
        };
        f(&mut self.stack, &mut cx)
    }

    /// A frame, without a turn.
    pub fn frame(&mut self, frame: &[u8]) {
        self.with_cx(|stack, cx| stack.on_frame(cx, &VnetHdr::default(), frame));
    }

    /// Turns until nothing is left to do; what went out.
    pub fn turn(&mut self) -> Vec<Sent> {
        for round in 0.. {
            assert!(round < 10_000, "the stack never comes to rest");
            let mut more = self.with_cx(Container::turn);
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

    /// What went out since it was last asked.
    pub fn taken(&mut self) -> Vec<Sent> {
        let setup = &self.setup;
        self.wire.frames.drain(..).map(|(v, f)| sent(&v, &f, setup.mtu, setup.offload)).collect()
    }

    /// One segment and its turn: the segments that answer.
    pub fn send(&mut self, seg: Seg) -> Vec<Seg> {
        let frame = seg.frame();
        self.frame(&frame);
        segs(self.turn())
    }

    /// Several segments in one turn.
    pub fn send_all(&mut self, segs_in: &[Seg]) -> Vec<Seg> {
        for seg in segs_in {
            let frame = seg.frame();
            self.frame(&frame);
        }
        segs(self.turn())
    }

    /// Time passes, deadline by deadline: what went out, and when (milliseconds from now).
    pub fn pass(&mut self, ms: u64) -> Vec<(u64, Sent)> {
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

    /// As [`Self::pass`], segments only.
    pub fn pass_segs(&mut self, ms: u64) -> Vec<(u64, Seg)> {
        let only = |(at, s)| if let Sent::Tcp(seg) = s { Some((at, seg)) } else { None };
        self.pass(ms).into_iter().filter_map(only).collect()
    }

    pub fn ready(&mut self, flow: FlowId, readable: bool, writable: bool) -> Vec<Seg> {
        self.stack.on_host_ready(flow, Ready { readable, writable });
        segs(self.turn())
    }

    /// The host has `data` to say.
    pub fn host_says(&mut self, flow: FlowId, data: &[u8]) -> Vec<Seg> {
        self.host.sock(flow).says.extend(data);
        self.ready(flow, true, false)
    }

    pub fn host_ends(&mut self, flow: FlowId) -> Vec<Seg> {
        self.host.sock(flow).ends = true;
        self.ready(flow, true, false)
    }

    pub fn host_breaks(&mut self, flow: FlowId, how: HostError) -> Vec<Seg> {
        self.host.sock(flow).broken = Some(how);
        self.ready(flow, true, true)
    }

    pub fn sock(&mut self, flow: FlowId) -> &mut Sock {
        self.host.sock(flow)
    }

    pub fn flow(&self, id: FlowId) -> Option<FlowInfo> {
        self.stack.flows().into_iter().find(|f| f.id == id)
    }

    pub fn state(&self, id: FlowId) -> &'static str {
        self.flow(id).map_or("GONE", |f| f.state)
    }

    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.stack.stats();
        stats.counters.iter().find(|c| c.0 == name).unwrap_or_else(|| panic!("{name}")).1
    }

    pub fn memory(&self) -> MemberStats {
        self.budget.member_stats(self.stack.member())
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.memory().counters[counter as usize]
    }

    pub fn usage(&self) -> u64 {
        self.budget.meter_stats(self.now).usage_bytes
    }

    /// Nothing is left of any flow: no chunk, no charge, no timer.
    pub fn assert_empty(&mut self) {
        self.pass(3000);
        let stats = self.stack.stats();
        assert_eq!((stats.flows, stats.parked, stats.time_wait), (0, 0, 0));
        assert_eq!(self.pool.live(), 0, "chunks nobody holds");
        assert_eq!(self.usage(), self.empty, "charges nobody holds: {:?}", self.memory());
        assert_eq!(self.stack.next_deadline(), None, "a timer of nobody");
        assert!(self.host.socks.values().all(|s| s.closed.is_some()), "a host socket left open");
    }
}

impl Drop for Rig {
    /// Ledgers must be given back, also after a failed assertion.
    fn drop(&mut self) {
        self.with_cx(Container::abort_all);
    }
}

pub fn segs(sent: Vec<Sent>) -> Vec<Seg> {
    sent.into_iter().filter_map(|s| if let Sent::Tcp(seg) = s { Some(seg) } else { None }).collect()
}

/// The one segment of a list.
#[track_caller]
pub fn one(mut segs: Vec<Seg>) -> Seg {
    assert_eq!(segs.len(), 1, "{segs:?}");
    segs.remove(0)
}
