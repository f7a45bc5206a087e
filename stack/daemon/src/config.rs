//! Turns the command line into the configuration of a container. Every value is checked, every error names its key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use skbudget_controller::{
    BudgetConfig, CHUNK_SIZE, LimitError, Limits, PAGE_SIZE, Rules, SockLimits,
};
use skbudget_stack::{Algorithm, ContainerConfig, PUBLISHED_UDP_BYTES};

use crate::caps::CapSet;
use crate::cli::{Congestion, Isolation, OnOff, Protocol, PublishArg, RuleSet, RunArgs, Triple};
use crate::exit::Failure;
use crate::listener::Backlog;
use crate::units::{Size, describe};

/// Name servers of a container, at most.
const NAME_SERVERS_MAX: usize = 8;

/// Default of `--hard`, bytes.
pub const HARD_DEFAULT: u64 = 256 << 20;

/// The checked configuration of `skbudget run`.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// `None`: a random name.
    pub name: Option<String>,
    /// Limits and rules of its budget.
    pub budget: BudgetConfig,
    /// Parameters of its stack.
    pub container: ContainerConfig,
    /// `--ipv6 on`: the set-up fails without IPv6.
    pub needs_ipv6: bool,
    /// Ports of the host that forward to the guest, one by one.
    pub publish: Vec<PublishArg>,
    /// Source address of IPv4 connections to other hosts.
    pub outbound_addr: Option<Ipv4Addr>,
    /// Capabilities of the command beyond the default set.
    pub added_caps: CapSet,
    /// The command has every capability, and its /proc is writable.
    pub privileged: bool,
    /// File for the frames.
    pub pcap: Option<PathBuf>,
    /// File for the final stats.
    pub stats_file: Option<PathBuf>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

impl RunConfig {
    /// Checks the arguments. `secret`: two random numbers, for the stack's hashes.
    pub fn new(args: RunArgs, secret: [u64; 2]) -> Result<Self, Failure> {
        let (hard, limits) = limits(&args)?;
        let mut sock = SockLimits::default();
        if let Some(Triple(rmem)) = args.tcp_rmem {
            sock.rmem = rmem;
        }
        if let Some(Triple(wmem)) = args.tcp_wmem {
            sock.wmem = wmem;
        }
        check_outbound(args.outbound_addr)?;
        check_outputs(&args)?;
        check_scope(&args)?;
        let offload = args.offload == OnOff::On;
        let mut container = ContainerConfig::new(args.mtu, offload, hard, secret);
        container.host_loopback = !args.no_host_loopback;
        if args.dns.len() > NAME_SERVERS_MAX {
            return Err(Failure::usage(format!(
                "--dns: at most {NAME_SERVERS_MAX} name servers are allowed"
            )));
        }
        container.name_servers = (!args.dns.is_empty()).then(|| args.dns.clone());
        container.congestion = match args.congestion {
            Congestion::Cubic => Algorithm::Cubic,
            Congestion::Reno => Algorithm::Reno,
        };
        match args.ipv6 {
            Some(OnOff::Off) => container.ipv6 = None,
            Some(OnOff::On) if container.ipv6.is_none() => {
                return Err(Failure::usage(format!(
                    "--ipv6 on: IPv6 needs an MTU of 1280 or more, --mtu is {}",
                    args.mtu
                )));
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
        let least = ContainerConfig::least_hard_bytes(args.mtu, offload) + u64::from(more);
        // The order of these checks decides which key an error names.
        hard.map_or(Ok(()), |hard| holds_one_flow(hard, least))?;
        let publish: Vec<PublishArg> = args.publish.iter().flat_map(|arg| arg.each()).collect();
        let of_tcp = publish.iter().filter(|port| port.protocol == Protocol::Tcp).count();
        holds_backlogs(limits, container.list_and_flow_bytes(), of_tcp)?;
        check_udp_ports(limits, &container, &publish)?;
        let rules = match args.rules {
            RuleSet::Strict => Rules::Strict,
            RuleSet::Linux => Rules::Linux,
        };
        // Without a host limit a container has neither a guarantee nor a share.
        let budget = BudgetConfig { rules, limits, sock, min_bytes: 0, weight: 1 };
        Ok(Self {
            name: args.name,
            budget,
            container,
            needs_ipv6: args.ipv6 == Some(OnOff::On),
            publish,
            outbound_addr: args.outbound_addr,
            added_caps: if args.privileged {
                CapSet::ALL
            } else {
                args.cap_add.into_iter().fold(CapSet::NONE, CapSet::with)
            },
            privileged: args.privileged,
            pcap: args.pcap,
            stats_file: args.stats_file,
            command: args.command,
        })
    }
}

/// Refuses options that act among several containers: `run` has one, and no host limit above it.
fn check_scope(args: &RunArgs) -> Result<(), Failure> {
    let given = [
        ("--isolation shared", args.isolation == Isolation::Shared),
        ("--min", args.min.is_some()),
        ("--weight", args.weight.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((key, _)) => Err(Failure::usage(format!(
            "{key} acts among the containers of one daemon (`skbudget serve`); `run` has a single one: omit it"
        ))),
        None => Ok(()),
    }
}

/// Refuses addresses that no interface can have.
fn check_outbound(addr: Option<Ipv4Addr>) -> Result<(), Failure> {
    match addr.filter(|addr| addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast()) {
        Some(addr) => Err(Failure::usage(format!(
            "--outbound-addr {addr}: an address of one of the host's interfaces is needed"
        ))),
        None => Ok(()),
    }
}

/// Refuses one file for both outputs: at the end of the run the stats would replace the capture. Devices are exempt.
fn check_outputs(args: &RunArgs) -> Result<(), Failure> {
    let same_name = args.pcap.is_some() && args.pcap == args.stats_file;
    if same_name && args.pcap.as_ref().is_some_and(|path| !path.starts_with("/dev")) {
        return Err(Failure::usage("--pcap and --stats-file: two different files are needed"));
    }
    Ok(())
}

/// The hard limit in bytes (`None`: no limit) and the three thresholds in pages.
fn limits(args: &RunArgs) -> Result<(Option<u64>, Limits), Failure> {
    let given = [("--hard", args.hard), ("--soft", args.soft), ("--low", args.low)];
    if args.isolation == Isolation::Off {
        if let Some((key, _)) = given.iter().find(|(_, size)| size.is_some()) {
            return Err(Failure::usage(format!(
                "{key} has no effect with --isolation off: omit it, or choose container"
            )));
        }
        return Ok((None, Limits::NONE));
    }
    let hard = args.hard.unwrap_or(HARD_DEFAULT);
    // Before soft and low are derived: a `hard` of less than a page would make the error name those.
    holds_one_flow(hard, ContainerConfig::least_hard_bytes(args.mtu, args.offload == OnOff::On))?;
    let disorder = |low: u64, soft: u64, hard: u64| {
        let size = |pages: u64| Size(pages.saturating_mul(PAGE_SIZE));
        // Names the key with the value that breaks the order.
        let key = if soft >= hard { "--soft" } else { "--low" };
        Failure::usage(format!(
            "{key}: low {} < soft {} < hard {} is needed (whole pages of 4KiB)",
            size(low),
            size(soft),
            size(hard)
        ))
    };
    match Limits::from_bytes(hard, args.soft, args.low) {
        // Rounding down to pages can make two thresholds equal.
        Ok(l) if l.low < l.soft && l.soft < l.hard => Ok((Some(hard), l)),
        Ok(l) => Err(disorder(l.low, l.soft, l.hard)),
        Err(LimitError::Disorder { low, soft, hard }) => Err(disorder(low, soft, hard)),
        Err(e) => Err(Failure::usage(format!("--hard: {}", describe(&e)))),
    }
}

/// Refuses a limit below what one flow and the device queue need.
fn holds_one_flow(hard: u64, least: u64) -> Result<(), Failure> {
    if hard >= least {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--hard {} is too small for one flow and the device queue: at least {} is needed",
        Size(hard),
        Size(least)
    )))
}

/// Refuses ports with backlogs that do not fit: they are charged from the start, beside what every container needs.
fn holds_backlogs(limits: Limits, flow: u64, ports: usize) -> Result<(), Failure> {
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
    Err(Failure::usage(format!(
        "--publish: the backlogs of {ports} ports need {}, which does not fit --hard {}: publish fewer ports, or raise \
         --hard to at least {}",
        Size(backlogs(limits)),
        Size(limits.hard_bytes()),
        Size(least.hard_bytes())
    )))
}

/// Refuses UDP ports that share a port of the container, need IPv6 where there is none, or do not fit their part of the
/// budget: their sockets are charged from the start.
fn check_udp_ports(
    limits: Limits,
    container: &ContainerConfig,
    publish: &[PublishArg],
) -> Result<(), Failure> {
    let mut leads_to = BTreeMap::new();
    for port in publish.iter().filter(|port| port.protocol == Protocol::Udp) {
        let PublishArg { host, guest_port, .. } = *port;
        if host.is_ipv6() && container.ipv6.is_none() {
            return Err(Failure::usage(format!(
                "--publish {host}:{guest_port}/udp: the container has no IPv6"
            )));
        }
        if let Some(other) = leads_to.insert((host.is_ipv6(), guest_port), host) {
            return Err(Failure::usage(format!(
                "--publish: UDP ports {other} and {host} both lead to port {guest_port} of the container, which could \
                 not tell their clients apart: publish one of them"
            )));
        }
    }
    let need = leads_to.len() as u64 * PUBLISHED_UDP_BYTES;
    if need <= limits.hard_bytes() / 8 {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--publish: {} UDP ports need {}, more than an eighth of --hard {}: publish fewer ports, or raise --hard to at \
         least {}",
        leads_to.len(),
        Size(need),
        Size(limits.hard_bytes()),
        Size((need * 8).next_multiple_of(PAGE_SIZE))
    )))
}

/// Rounds up to whole chunks, the unit of a reserve.
fn whole_chunks(bytes: u32) -> u32 {
    (u64::from(bytes).div_ceil(CHUNK_SIZE) * CHUNK_SIZE) as u32
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::units::parse_size;

    fn config(args: &[&str]) -> Result<RunConfig, Failure> {
        let line = ["skbudget", "run"].iter().chain(args).chain(&["--", "true"]);
        let Command::Run(run) = Cli::parse_from(line).command;
        RunConfig::new(*run, [1, 2])
    }

    #[test]
    fn missing_limits_follow_from_those_given() {
        let c = config(&["--hard", "12MiB"]).unwrap();
        let l = c.budget.limits;
        assert_eq!((l.low * 4096, l.soft * 4096, l.hard * 4096), (6 << 20, 8 << 20, 12 << 20));
        assert!(c.container.host_loopback);
    }

    #[test]
    fn disorder_names_the_key_and_what_is_needed() {
        for args in [
            ["--hard", "16MiB", "--soft", "16MiB"],
            ["--hard", "16MiB", "--soft", "20MiB"],
            ["--hard", "16MiB", "--low", "11MiB"],
            ["--soft", "8MiB", "--low", "8MiB"],
        ] {
            let failure = config(&args).unwrap_err();
            assert_eq!(failure.code, 2, "{args:?}");
            assert!(failure.message.contains("low"), "{failure}");
            assert!(failure.message.contains(args[2]), "{failure}");
        }
    }

    #[test]
    fn a_hard_limit_too_small_for_one_flow_names_the_least() {
        let least = ContainerConfig::least_hard_bytes(65520, true);
        for hard in ["64KiB", "4KiB", "1B"] {
            let failure = config(&["--hard", hard]).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with("--hard"), "{failure}");
            assert!(failure.message.contains(&Size(least).to_string()), "{failure}");
        }
        assert!(config(&["--hard", &least.to_string()]).is_ok());
    }

    #[test]
    fn ports_whose_backlogs_do_not_fit_are_refused_with_the_least_that_holds_them() {
        let with = |hard: &str, ports: usize| {
            let ports: Vec<String> = (1..=ports).map(|port| format!("-p{port}:80")).collect();
            let ports = ports.iter().map(String::as_str);
            config(&["--hard", hard].into_iter().chain(ports).collect::<Vec<_>>())
        };
        assert!(with("512KiB", 4).is_ok() && with("4MiB", 40).is_ok());
        for (hard, ports) in [("512KiB", 40), ("512KiB", 6), ("200KiB", 1), ("3MiB", 60)] {
            let failure = with(hard, ports).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with("--publish"), "{failure}");
            assert!(failure.message.contains(&format!("--hard {hard}")), "{failure}");
            let (_, least) = failure.message.split_once("at least ").unwrap();
            let least = parse_size(least).unwrap();
            assert!(with(&least.to_string(), ports).is_ok(), "{failure}");
            assert!(with(&(least - PAGE_SIZE).to_string(), ports).is_err(), "{failure}");
        }
        assert!(config(&["--isolation", "off", "-p80:80"]).is_ok());
    }

    #[test]
    fn udp_ports_are_refused_where_they_cannot_be_served() {
        let ok =
            config(&["--hard", "4MiB", "-p", "53:53/udp", "-p", "53:53", "-p", "[::]:53:53/udp"]);
        assert_eq!(ok.unwrap().publish.len(), 3);
        assert_eq!(config(&["-p", "7000-7009:80-89/udp"]).unwrap().publish.len(), 10);
        let four = ["--hard", "4MiB", "-p", "7000-7004:80-84/udp"];
        let failure = config(&four).unwrap_err();
        let (_, least) = failure.message.split_once("at least ").unwrap();
        assert!(config(&["--hard", least, four[2], four[3]]).is_ok(), "{failure}");
        for (args, expected) in [
            (&["-p", "53:53/udp", "-p", "54:53/udp"][..], "both lead to port 53"),
            (&["--ipv6", "off", "-p", "[::]:53:53/udp"], "no IPv6"),
        ] {
            let failure = config(args).unwrap_err();
            assert!(failure.code == 2 && failure.message.contains(expected), "{failure}");
        }
    }

    #[test]
    fn off_means_no_limit_and_takes_none() {
        assert_eq!(config(&["--isolation", "off"]).unwrap().budget.limits, Limits::NONE);
        let failure = config(&["--isolation", "off", "--hard", "1MiB"]).unwrap_err();
        assert!(failure.message.starts_with("--hard"), "{failure}");
    }

    #[test]
    fn congestion_control_is_cubic_unless_reno_is_asked_for() {
        assert_eq!(config(&[]).unwrap().container.congestion, Algorithm::Cubic);
        assert_eq!(
            config(&["--congestion", "reno"]).unwrap().container.congestion,
            Algorithm::Reno
        );
    }

    #[test]
    fn ipv6_is_on_where_the_mtu_allows_for_it() {
        let ipv6 = |args: &[&str]| config(args).unwrap().container.ipv6.is_some();
        assert!(ipv6(&[]) && ipv6(&["--mtu", "1280"]) && ipv6(&["--ipv6", "on"]));
        assert!(!ipv6(&["--ipv6", "off"]) && !ipv6(&["--mtu", "1279"]));
        let failure = config(&["--mtu", "1279", "--ipv6", "on"]).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(
            failure.message.contains("--ipv6") && failure.message.contains("1280"),
            "{failure}"
        );
    }

    #[test]
    fn an_outbound_address_no_interface_can_have_is_refused() {
        for addr in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            let failure = config(&["--outbound-addr", addr]).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with(&format!("--outbound-addr {addr}")), "{failure}");
        }
        assert!(config(&["--outbound-addr", "127.0.0.1"]).unwrap().outbound_addr.is_some());
    }

    #[test]
    fn the_capture_and_the_stats_need_two_files() {
        let failure = config(&["--pcap", "out/x", "--stats-file", "out/x"]).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(
            failure.message.contains("--pcap") && failure.message.contains("--stats-file"),
            "{failure}"
        );
        // A device takes both.
        for same in ["/dev/null", "/dev/stderr"] {
            assert!(config(&["--pcap", same, "--stats-file", same]).is_ok(), "{same}");
        }
        assert!(config(&["--pcap", "out/x", "--stats-file", "out/y"]).is_ok());
    }

    #[test]
    fn options_that_act_among_containers_are_refused() {
        for (key, value) in [("--min", "1MiB"), ("--weight", "7"), ("--isolation", "shared")] {
            let failure = config(&[key, value]).unwrap_err();
            assert_eq!(failure.code, 2);
            assert!(failure.message.starts_with(key), "{failure}");
            assert!(failure.message.contains("`skbudget serve`"), "{failure}");
        }
        assert!(config(&["--isolation", "container"]).is_ok());
    }
}
