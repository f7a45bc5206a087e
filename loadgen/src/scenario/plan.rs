//! The parts of a run: containers and their loads, phases, arms. Scenarios make plans, targets run them.

mod load;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skbudget_controller::{Rules, SockLimits};

pub use self::load::{Fill, FloodKind, Load, ProbeSpec};
use crate::scenario::expr::Expr;

/// How memory is divided between the containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// One budget for all of them.
    Shared,
    /// One budget each.
    #[default]
    Container,
    /// One budget each, without a limit.
    Off,
}

/// The purpose of an arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArmRole {
    /// Must starve; otherwise the load proves nothing.
    Control,
    /// Must not starve.
    #[default]
    Subject,
    /// A reference to compare with; nothing is expected of it.
    Baseline,
}

impl ArmRole {
    /// The expectation of an arm, shown at its column so that a reader knows which column should be good.
    pub fn expected(self) -> &'static str {
        match self {
            Self::Control => "should starve",
            Self::Subject => "should not starve",
            Self::Baseline => "baseline",
        }
    }
}

/// The rules by which a budget charges and refuses: those of Linux, or the strict ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleSet {
    /// The rules of Linux: charges may exceed the limit, segments are dropped and queues pruned.
    Linux,
    /// The strict rules: charged before it is advertised, usage never exceeds the hard limit.
    #[default]
    Strict,
}

impl RuleSet {
    /// The rules as the controller names them.
    pub fn rules(self) -> Rules {
        match self {
            Self::Linux => Rules::Linux,
            Self::Strict => Rules::Strict,
        }
    }
    /// The name in files.
    pub fn word(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Strict => "strict",
        }
    }
}

/// One arm: all containers under one way to divide memory.
#[derive(Debug, Clone)]
pub struct ArmPlan {
    /// Name of the arm, unique in the plan.
    pub name: String,
    /// The purpose of the arm.
    pub role: ArmRole,
    /// How memory is divided.
    pub isolation: Isolation,
    /// The rules of all budgets.
    pub rules: RuleSet,
}

/// The role of a container in the comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Measured alone, beside the hogs, and after they have left.
    #[default]
    Victim,
    /// Active in the contended phase.
    Hog,
}

/// Limits of a budget as given; missing ones are derived from `hard`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetPlan {
    /// Hard limit.
    pub hard_bytes: u64,
    /// Soft limit: pressure starts above it.
    pub soft_bytes: Option<u64>,
    /// Low limit: pressure ends below it.
    pub low_bytes: Option<u64>,
    /// Guaranteed part of the level above.
    pub min_bytes: u64,
}

/// A time span since the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Start, nanoseconds.
    pub from_ns: u64,
    /// End, nanoseconds.
    pub to_ns: u64,
}

/// One container with its budget, link and loads.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    /// Name of the container, unique in the plan.
    pub name: String,
    /// The group of the scenario that it belongs to.
    pub group: String,
    /// Its role in the comparison.
    pub role: Role,
    /// Its share of the level above all containers, relative to the others.
    pub weight: u32,
    /// Its own budget under `Isolation::Container`; its part of the pool under `Shared`.
    pub budget: BudgetPlan,
    /// Name of the budget. Containers that exist one after another use the same budget.
    pub budget_name: String,
    /// Rate of its link, each way. No two containers share a link, so no link can cause the starvation.
    pub bits_per_second: u64,
    /// Its traffic.
    pub loads: Vec<Load>,
    /// Time at which the container is created.
    pub joins_ns: u64,
    /// Times during which its loads are active.
    pub active: Vec<Span>,
    /// Time at which the container ends; `None`: at the end of the run.
    pub leaves_ns: Option<u64>,
}

/// A measured interval of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Name of the phase.
    pub name: String,
    /// Start, nanoseconds since the start of the run.
    pub start_ns: u64,
    /// End, nanoseconds since the start of the run.
    pub end_ns: u64,
}

impl ContainerPlan {
    /// Its probe, if it has one.
    pub fn probe(&self) -> Option<ProbeSpec> {
        self.loads.iter().find_map(|l| match l {
            Load::Probe(spec) => Some(*spec),
            _ => None,
        })
    }
    /// Whether it has loads of handcrafted segments.
    pub fn floods(&self) -> bool {
        self.loads.iter().any(|l| matches!(l, Load::Flood { .. }))
    }
    /// Whether it has a bulk transfer from the container.
    pub fn wants_up(&self) -> bool {
        self.loads.iter().any(|l| matches!(l, Load::Up { .. }))
    }
    /// Whether it has a bulk transfer to the container.
    pub fn wants_down(&self) -> bool {
        self.loads.iter().any(|l| matches!(l, Load::Down { .. }))
    }
}

impl Phase {
    /// Length, nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.end_ns - self.start_ns
    }
    /// The measured part of this phase in an arm that stopped at `ended_ns`; empty if the phase had not started.
    #[must_use]
    pub fn until(&self, ended_ns: Option<u64>) -> Self {
        let end = ended_ns.unwrap_or(u64::MAX);
        let (start_ns, end_ns) = (self.start_ns.min(end), self.end_ns.min(end));
        Self { name: self.name.clone(), start_ns, end_ns }
    }
}

/// Index of a phase in `Plan::phases`: the victims run alone.
pub const SOLO: usize = 0;
/// Index of a phase: the victims run beside the hogs.
pub const CONTENDED: usize = 1;
/// Index of a phase: the hogs have left.
pub const RECOVERY: usize = 2;

/// The link between each container and the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkPlan {
    /// Round trip time between guest and server, nearly all of it between guest and stack: as between a sender and the
    /// kernel that charges its memory.
    pub rtt_ns: u64,
    /// Send and receive buffer of each socket of a guest in virtual time.
    pub guest_buffer_bytes: u64,
    /// MTU, bytes.
    pub mtu: u16,
    /// Checksum and segmentation offload.
    pub offload: bool,
}

/// A condition of the scenario file on one arm.
#[derive(Debug, Clone)]
pub struct GatePlan {
    /// Name of the arm.
    pub arm: String,
    /// The condition.
    pub expr: Expr,
}

/// The places where a plan can run, as `--target` and a scenario's `[on]` name them.
pub const TARGETS: &[&str] = &["virtual", "tap", "kernel", "daemon"];

/// A complete run, independent of the target.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the scenario.
    pub scenario: String,
    /// One line about the scenario.
    pub about: String,
    /// The full text of the scenario.
    pub toml: String,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Key and value (the unit is in the key) of every named parameter of the scenario, for the record.
    pub params: Vec<(String, u64)>,
    /// The link of every container.
    pub link: LinkPlan,
    /// `tcp_rmem[1]` of every budget.
    pub rmem_bytes: u32,
    /// `tcp_wmem[2]` of every budget. The capacity of a host socket is slack that hides starvation in the shared arm,
    /// where no budget is charged for it.
    pub wmem_max_bytes: u32,
    /// Length of the windows of the charts, nanoseconds.
    pub window_ns: u64,
    /// Time after the end of a phase in which its probes may still complete. A gap of this length, which no phase
    /// measures, separates solo and contended.
    pub grace_ns: u64,
    /// The phases: solo, contended, recovery.
    pub phases: Vec<Phase>,
    /// The budget above all containers.
    pub host: Option<BudgetPlan>,
    /// All containers, hogs first.
    pub containers: Vec<ContainerPlan>,
    /// The arms in their order.
    pub arms: Vec<ArmPlan>,
    /// The conditions of the scenario file.
    pub gates: Vec<GatePlan>,
}

impl Plan {
    /// The socket limits of every budget.
    pub fn sock_limits(&self) -> SockLimits {
        let mut sock = SockLimits::default();
        sock.rmem[1] = self.rmem_bytes;
        sock.wmem[2] = self.wmem_max_bytes;
        sock
    }
    /// Sum of the hard limits of all budgets; containers that share a budget one after another count once.
    pub fn pool_bytes(&self) -> u64 {
        let budgets: BTreeMap<&str, u64> =
            self.containers.iter().map(|c| (c.budget_name.as_str(), c.budget.hard_bytes)).collect();
        budgets.values().sum()
    }
    /// Length of a recovery step, a multiple of `least_ns`: long enough for a few round trips and for several segments
    /// on the slowest victim's link. Otherwise a victim at full speed would appear starved in some steps.
    pub fn recovery_step_ns(&self, least_ns: u64) -> u64 {
        const SEGMENTS: u64 = 16;
        const ROUND_TRIPS: u64 = 4;
        let bits = SEGMENTS * u64::from(self.link.mtu) * 8;
        // A rate of 0 means no limit.
        let slowest = self.victims().map(|c| c.bits_per_second).filter(|r| *r > 0).min();
        let segments_ns = slowest.map_or(0, |rate| bits * 1_000_000_000 / rate);
        let wanted = segments_ns.max(ROUND_TRIPS * self.link.rtt_ns);
        // Rounded up to a multiple of `least_ns`.
        wanted.div_ceil(least_ns.max(1)).max(1) * least_ns.max(1)
    }
    /// Time at which the last phase is closed, after its grace time.
    pub fn end_ns(&self) -> u64 {
        self.phases.last().map_or(0, |p| p.end_ns) + self.grace_ns
    }
    /// The containers with the role victim.
    pub fn victims(&self) -> impl Iterator<Item = &ContainerPlan> {
        self.containers.iter().filter(|c| c.role == Role::Victim)
    }
}
