//! The schema `loadgen.result/1`: what a run found, as data. Everything printed or drawn is rendered from it.
//!
//! Integers with a unit suffix, no floats, no NaN: `null` where there is nothing to say, with the reason beside it.
//! Additions keep the version. For one seed on the virtual target everything but `meta` is the same bytes every time.

mod probe;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::{
    ArmPlan, ArmRole, ContainerPlan, Isolation, Phase, RECOVERY, Role, RuleSet, SOLO,
};

pub use probe::{IntervalHdr, Latency, ProbePhase, Quantile, SpectrumRow};

pub const SCHEMA: &str = "loadgen.result/1";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunResult {
    pub schema: String,
    pub scenario: String,
    /// What the scenario is about, in a line.
    #[serde(default)]
    pub about: String,
    /// The scenario as it was run, with everything `--set` changed: TOML that `run` takes.
    #[serde(default)]
    pub scenario_toml: String,
    pub target: String,
    pub seed: u64,
    pub params: BTreeMap<String, u64>,
    /// The run was stopped before its end: what follows is what there is of it, and its verdict is no verdict.
    #[serde(default)]
    pub interrupted: bool,
    /// Of a merged result: what tells apart the runs it was merged of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged_of: Vec<String>,
    /// Of the charts. No gate depends on it.
    pub window_ns: u64,
    pub phases: Vec<Phase>,
    /// Of several runs those of the one in the middle.
    pub arms: Vec<ArmResult>,
    /// Of all runs together.
    pub gates: Vec<GateResult>,
    pub verdict: Verdict,
    /// All runs, in their order, where there were several: a wall clock is judged by the median of each gate.
    #[serde(default)]
    pub runs: Vec<Repeat>,
    /// The only part that differs between two runs of one seed on the virtual target.
    pub meta: Meta,
}

/// One of several runs of the same plan, with what it alone would have been judged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Repeat {
    pub elapsed_ms: u64,
    pub verdict: Verdict,
    pub arms: Vec<ArmResult>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Meta {
    pub loadgen_version: String,
    pub started_unix_ms: u64,
    pub elapsed_ms: u64,
    pub os: String,
    pub cpus: u64,
    /// `null`, as the two below, where the machine does not say.
    #[serde(default)]
    pub cpu_model: Option<String>,
    /// The kernel's release.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Of the processors' frequency; several by commas.
    #[serde(default)]
    pub governor: Option<String>,
    /// That CI names, or of the repository in whose folders the run was started.
    #[serde(default)]
    pub commit: Option<String>,
    /// As it was typed.
    #[serde(default)]
    pub command: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ArmResult {
    pub name: String,
    pub role: ArmRole,
    pub isolation: Isolation,
    pub rules: RuleSet,
    pub budgets: Vec<BudgetResult>,
    pub containers: Vec<ContainerResult>,
    /// 99 % of the probes were looked at by the generator within this of their intended start; 0 in virtual time.
    pub generator_lag_p99_ns: u64,
    /// The arm was stopped then, and was measured until then; `null`: it ran to its end.
    #[serde(default)]
    pub ended_ns: Option<u64>,
    /// Filled in by `analyse`.
    pub fairness: Fairness,
    /// The containers of each group taken together; filled in by `analyse`.
    #[serde(default)]
    pub groups: Vec<GroupResult>,
    /// Still charged, at the end, to budgets whose containers are all gone.
    #[serde(default)]
    pub leaked_bytes: u64,
}

impl ArmResult {
    /// What its plan says, and nothing measured.
    pub fn of(arm: &ArmPlan) -> Self {
        Self {
            name: arm.name.clone(),
            role: arm.role,
            isolation: arm.isolation,
            rules: arm.rules,
            ..Self::default()
        }
    }

    /// Whether a hard limit is enforced on anything in it.
    pub fn is_limited(&self) -> bool {
        self.isolation != Isolation::Off
    }
}

/// A group of a scenario as one: histograms are merged, percentiles are never averaged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupResult {
    pub name: String,
    pub role: Role,
    pub containers: u64,
    /// By phase.
    pub bytes: Vec<u64>,
    /// By phase, of all probes of the group; empty where none of its containers probes.
    pub probes: Vec<ProbePhase>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BudgetResult {
    pub name: String,
    pub low_bytes: Option<u64>,
    pub soft_bytes: Option<u64>,
    pub hard_bytes: Option<u64>,
    pub max_usage_bytes: u64,
    pub overshoot_bytes: u64,
    pub pressure_ns: u64,
    pub failcnt: u64,
    /// One sample at the end of each window.
    pub usage_bytes: Vec<u64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerResult {
    pub name: String,
    pub role: Role,
    /// The group of the scenario it belongs to.
    #[serde(default)]
    pub group: String,
    #[serde(default)]
    pub weight: u32,
    /// Of its link, each way; 0: without a rate.
    #[serde(default)]
    pub bits_per_second: u64,
    /// Its load has a bulk transfer in this direction.
    #[serde(default = "yes")]
    pub wants_up: bool,
    #[serde(default = "yes")]
    pub wants_down: bool,
    /// When it came, and when it went before the end of the run.
    #[serde(default)]
    pub joined_ns: u64,
    #[serde(default)]
    pub left_ns: Option<u64>,
    /// What the neighbour cost it; filled in by `analyse`.
    #[serde(default)]
    pub cost: Cost,
    /// Index into `budgets`.
    pub budget: usize,
    pub phases: Vec<ContainerPhase>,
    pub up_window_bytes: Vec<u32>,
    pub down_window_bytes: Vec<u32>,
    pub up_total_bytes: u64,
    pub down_total_bytes: u64,
    /// What its recovery is judged by; `null` in results of earlier versions.
    #[serde(default)]
    pub recovery: Option<RecoverySteps>,
    /// Held at the end of a window, on average while contended.
    #[serde(default)]
    pub mean_held_bytes: u64,
    /// Most held at the end of a window, and the limit that is its own.
    pub peak_held_bytes: u64,
    pub hard_bytes: u64,
    /// Memory counters, by the kernel's names; zeros left out.
    pub counters: BTreeMap<String, u64>,
    /// Drop reasons and protocol counters of the stack; zeros left out.
    pub stack_counters: BTreeMap<String, u64>,
    /// The guest kernel's own counters (not in virtual time); zeros left out.
    pub guest_counters: BTreeMap<String, u64>,
    pub flows_total: u64,
    /// Bytes that were not the bytes sent.
    pub corrupt: u64,
    /// Connections that ended although wanted.
    pub broken: u64,
    /// CPU spent in the stack for this container while contended; `null` where it is not counted: CPU is infinite in
    /// virtual time, and the kernel's own stack does not say.
    pub stack_cpu_ns: Option<u64>,
}

impl ContainerResult {
    /// What its plan says, and nothing measured.
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
}

fn yes() -> bool {
    true
}

/// Bytes of a container in steps of a length that does not depend on the charts' windows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverySteps {
    pub step_ns: u64,
    pub up: DirectionSteps,
    pub down: DirectionSteps,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionSteps {
    /// The least that a step had alone; `null`: the phase is shorter than a step.
    pub solo_least_bytes: Option<u64>,
    /// From the moment the hog left.
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

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerPhase {
    pub up_bytes: u64,
    pub down_bytes: u64,
    pub up_stall_ns: u64,
    pub down_stall_ns: u64,
    /// Response bytes of the probes that completed: goodput too, beside the bulk.
    pub probe_bytes: u64,
    /// What the stack moved for this container, wanted or not.
    pub moved_bytes: u64,
    pub probe: Option<ProbePhase>,
}

/// One container, contended against solo. Ratios in thousandths; `null`: nothing came, or not known from above.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Solo over contended, the worse direction.
    pub throughput_slowdown_milli: Option<u64>,
    /// Contended over solo.
    pub p99_inflation_milli: Option<u64>,
    pub stall_ns: u64,
    pub recovery_ns: Option<u64>,
}

/// Worst victim and whole-arm numbers. Ratios in thousandths or millionths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fairness {
    /// Worst victim, worse direction: solo over contended; `null`: nothing came at all.
    pub throughput_slowdown_milli: Option<u64>,
    pub throughput_slowdown_of: String,
    /// Worst victim: contended over solo; `null`: too few samples or not known from above.
    pub p99_inflation_milli: Option<u64>,
    pub p99_inflation_of: String,
    /// Of a victim, in the contended phase; and the longest it has even alone.
    pub stall_ns: u64,
    pub stall_solo_ns: u64,
    pub stall_of: String,
    /// Least over victims, contended.
    pub delivered_ppm: Option<u64>,
    pub jain_victims_ppm: u64,
    pub jain_all_ppm: u64,
    /// Least over victims and directions: goodput alone over the link's rate.
    pub solo_share_ppm: u64,
    /// First step after the hog left from which two in a row reach 95 % of solo, for the slowest victim, if any.
    pub recovery_ns: Option<u64>,
    pub hog_peak_bytes: u64,
    /// `null`: the arm enforces none, or has no hog.
    pub hog_hard_bytes: Option<u64>,
    pub overshoot_bytes: u64,
    /// Sum over the victims.
    pub victim_refusals: u64,
    /// Longest over the budgets that victims draw on; `null`: no victims.
    pub victim_pressure_ns: Option<u64>,
    pub corrupt: u64,
    pub broken: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateKind {
    /// The run can be trusted.
    #[default]
    Sanity,
    /// The control starved.
    Control,
    /// The subject did not.
    Subject,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateResult {
    pub arm: String,
    pub kind: GateKind,
    pub name: String,
    /// Of several runs that in the middle; of what must be exact the worst.
    pub observed: String,
    pub limit: String,
    pub passed: bool,
    /// The run proves nothing about this gate, as when the generator was late: a failure is no fault of the subject.
    #[serde(default)]
    pub in_doubt: bool,
    /// What each run showed; empty where there was one.
    #[serde(default)]
    pub runs: Vec<GateRun>,
}

impl GateResult {
    /// The subject failed, and nothing speaks against the measurement: exit 3.
    pub fn is_fault(&self) -> bool {
        !self.passed && self.kind == GateKind::Subject && !self.in_doubt
    }
}

/// One gate in one of several runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateRun {
    pub observed: String,
    pub passed: bool,
    pub in_doubt: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub word: String,
    pub exit: u8,
    pub gates: usize,
    pub failed: usize,
}
