//! The kernel target: the same load over veth, between the kernel and itself, under its own limits. The reference.
//!
//! ```text
//!  agent process ── netns ── kernel TCP ── tap0 ══ veth ══ vN ── netns of the servers (this process)
//!       └ cgroup v1: memory.kmem.tcp, none / one for all / one each
//! ```
//! Each arm is the kernel, so none is the subject: the numbers are reported side by side, and only the control must
//! starve.

mod cgroup;

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use skbudget::attach;

use self::cgroup::{Cgroup, Cgroups};
use super::counters::{is_memory, named};
use super::wall::{self, WallContainer, check_loads, lag_p99_ns};
use super::{Control, Target, WALL_STEP_NS};
use crate::exit::Failure;
use crate::judge::gate::Thresholds;
use crate::measure::result::{ArmResult, BudgetResult, ContainerResult};
use crate::scenario::plan::{ArmPlan, ArmRole, ContainerPlan, Isolation, Plan, RuleSet};
use crate::traffic::serve::Servers;
use crate::traffic::{AgentReport, Shared};

#[derive(Debug, Clone, Copy)]
pub(super) struct KernelTarget;

/// Each container has its own /24.
const CONTAINERS_MAX: usize = 250;

impl Target for KernelTarget {
    fn name(&self) -> &'static str {
        "kernel"
    }
    fn recovery_step_ns(&self, plan: &Plan) -> u64 {
        plan.recovery_step_ns(WALL_STEP_NS)
    }
    fn thresholds(&self, plan: &Plan) -> Thresholds {
        Thresholds::wall(self.recovery_step_ns(plan))
    }
    fn parallel(&self) -> bool {
        false
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

    fn check(&self, plan: &Plan) -> Result<(), Failure> {
        check(plan)
    }

    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure> {
        let testbed = KernelTestbed::build(plan, arm)?;
        let (samples, ended_ns) = testbed.run_timeline(plan, control)?;
        let result = testbed.result(plan, arm, samples, ended_ns.is_some())?;
        Ok(result.stopped(ended_ns, plan.window_ns))
    }
}

fn check(plan: &Plan) -> Result<(), Failure> {
    check_loads(plan)?;
    if let Some(c) = plan.containers.iter().find(|c| c.floods()) {
        let what = "load 'flood' is supported on the targets virtual and tap only";
        return Err(Failure::Usage(format!("{}: {}: {what}", plan.scenario, c.name)));
    }
    if plan.containers.len() > CONTAINERS_MAX {
        let what = format!("target kernel takes at most {CONTAINERS_MAX} containers");
        return Err(Failure::Usage(what));
    }
    if !nix::unistd::geteuid().is_root() {
        let what = "target kernel creates network namespaces and cgroups: run loadgen as root";
        return Err(Failure::Unavailable(what.to_owned()));
    }
    cgroup::check()
}

/// A container of the run and its cgroup.
#[derive(Debug)]
struct KernelContainer {
    base: WallContainer,
    group: Cgroup,
}

/// Everything that exists during one arm.
#[derive(Debug)]
struct KernelTestbed {
    // Drop order: agents end before their cgroups are removed, and the servers last.
    containers: Vec<KernelContainer>,
    groups: Cgroups,
    servers: Servers,
    shared: Arc<Shared>,
    world: OwnedFd,
}

/// Usage of each container and of the pool at the start of every window.
#[derive(Debug, Default)]
struct CgroupSamples {
    containers: Vec<Vec<u64>>,
    pool: Vec<u64>,
}

impl KernelTestbed {
    fn build(plan: &Plan, arm: &ArmPlan) -> Result<Self, Failure> {
        let world = attach::create_netns().map_err(|e| Failure::io("namespace", e))?;
        let shared = wall::prepare()?;
        let servers = Servers::on(Arc::clone(&shared), Ipv4Addr::UNSPECIFIED);
        // One limit for all; per-container limits are set in `add`.
        let pool = (arm.isolation == Isolation::Shared).then(|| plan.pool_bytes());
        let groups = Cgroups::make(pool)?;
        let mut testbed = Self { containers: Vec::new(), groups, servers, shared, world };
        for (i, c) in plan.containers.iter().enumerate() {
            testbed.add(plan, arm, c, i as u8)?;
        }
        Ok(testbed)
    }

    /// Creates a container: cgroup, namespace, veth, servers, agent.
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
        let up = wall::meter(plan);
        let servers = &mut self.servers;
        // A server's sockets and threads belong to the namespace in which it is created.
        let loads = attach::run_in(self.world.as_fd(), || wall::serve(servers, c, near, None, &up));
        let loads = loads.map_err(fail)?.map_err(|e| Failure::io("server", e))?;
        let base = WallContainer::start(plan, c, &self.shared, netns, loads, up)?;
        // Long before the run starts: all of its sockets are created in this cgroup.
        group.enter(base.agent_id())?;
        self.containers.push(KernelContainer { base, group });
        Ok(())
    }

    /// Runs the phases; returns the samples and the time at which the run was stopped, if it was.
    fn run_timeline(
        &self,
        plan: &Plan,
        control: Control<'_>,
    ) -> Result<(CgroupSamples, Option<u64>), Failure> {
        let mut samples = CgroupSamples {
            containers: vec![Vec::new(); self.containers.len()],
            ..CgroupSamples::default()
        };
        let meters: Vec<_> = self.containers.iter().map(|a| a.base.up()).collect();
        let sample = |_| {
            for (series, a) in samples.containers.iter_mut().zip(&self.containers) {
                series.push(a.group.usage_bytes());
            }
            samples.pool.push(self.groups.pool().usage_bytes());
            Ok(())
        };
        let ended_ns = wall::run_timeline(plan, &self.shared, &meters, control, sample)?;
        Ok((samples, ended_ns))
    }

    fn result(
        mut self,
        plan: &Plan,
        arm: &ArmPlan,
        samples: CgroupSamples,
        stopped: bool,
    ) -> Result<ArmResult, Failure> {
        let reports = wall::reports(self.containers.iter_mut().map(|g| &mut g.base), stopped)?;
        let mut budgets = Vec::new();
        let mut containers = Vec::new();
        if arm.isolation == Isolation::Shared {
            let hard = Some(plan.pool_bytes());
            budgets.push(budget("pool", hard, self.groups.pool(), samples.pool, plan));
        }
        for ((a, report), usage) in self.containers.iter().zip(&reports).zip(samples.containers) {
            let mut c = container(a, report, plan);
            let own = (arm.isolation == Isolation::Container).then_some(c.hard_bytes);
            // In the shared arm every container has budget 0, the pool.
            if arm.isolation != Isolation::Shared {
                c.budget = budgets.len();
                budgets.push(budget(&c.name, own, &a.group, usage, plan));
            }
            containers.push(c);
        }
        Ok(ArmResult {
            budgets,
            containers,
            generator_lag_p99_ns: lag_p99_ns(&reports),
            ..ArmResult::of(arm)
        })
    }
}

/// The records of a cgroup.
fn budget(
    name: &str,
    hard_bytes: Option<u64>,
    group: &Cgroup,
    usage_bytes: Vec<u64>,
    plan: &Plan,
) -> BudgetResult {
    let max_usage_bytes = group.max_usage_bytes();
    // The kernel does not report the duration of pressure: count the windows with usage at the limit.
    let at_limit = |u: &&u64| hard_bytes.is_some_and(|h| **u >= h);
    BudgetResult {
        name: name.to_owned(),
        hard_bytes,
        max_usage_bytes,
        overshoot_bytes: hard_bytes.map_or(0, |h| max_usage_bytes.saturating_sub(h)),
        pressure_ns: usage_bytes.iter().filter(at_limit).count() as u64 * plan.window_ns,
        failcnt: group.failcnt(),
        // The first sample is the start of the run; window i ends at sample i + 1.
        usage_bytes: usage_bytes.into_iter().skip(1).collect(),
        ..BudgetResult::default()
    }
}

fn container(a: &KernelContainer, report: &AgentReport, plan: &Plan) -> ContainerResult {
    // Here the guest's kernel is the stack under test, so its memory counters are those of the container.
    let counters = report.guest_counters.iter().map(|(n, v)| (n.as_str(), *v));
    let mut c = ContainerResult {
        peak_held_bytes: a.group.max_usage_bytes(),
        counters: named(counters.filter(|(n, _)| is_memory(n))),
        flows_total: report.connected,
        ..a.base.result(plan, report)
    };
    for p in &mut c.phases {
        // The kernel does not count the hog's bytes here: use the goodput.
        p.moved_bytes = p.up_bytes + p.down_bytes + p.probe_bytes;
    }
    c
}
