//! The options of a container: those of a command line, of the config or of a request, as given.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::cli::{
    Congestion, ContainerArgs, Isolation, NameServer, OnOff, PublishArg, Reach, RuleSet, Triple,
};
use crate::units::Bytes;

/// Options of one container. Those that are not given take their defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerOptions {
    /// Hard limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard: Option<Bytes>,
    /// Soft limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft: Option<Bytes>,
    /// Pressure ends below this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<Bytes>,
    /// Guarantee within the limits above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Bytes>,
    /// Share among its siblings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Whether it has limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Memory rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<RuleSet>,
    /// Congestion control of data sent to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion: Option<Congestion>,
    /// MTU of its device, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// IPv6 in addition to IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<OnOff>,
    /// Checksum and segmentation offload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload: Option<OnOff>,
    /// The gateway's addresses do not reach the host's loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_host_loopback: Option<bool>,
    /// Where it may connect to: the first rule that matches decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reach: Option<Vec<Reach>>,
    /// Name servers in place of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<NameServer>>,
    /// Source address of its IPv4 connections to other hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_addr: Option<Ipv4Addr>,
    /// Receive buffer of a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_rmem: Option<Triple>,
    /// Send buffer of a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_wmem: Option<Triple>,
    /// Published ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish: Option<Vec<PublishArg>>,
}

/// Names of all options, as keys of the config and of a request.
pub const OPTION_KEYS: [&str; 18] = [
    "hard",
    "soft",
    "low",
    "min",
    "weight",
    "isolation",
    "rules",
    "congestion",
    "mtu",
    "ipv6",
    "offload",
    "no_host_loopback",
    "reach",
    "dns",
    "outbound_addr",
    "tcp_rmem",
    "tcp_wmem",
    "publish",
];

impl From<&ContainerArgs> for ContainerOptions {
    fn from(args: &ContainerArgs) -> Self {
        Self {
            hard: args.hard.map(Bytes),
            soft: args.soft.map(Bytes),
            low: args.low.map(Bytes),
            min: None,
            weight: None,
            isolation: args.isolation,
            rules: args.rules,
            congestion: args.congestion,
            mtu: args.mtu,
            ipv6: args.ipv6,
            offload: args.offload,
            no_host_loopback: args.no_host_loopback.then_some(true),
            reach: (!args.reach.0.is_empty()).then(|| args.reach.0.clone()),
            dns: (!args.dns.is_empty()).then(|| args.dns.iter().copied().map(NameServer).collect()),
            outbound_addr: args.outbound_addr,
            tcp_rmem: args.tcp_rmem,
            tcp_wmem: args.tcp_wmem,
            publish: (!args.publish.is_empty()).then(|| args.publish.clone()),
        }
    }
}

impl ContainerOptions {
    /// These options, and those of `base` where these have none.
    #[must_use]
    pub fn or(self, base: &Self) -> Self {
        Self {
            hard: self.hard.or(base.hard),
            soft: self.soft.or(base.soft),
            low: self.low.or(base.low),
            min: self.min.or(base.min),
            weight: self.weight.or(base.weight),
            isolation: self.isolation.or(base.isolation),
            rules: self.rules.or(base.rules),
            congestion: self.congestion.or(base.congestion),
            mtu: self.mtu.or(base.mtu),
            ipv6: self.ipv6.or(base.ipv6),
            offload: self.offload.or(base.offload),
            no_host_loopback: self.no_host_loopback.or(base.no_host_loopback),
            reach: self.reach.or_else(|| base.reach.clone()),
            dns: self.dns.or_else(|| base.dns.clone()),
            outbound_addr: self.outbound_addr.or(base.outbound_addr),
            tcp_rmem: self.tcp_rmem.or(base.tcp_rmem),
            tcp_wmem: self.tcp_wmem.or(base.tcp_wmem),
            publish: self.publish.or_else(|| base.publish.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_a_key_and_gives_way_to_a_given_one() {
        let all = r#"{"hard":"64MiB","soft":33554432,"low":"16MiB","min":"1MiB","weight":7,"isolation":"off",
            "rules":"linux","congestion":"reno","mtu":1500,"ipv6":"off","offload":"on","no_host_loopback":true,
            "reach":["deny 192.0.2.0/24","allow ::/0"],
            "dns":["192.0.2.1"],"outbound_addr":"192.0.2.1","tcp_rmem":[4096,8192,16384],"tcp_wmem":[4096,8192,16384],
            "publish":["127.0.0.1:8080:80"]}"#;
        let all: ContainerOptions = serde_json::from_str(all).unwrap();
        let json = serde_json::to_value(&all).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut known = OPTION_KEYS.to_vec();
        keys.sort_unstable();
        known.sort_unstable();
        assert_eq!(keys, known);
        assert_eq!(serde_json::from_value::<ContainerOptions>(json).unwrap(), all);
        assert_eq!(ContainerOptions::default().or(&all), all);
        let given = ContainerOptions { mtu: Some(9000), ..ContainerOptions::default() };
        assert_eq!(given.or(&all).mtu, Some(9000));
    }
}
