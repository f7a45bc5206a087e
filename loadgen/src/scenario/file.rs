//! The scenario file, `loadgen.scenario/1`, in TOML. Every key has a default; unknown keys are refused.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::values::{Bytes, Count, Flag, Rate, Time};
use crate::scenario::plan::{ArmRole, FloodKind, Isolation, Role, RuleSet};

pub(super) const SCHEMA: &str = "loadgen.scenario/1";

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct ScenarioFile {
    pub schema: String,
    pub name: String,
    /// One line about the scenario.
    pub about: String,
    /// `builtin:NAME` or the path of a file that supplies the values not given here. Arms and groups are matched by
    /// their names.
    pub extends: Option<String>,
    pub run: RunTable,
    pub link: LinkTable,
    pub socket: SocketTable,
    /// A limit above all containers together.
    pub host: Option<BudgetTable>,
    pub arm: Vec<ArmTable>,
    pub group: Vec<GroupTable>,
    pub gate: Vec<GateTable>,
    /// Short names for `--set`: each sets one or more paths.
    pub params: BTreeMap<String, Paths>,
    /// By target: paths and their values on that target.
    pub on: BTreeMap<String, BTreeMap<String, toml::Value>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Paths {
    One(String),
    Many(Vec<String>),
}

impl Paths {
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths.as_slice(),
        }
        .iter()
        .map(String::as_str)
    }
}

/// The phases, in this order.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct RunTable {
    /// Time before the first phase.
    pub warmup: Time,
    /// The victims run alone.
    pub solo: Time,
    /// The hogs are active.
    pub contended: Time,
    /// The hogs have left.
    pub recovery: Time,
    /// Length of a window of the goodput series.
    pub window: Time,
    /// Time after a phase in which its probes may still complete.
    pub grace: Time,
}

impl Default for RunTable {
    fn default() -> Self {
        let ms = |n: u64| Time(n * 1_000_000);
        Self {
            warmup: ms(100),
            solo: ms(1000),
            contended: ms(1000),
            recovery: ms(200),
            window: ms(10),
            grace: ms(20),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct LinkTable {
    /// Round trip time between guest and server (virtual).
    pub rtt: Time,
    pub mtu: Count,
    /// Checksum and segmentation offload.
    pub offload: Flag,
}

impl Default for LinkTable {
    fn default() -> Self {
        Self { rtt: Time(1_000_000), mtu: Count(1500), offload: Flag(1) }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct SocketTable {
    /// tcp_rmem's default, as autotuning leaves it on a used flow.
    pub rmem: Bytes,
    /// tcp_wmem's maximum; limits host sockets too.
    pub wmem_max: Bytes,
    /// Send and receive buffer of a guest's socket (virtual).
    pub guest_buffer: Bytes,
}

impl Default for SocketTable {
    fn default() -> Self {
        let kib = |n: u64| Bytes(n << 10);
        Self { rmem: kib(256), wmem_max: kib(256), guest_buffer: kib(128) }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct BudgetTable {
    pub hard: Bytes,
    pub soft: Option<Bytes>,
    pub low: Option<Bytes>,
    pub min: Bytes,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct ArmTable {
    pub name: String,
    pub isolation: Isolation,
    /// Default: `linux` where all containers share one budget, `strict` otherwise.
    pub rules: Option<RuleSet>,
    pub role: ArmRole,
}

/// Containers of one kind.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct GroupTable {
    pub name: String,
    pub role: Role,
    pub count: Count,
    pub weight: Option<Count>,
    pub budget: BudgetTable,
    /// Rate of each container's link, each way.
    pub rate: Rate,
    pub up: Option<Up>,
    pub down: Option<Down>,
    pub probe: Option<Probe>,
    pub stuff: Option<Stuff>,
    pub hoard: Option<Hoard>,
    pub orphans: Option<Orphans>,
    pub accept: Option<Accept>,
    pub incast: Option<Incast>,
    pub flood: Option<Flood>,
    pub churn: Option<Churn>,
    pub schedule: Vec<ScheduleStep>,
}

/// Bulk transfer to a server that reads.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Up {
    pub conns: Count,
    /// Read rate of all its servers together, in percent of the link. A value a little below 100 leaves a standing
    /// queue in the stack, as behind any server that is slower than its network.
    pub share: Count,
}

impl Default for Up {
    fn default() -> Self {
        Self { conns: Count(1), share: Count(88) }
    }
}

/// Bulk transfer from a server, read at once.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Down {
    pub conns: Count,
}

impl Default for Down {
    fn default() -> Self {
        Self { conns: Count(1) }
    }
}

/// An open-loop request/response client.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Probe {
    /// Requests per second.
    pub rate: Count,
    pub request: Bytes,
    pub response: Bytes,
    pub deadline: Time,
    pub outstanding: Count,
    /// Open a new connection for each request.
    pub fresh: Flag,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            rate: Count(2000),
            request: Bytes(64),
            response: Bytes(1024),
            deadline: Time(1_000_000_000),
            outstanding: Count(4096),
            fresh: Flag(0),
        }
    }
}

/// Connections that send to servers that read slowly or never.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Stuff {
    pub conns: Count,
    /// Read rate of each server; none: it never reads.
    pub reads: Option<Rate>,
    /// Bytes that each sends before it becomes idle; none: unlimited.
    pub bytes: Option<Bytes>,
    /// Buffer of each of the container's sockets, as `SO_SNDBUF` would set it.
    pub buffer: Option<Bytes>,
}

/// Connections from servers that send to a container that reads slowly or never.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Hoard {
    pub conns: Count,
    /// Rate at which the container reads each; none: it never reads.
    pub reads: Option<Rate>,
    /// Bytes that each server sends; none: unlimited; 0: nothing.
    pub bytes: Option<Bytes>,
    /// Buffer of each of the container's sockets, as `SO_RCVBUF` would set it.
    pub buffer: Option<Bytes>,
}

/// Connections that send, close and are forgotten, to servers that never read.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Orphans {
    /// New connections per second.
    pub rate: Count,
    pub bytes: Bytes,
}

impl Default for Orphans {
    fn default() -> Self {
        Self { rate: Count(500), bytes: Bytes(32 << 10) }
    }
}

/// Clients outside connect to a port of the container and send; the container never accepts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Accept {
    pub conns: Count,
}

/// Many servers respond to one container at once, periodically.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Incast {
    pub conns: Count,
    pub bytes: Bytes,
    pub every: Time,
}

impl Default for Incast {
    fn default() -> Self {
        Self { conns: Count(64), bytes: Bytes(64 << 10), every: Time(20_000_000) }
    }
}

/// Handcrafted segments from a guest without TCP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Flood {
    pub kind: FloodKind,
    pub conns: Count,
    /// Segments per second, over all connections.
    pub rate: Count,
}

impl Default for Flood {
    fn default() -> Self {
        Self { kind: FloodKind::OutOfOrder, conns: Count(64), rate: Count(50_000) }
    }
}

/// Short-lived containers: a new one starts every `every`, and each lives for `life`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default, expecting = "a table")]
pub(super) struct Churn {
    pub every: Time,
    pub life: Time,
}

impl Default for Churn {
    fn default() -> Self {
        Self { every: Time(20_000_000), life: Time(15_000_000) }
    }
}

/// One step of a group's schedule.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct ScheduleStep {
    /// A phase, with or without a time after its start: `"contended"`, `"contended+100ms"`; or a time since the start
    /// of the run.
    pub at: String,
    pub action: ScheduleAction,
    /// Repeat the step at this interval, up to the end of the phase.
    pub every: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ScheduleAction {
    /// The load starts.
    Start,
    /// Its connections close; the container stays.
    Stop,
    /// The container ends.
    Leave,
}

/// A condition on the numbers of one arm.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct GateTable {
    pub arm: String,
    pub expr: String,
}
