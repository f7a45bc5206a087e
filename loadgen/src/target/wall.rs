//! The common part of the wall-clock targets: a container is a network namespace with an agent process in it; its
//! servers run in this process and count.
//!
//! The targets differ in the path between agent and servers, and in the values that they read from it at each window.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::agent::Agent;
use super::open_files;
use super::{Control, WALL_STEP_NS};
use crate::exit::Failure;
use crate::measure::Meter;
use crate::measure::result::{ContainerPhase, ContainerResult, DirectionSteps, RecoverySteps};
use crate::scenario::plan::{ContainerPlan, Load, Plan, SOLO};
use crate::traffic::serve::Servers;
use crate::traffic::{
    AgentReport, AgentSpec, AssignedLoad, FloodNet, MeterReport, Shared, keep_time, locked,
};

/// Time from now to the start of the run, in which agents start and enter their namespaces.
const START_IN: Duration = Duration::from_millis(500);
/// Time that an agent has to report after the end of the run; then it is killed.
const ANSWER_IN: Duration = Duration::from_secs(5);

/// Refuses loads that only the virtual target has, before anything is set up.
pub(super) fn check_loads(plan: &Plan) -> Result<(), Failure> {
    for c in &plan.containers {
        // An agent runs its loads in a single span.
        let one_life = c.joins_ns == 0 && c.active.len() == 1;
        let unsupported = c.loads.iter().find(|l| match l {
            Load::Up { connections, .. } | Load::Down { connections } => *connections > 1,
            Load::Stuff(fill) => fill.reads_bits_per_second.is_some(),
            Load::Orphans { .. } | Load::Accept { .. } | Load::Incast { .. } => true,
            Load::Probe(_) | Load::Hoard(_) | Load::Flood { .. } => false,
        });
        let what = match (unsupported, one_life) {
            (Some(load), _) => format!("load '{}'", load.word()),
            (None, false) => "a schedule with several starts, or a churn,".to_owned(),
            (None, true) => continue,
        };
        let (name, scenario) = (&c.name, &plan.scenario);
        let text = format!("{scenario}: {name}: {what} is supported on the virtual target only");
        return Err(Failure::Usage(text));
    }
    if plan.host.is_some() {
        let text = format!("{}: host is supported on the virtual target only", plan.scenario);
        return Err(Failure::Usage(text));
    }
    Ok(())
}

/// The state that the servers of a run share; the run starts a moment from now. Raises the limit of open files: each of
/// the hog's connections takes two descriptors of this process.
pub(super) fn prepare() -> Result<Arc<Shared>, Failure> {
    open_files::raise()?;
    let epoch_ns = skbudget::clock::now().as_nanos() + START_IN.as_nanos() as u64;
    Ok(Shared::new(epoch_ns))
}

/// Opens the servers for the loads of a container, which reaches them at `gateway`. `flood`: addresses of its
/// handcrafted segments.
pub(super) fn serve(
    servers: &mut Servers,
    c: &ContainerPlan,
    gateway: Ipv4Addr,
    flood: Option<FloodNet>,
    up: &Arc<Mutex<Meter>>,
) -> io::Result<Vec<AssignedLoad>> {
    let at = |port: u16| SocketAddr::from((gateway, port));
    let one = |load: &Load| {
        Ok(match (*load, flood) {
            (Load::Up { reads_bits_per_second, .. }, _) => {
                AssignedLoad::Up { to: at(servers.sink(reads_bits_per_second, Arc::clone(up))?) }
            }
            (Load::Down { .. }, _) => {
                AssignedLoad::Down { to: at(servers.pusher(c.bits_per_second)?) }
            }
            (Load::Probe(spec), _) => {
                let port = servers.responder(spec.request_bytes, spec.response_bytes)?;
                AssignedLoad::Probe { to: at(port), spec }
            }
            // `check_loads` has refused loads with a read rate.
            (Load::Stuff(fill), _) if fill.reads_bits_per_second.is_none() => {
                AssignedLoad::Stuff { to: at(servers.never_reads()?), fill }
            }
            (Load::Hoard(fill), _) => {
                AssignedLoad::Hoard { to: at(servers.pushers(fill.bytes)?), fill }
            }
            (Load::Flood { kind, connections, per_second }, Some(net)) => {
                let to = at(servers.never_reads()?);
                AssignedLoad::Flood { to, kind, connections, per_second, net }
            }
            (
                Load::Stuff(_)
                | Load::Orphans { .. }
                | Load::Accept { .. }
                | Load::Incast { .. }
                | Load::Flood { .. },
                _,
            ) => {
                let what = format!("load '{}' is not supported on this target", load.word());
                return Err(io::Error::other(what));
            }
        })
    };
    c.loads.iter().map(one).collect()
}

/// A container with its agent process, which ends on drop.
#[derive(Debug)]
pub(super) struct WallContainer {
    pub(super) plan: ContainerPlan,
    /// Bytes that the servers received from it.
    up: Arc<Mutex<Meter>>,
    agent: Agent,
    _netns: OwnedFd,
}

/// A meter for the bytes that the servers of one container receive.
pub(super) fn meter(plan: &Plan) -> Arc<Mutex<Meter>> {
    let step_ns = plan.recovery_step_ns(WALL_STEP_NS);
    Arc::new(Mutex::new(Meter::new(plan.window_ns, step_ns, plan.end_ns())))
}

impl WallContainer {
    /// Starts the agent; `loads` and `up` are those of `serve`.
    pub(super) fn start(
        plan: &Plan,
        c: &ContainerPlan,
        shared: &Shared,
        netns: OwnedFd,
        loads: Vec<AssignedLoad>,
        up: Arc<Mutex<Meter>>,
    ) -> Result<Self, Failure> {
        // A hog has a span and leaves at its end; a victim stays for the whole run.
        let (from_ns, until_ns) = match (c.active.first(), c.leaves_ns) {
            (Some(span), Some(leaves)) => (span.from_ns, leaves),
            (_, _) => (0, u64::MAX),
        };
        let spec = AgentSpec {
            // The agent enters the namespace itself, by a path that `Agent::start` fills in.
            netns: None,
            epoch_ns: shared.clock.epoch_ns,
            window_ns: plan.window_ns,
            step_ns: plan.recovery_step_ns(WALL_STEP_NS),
            grace_ns: plan.grace_ns,
            phases: plan.phases.clone(),
            from_ns,
            until_ns,
            loads,
        };
        let agent = Agent::start(netns.as_fd(), spec).map_err(|e| Failure::io(&c.name, e))?;
        Ok(Self { plan: c.clone(), up, agent, _netns: netns })
    }

    pub(super) fn up(&self) -> Arc<Mutex<Meter>> {
        Arc::clone(&self.up)
    }
    pub(super) fn agent_id(&self) -> u32 {
        self.agent.id()
    }
    fn report(&mut self) -> Result<AgentReport, Failure> {
        self.agent.answer(ANSWER_IN).map_err(|e| Failure::io(&self.plan.name, e))
    }

    /// The values that agent and servers know; the caller adds those of the path between them.
    pub(super) fn result(&self, plan: &Plan, report: &AgentReport) -> ContainerResult {
        let up = MeterReport::from(&*locked(&self.up));
        let of = |m: &MeterReport, i: usize| m.phases.get(i).copied().unwrap_or_default();
        let response = self.plan.probe().map_or(0, |s| u64::from(s.response_bytes));
        let phase = |i: usize| {
            // Upload counts at the servers, download at the agent: goodput is what the receiver got.
            let ((up_bytes, up_stall_ns), (down_bytes, down_stall_ns)) =
                (of(&up, i), of(&report.down, i));
            let probe = report.probe.as_ref().and_then(|p| p.get(i).cloned());
            let probe_bytes = probe.as_ref().map_or(0, |b| b.completed) * response;
            ContainerPhase {
                up_bytes,
                down_bytes,
                up_stall_ns,
                down_stall_ns,
                probe_bytes,
                moved_bytes: 0,
                probe,
            }
        };
        ContainerResult {
            phases: (0..plan.phases.len()).map(phase).collect(),
            recovery: Some(RecoverySteps {
                step_ns: plan.recovery_step_ns(WALL_STEP_NS),
                up: DirectionSteps::of(&up.steps),
                down: DirectionSteps::of(&report.down.steps),
            }),
            up_window_bytes: up.windows,
            down_window_bytes: report.down.windows.clone(),
            up_total_bytes: up.total,
            down_total_bytes: report.down.total,
            guest_counters: report.guest_counters.clone(),
            corrupt: report.corrupt + up.corrupt,
            broken: report.broken,
            ..ContainerResult::of(&self.plan)
        }
    }
}

/// Collects the reports of the agents. `stopped`: the run ended early, so the agents must be told to stop.
pub(super) fn reports<'a>(
    containers: impl Iterator<Item = &'a mut WallContainer>,
    stopped: bool,
) -> Result<Vec<AgentReport>, Failure> {
    let mut containers: Vec<&mut WallContainer> = containers.collect();
    if stopped {
        // Stop all agents before waiting for the first report.
        containers.iter_mut().for_each(|a| a.agent.stop());
    }
    containers.into_iter().map(WallContainer::report).collect()
}

/// Runs the phases: they start and end on the servers' `meters`, and `sample` is called at the start of every window.
/// Returns the time at which the run was stopped, if it was.
///
/// # Errors `Interrupted`: stopped before anything was measured. Otherwise the error of `sample`.
pub(super) fn run_timeline(
    plan: &Plan,
    shared: &Shared,
    meters: &[Arc<Mutex<Meter>>],
    control: Control<'_>,
    sample: impl FnMut(u64) -> Result<(), Failure>,
) -> Result<Option<u64>, Failure> {
    thread::scope(|scope| {
        // In its own thread: a slow `sample` must not shift the phases.
        scope.spawn(|| keep_time(shared, &plan.phases, plan.grace_ns, meters, None));
        let outcome = windows(plan, shared, control, sample);
        // Stopped or failed: without this, the timekeeper would wait for the planned end.
        if !matches!(outcome, Ok(None)) {
            shared.end();
        }
        outcome
    })
}

/// Waits for each window and calls `sample`.
fn windows(
    plan: &Plan,
    shared: &Shared,
    control: Control<'_>,
    mut sample: impl FnMut(u64) -> Result<(), Failure>,
) -> Result<Option<u64>, Failure> {
    for i in 0..=plan.end_ns().div_ceil(plan.window_ns) {
        let at = i * plan.window_ns;
        while shared.clock.now() < at && !control.stop.load(Ordering::Relaxed) {
            // Sleep in short steps, so that a stop is noticed soon.
            let left = Duration::from_nanos(at - shared.clock.now().min(at));
            thread::sleep(left.min(Duration::from_millis(20)));
        }
        if control.stop.load(Ordering::Relaxed) {
            let now = shared.clock.now();
            // Before the solo phase nothing is measured, and there is nothing to report.
            let measured = now > plan.phases[SOLO].start_ns;
            return if measured { Ok(Some(now)) } else { Err(Failure::Interrupted) };
        }
        sample(at)?;
    }
    Ok(None)
}

/// The largest p99 lag of all agents.
pub(super) fn lag_p99_ns(reports: &[AgentReport]) -> u64 {
    let latencies = reports.iter().flat_map(|r| r.probe.iter().flatten());
    latencies.filter_map(|p| p.lag.p99_ns).max().unwrap_or(0)
}
