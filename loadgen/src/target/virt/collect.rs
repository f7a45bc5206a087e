//! Samples memory while a virtual arm runs, and makes the records at its end.

use skbudget_controller::MemberStats;
use skbudget_sim::{BudgetId, World};

use super::build::{self, ArmRun, ContainerRun};
use super::loads;
use crate::measure::Meter;
use crate::measure::result::{
    ArmResult, BudgetResult, ContainerPhase, ContainerResult, DirectionSteps, RecoverySteps,
};
use crate::scenario::plan::{ArmPlan, Plan, RuleSet};
use crate::target::counters::{memory_counters, named};

/// The member statistics of a container; those saved at its end if it has left.
fn stats_of(world: &World, c: &ContainerRun) -> MemberStats {
    match (c.last_stats, c.node) {
        // The container has ended: its saved counters.
        (Some(stats), _) => stats,
        (None, Some(node)) => world.budget(c.budget).member_stats(world.member(node)),
        (None, None) => MemberStats::default(),
    }
}

/// The bytes charged to a container. Under the linux rules the memory of host sockets is recorded but not charged.
fn held(s: &MemberStats, rules: RuleSet) -> u64 {
    let MemberStats { rmem, ofo, credit, wmem, fwd, reserve, udp, frag, sock, host, dev, .. } = *s;
    let host = if rules == RuleSet::Strict { host } else { 0 };
    rmem + ofo + credit + wmem + fwd + reserve + udp + frag + sock + host + dev
}

/// Usage of the budgets at the end of every window, and the memory held by containers.
#[derive(Debug)]
pub(super) struct UsageSamples {
    usage: Vec<Vec<u64>>,
    held: Vec<Held>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    peak: u64,
    /// Sum over the contended phase.
    sum: u64,
    count: u64,
}

impl UsageSamples {
    pub(super) fn new(run: &ArmRun) -> Self {
        Self {
            usage: vec![Vec::new(); run.budgets.len()],
            held: vec![Held::default(); run.containers.len()],
        }
    }
    pub(super) fn take_usage(&mut self, world: &World, run: &ArmRun) {
        for (series, (id, _)) in self.usage.iter_mut().zip(&run.budgets) {
            series.push(world.budget(*id).meter_stats(world.now()).usage_bytes);
        }
    }
    pub(super) fn take_held(
        &mut self,
        world: &World,
        run: &ArmRun,
        rules: RuleSet,
        contended: bool,
    ) {
        for (sum, c) in self.held.iter_mut().zip(&run.containers) {
            let held = held(&stats_of(world, c), rules);
            sum.peak = sum.peak.max(held);
            sum.sum += if contended { held } else { 0 };
            sum.count += u64::from(contended);
        }
    }
}

/// The records of an arm.
pub(super) fn collect(
    world: &World,
    run: &ArmRun,
    plan: &Plan,
    arm: &ArmPlan,
    samples: UsageSamples,
) -> ArmResult {
    let budgets = run.budgets.iter().zip(samples.usage);
    let budgets = budgets.map(|((id, name), usage)| {
        let m = world.budget(*id).meter_stats(world.now());
        BudgetResult {
            name: name.clone(),
            low_bytes: m.low_bytes,
            soft_bytes: m.soft_bytes,
            hard_bytes: m.hard_bytes,
            max_usage_bytes: m.max_usage_bytes,
            overshoot_bytes: m.hard_bytes.map_or(0, |h| m.max_usage_bytes.saturating_sub(h)),
            pressure_ns: m.pressure_ns,
            failcnt: m.failcnt,
            usage_bytes: usage,
        }
    });
    let budgets: Vec<BudgetResult> = budgets.collect();
    let containers = run.containers.iter().zip(samples.held);
    ArmResult {
        leaked_bytes: leaked(world, run),
        budgets,
        containers: containers.map(|(c, held)| container(world, run, c, held, plan)).collect(),
        ..ArmResult::of(arm)
    }
}

/// Bytes charged to budgets without a container that still runs.
fn leaked(world: &World, run: &ArmRun) -> u64 {
    let has_ended = |id: BudgetId| {
        let mut of = run.containers.iter().filter(|c| c.budget == id);
        of.all(|c| c.last_stats.is_some())
    };
    let empty = run.budgets.iter().filter(|(id, _)| has_ended(*id));
    empty.map(|(id, _)| world.budget(*id).meter_stats(world.now()).usage_bytes).sum()
}

fn container(
    world: &World,
    run: &ArmRun,
    c: &ContainerRun,
    held: Held,
    plan: &Plan,
) -> ContainerResult {
    let (up, down, probe) = (c.up.borrow(), c.down.borrow(), c.probe.borrow());
    let mut latencies: Vec<_> =
        probe.latencies().iter().map(|b| c.spec.map(|_| b.summary())).collect();
    if plan.containers.len() > build::FINE_MAX {
        // With many containers only the groups have spectra, to bound the result; each probe keeps its histogram.
        latencies.iter_mut().flatten().for_each(|b| b.spectrum.clear());
    }
    let answered = |i: usize| latencies[i].as_ref().map_or(0, |b| b.completed);
    let response = c.spec.map_or(0, |s| u64::from(s.response_bytes));
    let part = |m: &Meter, i: usize| m.phases().get(i).copied().unwrap_or_default();
    let phase = |i: usize| ContainerPhase {
        up_bytes: part(&up, i).bytes,
        down_bytes: part(&down, i).bytes,
        up_stall_ns: part(&up, i).stall_ns,
        down_stall_ns: part(&down, i).stall_ns,
        moved_bytes: c.moved.get(i).copied().unwrap_or(0),
        probe_bytes: answered(i) * response,
        probe: latencies[i].clone(),
    };
    let stats = c.node.map(|n| world.container(n).stats()).unwrap_or_default();
    let budget = run.budgets.iter().position(|(id, _)| *id == c.budget).unwrap_or(0);
    let work =
        [("FramesFromGuest", stats.frames_from_guest), ("FramesToGuest", stats.frames_to_guest)];
    ContainerResult {
        budget,
        phases: (0..plan.phases.len()).map(phase).collect(),
        recovery: Some(RecoverySteps {
            step_ns: plan.recovery_step_ns(build::STEP_NS),
            up: DirectionSteps::of(up.steps()),
            down: DirectionSteps::of(down.steps()),
        }),
        up_window_bytes: up.windows().to_vec(),
        down_window_bytes: down.windows().to_vec(),
        up_total_bytes: up.total(),
        down_total_bytes: down.total(),
        mean_held_bytes: held.sum.checked_div(held.count).unwrap_or(0),
        peak_held_bytes: held.peak,
        counters: memory_counters(&stats_of(world, c)),
        stack_counters: named(stats.counters.iter().map(|(n, v)| (*n, *v)).chain(work)),
        flows_total: stats.flows_total,
        // Both ends check the pattern: the loads in the guest, and the servers.
        corrupt: loads::corrupt(c) + c.node.map_or(0, |n| world.host(n).corrupt()),
        broken: loads::broken(c),
        ..ContainerResult::of(&c.plan)
    }
}
