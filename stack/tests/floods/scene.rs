//! Two containers below one host level: one with a scripted guest, and a neighbour that sends requests.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skbudget_sim::flood::{NEVER_READS, PUSHER, RESPONDER, SILENT, SINK};
use skbudget_sim::{
    BudgetId, Buffers, DatagramServer, Guest, GuestConfig, LinkConfig, NodeConfig, NodeId,
    Observer, Open, Probe, ProbePlan, Server, SimHost, SmolGuest, World,
};
use skbudget_stack::ContainerConfig;
use skbudget_stack::controller::{
    Budget, BudgetConfig, Instant, Level, LevelConfig, Limits, PAGE_SIZE, Rules, SockLimits,
};

pub(crate) const ECHOED: u32 = 100;
/// Port with a server that echoes datagrams.
pub(crate) const DATAGRAMS: u16 = 7;

const NEIGHBOUR_HARD: u64 = 8 << 20;
const NEIGHBOURS_PROBES: u16 = 4;

/// Latencies of the neighbour's requests, in nanoseconds.
#[derive(Debug, Default)]
struct Latencies {
    intended: Vec<Instant>,
    took: Vec<u64>,
    lost: u64,
}

impl Observer for Latencies {
    fn intended(&mut self, id: u64, at: Instant) {
        debug_assert_eq!(id as usize, self.intended.len());
        self.intended.push(at);
    }
    fn completed(&mut self, id: u64, now: Instant) {
        self.took.push(now.0 - self.intended[id as usize].0);
    }
    fn broken(&mut self, _: Instant) {
        self.lost += 1;
    }
    fn shed(&mut self, _: u64) {
        self.lost += 1;
    }
}

pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) attacker: NodeId,
    neighbour: NodeId,
    budgets: [BudgetId; 2],
    host: Arc<Level>,
    hard: u64,
    probes: Vec<Rc<RefCell<Latencies>>>,
}

impl Scene {
    /// Builds the world with the attacker's guest and its hard limit; the neighbour sends requests until `until`.
    pub(crate) fn new(guest: Box<dyn Guest>, hard: u64, until: Instant) -> Self {
        let mut world = World::new(5);
        // The host level has room for both hard limits: neither container can exhaust it.
        let pages = (hard + NEIGHBOUR_HARD) / PAGE_SIZE;
        let level = LevelConfig { low: pages / 2, soft: pages * 2 / 3, hard: pages };
        let host = Level::new(level, None).unwrap();
        let budgets = [hard, NEIGHBOUR_HARD].map(|hard| {
            let config = BudgetConfig {
                rules: Rules::Strict,
                limits: Limits::from_bytes(hard, None, None).unwrap(),
                sock: SockLimits::default(),
                min_bytes: 0,
                weight: 100,
            };
            world.add_budget(Budget::new(config, Some(host.clone())).unwrap())
        });
        let mut neighbour = SmolGuest::new(&GuestConfig::new(1500, false, 3));
        let probes = (0..NEIGHBOURS_PROBES).map(|i| probe(&mut neighbour, i, until)).collect();
        let mut add = |guest, hard, budget| {
            let mut host = SimHost::new();
            host.serve(SINK..=SINK, Server::sink());
            host.serve(PUSHER..=PUSHER, Server::pusher(None));
            host.serve(SILENT..=SILENT, Server::silent());
            host.serve(NEVER_READS..=NEVER_READS, Server::never_reads());
            host.serve(RESPONDER..=RESPONDER, Server::responder(ECHOED, ECHOED));
            let echo = DatagramServer::Echo { delay: Duration::from_millis(2), copies: 1 };
            host.serve_datagrams(DATAGRAMS, echo);
            let container = ContainerConfig::new(1500, false, Some(hard), [hard, 5]);
            let link = LinkConfig { queue_frames: 4096, ..LinkConfig::default() };
            let node = NodeConfig { container, budget, up: link, down: link, guest, host };
            world.add_container(node).expect("room for the device queue")
        };
        let attacker = add(guest, hard, budgets[0]);
        let neighbour = add(Box::new(neighbour), NEIGHBOUR_HARD, budgets[1]);
        Self { world, attacker, neighbour, budgets, host, hard, probes }
    }

    /// No limit was exceeded at any step: the watermarks record every charge.
    #[track_caller]
    pub(crate) fn assert_within_limits(&self) {
        let now = self.world.now();
        let meter = self.world.budget(self.budgets[0]).meter_stats(now);
        assert!(meter.max_usage_bytes <= self.hard, "{meter:?}");
        let host = self.host.stats();
        assert!(host.watermark <= host.limits.hard, "{host:?}");
    }

    pub(crate) fn peak(&self) -> u64 {
        self.world.budget(self.budgets[0]).meter_stats(self.world.now()).max_usage_bytes
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        let stats = self.world.container(self.attacker).stats();
        stats.counters.iter().find(|c| c.0 == name).unwrap_or_else(|| panic!("{name}")).1
    }

    /// The neighbour's p99; checks that no request was lost.
    #[track_caller]
    pub(crate) fn neighbours_p99(&self) -> Duration {
        let mut all = Vec::new();
        for probe in &self.probes {
            let probe = probe.borrow();
            assert_eq!(probe.lost, 0, "a neighbour that was cut off");
            // The last requests may still be in flight.
            assert!(
                probe.took.len() + 2 >= probe.intended.len(),
                "requests that were not answered"
            );
            all.extend(&probe.took);
        }
        all.sort_unstable();
        // Enough for a p99.
        assert!(all.len() > 500, "{} requests", all.len());
        Duration::from_nanos(all[all.len() * 99 / 100])
    }

    /// No flow of the attacker is left, and nothing of one.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&mut self) {
        let stats = self.world.container(self.attacker).stats();
        assert_eq!((stats.flows, stats.syn_backlog, stats.time_wait), (0, 0, 0), "{stats:?}");
        let deadline = self.world.container(self.attacker).next_deadline();
        assert_eq!(deadline, None, "a timer of nobody");
        assert_eq!(self.world.host(self.attacker).open_sockets(), 0);
        let budget = self.world.budget(self.budgets[0]);
        let member = budget.member_stats(self.world.member(self.attacker));
        let left = (member.rmem, member.ofo, member.credit, member.wmem, member.flows);
        assert_eq!(left, (0, 0, 0, 0, 0));
        assert_eq!((member.fwd, member.reserve, member.host), (0, 0, 0));
        let usage = budget.meter_stats(self.world.now()).usage_bytes;
        assert_eq!(usage, (member.dev + member.sock).next_multiple_of(PAGE_SIZE));
        assert_eq!(budget.waiting(), 0);
    }

    /// Stops the container while its flows are active.
    #[track_caller]
    pub(crate) fn stop_attacker(&mut self) {
        self.world.stop(self.attacker);
        let now = self.world.now();
        assert_eq!(self.world.budget(self.budgets[0]).meter_stats(now).usage_bytes, 0);
        assert_eq!(self.world.host(self.attacker).open_sockets(), 0);
    }

    /// Stops both containers: no chunk is held.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.world.stop(self.attacker);
        self.world.stop(self.neighbour);
        assert_eq!(self.world.live_chunks(), 0, "chunks nobody holds");
        assert_eq!(self.host.stats().usage, 0);
    }
}

fn probe(guest: &mut SmolGuest, i: u16, until: Instant) -> Rc<RefCell<Latencies>> {
    let latencies = Rc::new(RefCell::new(Latencies::default()));
    let plan = ProbePlan {
        start: Instant::from_micros(10_000 + 700 * u64::from(i)),
        every: Duration::from_millis(10),
        until,
        request: ECHOED,
        response: ECHOED,
        outstanding_max: 100,
    };
    let to = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 2), RESPONDER);
    let app = Box::new(Probe::new(plan, latencies.clone()));
    guest.open(Instant(0), Open::Connect(to.into()), Buffers::default(), app);
    latencies
}
