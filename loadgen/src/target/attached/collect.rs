//! Makes the records from the data of the daemon, the servers and the agents.

use skbudget::stats::{Categories, ContainerReport, Meter, Stats};

use super::AttachedContainer;
use crate::exit::Failure;
use crate::measure::result::{ArmResult, BudgetResult, ContainerResult};
use crate::scenario::plan::{ArmPlan, CONTENDED, Phase, Plan, RuleSet};
use crate::target::counters::{is_memory, named};
use crate::target::wall::{WallContainer, lag_p99_ns};
use crate::traffic::AgentReport;

/// The daemon's statistics at the start of every window.
#[derive(Debug, Default)]
pub(super) struct DaemonSamples(Vec<Stats>);

impl DaemonSamples {
    pub(super) fn add(&mut self, stats: Stats) {
        self.0.push(stats);
    }
    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Option<&'a ContainerReport>> {
        self.0.iter().map(move |s| s.containers.iter().find(|c| c.name == name))
    }
    /// The report of a container at a window; in a stopped arm, the last one at most.
    fn at<'a>(&'a self, name: &'a str, window: u64) -> Option<&'a ContainerReport> {
        let last = self.0.len().saturating_sub(1);
        self.of(name).nth((window as usize).min(last))?
    }
}

pub(super) fn arm_result(
    attached: &[AttachedContainer],
    plan: &Plan,
    arm: &ArmPlan,
    samples: &DaemonSamples,
    reports: &[AgentReport],
    ended_ns: Option<u64>,
) -> Result<ArmResult, Failure> {
    let phases: Vec<Phase> = plan.phases.iter().map(|p| p.until(ended_ns)).collect();
    let last = samples.0.last().ok_or_else(|| Failure::Io("the run has no samples".to_owned()))?;
    let mut budgets: Vec<BudgetResult> = Vec::new();
    let mut containers = Vec::new();
    for (AttachedContainer { base, last: left }, report) in attached.iter().zip(reports) {
        let name = &base.plan.name;
        // A hog that was removed has its saved report instead.
        let here = last.containers.iter().find(|c| c.name == *name).or(left.as_ref());
        let here = here.ok_or_else(|| Failure::Io(format!("{name} ended unexpectedly")))?;
        let known = budgets.iter().position(|b| b.name == here.budget);
        let budget = known.unwrap_or(budgets.len());
        if known.is_none() {
            // Read a pool from a container that stays: its meter outlives the hog's.
            let stays = last.containers.iter().find(|c| c.budget == here.budget).unwrap_or(here);
            budgets.push(budget_result(stays, samples));
        }
        let c = container(base, here, report, samples, plan, arm, &phases);
        containers.push(ContainerResult { budget, ..c });
    }
    Ok(ArmResult {
        budgets,
        containers,
        generator_lag_p99_ns: lag_p99_ns(reports),
        ..ArmResult::of(arm)
    })
}

fn budget_result(c: &ContainerReport, samples: &DaemonSamples) -> BudgetResult {
    let Meter { low_bytes, soft_bytes, hard_bytes, max_usage_bytes, pressure_ns, failcnt, .. } =
        c.meter;
    let usage = |s: &Stats| {
        let of = s.containers.iter().find(|x| x.budget == c.budget);
        of.map_or(0, |x| x.meter.usage_bytes)
    };
    BudgetResult {
        name: c.budget.clone(),
        low_bytes,
        soft_bytes,
        hard_bytes,
        max_usage_bytes,
        overshoot_bytes: hard_bytes.map_or(0, |h| max_usage_bytes.saturating_sub(h)),
        pressure_ns,
        failcnt,
        usage_bytes: samples.0.iter().skip(1).map(usage).collect(),
    }
}

/// The bytes charged to a container.
fn held(c: &Categories, rules: RuleSet) -> u64 {
    let Categories {
        rmem_bytes,
        ofo_bytes,
        credit_bytes,
        wmem_bytes,
        fwd_bytes,
        reserve_bytes,
        udp_bytes,
        frag_bytes,
        sock_bytes,
        host_bytes,
        dev_bytes,
        // Included in `host_bytes`.
        listen_bytes: _,
    } = *c;
    // Under the linux rules the memory of host sockets is recorded but not charged.
    let host = if rules == RuleSet::Strict { host_bytes } else { 0 };
    let queued = rmem_bytes + ofo_bytes + credit_bytes + wmem_bytes + fwd_bytes;
    queued + reserve_bytes + udp_bytes + frag_bytes + sock_bytes + host + dev_bytes
}

fn container(
    base: &WallContainer,
    here: &ContainerReport,
    report: &AgentReport,
    samples: &DaemonSamples,
    plan: &Plan,
    arm: &ArmPlan,
    phases: &[Phase],
) -> ContainerResult {
    let name = &base.plan.name;
    let window = |ns: u64| ns / plan.window_ns;
    // The daemon's counters are cumulative: take the difference over the phase.
    let between = |i: usize, f: fn(&ContainerReport) -> u64| {
        let phase = &phases[i];
        let from = samples.at(name, window(phase.start_ns)).map_or(0, f);
        let to = samples.at(name, window(phase.end_ns)).map_or(0, f);
        to.saturating_sub(from)
    };
    let peak = samples.of(name).flatten().map(|c| held(&c.categories, arm.rules)).max();
    let counters = || here.counters.iter().map(|(n, v)| (&**n, *v));
    // The work of the stack, reported with its drop reasons.
    let work = [
        ("Turns", here.turns),
        ("FramesFromGuest", here.frames_from_guest),
        ("FramesToGuest", here.frames_to_guest),
    ];
    let mut c = ContainerResult {
        peak_held_bytes: peak.unwrap_or(0),
        counters: named(counters().filter(|(n, _)| is_memory(n))),
        stack_counters: named(counters().filter(|(n, _)| !is_memory(n)).chain(work)),
        flows_total: here.flows_total,
        stack_cpu_ns: Some(between(CONTENDED, |c| c.cpu_ns)),
        ..base.result(plan, report)
    };
    for (i, phase) in c.phases.iter_mut().enumerate() {
        phase.moved_bytes = between(i, |c| c.bytes_from_guest + c.bytes_to_guest);
    }
    c
}
