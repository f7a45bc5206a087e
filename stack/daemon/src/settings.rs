//! A container's budget and stack, from options: those of a command line, of the config or of a request. Every value is
//! checked, every error names its key.

mod limits;
mod options;
mod ports;

use std::net::{Ipv4Addr, SocketAddr};

use skbudget_controller::{BudgetConfig, CHUNK_SIZE, Rules, SockLimits};
use skbudget_stack::tap::{MTU_MAX, MTU_MIN};
use skbudget_stack::{Algorithm, ContainerConfig, ReachRule};

use crate::cli::{
    Congestion, Isolation, MTU_DEFAULT, NameServer, OnOff, Protocol, PublishArg, Reach, RuleSet,
    Triple,
};
use crate::exit::Failure;
use crate::units::Bytes;
use limits::{holds_one_flow, limits};
pub(crate) use limits::{limits_of_options, ordered};
pub use options::{ContainerOptions, OPTION_KEYS};
pub(crate) use ports::check_udp_ports;
use ports::holds_backlogs;

/// Rules of where a container may connect to, at most: each datagram is compared with all of them.
const REACH_MAX: usize = 256;

/// Name servers of a container, at most.
const NAME_SERVERS_MAX: usize = 8;

/// Default of `hard`, bytes.
pub const HARD_DEFAULT: u64 = 256 << 20;

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
        container.reach = reach(options)?;
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

/// Where the container may connect to.
fn reach(options: &ContainerOptions) -> Result<Vec<ReachRule>, Invalid> {
    let rules = options.reach.iter().flatten();
    let rules: Vec<ReachRule> = rules.map(|Reach(rule)| *rule).collect();
    if rules.len() > REACH_MAX {
        let given = rules.len();
        let what = format!(
            ": {given} rules, of --allow and --deny together; at most {REACH_MAX} are allowed"
        );
        return Err(Invalid::new("reach", what));
    }
    Ok(rules)
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

/// Rounds up to whole chunks, the unit of a reserve.
fn whole_chunks(bytes: u32) -> u32 {
    (u64::from(bytes).div_ceil(CHUNK_SIZE) * CHUNK_SIZE) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

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
