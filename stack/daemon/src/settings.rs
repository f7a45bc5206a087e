//! A container's budget and stack, from options: those of a command line, of the config or of a request. Every value is
//! checked, every error names its key.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use skbudget_controller::{
    BudgetConfig, CHUNK_SIZE, LimitError, Limits, PAGE_SIZE, Rules, SockLimits,
};
use skbudget_stack::tap::{MTU_MAX, MTU_MIN};
use skbudget_stack::{Algorithm, ContainerConfig, PUBLISHED_UDP_BYTES};

use crate::cli::{
    Congestion, ContainerArgs, Isolation, MTU_DEFAULT, NameServer, OnOff, Protocol, PublishArg,
    RuleSet, Triple,
};
use crate::exit::Failure;
use crate::listener::Backlog;
use crate::units::{Bytes, Size, describe};

/// Name servers of a container, at most.
const NAME_SERVERS_MAX: usize = 8;

/// Default of `hard`, bytes.
pub const HARD_DEFAULT: u64 = 256 << 20;

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
pub const OPTION_KEYS: [&str; 17] = [
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
            dns: self.dns.or_else(|| base.dns.clone()),
            outbound_addr: self.outbound_addr.or(base.outbound_addr),
            tcp_rmem: self.tcp_rmem.or(base.tcp_rmem),
            tcp_wmem: self.tcp_wmem.or(base.tcp_wmem),
            publish: self.publish.or_else(|| base.publish.clone()),
        }
    }
}

/// An option with a value that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The option without its dashes.
    key: &'static str,
    /// The rest of the sentence that the key starts: what is wrong, and what is allowed.
    what: String,
}

impl Invalid {
    pub(crate) fn new(key: &'static str, what: impl Into<String>) -> Self {
        Self { key, what: what.into() }
    }

    /// The key as the config and requests write it.
    pub fn key(&self) -> String {
        self.key.replace('-', "_")
    }

    /// The message where options are keys.
    pub fn message(&self) -> String {
        format!("{}{}", self.key(), self.what.replace(" --", " "))
    }
}

impl From<Invalid> for Failure {
    /// The message where options are those of a command line.
    fn from(Invalid { key, what }: Invalid) -> Self {
        Self::usage(format!("--{key}{what}"))
    }
}

/// What is above the container's budget, which decides what some options mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `run`: there is no other container.
    Alone,
    /// One container of a daemon; `limited`: below a level with a limit.
    Daemon {
        /// A level above has a limit.
        limited: bool,
    },
}

/// Weight of a container or a group that gives none.
pub(crate) const WEIGHT_DEFAULT: u32 = 100;
/// Largest weight.
pub(crate) const WEIGHT_MAX: u32 = 10_000;

/// The checked options of a container.
#[derive(Debug, Clone)]
pub struct ContainerSettings {
    /// Limits and rules of its budget.
    pub budget: BudgetConfig,
    /// Parameters of its stack.
    pub container: ContainerConfig,
    /// The set-up fails without IPv6.
    pub needs_ipv6: bool,
    /// Ports of the host that forward to the guest, one by one.
    pub publish: Vec<PublishArg>,
    /// Source address of IPv4 connections to other hosts.
    pub outbound_addr: Option<Ipv4Addr>,
}

impl ContainerSettings {
    /// Checks the options. `secret`: two random numbers, for the stack's hashes.
    pub fn new(
        options: &ContainerOptions,
        scope: Scope,
        secret: [u64; 2],
    ) -> Result<Self, Invalid> {
        let mtu = options.mtu.unwrap_or(MTU_DEFAULT);
        let offload = options.offload != Some(OnOff::Off);
        let (hard, limits) = limits(options)?;
        let mut sock = SockLimits::default();
        if let Some(Triple(rmem)) = options.tcp_rmem {
            sock.rmem = rmem;
        }
        if let Some(Triple(wmem)) = options.tcp_wmem {
            sock.wmem = wmem;
        }
        check_ranges(options, mtu)?;
        check_outbound(options.outbound_addr)?;
        check_scope(options, scope)?;
        let mut container = ContainerConfig::new(mtu, offload, hard, secret);
        container.host_loopback = options.no_host_loopback != Some(true);
        container.name_servers = name_servers(options)?;
        container.congestion = match options.congestion {
            Some(Congestion::Reno) => Algorithm::Reno,
            Some(Congestion::Cubic) | None => Algorithm::Cubic,
        };
        match options.ipv6 {
            Some(OnOff::Off) => container.ipv6 = None,
            Some(OnOff::On) if container.ipv6.is_none() => {
                let what = format!(" on: IPv6 needs an MTU of 1280 or more, --mtu is {mtu}");
                return Err(Invalid::new("ipv6", what));
            }
            Some(OnOff::On) | None => {}
        }

        // A flow's reserve is at least the minimum of its buffers.
        let before = container.sizes;
        container.sizes.rmem_min = before.rmem_min.max(whole_chunks(sock.rmem[0]));
        container.sizes.wmem_min = before.wmem_min.max(whole_chunks(sock.wmem[0]));
        let more = (container.sizes.rmem_min - before.rmem_min)
            + (container.sizes.wmem_min - before.wmem_min);
        // Larger reserves raise the smallest usable `hard`.
        let least = ContainerConfig::least_hard_bytes(mtu, offload) + u64::from(more);
        // The order of these checks decides which key an error names.
        hard.map_or(Ok(()), |hard| holds_one_flow(hard, least))?;
        // Ranges become single ports: each is bound, charged and closed by itself.
        let given = options.publish.iter().flatten();
        let publish: Vec<PublishArg> = given.flat_map(|arg| arg.each()).collect();
        let of_tcp = publish.iter().filter(|port| port.protocol == Protocol::Tcp).count();
        holds_backlogs(limits, container.list_and_flow_bytes(), of_tcp)?;
        check_udp_ports(limits, &container, &publish)?;
        let rules = match options.rules {
            Some(RuleSet::Linux) => Rules::Linux,
            Some(RuleSet::Strict) | None => Rules::Strict,
        };
        // Refused above where they have no effect.
        let min_bytes = options.min.map_or(0, |Bytes(min)| min);
        let weight = options.weight.unwrap_or(WEIGHT_DEFAULT);
        let budget = BudgetConfig { rules, limits, sock, min_bytes, weight };
        let needs_ipv6 = options.ipv6 == Some(OnOff::On);
        Ok(Self { budget, container, needs_ipv6, publish, outbound_addr: options.outbound_addr })
    }
}

/// The name servers, if any are given.
fn name_servers(options: &ContainerOptions) -> Result<Option<Vec<SocketAddr>>, Invalid> {
    let Some(servers) = options.dns.as_ref().filter(|servers| !servers.is_empty()) else {
        return Ok(None);
    };
    if servers.len() > NAME_SERVERS_MAX {
        let what = format!(": at most {NAME_SERVERS_MAX} name servers are allowed");
        return Err(Invalid::new("dns", what));
    }
    Ok(Some(servers.iter().map(|NameServer(addr)| *addr).collect()))
}

/// Refuses numbers out of range; those of a command line have been checked already.
fn check_ranges(options: &ContainerOptions, mtu: u16) -> Result<(), Invalid> {
    if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Err(Invalid::new("mtu", format!(" {mtu} is not in {MTU_MIN}..={MTU_MAX}")));
    }
    match options.weight.filter(|weight| !(1..=WEIGHT_MAX).contains(weight)) {
        Some(weight) => {
            Err(Invalid::new("weight", format!(" {weight} is not in 1..={WEIGHT_MAX}")))
        }
        None => Ok(()),
    }
}

/// Refuses options that have no effect there.
fn check_scope(options: &ContainerOptions, scope: Scope) -> Result<(), Invalid> {
    let given = [
        ("isolation", " shared", options.isolation == Some(Isolation::Shared)),
        ("min", "", options.min.is_some()),
        ("weight", "", options.weight.is_some()),
    ];
    let Some((key, value, _)) = given.iter().find(|(_, _, given)| *given) else { return Ok(()) };
    let what = match scope {
        Scope::Alone => {
            " acts among the containers of one daemon (`skbudget serve`); `run` has a single one: omit it"
        }
        Scope::Daemon { .. } if *key == "isolation" => ": container or off is allowed",
        Scope::Daemon { limited: true } => return Ok(()),
        Scope::Daemon { limited: false } => {
            " acts only below a limit of the host or of a group: omit it, or set hard in [host] of the config"
        }
    };
    Err(Invalid::new(key, format!("{value}{what}")))
}

/// Refuses addresses that no interface can have.
fn check_outbound(addr: Option<Ipv4Addr>) -> Result<(), Invalid> {
    match addr.filter(|addr| addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast()) {
        Some(addr) => Err(Invalid::new(
            "outbound-addr",
            format!(" {addr}: an address of one of the host's interfaces is needed"),
        )),
        None => Ok(()),
    }
}

/// The hard limit in bytes (`None`: no limit) and the three thresholds in pages.
fn limits(options: &ContainerOptions) -> Result<(Option<u64>, Limits), Invalid> {
    let given = [("hard", options.hard), ("soft", options.soft), ("low", options.low)];
    if options.isolation == Some(Isolation::Off) {
        if let Some((key, _)) = given.iter().find(|(_, size)| size.is_some()) {
            let what = " has no effect with --isolation off: omit it, or choose container";
            return Err(Invalid::new(key, what));
        }
        return Ok((None, Limits::NONE));
    }
    let (mtu, offload) = (options.mtu.unwrap_or(MTU_DEFAULT), options.offload != Some(OnOff::Off));
    let least = ContainerConfig::least_hard_bytes(mtu, offload);
    let (hard, limits) = limits_of_options(options, least)?;
    Ok((Some(hard), limits))
}

/// The hard limit in bytes, at least `least`, and the three thresholds in pages.
pub(crate) fn limits_of_options(
    options: &ContainerOptions,
    least: u64,
) -> Result<(u64, Limits), Invalid> {
    let hard = options.hard.unwrap_or(Bytes(HARD_DEFAULT));
    // Before soft and low are derived: a `hard` of less than a page would make the error name those.
    holds_one_flow(hard.0, least)?;
    Ok((hard.0, ordered(hard, options.soft, options.low)?))
}

/// The three thresholds in pages, in order.
pub(crate) fn ordered(
    hard: Bytes,
    soft: Option<Bytes>,
    low: Option<Bytes>,
) -> Result<Limits, Invalid> {
    let bytes = |size: Option<Bytes>| size.map(|Bytes(bytes)| bytes);
    let disorder = |low: u64, soft: u64, hard: u64| {
        let size = |pages: u64| Size(pages.saturating_mul(PAGE_SIZE));
        // Names the key with the value that breaks the order.
        let key = if soft >= hard { "soft" } else { "low" };
        let (low, soft, hard) = (size(low), size(soft), size(hard));
        let what =
            format!(": low {low} < soft {soft} < hard {hard} is needed (whole pages of 4KiB)");
        Invalid::new(key, what)
    };
    match Limits::from_bytes(hard.0, bytes(soft), bytes(low)) {
        // Rounding down to pages can make two thresholds equal.
        Ok(l) if l.low < l.soft && l.soft < l.hard => Ok(l),
        Ok(l) => Err(disorder(l.low, l.soft, l.hard)),
        Err(LimitError::Disorder { low, soft, hard }) => Err(disorder(low, soft, hard)),
        Err(e) => Err(Invalid::new("hard", format!(": {}", describe(&e)))),
    }
}

/// Refuses a limit below what one flow and the device queue need.
fn holds_one_flow(hard: u64, least: u64) -> Result<(), Invalid> {
    if hard >= least {
        return Ok(());
    }
    let (hard, least) = (Size(hard), Size(least));
    let what = format!(
        " {hard} is too small for one flow and the device queue: at least {least} is needed"
    );
    Err(Invalid::new("hard", what))
}

/// Refuses ports with backlogs that do not fit: they are charged from the start, beside what every container needs.
fn holds_backlogs(limits: Limits, flow: u64, ports: usize) -> Result<(), Invalid> {
    let backlogs = |limits| Backlog::fit(limits, ports).bytes() * ports as u64;
    let needs = |limits: Limits| {
        let hard = limits.hard_bytes();
        (ContainerConfig::dev_queue_bytes(Some(hard)) + flow + backlogs(limits)).div_ceil(PAGE_SIZE)
    };
    if ports == 0 || needs(limits) <= limits.hard {
        return Ok(());
    }
    // The need grows with the limit, but by less, so this ends at the smallest limit that holds it all.
    let mut least = limits;
    while needs(least) > least.hard {
        least.hard = needs(least);
    }
    let (needed, hard) = (Size(backlogs(limits)), Size(limits.hard_bytes()));
    let what = format!(
        ": the backlogs of {ports} ports need {needed}, which does not fit --hard {hard}: publish fewer ports, or raise \
         --hard to at least {}",
        Size(least.hard_bytes())
    );
    Err(Invalid::new("publish", what))
}

/// Refuses UDP ports that share a port of the container, need IPv6 where there is none, or do not fit their part of the
/// budget: their sockets are charged from the start.
fn check_udp_ports(
    limits: Limits,
    container: &ContainerConfig,
    publish: &[PublishArg],
) -> Result<(), Invalid> {
    let refused = |what| Err(Invalid::new("publish", what));
    let mut leads_to = BTreeMap::new();
    for port in publish.iter().filter(|port| port.protocol == Protocol::Udp) {
        let PublishArg { host, guest_port, .. } = *port;
        if host.is_ipv6() && container.ipv6.is_none() {
            return refused(format!(" {host}:{guest_port}/udp: the container has no IPv6"));
        }
        if let Some(other) = leads_to.insert((host.is_ipv6(), guest_port), host) {
            return refused(format!(
                ": UDP ports {other} and {host} both lead to port {guest_port} of the container, which could not tell \
                 their clients apart: publish one of them"
            ));
        }
    }
    let need = leads_to.len() as u64 * PUBLISHED_UDP_BYTES;
    if need <= limits.hard_bytes() / 8 {
        return Ok(());
    }
    let (ports, hard) = (leads_to.len(), Size(limits.hard_bytes()));
    let least = Size((need * 8).next_multiple_of(PAGE_SIZE));
    refused(format!(
        ": {ports} UDP ports need {}, more than an eighth of --hard {hard}: publish fewer ports, or raise --hard to at \
         least {least}",
        Size(need)
    ))
}

/// Rounds up to whole chunks, the unit of a reserve.
fn whole_chunks(bytes: u32) -> u32 {
    (u64::from(bytes).div_ceil(CHUNK_SIZE) * CHUNK_SIZE) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_a_key_and_gives_way_to_a_given_one() {
        let all = r#"{"hard":"64MiB","soft":33554432,"low":"16MiB","min":"1MiB","weight":7,"isolation":"off",
            "rules":"linux","congestion":"reno","mtu":1500,"ipv6":"off","offload":"on","no_host_loopback":true,
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

    #[test]
    fn a_guarantee_needs_a_limit_above() {
        let options = ContainerOptions { min: Some(Bytes(1 << 20)), ..ContainerOptions::default() };
        let of = |scope| ContainerSettings::new(&options, scope, [1, 2]);
        assert_eq!(of(Scope::Daemon { limited: true }).unwrap().budget.min_bytes, 1 << 20);
        let refused = of(Scope::Daemon { limited: false }).unwrap_err();
        assert_eq!(refused.key(), "min");
        assert!(refused.message().contains("[host]"), "{}", refused.message());
        assert!(of(Scope::Alone).unwrap_err().message().contains("skbudget serve"));
    }

    #[test]
    fn messages_name_keys_where_options_are_keys() {
        let options = ContainerOptions { hard: Some(Bytes(4096)), ..ContainerOptions::default() };
        let refused = ContainerSettings::new(&options, Scope::Alone, [1, 2]).unwrap_err();
        assert!(refused.message().starts_with("hard 4KiB is too small"), "{}", refused.message());
        assert!(Failure::from(refused).message.starts_with("--hard 4KiB"));
        let tuple = Invalid::new("tcp-rmem", ": raise --hard");
        assert_eq!(
            (tuple.key(), tuple.message()),
            ("tcp_rmem".into(), "tcp_rmem: raise hard".into())
        );
    }
}
