//! Our stack with itself as the guest: only the link causes faults, so the longest pause can be computed. Between two
//! arriving bytes lie at most the timeouts of the losses that the links logged meanwhile, each twice as long as the one
//! before (RFC 6298 section 5.5), and 200 ms.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use skbudget_sim::{
    ACCEPTED_CAPS, Faults, LinkConfig, Mishap, NodeConfig, NodeId, Observer, PeerStack, Rng,
    Server, SimHost, WhenFull, World,
};
use skbudget_stack::controller::{Instant, PAGE_SIZE, Rules};
use skbudget_stack::{Algorithm, ContainerConfig};

use crate::plan::{faults, pick};
use crate::run::{budget, port};

/// Virtual time in which every run must end.
const LIMIT: Instant = Instant::from_millis(7_200_000);
/// A budget that never runs short.
const RICH: u64 = 64 << 20;
/// Time that may pass between two bytes beyond the timeouts.
const SLACK: Duration = Duration::from_millis(200);

/// One connection.
#[derive(Debug, Clone, Copy)]
enum Job {
    /// From the guest stack's side to the container's.
    Up {
        bytes: u64,
    },
    Down {
        bytes: u64,
    },
    /// In both directions at once.
    Both {
        up: u64,
        down: u64,
    },
    /// A client on the container's side connects to a port of the guest stack.
    Published {
        bytes: u64,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    seed: u64,
    hard: u64,
    mtu: u16,
    offload: bool,
    congestion: Algorithm,
    delay: Duration,
    bits_per_second: Option<u64>,
    queue_frames: usize,
    drop_when_full: bool,
    faults: Faults,
    jobs: Vec<Job>,
}

impl Plan {
    pub(crate) fn rich(seed: u64) -> Self {
        let rng = &mut Rng::new(seed ^ 0x7717);
        let bits_per_second = pick(rng, &[None, Some(2_000_000), Some(50_000_000), Some(1 << 33)]);
        // On a slow link a round trip depends on the queue.
        let slow = bits_per_second.is_some_and(|bps| bps < 100_000_000);
        let mtu = pick(rng, &[68, 296, 1280, 1500, 1500, 9000, 65_520]);
        let most = Faults {
            loss: 100_000,
            duplicate: 50_000,
            corrupt: 20_000,
            reorder: 100_000,
            ..Faults::default()
        };
        let faults = faults(rng, &most, &[50, 2000, 30_000]);
        let bytes = if mtu < 100 { 20_000 } else { 200_000 };
        // Flows on a slow link wait for the windows of each other, whatever is lost.
        let jobs = if slow { 1 } else { 1 + rng.below(4) };
        Self {
            seed,
            hard: RICH,
            mtu,
            offload: !slow && faults.corrupt == 0 && rng.below(2) == 1,
            congestion: pick(rng, &[Algorithm::Cubic, Algorithm::Reno]),
            delay: Duration::from_micros(pick(rng, &[0, 50, 2000, 20_000, 75_000, 150_000])),
            bits_per_second,
            queue_frames: if slow { 32 } else { pick(rng, &[8, 64, 256]) },
            drop_when_full: rng.below(2) == 1,
            faults,
            jobs: (0..jobs).map(|_| Self::job(rng, bytes)).collect(),
        }
    }

    /// A container with room for few flows, and a guest stack with room for all. Connections wait for each other, so
    /// they are short: a client gives up after a minute.
    pub(crate) fn short(seed: u64) -> Self {
        let base = Self::rich(seed);
        let rng = &mut Rng::new(seed ^ 0x5407);
        let least = ContainerConfig::least_hard_bytes(base.mtu, false);
        let most = if base.mtu < 1000 { 1000 } else { 10_000 };
        let jobs = base.jobs.iter().map(|_| Self::job(rng, most)).collect();
        Self { hard: least + rng.below(200 << 10), jobs, ..base }
    }

    fn job(rng: &mut Rng, most: u64) -> Job {
        let bytes = 1 + rng.below(most);
        match rng.below(4) {
            0 => Job::Up { bytes },
            1 => Job::Down { bytes },
            2 => Job::Both { up: bytes, down: 1 + rng.below(most) },
            _ => Job::Published { bytes },
        }
    }

    /// The longest possible round trip.
    fn round_trip(&self) -> Duration {
        let frame = if self.offload { 65_549 } else { u64::from(self.mtu) + 14 };
        // The frames of all flows are in the queue, or wait at its end.
        let frames = self.queue_frames as u64 * (1 + 2 * self.jobs.len() as u64);
        let queue = self.bits_per_second.map_or(Duration::ZERO, |bps| {
            Duration::from_nanos(frames * frame * 8 * 1_000_000_000 / bps)
        });
        let reorder = if self.faults.reorder > 0 { self.faults.reorder_by } else { Duration::ZERO };
        // A copy arrives one delay after its original; an ACK may be delayed by 4 ms.
        2 * (2 * self.delay + queue + reorder) + Duration::from_millis(4)
    }
}

/// The times at which bytes arrived.
#[derive(Debug, Default)]
struct Progress {
    bytes: u64,
    corrupt: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Periods longer than the slack without a byte.
    gaps: Vec<(Instant, Instant)>,
}

impl Observer for Progress {
    fn bytes(&mut self, now: Instant, n: u64) {
        self.bytes += n;
        if let Some(last) = self.last
            && now.since(last) > SLACK
        {
            self.gaps.push((last, now));
        }
        self.first = self.first.or(Some(now));
        self.last = Some(now);
    }
    fn corrupt(&mut self, _: Instant, _: u64) {
        self.corrupt += 1;
    }
}

/// A receiver, and the bytes that must arrive there.
type Ear = (Rc<RefCell<Progress>>, u64);

struct Run {
    world: World,
    node: NodeId,
    budget: skbudget_sim::BudgetId,
    ears: Vec<Ear>,
    /// Clients of published ports that had no room yet.
    todo: Vec<(u16, Server)>,
}

fn build(plan: &Plan) -> Run {
    let mut ears = Vec::new();
    let mut heard = |server: Server, bytes: u64| {
        let ear = Rc::new(RefCell::new(Progress::default()));
        ears.push((ear.clone(), bytes));
        server.watched(ear)
    };
    let mut container =
        ContainerConfig::new(plan.mtu, plan.offload, Some(plan.hard), [plan.seed, 5]);
    container.ipv6 = None;
    container.congestion = plan.congestion;
    let (mut host, mut far_host) = (SimHost::new(), SimHost::new());
    let (mut opens, mut todo) = (Vec::new(), Vec::new());
    for (i, job) in plan.jobs.iter().enumerate() {
        let ports = port(i)..=port(i);
        let (near, far) = match *job {
            Job::Up { bytes } => (heard(Server::sink(), bytes), Server::pusher(Some(bytes))),
            Job::Down { bytes } => (Server::pusher(Some(bytes)), heard(Server::sink(), bytes)),
            Job::Both { up, down } => {
                (heard(Server::pusher(Some(down)), up), heard(Server::pusher(Some(up)), down))
            }
            Job::Published { bytes } => {
                far_host.serve(ports, heard(Server::sink(), bytes).at_guest());
                todo.push((port(i), Server::pusher(Some(bytes))));
                continue;
            }
        };
        host.serve(ports, near);
        opens.push((port(i), far.at_guest()));
    }
    let mut peer = PeerStack::new(&container, budget(Rules::Strict, RICH), far_host);
    for (port, client) in opens {
        peer.open(Instant::default(), port, client);
    }
    let link = LinkConfig {
        delay: plan.delay,
        bits_per_second: plan.bits_per_second,
        queue_frames: plan.queue_frames,
        when_full: if plan.drop_when_full { WhenFull::Drop } else { WhenFull::Refuse },
        faults: plan.faults,
        ..LinkConfig::default()
    };
    let mut world = World::new(plan.seed);
    let budget = world.add_budget(budget(Rules::Strict, plan.hard));
    let config =
        NodeConfig { container, budget, up: link, down: link, guest: Box::new(peer), host };
    let node = world.add_container(config).expect("room for the device queue");
    Run { world, node, budget, ears, todo }
}

pub(crate) fn run(plan: &Plan) {
    let Run { mut world, node, budget, ears, mut todo } = build(plan);
    loop {
        while let Some((port, client)) = todo.last().cloned() {
            // It appears as the gateway, the only address that the peer takes frames from.
            let peer = std::net::SocketAddr::new([127, 0, 0, 1].into(), 30_000 + port);
            if !world.can_accept(node)
                || world.accept(node, port, peer, client, ACCEPTED_CAPS).is_none()
            {
                break;
            }
            todo.pop();
        }
        world.run_until(world.now() + Duration::from_millis(50));
        let heard = ears.iter().all(|(ear, n)| ear.borrow().bytes == *n);
        let far = world.with_guest(node, |peer: &mut PeerStack| peer.container().stats().flows);
        if heard && todo.is_empty() && far == 0 && world.container(node).stats().flows == 0 {
            break;
        }
        if world.now() > LIMIT {
            let got: Vec<u64> = ears.iter().map(|(ear, _)| ear.borrow().bytes).collect();
            let near = world.container(node).flows();
            let far = world.with_guest(node, |peer: &mut PeerStack| peer.container().flows());
            panic!("not over: {got:?}\nnear {near:#?}\nfar {far:#?}");
        }
    }
    for (ear, bytes) in &ears {
        let ear = ear.borrow();
        assert_eq!((ear.bytes, ear.corrupt), (*bytes, 0));
    }
    // With little memory flows wait for each other, and no bound is known.
    if plan.hard == RICH {
        assert_progress(plan, &mut world, node, &ears);
    }
    world.run_until(world.now() + Duration::from_secs(30));
    assert_rest(&mut world, node, budget);
}

/// Asserts that the logged losses explain every gap.
fn assert_progress(plan: &Plan, world: &mut World, node: NodeId, ears: &[Ear]) {
    let (up, down) = world.links(node);
    let losses: Vec<Instant> = up
        .mishaps()
        .chain(down.mishaps())
        // Reordered and duplicated frames arrive: they excuse no pause.
        .filter(|(_, what)| matches!(what, Mishap::Lost | Mishap::Corrupted | Mishap::Full))
        .map(|(at, _)| *at)
        .collect();
    let round_trip = plan.round_trip();
    for (ear, _) in ears {
        let ear = ear.borrow();
        for Stall { from, to, gaps } in stalls(&ear.gaps, round_trip) {
            // RFC 6298 section 2: srtt + max(G, 4 rttvar), and one second before the first sample; then losses before
            // the first arriving byte count too.
            let known = ear.first.is_some_and(|first| from.since(first) > 3 * round_trip);
            let rto = round_trip + SLACK.max(4 * round_trip);
            let rto = if known { rto } else { rto.max(Duration::from_secs(1)) };
            let before = if known { round_trip.as_nanos() as u64 } else { from.0 };
            let since = Instant(from.0.saturating_sub(before));
            let lost = losses.iter().filter(|at| **at >= since && **at <= to).count();
            // 1 + 2 + 4 + ...: each loss doubles the next timeout.
            let timeouts = rto * ((1u32 << lost.min(16)) - 1);
            let took = to.since(from);
            assert!(
                took <= timeouts + gaps * (round_trip + SLACK),
                "nothing for {took:?} from {from:?} on, with {lost} losses of {rto:?} at most"
            );
        }
    }
}

/// Gaps with at most a round trip between them: the bytes in between arrived, but their ACKs were lost, and the
/// timeouts kept growing.
struct Stall {
    from: Instant,
    to: Instant,
    gaps: u32,
}

fn stalls(gaps: &[(Instant, Instant)], round_trip: Duration) -> Vec<Stall> {
    let mut stalls: Vec<Stall> = Vec::new();
    for &(from, to) in gaps {
        match stalls.last_mut() {
            Some(last) if from.since(last.to) <= round_trip => {
                (last.to, last.gaps) = (to, last.gaps + 1);
            }
            _ => stalls.push(Stall { from, to, gaps: 1 }),
        }
    }
    stalls
}

/// No memory is held at either end.
fn assert_rest(world: &mut World, node: NodeId, budget: skbudget_sim::BudgetId) {
    let chunks = world.live_chunks();
    let near = (world.container(node).stats(), world.container(node).next_deadline());
    let far = world.with_guest(node, |peer: &mut PeerStack| {
        assert_eq!((peer.live_chunks(), peer.host().open_sockets()), (0, 0));
        assert_eq!(peer.host().corrupt(), 0);
        let member = peer.budget().member_stats(peer.container().member());
        assert_eq!((member.rmem, member.ofo, member.wmem, member.reserve), (0, 0, 0, 0));
        (peer.container().stats(), peer.container().next_deadline())
    });
    for (stats, deadline) in [near, far] {
        assert_eq!((stats.flows, stats.syn_backlog, stats.time_wait), (0, 0, 0));
        assert_eq!(deadline, None, "a timer of nobody");
    }
    assert_eq!((chunks, world.host(node).open_sockets(), world.host(node).corrupt()), (0, 0, 0));
    let member = world.budget(budget).member_stats(world.member(node));
    let meter = world.budget(budget).meter_stats(world.now());
    assert_eq!(meter.usage_bytes, (member.dev + member.sock).next_multiple_of(PAGE_SIZE));
    assert!(Some(meter.max_usage_bytes) <= meter.hard_bytes, "hard is hard");
}
