//! Makes a plan's containers, budgets, servers and applications in a world.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use skbudget_controller::{Budget, BudgetConfig, Instant, Limits, MemberStats};
use skbudget_stack::ContainerConfig;
use skbudget_stack::sim::{
    App, BudgetId, Buffers, BulkRecv, BulkSend, GuestConfig, LinkConfig, NeverRead, NodeConfig,
    NodeId, Open, Probe, ProbePlan, Rng, Server, SimHost, SmolGuest, Tally, World,
};

use crate::exit::Failure;
use crate::measure::{Meter, ProbeLog};
use crate::plan::{ArmPlan, ContainerPlan, Isolation, Load, Plan, ProbeSpec, Role};

/// One container of the run and what watches it.
#[derive(Debug)]
pub(super) struct Player {
    pub(super) name: String,
    index: u64,
    pub(super) role: Role,
    pub(super) node: NodeId,
    pub(super) budget: BudgetId,
    pub(super) hard_bytes: u64,
    loads: Vec<Load>,
    pub(super) up: Rc<RefCell<Meter>>,
    pub(super) down: Rc<RefCell<Meter>>,
    pub(super) probe: Rc<RefCell<ProbeLog>>,
    pub(super) spec: Option<ProbeSpec>,
    /// The sending ends: only whether they broke is of interest.
    pub(super) sender: Rc<RefCell<Tally>>,
    pub(super) moved_before: u64,
    pub(super) moved: Vec<u64>,
    pub(super) last_stats: Option<MemberStats>,
}

#[derive(Debug)]
pub(super) struct Cast {
    pub(super) players: Vec<Player>,
    pub(super) budgets: Vec<(BudgetId, String)>,
}

// One port a connection, so that bytes of one connection that turn up in another are seen.
const UP: u16 = 10_000;
const DOWN: u16 = 11_000;
const PROBE: u16 = 12_000;
const STUFF: u16 = 20_000;
const HOARD: u16 = 30_000;
const CONNECTIONS_MAX: u16 = 9_999;

/// Host servers are a loopback away.
const HOST_DELAY: Duration = Duration::from_micros(10);
/// Each way, as a kernel's qdisc and backlog are long: windows bound what waits in them. A short queue would have
/// smoltcp's first socket send and the others wait, for it serves them in order whenever there is room.
const QUEUE_FRAMES: usize = 1000;
/// The kernel's queues are fair between flows: acknowledgements and probes do not wait behind a bulk transfer.
const EXPRESS_MAX: usize = 1200;
/// A container opens its connections one after the other, as a program does, with a seeded jitter as long again.
const DIAL_EVERY_NS: u64 = 5_000;

pub(super) fn cast(world: &mut World, plan: &Plan, arm: &ArmPlan) -> Result<Cast, Failure> {
    let mut cast = Cast { players: Vec::new(), budgets: Vec::new() };
    if arm.isolation == Isolation::Shared {
        let id = world.add_budget(budget(plan.pool_bytes(), plan, arm)?);
        cast.budgets.push((id, "pool".to_owned()));
    }
    for (i, c) in plan.containers.iter().enumerate() {
        if arm.isolation != Isolation::Shared {
            let id = world.add_budget(budget(c.hard_bytes, plan, arm)?);
            cast.budgets.push((id, c.name.clone()));
        }
        let Some((id, _)) = cast.budgets.last() else { continue };
        let player = player(world, plan, c, i as u64, *id)?;
        if c.role == Role::Victim {
            raise_loads(world, &player, plan, Instant(i as u64 * 100_000));
        }
        cast.players.push(player);
    }
    Ok(cast)
}

fn budget(hard: u64, plan: &Plan, arm: &ArmPlan) -> Result<Budget, Failure> {
    let usage = |e| Failure::Usage(format!("a hard limit of {hard} bytes: {e:?}"));
    let limits = Limits::from_bytes(hard, None, None).map_err(usage)?;
    let config = BudgetConfig {
        rules: arm.rules.rules(),
        limits,
        sock: plan.sock_limits(),
        min_bytes: 0,
        weight: 100,
    };
    Budget::new(config, None).map_err(usage)
}

fn player(
    world: &mut World,
    plan: &Plan,
    c: &ContainerPlan,
    index: u64,
    budget: BudgetId,
) -> Result<Player, Failure> {
    let meter = || Rc::new(RefCell::new(Meter::new(plan.window_ns, plan.end_ns())));
    let (up, down) = (meter(), meter());
    let spec = c.probe();
    let deadline = spec.map_or(0, |s| s.deadline_ns);
    let probe = Rc::new(RefCell::new(ProbeLog::new(&plan.phases, deadline)));

    let mut host = SimHost::new();
    let near = |server: Server| server.with_delay(HOST_DELAY);
    let read_rate = c.loads.iter().find_map(|l| match l {
        Load::Up { reads_bits_per_second } => Some(reads_bits_per_second / 8),
        Load::Down | Load::Probe(_) | Load::Stuff { .. } | Load::Hoard { .. } => None,
    });
    let sink = Server { read_rate, ..near(Server::sink()) };
    host.serve(UP..=UP, sink.watched(up.clone()));
    host.serve(DOWN..=DOWN, near(Server::pusher(None)));
    if let Some(s) = spec {
        let server = Server::responder(s.request_bytes, s.response_bytes);
        host.serve(PROBE..=PROBE, near(server));
    }
    host.serve(STUFF..=STUFF + CONNECTIONS_MAX, near(Server::never_reads()));
    host.serve(HOARD..=HOARD + CONNECTIONS_MAX, near(Server::pusher(None)));

    let mut rng = Rng::fork(plan.seed, 1000 + index);
    let link = plan.link;
    let secret = [rng.next_u64(), rng.next_u64()];
    let container = ContainerConfig::new(link.mtu, link.offload, Some(c.hard_bytes), secret);
    let guest = SmolGuest::new(&GuestConfig::new(link.mtu, link.offload, rng.next_u64()));
    let way = Duration::from_nanos(link.rtt_ns / 2).saturating_sub(HOST_DELAY);
    let cable = LinkConfig {
        delay: way,
        bits_per_second: Some(c.bits_per_second),
        queue_frames: QUEUE_FRAMES,
        express_max: EXPRESS_MAX,
        ..LinkConfig::default()
    };
    let node = world.add_container(NodeConfig {
        container,
        budget,
        up: cable,
        down: cable,
        guest: Box::new(guest),
        host,
    });
    let node = node.map_err(|e| {
        Failure::Usage(format!("{}: no room for its device queue ({e:?}); raise its limit", c.name))
    })?;
    Ok(Player {
        name: c.name.clone(),
        index,
        role: c.role,
        node,
        budget,
        hard_bytes: c.hard_bytes,
        loads: c.loads.clone(),
        up,
        down,
        probe,
        spec,
        sender: Tally::shared(),
        moved_before: 0,
        moved: Vec::new(),
        last_stats: None,
    })
}

/// Opens the connections of a container's loads, the first at `from`.
pub(super) fn raise_loads(world: &mut World, p: &Player, plan: &Plan, from: Instant) {
    let mut rng = Rng::fork(plan.seed, 2000 + p.index);
    // Nobody starts in step with the others.
    let mut at = from + Duration::from_nanos(rng.below(1_000_000));
    let probe_jitter_ns = rng.below(100_000);
    let mut dials: Vec<(Instant, u16, Box<dyn App>)> = Vec::new();
    let mut dial = |port: u16, app: Box<dyn App>| {
        dials.push((at, port, app));
        at = at + Duration::from_nanos(DIAL_EVERY_NS + rng.below(DIAL_EVERY_NS));
    };
    for load in &p.loads {
        match load {
            Load::Up { .. } => dial(UP, Box::new(BulkSend::new(None, p.sender.clone()))),
            Load::Down => dial(DOWN, Box::new(BulkRecv::new(p.down.clone()))),
            Load::Probe(spec) => {
                dial(
                    PROBE,
                    Box::new(Probe::new(probe_plan(spec, plan, probe_jitter_ns), p.probe.clone())),
                );
            }
            Load::Stuff { connections } => {
                for port in (STUFF..).take(*connections as usize) {
                    dial(port, Box::new(BulkSend::new(None, p.sender.clone())));
                }
            }
            Load::Hoard { connections } => {
                for port in (HOARD..).take(*connections as usize) {
                    dial(port, Box::new(NeverRead));
                }
            }
        }
    }
    let bytes = plan.link.guest_buffer_bytes as usize;
    let buffers = Buffers { rx: bytes, tx: bytes };
    world.with_guest(p.node, |guest: &mut SmolGuest| {
        for (at, port, app) in dials {
            let to = SocketAddr::from(([10, 0, 2, 2], port));
            guest.open(at, Open::Connect(to), buffers, app);
        }
    });
}

fn probe_plan(spec: &ProbeSpec, plan: &Plan, jitter_ns: u64) -> ProbePlan {
    ProbePlan {
        start: Instant(spec.offset_ns + jitter_ns),
        every: Duration::from_nanos(spec.every_ns),
        until: Instant(plan.end_ns()),
        request: spec.request_bytes,
        response: spec.response_bytes,
        outstanding_max: spec.outstanding_max as usize,
    }
}
