//! `skbudget.stats/1`: what a daemon knows about itself, as JSON.
//!
//! Integers carry their unit in the name; fields are only ever added. The categories of a container (`rmem_bytes` to
//! `dev_bytes`, `credit_bytes` among them, without `listen_bytes`, which is a part of `host_bytes`) sum to its part of
//! `usage_bytes` before rounding to pages.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use skbudget_controller::{Counter, MemberStats, MeterStats, Pressure};
use skbudget_stack::ContainerStats;
use skbudget_stack::tap::TapCounters;

pub const SCHEMA: &str = "skbudget.stats/1";

/// Everything at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Stats {
    pub schema: &'static str,
    /// Monotonic.
    pub time_ns: u64,
    pub host: Meter,
    /// Sorted by name.
    pub containers: Vec<ContainerReport>,
    /// Held by the workers for frames in hand: charged to nobody (pressure model B12).
    pub platform_bytes: u64,
    /// Free buffers kept by the workers for reuse: slack, charged to nobody.
    pub pool_bytes: u64,
}

/// One container.
#[derive(Debug, Clone, Serialize)]
pub struct ContainerReport {
    pub name: String,
    #[serde(flatten)]
    pub meter: Meter,
    /// The budget it is charged to; several containers name the same one when they share it.
    pub budget: String,
    pub flows: u32,
    pub flows_total: u64,
    #[serde(flatten)]
    pub categories: Categories,
    pub bytes_from_guest: u64,
    pub bytes_to_guest: u64,
    pub frames_from_guest: u64,
    pub frames_to_guest: u64,
    /// What the kernel holds in the host sockets now, asked with SO_MEMINFO; only when asked for, it is a system call
    /// for each flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_meminfo_bytes: Option<u64>,
    pub host_sockets: u64,
    /// CPU time of the worker spent on this container.
    pub cpu_ns: u64,
    pub turns: u64,
    pub counters: BTreeMap<String, u64>,
}

/// One meter: limits are null when there is none.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Meter {
    pub low_bytes: Option<u64>,
    pub soft_bytes: Option<u64>,
    pub hard_bytes: Option<u64>,
    pub hard_effective_bytes: Option<u64>,
    pub min_bytes: u64,
    pub usage_bytes: u64,
    pub max_usage_bytes: u64,
    #[serde(serialize_with = "pressure_name")]
    pub pressure: Pressure,
    pub pressure_ns: u64,
    pub failcnt: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Categories {
    pub rmem_bytes: u64,
    pub ofo_bytes: u64,
    pub credit_bytes: u64,
    pub wmem_bytes: u64,
    pub fwd_bytes: u64,
    pub reserve_bytes: u64,
    pub udp_bytes: u64,
    pub sock_bytes: u64,
    pub host_bytes: u64,
    /// Of `host_bytes`: what the backlogs of published ports may hold.
    pub listen_bytes: u64,
    pub dev_bytes: u64,
}

impl Meter {
    /// No limit and nothing held.
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
            sock_bytes: m.sock,
            host_bytes: m.host,
            listen_bytes: m.listen,
            dev_bytes: m.dev,
        }
    }
}

/// Counters of the budget, the stack and the device under one roof. A name that two of them use is summed.
pub(crate) fn counters(
    member: &MemberStats,
    stack: &ContainerStats,
    device: TapCounters,
) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (counter, value) in COUNTERS.iter().zip(member.counters) {
        all.insert(format!("{counter:?}"), value);
    }
    for (name, value) in &stack.counters {
        *all.entry((*name).to_owned()).or_insert(0) += value;
    }
    let TapCounters { full, refused, short, capture_lost } = device;
    all.insert("DeviceFull".to_owned(), full);
    all.insert("DeviceRefused".to_owned(), refused);
    all.insert("DeviceShort".to_owned(), short);
    all.insert("CaptureLost".to_owned(), capture_lost);
    all
}

fn pressure_name<S: Serializer>(pressure: &Pressure, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(match pressure {
        Pressure::None => "none",
        Pressure::Soft => "soft",
        Pressure::Hard => "hard",
    })
}

/// In the order of their numbers.
const COUNTERS: [Counter; 20] = [
    Counter::TCPMemoryPressures,
    Counter::TCPMemoryPressuresChrono,
    Counter::PruneCalled,
    Counter::RcvPruned,
    Counter::OfoPruned,
    Counter::TCPRcvCollapsed,
    Counter::TCPRcvQDrop,
    Counter::TCPOFOQueue,
    Counter::TCPOFODrop,
    Counter::TCPZeroWindowDrop,
    Counter::TCPFromZeroWindowAdv,
    Counter::TCPToZeroWindowAdv,
    Counter::TCPWantZeroWindowAdv,
    Counter::AdmissionDelayed,
    Counter::AdmissionDenied,
    Counter::CreditDemoted,
    Counter::DemotedTrim,
    Counter::HostMemExcess,
    Counter::TWRecycled,
    Counter::EventsLost,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_stands_at_its_number() {
        for (i, counter) in COUNTERS.iter().enumerate() {
            assert_eq!(*counter as usize, i);
        }
    }

    #[test]
    fn limits_that_are_not_there_are_null() {
        let json = serde_json::to_value(Meter::NONE).unwrap();
        assert!(json["hard_bytes"].is_null());
        assert_eq!(json["pressure"], "none");
    }
}
