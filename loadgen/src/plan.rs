//! What a run is made of: containers and their loads, phases, arms. Scenarios make plans, targets carry them out.

use serde::{Deserialize, Serialize};
use skbudget_controller::{Rules, SockLimits};

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
    pub name: &'static str,
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
}

/// One kind of traffic of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Load {
    /// Sends all it can to a server that reads at a rate. A rate just below the link's leaves a standing queue in
    /// the stack, as behind any real server that is slower than its network.
    Up {
        reads_bits_per_second: u64,
    },
    /// Reads all it gets from a server that sends all it can.
    Down,
    Probe(ProbeSpec),
    /// Sends into servers that never read.
    Stuff {
        connections: u32,
    },
    /// Never reads from servers that send all they can.
    Hoard {
        connections: u32,
    },
}

#[derive(Debug, Clone)]
pub struct ContainerPlan {
    pub name: String,
    pub role: Role,
    /// Its budget under `Isolation::Container`; its part of the pool under `Shared`.
    pub hard_bytes: u64,
    /// Its link, each way. Nobody shares a link, so no link can be what starves.
    pub bits_per_second: u64,
    pub loads: Vec<Load>,
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
            Load::Up { .. } | Load::Down | Load::Stuff { .. } | Load::Hoard { .. } => None,
        })
    }
}

impl Phase {
    pub fn nanos(&self) -> u64 {
        self.end_ns - self.start_ns
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

#[derive(Debug, Clone)]
pub struct Plan {
    pub scenario: &'static str,
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
    pub containers: Vec<ContainerPlan>,
    pub arms: Vec<ArmPlan>,
}

impl Plan {
    pub fn sock_limits(&self) -> SockLimits {
        let mut sock = SockLimits::default();
        sock.rmem[1] = self.rmem_bytes;
        sock.wmem[2] = self.wmem_max_bytes;
        sock
    }
    pub fn pool_bytes(&self) -> u64 {
        self.containers.iter().map(|c| c.hard_bytes).sum()
    }
    /// When the last books are closed.
    pub fn end_ns(&self) -> u64 {
        self.phases.last().map_or(0, |p| p.end_ns) + self.grace_ns
    }
    /// The hog is there from the start of this phase to its end.
    pub fn hog_span(&self) -> (u64, u64) {
        let p = &self.phases[CONTENDED];
        (p.start_ns, p.end_ns)
    }
    pub fn victims(&self) -> impl Iterator<Item = &ContainerPlan> {
        self.containers.iter().filter(|c| c.role == Role::Victim)
    }
}
