//! The schema `loadgen.result/1`: the outcome of a run as data. Everything printed or drawn is rendered from it.
//!
//! Integers with a unit suffix, no floats, no NaN; `null` for a value that does not exist, with the reason beside it.
//! Added fields keep the version. On the virtual target, the same seed gives the same bytes except for `meta`.

mod fairness;
mod gate;
mod meta;
mod probe;
pub mod shape;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::scenario::plan::{
    ArmPlan, ArmRole, ContainerPlan, Isolation, Phase, RECOVERY, Role, RuleSet, SOLO,
};

pub use fairness::{Cost, Fairness};
pub use gate::{GateKind, GateResult, GateRun, Verdict};
pub use meta::Meta;
pub use probe::{BLOCK_NS, IntervalHdr, Latency, ProbePhase, Quantile, SpectrumRow};

/// The schema of `result.json`.
pub const SCHEMA: &str = "loadgen.result/1";

/// The content of `result.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunResult {
    /// [`SCHEMA`].
    pub schema: String,
    /// Name of the scenario.
    pub scenario: String,
    /// One line about the scenario.
    #[serde(default)]
    pub about: String,
    /// The scenario as it was run, including all changes by `--set`: TOML that `run` accepts.
    #[serde(default)]
    pub scenario_toml: String,
    /// Name of the target.
    pub target: String,
    /// Seed of the run.
    pub seed: u64,
    /// Named parameters of the scenario; the unit is in the key.
    pub params: BTreeMap<String, u64>,
    /// The run was stopped early: the data are incomplete, and the verdict judges nothing.
    #[serde(default)]
    pub interrupted: bool,
    /// In a merged result: fingerprints of the merged runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged_of: Vec<String>,
    /// Length of the windows of the charts. No gate depends on it.
    pub window_ns: u64,
    /// The planned phases: solo, contended, recovery.
    pub phases: Vec<Phase>,
    /// The arms; of repeated runs, those of the median run.
    pub arms: Vec<ArmResult>,
    /// The gates, judged over all runs.
    pub gates: Vec<GateResult>,
    /// The outcome of the gates.
    pub verdict: Verdict,
    /// All runs in order, if there were several: wall-clock runs are judged by the median of each gate.
    #[serde(default)]
    pub runs: Vec<Repeat>,
    /// The only part that differs between two runs with the same seed on the virtual target.
    pub meta: Meta,
}

/// One of several runs of the same plan, with its own verdict.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Repeat {
    /// Duration on the wall clock, milliseconds.
    pub elapsed_ms: u64,
    /// The outcome of its own gates.
    pub verdict: Verdict,
    /// Its arms.
    pub arms: Vec<ArmResult>,
}

/// The records of one arm.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ArmResult {
    /// Name of the arm, unique in the run.
    pub name: String,
    /// The purpose of the arm.
    pub role: ArmRole,
    /// How memory was divided.
    pub isolation: Isolation,
    /// The rules of all budgets.
    pub rules: RuleSet,
    /// The budgets; containers refer to them by index.
    pub budgets: Vec<BudgetResult>,
    /// The containers of the arm.
    pub containers: Vec<ContainerResult>,
    /// p99 of the generator's lag behind the intended start of the probes; 0 in virtual time.
    pub generator_lag_p99_ns: u64,
    /// Time at which the arm was stopped and its measurement ended; `null`: it ran to its end.
    #[serde(default)]
    pub ended_ns: Option<u64>,
    /// Computed by `analyse`.
    pub fairness: Fairness,
    /// The merged containers of each group; computed by `analyse`.
    #[serde(default)]
    pub groups: Vec<GroupResult>,
    /// Bytes still charged at the end to budgets without a live container.
    #[serde(default)]
    pub leaked_bytes: u64,
}

impl ArmResult {
    /// The values of the plan, without measurements.
    pub fn of(arm: &ArmPlan) -> Self {
        Self {
            name: arm.name.clone(),
            role: arm.role,
            isolation: arm.isolation,
            rules: arm.rules,
            ..Self::default()
        }
    }

    /// The arm was stopped at `ended_ns`, or ran to its end. Agents and servers notice the stop a moment later; bytes
    /// that they counted after it go into the last window, so that the windows end with the arm and add up.
    pub fn stopped(self, ended_ns: Option<u64>, window_ns: u64) -> Self {
        let mut arm = Self { ended_ns, ..self };
        if let Some(ended_ns) = ended_ns {
            let most = (ended_ns.div_ceil(window_ns) as usize).max(1);
            for c in &mut arm.containers {
                merge_late(&mut c.up_window_bytes, most);
                merge_late(&mut c.down_window_bytes, most);
            }
        }
        arm
    }

    /// Whether any hard limit is enforced in this arm.
    pub fn is_limited(&self) -> bool {
        self.isolation != Isolation::Off
    }
}

/// Adds the windows beyond the first `most` to the last of these.
fn merge_late(windows: &mut Vec<u32>, most: usize) {
    let late = windows.drain(most.min(windows.len())..).fold(0, u32::saturating_add);
    if let Some(last) = windows.last_mut() {
        *last = last.saturating_add(late);
    }
}

/// A merged group of a scenario: histograms are added, percentiles are never averaged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupResult {
    /// Name of the group.
    pub name: String,
    /// Role of its containers.
    pub role: Role,
    /// Number of its containers.
    pub containers: u64,
    /// Bytes that the stack moved for the group, by phase.
    pub bytes: Vec<u64>,
    /// By phase, over all probes of the group; empty if none of its containers has a probe.
    pub probes: Vec<ProbePhase>,
}

/// The records of one budget.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BudgetResult {
    /// Name of the budget: that of its container, or `pool`.
    pub name: String,
    /// Low limit, bytes; `null`: none.
    pub low_bytes: Option<u64>,
    /// Soft limit, bytes; `null`: none.
    pub soft_bytes: Option<u64>,
    /// Hard limit, bytes; `null`: none.
    pub hard_bytes: Option<u64>,
    /// Maximum of the bytes charged.
    pub max_usage_bytes: u64,
    /// Bytes of the maximum beyond the hard limit.
    pub overshoot_bytes: u64,
    /// Time under memory pressure, nanoseconds.
    pub pressure_ns: u64,
    /// Number of charges that the limit refused.
    pub failcnt: u64,
    /// Bytes charged at the end of each window.
    pub usage_bytes: Vec<u64>,
}

/// The records of one container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerResult {
    /// Name of the container, unique in the arm.
    pub name: String,
    /// Its role in the comparison.
    pub role: Role,
    /// The group of the scenario that it belongs to.
    #[serde(default)]
    pub group: String,
    /// Its share of a host level, relative to the others.
    #[serde(default)]
    pub weight: u32,
    /// Rate of its link, each way; 0: unlimited.
    #[serde(default)]
    pub bits_per_second: u64,
    /// Whether its load has a bulk transfer from the container.
    #[serde(default = "yes")]
    pub wants_up: bool,
    /// Whether its load has a bulk transfer to the container.
    #[serde(default = "yes")]
    pub wants_down: bool,
    /// Time of its start, nanoseconds since the start of the run.
    #[serde(default)]
    pub joined_ns: u64,
    /// Time of its end; `null`: at the end of the run.
    #[serde(default)]
    pub left_ns: Option<u64>,
    /// The cost that the neighbour caused; computed by `analyse`.
    #[serde(default)]
    pub cost: Cost,
    /// Index into `budgets`.
    pub budget: usize,
    /// Bytes, gaps and requests, by phase.
    pub phases: Vec<ContainerPhase>,
    /// Bytes that the servers received from it, by window.
    pub up_window_bytes: Vec<u32>,
    /// Bytes that it received, by window.
    pub down_window_bytes: Vec<u32>,
    /// Bytes that the servers received from it.
    pub up_total_bytes: u64,
    /// Bytes that it received.
    pub down_total_bytes: u64,
    /// The steps that recovery is judged by; `null` in results of earlier versions.
    #[serde(default)]
    pub recovery: Option<RecoverySteps>,
    /// Mean of the bytes charged at the end of each window of the contended phase.
    #[serde(default)]
    pub mean_held_bytes: u64,
    /// Maximum of the bytes charged at the end of a window.
    pub peak_held_bytes: u64,
    /// Its own hard limit in the scenario, bytes.
    pub hard_bytes: u64,
    /// Memory counters with the kernel's names; zeros are omitted.
    pub counters: BTreeMap<String, u64>,
    /// Drop reasons and protocol counters of the stack; zeros are omitted.
    pub stack_counters: BTreeMap<String, u64>,
    /// Counters of the guest's kernel (not in virtual time); zeros are omitted.
    pub guest_counters: BTreeMap<String, u64>,
    /// Connections opened.
    pub flows_total: u64,
    /// Number of received bytes that differ from the bytes sent.
    pub corrupt: u64,
    /// Connections that ended unexpectedly.
    pub broken: u64,
    /// CPU time of the stack for this container in the contended phase; `null` where it is not counted: CPU is infinite
    /// in virtual time, and the kernel does not report that of its own stack.
    pub stack_cpu_ns: Option<u64>,
}

impl ContainerResult {
    /// The values of the plan, without measurements.
    pub fn of(c: &ContainerPlan) -> Self {
        Self {
            name: c.name.clone(),
            role: c.role,
            group: c.group.clone(),
            weight: c.weight,
            bits_per_second: c.bits_per_second,
            wants_up: c.wants_up(),
            wants_down: c.wants_down(),
            joined_ns: c.joins_ns,
            left_ns: c.leaves_ns,
            hard_bytes: c.budget.hard_bytes,
            ..Self::default()
        }
    }

    /// Whether its load has a bulk transfer. A container with only a probe has no goodput.
    pub fn wants_bulk(&self) -> bool {
        self.wants_up || self.wants_down
    }
}

fn yes() -> bool {
    true
}

/// Bytes of a container in steps. The length of a step does not depend on the windows of the charts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverySteps {
    /// Length of a step, nanoseconds.
    pub step_ns: u64,
    /// Bytes from the container.
    pub up: DirectionSteps,
    /// Bytes to the container.
    pub down: DirectionSteps,
}

/// Steps of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionSteps {
    /// The least of the steps of the solo phase; `null`: the phase is shorter than a step.
    pub solo_least_bytes: Option<u64>,
    /// Steps from the departure of the hog on.
    pub recovery_bytes: Vec<u32>,
}

impl DirectionSteps {
    /// `steps`: by phase.
    pub fn of(steps: &[Vec<u32>]) -> Self {
        let phase = |i: usize| steps.get(i).map(Vec::as_slice).unwrap_or_default();
        Self {
            solo_least_bytes: phase(SOLO).iter().min().map(|b| u64::from(*b)),
            recovery_bytes: phase(RECOVERY).to_vec(),
        }
    }
}

/// The bytes and gaps of one container in one phase.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerPhase {
    /// Bulk bytes that the servers received from the container.
    pub up_bytes: u64,
    /// Bulk bytes that the container received.
    pub down_bytes: u64,
    /// Longest time without a byte from the container, nanoseconds.
    pub up_stall_ns: u64,
    /// Longest time without a byte to the container, nanoseconds.
    pub down_stall_ns: u64,
    /// Response bytes of completed probes: goodput as well, beside the bulk.
    pub probe_bytes: u64,
    /// All bytes that the stack moved for this container, including unwanted ones.
    pub moved_bytes: u64,
    /// Its requests; `null`: its load has no probe.
    pub probe: Option<ProbePhase>,
}

/// Reads a number of bytes of a phase.
pub type BytesOf = fn(&ContainerPhase) -> u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_after_the_stop_are_merged_into_the_last_one() {
        let windows = [([1, 2, 3, 4, 5], 20, vec![1, 14]), ([1, 2, 3, 4, 5], 21, vec![1, 2, 12])];
        for (counted, ended_ns, merged) in windows {
            let container =
                ContainerResult { up_window_bytes: counted.to_vec(), ..ContainerResult::default() };
            let arm = ArmResult { containers: vec![container], ..ArmResult::default() };
            let arm = arm.stopped(Some(ended_ns), 10);
            assert_eq!(arm.containers[0].up_window_bytes, merged, "ended at {ended_ns}");
            assert!(arm.containers[0].down_window_bytes.is_empty());
            assert_eq!(arm.ended_ns, Some(ended_ns));
        }
    }
}
