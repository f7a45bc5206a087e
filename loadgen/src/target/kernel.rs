//! The kernel target: the same load over veth, between the kernel and itself, under its own limits. What to compare with.
//!
//! ```text
//!  agent process ── netns ── kernel TCP ── tap0 ══ veth ══ vN ── netns of the servers (this process)
//!       └ cgroup v1: memory.kmem.tcp, none / one for all / one each
//! ```
//! Each arm is the kernel, so none is the subject: its numbers stand side by side, and only the control is expected of.

mod cgroup;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use skbudget::attach;

use self::cgroup::{Group, Groups};
use super::tap::agent::Agent;
use super::tap::{ANSWER_IN, START_IN, carries, raise_nofile};
use super::virt::named;
use super::{Control, Target};
use crate::exit::Failure;
use crate::gate::Thresholds;
use crate::measure::Meter;
use crate::plan::{ArmPlan, ArmRole, ContainerPlan, Isolation, Load, Plan, RuleSet};
use crate::result::{ArmResult, BudgetResult, ContainerPhase, ContainerResult};
use crate::traffic::serve::Servers;
use crate::traffic::{Assigned, MeterReport, Orders, Report, Shared, keep_time, locked};

#[derive(Debug, Clone, Copy)]
pub struct KernelTarget;

/// Each container has a /24 of its own.
const CONTAINERS_MAX: usize = 250;

impl Target for KernelTarget {
    fn name(&self) -> &'static str {
        "kernel"
    }
    fn thresholds(&self, _plan: &Plan) -> Thresholds {
        Thresholds::wall()
    }
    fn parallel(&self) -> bool {
        false
    }
    fn has_link_rate(&self) -> bool {
        true
    }
    fn arms(&self, _plan: &Plan) -> Vec<ArmPlan> {
        let arm = |name: &str, role, isolation| ArmPlan {
            name: name.to_owned(),
            role,
            isolation,
            rules: RuleSet::Linux,
        };
        vec![
            arm("none", ArmRole::Baseline, Isolation::Off),
            arm("shared", ArmRole::Control, Isolation::Shared),
            arm("container", ArmRole::Baseline, Isolation::Container),
        ]
    }

    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure> {
        check(plan)?;
        raise_nofile()?;
        let mut stage = Stage::set(plan, arm)?;
        let samples = stage.play(plan, control)?;
        stage.result(plan, arm, samples)
    }
}

fn check(plan: &Plan) -> Result<(), Failure> {
    carries(plan)?;
    let flood = |c: &ContainerPlan| c.loads.iter().any(|l| matches!(l, Load::Flood { .. }));
    if let Some(c) = plan.containers.iter().find(|c| flood(c)) {
        let what = "floods by hand are for the targets with a stack of ours";
        return Err(Failure::Usage(format!("{}: {}: {what}", plan.scenario, c.name)));
    }
    if plan.containers.len() > CONTAINERS_MAX {
        let what = format!("target kernel takes at most {CONTAINERS_MAX} containers");
        return Err(Failure::Usage(what));
    }
    if !nix::unistd::geteuid().is_root() {
        let what = "target kernel makes network namespaces and cgroups: run it as root";
        return Err(Failure::Unavailable(what.to_owned()));
    }
    cgroup::check()
}

#[derive(Debug)]
struct Actor {
    plan: ContainerPlan,
    up: Arc<Mutex<Meter>>,
    agent: Agent,
    group: Group,
    _netns: OwnedFd,
}

#[derive(Debug)]
struct Stage {
    // Agents end before their cgroups are removed, and the servers last.
    actors: Vec<Actor>,
    groups: Groups,
    servers: Servers,
    shared: Arc<Shared>,
    world: OwnedFd,
}

/// Usage of each container, and of the pool, at the start of every window.
#[derive(Debug, Default)]
struct Samples {
    containers: Vec<Vec<u64>>,
    pool: Vec<u64>,
}

impl Stage {
    fn set(plan: &Plan, arm: &ArmPlan) -> Result<Self, Failure> {
        let world = attach::create_netns().map_err(|e| Failure::io("namespace", e))?;
        let epoch_ns = skbudget::clock::now().as_nanos() + START_IN.as_nanos() as u64;
        let shared = Shared::new(epoch_ns);
        let servers = Servers::on(Arc::clone(&shared), Ipv4Addr::UNSPECIFIED);
        let pool = (arm.isolation == Isolation::Shared).then(|| plan.pool_bytes());
        let groups = Groups::make(pool)?;
        let mut stage = Self { actors: Vec::new(), groups, servers, shared, world };
        for (i, c) in plan.containers.iter().enumerate() {
            stage.add(plan, arm, c, i as u8)?;
        }
        Ok(stage)
    }

    fn add(
        &mut self,
        plan: &Plan,
        arm: &ArmPlan,
        c: &ContainerPlan,
        index: u8,
    ) -> Result<(), Failure> {
        let name = &c.name;
        let fail = |e: attach::AttachError| Failure::io(name, e);
        let own = (arm.isolation == Isolation::Container).then_some(c.budget.hard_bytes);
        let group = self.groups.add(&format!("{index}"), own)?;
        let netns = attach::create_netns().map_err(fail)?;
        let (near, far) = (Ipv4Addr::new(10, 66, index, 1), Ipv4Addr::new(10, 66, index, 2));
        let device = format!("v{index}");
        attach::veth_between(self.world.as_fd(), &device, near, netns.as_fd(), far)
            .map_err(fail)?;
        let up = Arc::new(Mutex::new(Meter::new(plan.window_ns, plan.end_ns())));
        let servers = &mut self.servers;
        // A server's sockets and threads are those of the namespace it is made in.
        let loads = attach::run_in(self.world.as_fd(), || {
            c.loads.iter().map(|l| serve(servers, l, c, near, &up)).collect::<Result<Vec<_>, _>>()
        });
        let loads = loads.map_err(fail)?.map_err(|e| Failure::io("server", e))?;
        let (from_ns, until_ns) = match (c.active.first(), c.leaves_ns) {
            (Some(span), Some(leaves)) => (span.from_ns, leaves),
            (_, _) => (0, u64::MAX),
        };
        let orders = Orders {
            netns: None,
            epoch_ns: self.shared.clock.epoch_ns,
            window_ns: plan.window_ns,
            grace_ns: plan.grace_ns,
            phases: plan.phases.clone(),
            from_ns,
            until_ns,
            loads,
        };
        let agent = Agent::start(netns.as_fd(), orders).map_err(|e| Failure::io(name, e))?;
        // Long before the run begins: its sockets are made in its group.
        group.enter(agent.id())?;
        self.actors.push(Actor { plan: c.clone(), up, agent, group, _netns: netns });
        Ok(())
    }

    fn play(&mut self, plan: &Plan, control: Control<'_>) -> Result<Samples, Failure> {
        let mut samples =
            Samples { containers: vec![Vec::new(); self.actors.len()], ..Samples::default() };
        let shared = Arc::clone(&self.shared);
        let meters: Vec<_> = self.actors.iter().map(|a| Arc::clone(&a.up)).collect();
        thread::scope(|scope| {
            scope.spawn(|| keep_time(&shared, &plan.phases, plan.grace_ns, &meters, None));
            for i in 0..=plan.end_ns().div_ceil(plan.window_ns) {
                let at = i * plan.window_ns;
                while shared.clock.now() < at && !control.stop.load(Ordering::Relaxed) {
                    let left = Duration::from_nanos(at - shared.clock.now().min(at));
                    thread::sleep(left.min(Duration::from_millis(20)));
                }
                if control.stop.load(Ordering::Relaxed) {
                    shared.end();
                    return Err(Failure::Interrupted);
                }
                for (series, actor) in samples.containers.iter_mut().zip(&self.actors) {
                    series.push(actor.group.usage_bytes());
                }
                samples.pool.push(self.groups.pool().usage_bytes());
            }
            Ok(())
        })?;
        Ok(samples)
    }

    fn result(
        mut self,
        plan: &Plan,
        arm: &ArmPlan,
        samples: Samples,
    ) -> Result<ArmResult, Failure> {
        let mut budgets = Vec::new();
        let mut containers = Vec::new();
        let mut lag = 0;
        if arm.isolation == Isolation::Shared {
            let hard = Some(plan.pool_bytes());
            budgets.push(budget("pool", hard, self.groups.pool(), samples.pool, plan));
        }
        for (actor, usage) in self.actors.iter_mut().zip(samples.containers) {
            let name = actor.plan.name.clone();
            let report =
                actor.agent.answer(ANSWER_IN).map_err(|e| Failure::Io(format!("{name}: {e}")))?;
            let books = report.probe.iter().flatten();
            lag = books.filter_map(|p| p.lag.p99_ns).max().unwrap_or(0).max(lag);
            let mut c = container(actor, &report, plan);
            c.peak_held_bytes = actor.group.max_usage_bytes();
            let own = (arm.isolation == Isolation::Container).then_some(c.hard_bytes);
            if arm.isolation != Isolation::Shared {
                c.budget = budgets.len();
                budgets.push(budget(&name, own, &actor.group, usage, plan));
            }
            containers.push(c);
        }
        Ok(ArmResult {
            name: arm.name.clone(),
            role: arm.role,
            isolation: arm.isolation,
            rules: arm.rules,
            budgets,
            containers,
            generator_lag_p99_ns: lag,
            ..ArmResult::default()
        })
    }
}

/// Puts the server of a load where the container finds it.
fn serve(
    servers: &mut Servers,
    load: &Load,
    c: &ContainerPlan,
    near: Ipv4Addr,
    up: &Arc<Mutex<Meter>>,
) -> std::io::Result<Assigned> {
    let at = |port: u16| SocketAddr::from((near, port));
    Ok(match *load {
        Load::Up { reads_bits_per_second, .. } => {
            Assigned::Up { to: at(servers.sink(reads_bits_per_second, Arc::clone(up))?) }
        }
        Load::Down { .. } => Assigned::Down { to: at(servers.pusher(c.bits_per_second)?) },
        Load::Probe(spec) => {
            let port = servers.responder(spec.request_bytes, spec.response_bytes)?;
            Assigned::Probe { to: at(port), spec }
        }
        Load::Stuff(fill) => Assigned::Stuff { to: at(servers.never_reads()?), fill },
        Load::Hoard(fill) => Assigned::Hoard { to: at(servers.pushers(fill.bytes)?), fill },
        Load::Orphans { .. } | Load::Accept { .. } | Load::Incast { .. } | Load::Flood { .. } => {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
    })
}

fn budget(
    name: &str,
    hard_bytes: Option<u64>,
    group: &Group,
    usage_bytes: Vec<u64>,
    plan: &Plan,
) -> BudgetResult {
    let max_usage_bytes = group.max_usage_bytes();
    // The kernel does not say how long it was short: as long as it was seen at its limit.
    let at_limit = |u: &&u64| hard_bytes.is_some_and(|h| **u >= h);
    BudgetResult {
        name: name.to_owned(),
        hard_bytes,
        max_usage_bytes,
        overshoot_bytes: hard_bytes.map_or(0, |h| max_usage_bytes.saturating_sub(h)),
        pressure_ns: usage_bytes.iter().filter(at_limit).count() as u64 * plan.window_ns,
        failcnt: group.failcnt(),
        usage_bytes: usage_bytes.into_iter().skip(1).collect(),
        ..BudgetResult::default()
    }
}

fn container(actor: &Actor, report: &Report, plan: &Plan) -> ContainerResult {
    let c = &actor.plan;
    let up = MeterReport::from(&*locked(&actor.up));
    let of = |m: &MeterReport, i: usize| m.phases.get(i).copied().unwrap_or_default();
    let response = c.probe().map_or(0, |s| u64::from(s.response_bytes));
    let book = |i: usize| report.probe.as_ref().and_then(|p| p.get(i).cloned());
    let phase = |i: usize| {
        let ((up_bytes, up_stall_ns), (down_bytes, down_stall_ns)) =
            (of(&up, i), of(&report.down, i));
        let probe_bytes = book(i).map_or(0, |b| b.completed) * response;
        ContainerPhase {
            up_bytes,
            down_bytes,
            up_stall_ns,
            down_stall_ns,
            probe_bytes,
            // Nobody counts what the hog moves here.
            moved_bytes: up_bytes + down_bytes + probe_bytes,
            probe: book(i),
        }
    };
    let memory = |name: &str| super::virt::COUNTERS.iter().any(|(n, _)| *n == name);
    let counters = || report.guest_counters.iter().map(|(n, v)| (n.as_str(), *v));
    ContainerResult {
        name: c.name.clone(),
        role: c.role,
        group: c.group.clone(),
        weight: c.weight,
        bits_per_second: c.bits_per_second,
        wants_up: c.wants_up(),
        wants_down: c.wants_down(),
        left_ns: c.leaves_ns,
        phases: (0..plan.phases.len()).map(phase).collect(),
        up_window_bytes: up.windows.clone(),
        down_window_bytes: report.down.windows.clone(),
        up_total_bytes: up.total,
        down_total_bytes: report.down.total,
        hard_bytes: c.budget.hard_bytes,
        counters: named(counters().filter(|(n, _)| memory(n))),
        guest_counters: report.guest_counters.clone(),
        flows_total: report.connected,
        corrupt: report.corrupt + up.corrupt,
        broken: report.broken,
        ..ContainerResult::default()
    }
}
