//! What a run is made of: containers and their loads, phases, arms. Scenarios make plans, targets carry them out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skbudget_controller::{Rules, SockLimits};

use crate::gate::Expr;

/// Which memory a container draws on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// One budget for all of them.
    Shared,
    /// One each.
    #[default]
    Container,
    /// One each, without a limit.
    Off,
}

/// What an arm is there for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArmRole {
    /// Must starve, or the load proves nothing.
    Control,
    /// Must not.
    #[default]
    Subject,
    /// Is there to be compared with; neither is expected of it.
    Baseline,
}

impl ArmRole {
    /// What is expected of an arm, for a reader who wonders which column should look good.
    pub fn expected(self) -> &'static str {
        match self {
            Self::Control => "should starve",
            Self::Subject => "should be fine",
            Self::Baseline => "to compare with",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleSet {
    Linux,
    #[default]
    Strict,
}

impl RuleSet {
    pub fn rules(self) -> Rules {
        match self {
            Self::Linux => Rules::Linux,
            Self::Strict => Rules::Strict,
        }
    }
    pub fn word(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Strict => "strict",
        }
    }
}

#[derive(Debug, Clone)]
pub struct ArmPlan {
    pub name: String,
    pub role: ArmRole,
    pub isolation: Isolation,
    pub rules: RuleSet,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    Victim,
    Hog,
}

/// An open-loop request/response client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSpec {
    pub every_ns: u64,
    /// First request after the start of the run: staggered between containers.
    pub offset_ns: u64,
    pub request_bytes: u32,
    pub response_bytes: u32,
    pub outstanding_max: u32,
    /// A response later than this after its intended start was not delivered.
    pub deadline_ns: u64,
    /// A new connection for each request.
    pub fresh: bool,
}

/// Connections that fill buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    pub connections: u32,
    /// At which the far end of each reads; `None`: never.
    pub reads_bits_per_second: Option<u64>,
    /// What each carries before it falls silent; `None`: all it can.
    pub bytes: Option<u64>,
    /// Of the container's socket.
    pub buffer_bytes: Option<u64>,
}

/// Segments made by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FloodKind {
    /// One byte, a hole of one byte, and so on; the first hole is never filled.
    OutOfOrder,
    /// One byte in order after the other.
    Tiny,
    /// Connects and says nothing.
    Silent,
}

/// One kind of traffic of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// Sends all it can to servers that read at a rate each. A rate just below the link's leaves a standing queue in
    /// the stack, as behind any real server that is slower than its network.
    Up {
        connections: u32,
        reads_bits_per_second: u64,
    },
    /// Reads all it gets from servers that send all they can.
    Down {
        connections: u32,
    },
    Probe(ProbeSpec),
    /// Sends into servers that read little or nothing.
    Stuff(Fill),
    /// Reads little or nothing from servers that send all they can.
    Hoard(Fill),
    /// Sends, closes and forgets, into servers that never read.
    Orphans {
        per_second: u32,
        bytes: u64,
    },
    /// Clients outside connect and push; the container never accepts.
    Accept {
        connections: u32,
    },
    /// Servers answer all at once.
    Incast {
        connections: u32,
        bytes: u32,
        every_ns: u64,
    },
    Flood {
        kind: FloodKind,
        connections: u32,
        per_second: u32,
    },
}

impl Load {
    /// As a scenario file calls it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Up { .. } => "up",
            Self::Down { .. } => "down",
            Self::Probe(_) => "probe",
            Self::Stuff(_) => "stuff",
            Self::Hoard(_) => "hoard",
            Self::Orphans { .. } => "orphans",
            Self::Accept { .. } => "accept",
            Self::Incast { .. } => "incast",
            Self::Flood { .. } => "flood",
        }
    }
}

/// A budget's limits as given; what is missing follows from `hard`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetPlan {
    pub hard_bytes: u64,
    pub soft_bytes: Option<u64>,
    pub low_bytes: Option<u64>,
    pub min_bytes: u64,
}

/// From and to, since the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub from_ns: u64,
    pub to_ns: u64,
}

#[derive(Debug, Clone)]
pub struct ContainerPlan {
    pub name: String,
    pub group: String,
    pub role: Role,
    pub weight: u32,
    /// Its own under `Isolation::Container`; its part of the pool under `Shared`.
    pub budget: BudgetPlan,
    /// Containers that follow each other have one budget.
    pub budget_name: String,
    /// Its link, each way. Nobody shares a link, so no link can be what starves.
    pub bits_per_second: u64,
    pub loads: Vec<Load>,
    /// When it is made.
    pub joins_ns: u64,
    /// When its loads are on.
    pub active: Vec<Span>,
    /// When the container ends; `None`: with the run.
    pub leaves_ns: Option<u64>,
}

/// A measured stretch of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub start_ns: u64,
    pub end_ns: u64,
}

impl ContainerPlan {
    pub fn probe(&self) -> Option<ProbeSpec> {
        self.loads.iter().find_map(|l| match l {
            Load::Probe(spec) => Some(*spec),
            _ => None,
        })
    }
    /// It makes its segments by hand.
    pub fn floods(&self) -> bool {
        self.loads.iter().any(|l| matches!(l, Load::Flood { .. }))
    }
    pub fn wants_up(&self) -> bool {
        self.loads.iter().any(|l| matches!(l, Load::Up { .. }))
    }
    pub fn wants_down(&self) -> bool {
        self.loads.iter().any(|l| matches!(l, Load::Down { .. }))
    }
}

impl Phase {
    pub fn nanos(&self) -> u64 {
        self.end_ns - self.start_ns
    }
    /// What was measured of it in an arm that was stopped at `ended_ns`: nothing, if it had not begun.
    #[must_use]
    pub fn until(&self, ended_ns: Option<u64>) -> Self {
        let end = ended_ns.unwrap_or(u64::MAX);
        let (start_ns, end_ns) = (self.start_ns.min(end), self.end_ns.min(end));
        Self { name: self.name.clone(), start_ns, end_ns }
    }
}

/// Places of the three phases in `Plan::phases`.
pub const SOLO: usize = 0;
pub const CONTENDED: usize = 1;
pub const RECOVERY: usize = 2;

/// The link between each container and the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkPlan {
    /// Guest to server and back, nearly all of it between guest and stack: as between a sender and the kernel whose
    /// memory it draws on.
    pub rtt_ns: u64,
    pub guest_buffer_bytes: u64,
    pub mtu: u16,
    pub offload: bool,
}

/// A condition of the scenario's own on one arm.
#[derive(Debug, Clone)]
pub struct GatePlan {
    pub arm: String,
    pub expr: Expr,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub scenario: String,
    pub about: String,
    /// The scenario in full.
    pub toml: String,
    pub seed: u64,
    /// Key, value with unit: what `--set` could change, for the record.
    pub params: Vec<(String, u64)>,
    pub link: LinkPlan,
    /// `tcp_rmem[1]` of every budget.
    pub rmem_bytes: u32,
    /// `tcp_wmem[2]` of every budget. What a host socket may hold is slack that hides starvation in the shared arm,
    /// where nobody is charged for it.
    pub wmem_max_bytes: u32,
    pub window_ns: u64,
    /// Probes intended in a phase may still complete this long after its end; a gap of this length, measured by
    /// nobody, lies between solo and contended.
    pub grace_ns: u64,
    pub phases: Vec<Phase>,
    /// Above all containers together.
    pub host: Option<BudgetPlan>,
    pub containers: Vec<ContainerPlan>,
    pub arms: Vec<ArmPlan>,
    pub gates: Vec<GatePlan>,
}

impl Plan {
    pub fn sock_limits(&self) -> SockLimits {
        let mut sock = SockLimits::default();
        sock.rmem[1] = self.rmem_bytes;
        sock.wmem[2] = self.wmem_max_bytes;
        sock
    }
    /// What all budgets together may hold; those that follow each other count once.
    pub fn pool_bytes(&self) -> u64 {
        let budgets: BTreeMap<&str, u64> =
            self.containers.iter().map(|c| (c.budget_name.as_str(), c.budget.hard_bytes)).collect();
        budgets.values().sum()
    }
    /// How long a step of the recovery is, at least `least_ns`: long enough for a few round trips and for several
    /// segments of the slowest victim's link, or a victim at full speed would look like one that is starved.
    pub fn recovery_step_ns(&self, least_ns: u64) -> u64 {
        const SEGMENTS: u64 = 16;
        const ROUND_TRIPS: u64 = 4;
        let bits = SEGMENTS * u64::from(self.link.mtu) * 8;
        let slowest = self.victims().map(|c| c.bits_per_second).filter(|r| *r > 0).min();
        let segments_ns = slowest.map_or(0, |rate| bits * 1_000_000_000 / rate);
        let wanted = segments_ns.max(ROUND_TRIPS * self.link.rtt_ns);
        wanted.div_ceil(least_ns.max(1)).max(1) * least_ns.max(1)
    }
    /// When the last books are closed.
    pub fn end_ns(&self) -> u64 {
        self.phases.last().map_or(0, |p| p.end_ns) + self.grace_ns
    }
    pub fn victims(&self) -> impl Iterator<Item = &ContainerPlan> {
        self.containers.iter().filter(|c| c.role == Role::Victim)
    }
}
