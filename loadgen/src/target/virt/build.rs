//! Creates the containers, budgets, servers and guests of a plan in a virtual world.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skbudget_controller::{
    Budget, BudgetConfig, Level, LevelConfig, Limits, MemberStats, PAGE_SIZE,
};
use skbudget_sim::{
    BudgetId, Guest, GuestConfig, LinkConfig, NodeConfig, NodeId, Rng, Server, SimHost, SmolGuest,
    Source, Tally, World,
};
use skbudget_stack::ContainerConfig;

use super::flood::FloodGuest;
use crate::exit::Failure;
use crate::measure::{Digits, Meter, ProbeRecorder};
use crate::scenario::plan::{ArmPlan, BudgetPlan, ContainerPlan, Isolation, Load, Plan, ProbeSpec};
use crate::traffic::raw_tcp::{FloodAddresses, RawTcpClient};

/// One container of the run, and its meters.
#[derive(Debug)]
pub(super) struct ContainerRun {
    pub(super) plan: ContainerPlan,
    pub(super) index: u64,
    /// Set when the container joins.
    pub(super) node: Option<NodeId>,
    pub(super) budget: BudgetId,
    pub(super) up: Rc<RefCell<Meter>>,
    pub(super) down: Rc<RefCell<Meter>>,
    pub(super) probe: Rc<RefCell<ProbeRecorder>>,
    pub(super) spec: Option<ProbeSpec>,
    /// Observer of the sending ends; used only to detect broken connections.
    pub(super) sender: Rc<RefCell<Tally>>,
    pub(super) moved_before: u64,
    pub(super) moved: Vec<u64>,
    pub(super) last_stats: Option<MemberStats>,
}

/// The containers and budgets of an arm.
#[derive(Debug)]
pub(super) struct ArmRun {
    pub(super) containers: Vec<ContainerRun>,
    pub(super) budgets: Vec<(BudgetId, String)>,
    /// The level above all budgets.
    pub(super) host: Option<Arc<Level>>,
}

// One port per connection, so that bytes delivered to the wrong connection are detected.
pub(super) const UP: u16 = 1_000;
pub(super) const DOWN: u16 = 2_000;
pub(super) const PROBE: u16 = 3_000;
pub(super) const INCAST: u16 = 4_000;
/// A port of the container itself.
pub(super) const ACCEPT: u16 = 5_000;
pub(super) const STUFF: u16 = 10_000;
pub(super) const HOARD: u16 = 20_000;
pub(super) const ORPHANS: u16 = 30_000;
pub(super) const FLOOD: u16 = 40_000;
const BULK_MAX: u16 = 999;
const FILL_MAX: u16 = 9_999;

/// Delay of host servers: the loopback.
const HOST_DELAY: Duration = Duration::from_micros(10);
/// Queue length each way, as long as a kernel's qdisc and backlog: TCP windows bound the frames that wait in it. With a
/// short queue, smoltcp's first socket would send and the others wait, because smoltcp serves its sockets in order
/// whenever there is room.
const QUEUE_FRAMES: usize = 1000;
/// Frames up to this size bypass bulk frames, as in the kernel's fair queues: ACKs and probes do not wait behind a bulk
/// transfer.
const EXPRESS_MAX: usize = 1200;
/// With more containers than this, histograms are coarse.
pub(super) const FINE_MAX: usize = 64;

/// Creates the budgets of an arm. The containers join later.
pub(super) fn arm_run(world: &mut World, plan: &Plan, arm: &ArmPlan) -> Result<ArmRun, Failure> {
    let mut run = ArmRun { containers: Vec::new(), budgets: Vec::new(), host: None };
    // Only the arm with a budget per container has a level above them; in the shared arm the pool is that level.
    if let Some(host) = &plan.host
        && arm.isolation == Isolation::Container
    {
        run.host = Some(level(host)?);
    }
    if arm.isolation == Isolation::Shared {
        // The pool gets the total memory of the other arms.
        let hard_bytes = plan.host.map_or_else(|| plan.pool_bytes(), |h| h.hard_bytes);
        let pool = plan.host.unwrap_or_default();
        let id =
            world.add_budget(budget(&BudgetPlan { hard_bytes, ..pool }, 100, None, plan, arm)?);
        run.budgets.push((id, "pool".to_owned()));
    }
    for (i, c) in plan.containers.iter().enumerate() {
        // Containers that exist one after another use the same budget.
        let of = |name: &str| run.budgets.iter().find(|(_, n)| n == name).map(|(id, _)| *id);
        let shared = run.budgets.first().filter(|_| arm.isolation == Isolation::Shared);
        let known = shared.map(|(id, _)| *id).or_else(|| of(&c.budget_name));
        let id = match known {
            Some(id) => id,
            None => {
                let made = budget(&c.budget, c.weight, run.host.clone(), plan, arm)?;
                let id = world.add_budget(made);
                run.budgets.push((id, c.budget_name.clone()));
                id
            }
        };
        run.containers.push(container_run(plan, c, i as u64, id));
    }
    Ok(run)
}

fn level(host: &BudgetPlan) -> Result<Arc<Level>, Failure> {
    let usage = |e| Failure::Usage(format!("the host's limit: {e}"));
    let limits = limits(host).map_err(usage)?;
    let config = LevelConfig::from(limits);
    Level::new(config, None).map_err(usage)
}

fn limits(b: &BudgetPlan) -> Result<Limits, skbudget_controller::LimitError> {
    Limits::from_bytes(b.hard_bytes, b.soft_bytes, b.low_bytes)
}

fn budget(
    b: &BudgetPlan,
    weight: u32,
    parent: Option<Arc<Level>>,
    plan: &Plan,
    arm: &ArmPlan,
) -> Result<Budget, Failure> {
    let usage = |e| Failure::Usage(format!("a hard limit of {} bytes: {e}", b.hard_bytes));
    let limits = match arm.isolation {
        Isolation::Off => Limits::NONE,
        Isolation::Shared | Isolation::Container => limits(b).map_err(usage)?,
    };
    let config = BudgetConfig {
        rules: arm.rules.rules(),
        limits,
        sock: plan.sock_limits(),
        min_bytes: b.min_bytes.next_multiple_of(PAGE_SIZE),
        weight,
    };
    Budget::new(config, parent).map_err(usage)
}

/// Least length of a recovery step.
pub(super) const STEP_NS: u64 = 10_000_000;

fn container_run(plan: &Plan, c: &ContainerPlan, index: u64, budget: BudgetId) -> ContainerRun {
    let step_ns = plan.recovery_step_ns(STEP_NS);
    let meter = || Rc::new(RefCell::new(Meter::new(plan.window_ns, step_ns, plan.end_ns())));
    let spec = c.probe();
    let deadline = spec.map_or(0, |s| s.deadline_ns);
    let digits = if plan.containers.len() > FINE_MAX { Digits::Two } else { Digits::Three };
    let log = ProbeRecorder::with_digits(&plan.phases, deadline, digits);
    ContainerRun {
        plan: c.clone(),
        index,
        node: None,
        budget,
        up: meter(),
        down: meter(),
        probe: Rc::new(RefCell::new(log)),
        spec,
        sender: Tally::shared(),
        moved_before: 0,
        moved: Vec::new(),
        last_stats: None,
    }
}

/// Creates the container, and the servers that it connects to.
pub(super) fn join(world: &mut World, c: &mut ContainerRun, plan: &Plan) -> Result<(), Failure> {
    let mut rng = Rng::fork(plan.seed, 1000 + c.index);
    let (own, link) = (&c.plan, plan.link);
    let secret = [rng.next_u64(), rng.next_u64()];
    let hard = Some(own.budget.hard_bytes);
    let container = ContainerConfig::new(link.mtu, link.offload, hard, secret);
    let config = GuestConfig::new(link.mtu, link.offload, rng.next_u64());
    let guest = guest(own, &config, &container);
    // Half of the RTT each way, less the delay between stack and server.
    let way = Duration::from_nanos(link.rtt_ns / 2).saturating_sub(HOST_DELAY);
    // The same each way, and for this container alone.
    let cable = LinkConfig {
        delay: way,
        bits_per_second: Some(own.bits_per_second),
        queue_frames: QUEUE_FRAMES,
        express_max: EXPRESS_MAX,
        ..LinkConfig::default()
    };
    let node = world.add_container(NodeConfig {
        container,
        budget: c.budget,
        up: cable,
        down: cable,
        guest,
        host: servers(c),
    });
    c.node = Some(node.map_err(|e| {
        let name = &c.plan.name;
        Failure::Usage(format!("{name}: the hard limit is too small for the device queue ({e:?})"))
    })?);
    Ok(())
}

/// The guest: a TCP stack, or a sender of handcrafted segments.
fn guest(c: &ContainerPlan, config: &GuestConfig, stack: &ContainerConfig) -> Box<dyn Guest> {
    let flood = c.loads.iter().find_map(|l| match *l {
        Load::Flood { kind, connections, per_second } => Some((kind, connections, per_second)),
        _ => None,
    });
    let Some((kind, connections, per_second)) = flood else {
        return Box::new(SmolGuest::new(config));
    };
    let addresses = FloodAddresses {
        own_mac: config.mac,
        own_ip: config.ip,
        peer_mac: stack.our_mac,
        to: stack.gateway_ip,
        to_port: FLOOD,
        port_each: true,
    };
    let span = |f: fn(&crate::scenario::plan::Span) -> u64, last: bool| {
        let span = if last { c.active.last() } else { c.active.first() };
        span.map_or(0, f)
    };
    // From the start of the first span to the end of the last.
    let (from, until) = (span(|s| s.from_ns, false), span(|s| s.to_ns, true));
    Box::new(FloodGuest::new(RawTcpClient::new(
        addresses,
        kind,
        connections,
        per_second,
        from,
        until,
    )))
}

/// The servers of a container's loads, one port range per load.
fn servers(c: &ContainerRun) -> SimHost {
    let mut host = SimHost::new();
    let near = |server: Server| server.with_delay(HOST_DELAY);
    for load in &c.plan.loads {
        match *load {
            Load::Up { reads_bits_per_second, .. } => {
                let sink = near(Server::sink());
                let sink = Server { read_rate: Some(reads_bits_per_second / 8), ..sink };
                host.serve(UP..=UP + BULK_MAX, sink.watched(c.up.clone()));
            }
            Load::Down { .. } => host.serve(DOWN..=DOWN + BULK_MAX, near(Server::pusher(None))),
            Load::Probe(spec) => {
                let server = Server::responder(spec.request_bytes, spec.response_bytes);
                host.serve(PROBE..=PROBE + BULK_MAX, near(server));
            }
            Load::Stuff(fill) => {
                let server = match fill.reads_bits_per_second {
                    Some(rate) => Server { read_rate: Some(rate / 8), ..Server::sink() },
                    None => Server::never_reads(),
                };
                host.serve(STUFF..=STUFF + FILL_MAX, near(server));
            }
            Load::Hoard(fill) => {
                // A pusher with no bytes to push would close its stream.
                let server = match fill.bytes {
                    Some(0) => Server::sink(),
                    Some(n) => pushes_once(n),
                    None => Server::pusher(None),
                };
                host.serve(HOARD..=HOARD + FILL_MAX, near(server));
            }
            Load::Orphans { .. } => {
                // The server closes its direction at once and never reads: the bytes sent to it stay in the container's
                // send queue.
                let server = Server { source: Source::Push(Some(0)), ..Server::never_reads() };
                let server = Server { rcvbuf: 4096, ..server };
                host.serve(ORPHANS..=ORPHANS + FILL_MAX, near(server));
            }
            Load::Incast { bytes, .. } => {
                let server = Server::responder(INCAST_REQUEST, bytes);
                host.serve(INCAST..=INCAST + BULK_MAX, near(server));
            }
            Load::Flood { .. } => {
                host.serve(FLOOD..=FLOOD + FILL_MAX, near(Server::never_reads()));
            }
            // Clients connect from outside: see `loads::connect_clients`.
            Load::Accept { .. } => {}
        }
    }
    host
}

/// Bytes of a request of an incast.
pub(super) const INCAST_REQUEST: u32 = 64;

/// Responds to the first byte, which `HoardSome` sends, with `bytes`, and keeps the connection.
fn pushes_once(bytes: u64) -> Server {
    Server::responder(1, u32::try_from(bytes).unwrap_or(u32::MAX))
}

/// Source address of an outside client.
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
