//! `skbudget.stats/1`: the state of a daemon as JSON.
//!
//! Integers carry their unit in the name. A later version only adds fields. The categories of a container (`rmem_bytes`
//! to `dev_bytes`, including `credit_bytes`, excluding `listen_bytes`, which is a part of `host_bytes`) add up to its
//! part of `usage_bytes` before rounding to pages.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use skbudget_controller::{Counter, MemberStats, MeterStats, Pressure};
use skbudget_stack::ContainerStats;
use skbudget_stack::tap::TapCounters;

/// Value of the `schema` field.
pub const SCHEMA: &str = "skbudget.stats/1";

/// The whole state at one time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stats {
    /// [`SCHEMA`].
    #[serde(skip_deserializing, default = "schema")]
    pub schema: &'static str,
    /// Monotonic clock.
    pub time_ns: u64,
    /// The meter above all budgets.
    pub host: Meter,
    /// The meters of groups, sorted by name.
    pub groups: Vec<GroupReport>,
    /// Sorted by name.
    pub containers: Vec<ContainerReport>,
    /// The workers' buffers for the frame being processed: charged to no container (B12).
    pub platform_bytes: u64,
    /// Free chunks that the workers keep for reuse: charged to no container (M6).
    pub pool_bytes: u64,
}

/// A group of containers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupReport {
    /// Name of the group.
    pub name: String,
    /// The group around it.
    pub parent: Option<String>,
    /// Share among its siblings.
    pub weight: u32,
    /// Limits and usage of all containers in it, those of inner groups included.
    #[serde(flatten)]
    pub meter: Meter,
}

/// One container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerReport {
    /// Name of the container.
    pub name: String,
    /// Limits and usage of its budget.
    #[serde(flatten)]
    pub meter: Meter,
    /// Name of the budget it is charged to. Containers that share a budget report the same name.
    pub budget: String,
    /// Flows open now.
    pub flows: u32,
    /// Flows opened so far.
    pub flows_total: u64,
    /// Its charges.
    #[serde(flatten)]
    pub categories: Categories,
    /// Payload received from the guest.
    pub bytes_from_guest: u64,
    /// Payload sent to the guest.
    pub bytes_to_guest: u64,
    /// Frames read from the device.
    pub frames_from_guest: u64,
    /// Frames written to the device.
    pub frames_to_guest: u64,
    /// Bytes that the kernel holds in the host sockets now, from SO_MEMINFO. Only on request: it costs a system call
    /// for each flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_meminfo_bytes: Option<u64>,
    /// Host sockets open.
    pub host_sockets: u64,
    /// UDP mappings of the guest's ports.
    pub udp_mappings: u32,
    /// CPU time that the worker spent on this container.
    pub cpu_ns: u64,
    /// Turns of the container in the worker's loop.
    pub turns: u64,
    /// Counters by name, in the kernel's names where the kernel has them.
    pub counters: Counters,
}

/// Counters by name. A worker makes them for all of its containers at once, so it copies no name.
pub type Counters = BTreeMap<Cow<'static, str>, u64>;

/// One meter. A limit that does not exist is null.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Meter {
    /// Pressure ends below this.
    pub low_bytes: Option<u64>,
    /// Pressure starts above this.
    pub soft_bytes: Option<u64>,
    /// No charge exceeds this.
    pub hard_bytes: Option<u64>,
    /// The larger of `hard_bytes` and the usage: differs after `hard` was lowered below it.
    pub hard_effective_bytes: Option<u64>,
    /// The guaranteed part.
    pub min_bytes: u64,
    /// Charged now, in whole pages.
    pub usage_bytes: u64,
    /// Maximum of the usage so far.
    pub max_usage_bytes: u64,
    /// State now.
    #[serde(serialize_with = "pressure_name", deserialize_with = "pressure_of")]
    pub pressure: Pressure,
    /// Time under pressure so far.
    pub pressure_ns: u64,
    /// Charges that the hard limit refused.
    pub failcnt: u64,
}

/// A container's charges by category, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Categories {
    /// Receive queues, in order.
    pub rmem_bytes: u64,
    /// Receive queues, out of order.
    pub ofo_bytes: u64,
    /// Open receive windows, charged and empty (`strict` rules).
    pub credit_bytes: u64,
    /// Send queues.
    pub wmem_bytes: u64,
    /// `forward_alloc` of the flows (`linux` rules).
    pub fwd_bytes: u64,
    /// Unused reserves of open flows (`strict` rules).
    pub reserve_bytes: u64,
    /// UDP datagrams.
    pub udp_bytes: u64,
    /// Fragments of incomplete IP datagrams.
    pub frag_bytes: u64,
    /// Flow objects, TIME-WAIT entries, SYNs without a flow.
    pub sock_bytes: u64,
    /// Caps of host sockets, and backlogs.
    pub host_bytes: u64,
    /// The part of `host_bytes` for the backlogs of published ports (H6).
    pub listen_bytes: u64,
    /// The device queue (B12).
    pub dev_bytes: u64,
}

impl Meter {
    /// No limits, nothing charged.
    pub const NONE: Self = Self {
        low_bytes: None,
        soft_bytes: None,
        hard_bytes: None,
        hard_effective_bytes: None,
        min_bytes: 0,
        usage_bytes: 0,
        max_usage_bytes: 0,
        pressure: Pressure::None,
        pressure_ns: 0,
        failcnt: 0,
    };
}

impl From<MeterStats> for Meter {
    fn from(stats: MeterStats) -> Self {
        let MeterStats {
            low_bytes,
            soft_bytes,
            hard_bytes,
            hard_effective_bytes,
            min_bytes,
            usage_bytes,
            max_usage_bytes,
            pressure,
            pressure_ns,
            failcnt,
        } = stats;
        Self {
            low_bytes,
            soft_bytes,
            hard_bytes,
            hard_effective_bytes,
            min_bytes,
            usage_bytes,
            max_usage_bytes,
            pressure,
            pressure_ns,
            failcnt,
        }
    }
}

impl From<&MemberStats> for Categories {
    fn from(m: &MemberStats) -> Self {
        Self {
            rmem_bytes: m.rmem,
            ofo_bytes: m.ofo,
            credit_bytes: m.credit,
            wmem_bytes: m.wmem,
            fwd_bytes: m.fwd,
            reserve_bytes: m.reserve,
            udp_bytes: m.udp,
            frag_bytes: m.frag,
            sock_bytes: m.sock,
            host_bytes: m.host,
            listen_bytes: m.listen,
            dev_bytes: m.dev,
        }
    }
}

/// The counters of budget, stack and device as one map. A name that two of them use is summed.
pub(crate) fn counters(
    member: &MemberStats,
    stack: &ContainerStats,
    device: TapCounters,
) -> Counters {
    let budget = Counter::ALL.iter().zip(member.counters);
    let mut all: Counters =
        budget.map(|(counter, value)| (Cow::Borrowed(counter.name()), value)).collect();
    for (name, value) in &stack.counters {
        *all.entry(Cow::Borrowed(name)).or_insert(0) += value;
    }
    let TapCounters { full, refused, short, capture_lost } = device;
    let device = [
        ("DeviceFull", full),
        ("DeviceRefused", refused),
        ("DeviceShort", short),
        ("CaptureLost", capture_lost),
    ];
    all.extend(device.map(|(name, value)| (Cow::Borrowed(name), value)));
    all
}

fn pressure_name<S: Serializer>(pressure: &Pressure, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(match pressure {
        Pressure::None => "none",
        Pressure::Soft => "soft",
        Pressure::Hard => "hard",
    })
}

fn pressure_of<'de, D: Deserializer<'de>>(from: D) -> Result<Pressure, D::Error> {
    // Not `&str`: a value in a parsed document lends no text.
    match String::deserialize(from)?.as_str() {
        "none" => Ok(Pressure::None),
        "soft" => Ok(Pressure::Soft),
        "hard" => Ok(Pressure::Hard),
        other => Err(de::Error::unknown_variant(other, &["none", "soft", "hard"])),
    }
}

fn schema() -> &'static str {
    SCHEMA
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_not_there_are_null() {
        let json = serde_json::to_value(Meter::NONE).unwrap();
        assert!(json["hard_bytes"].is_null());
        assert_eq!(json["pressure"], "none");
    }

    #[test]
    fn a_client_reads_what_the_daemon_writes() {
        let meter = Meter { pressure: Pressure::Hard, usage_bytes: 4096, ..Meter::NONE };
        let group = GroupReport { name: "web".to_owned(), parent: None, weight: 100, meter };
        let stats = Stats {
            schema: SCHEMA,
            time_ns: 7,
            host: meter,
            groups: vec![group],
            containers: Vec::new(),
            platform_bytes: 1,
            pool_bytes: 2,
        };
        let json = serde_json::to_value(&stats).unwrap();
        let read: Stats = serde_json::from_value(json.clone()).unwrap();
        assert_eq!((read.schema, read.groups[0].meter.pressure), (SCHEMA, Pressure::Hard));
        assert_eq!(serde_json::to_value(&read).unwrap(), json);
    }
}
