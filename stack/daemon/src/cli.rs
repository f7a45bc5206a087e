//! The command line as typed. [`crate::config`] checks and interprets it.
#![expect(missing_docs, reason = "clap prints doc comments: a comment here is a help text")]

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use skbudget_controller::FlowSizes;
use skbudget_stack::ContainerConfig;
use skbudget_stack::tap::{MTU_MAX, MTU_MIN};

use crate::caps::CapSet;
use crate::listener::Backlog;
use crate::units::{Size, parse_size};

mod publish;

use publish::parse_publish;
pub use publish::{Protocol, PublishArg};

#[derive(Debug, Parser)]
#[command(
    name = "skbudget",
    version,
    about = "Runs containers behind budgeted userspace TCP stacks"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one command in a container of its own
    Run(Box<RunArgs>),
}

/// Default of `--mtu`, bytes: that of comparable user-space stacks.
const MTU_DEFAULT: u16 = 65520;

/// Text below the options. Its numbers hold for the default MTU with offload.
fn run_help() -> String {
    let sizing = |hard| ContainerConfig::new(MTU_DEFAULT, true, Some(hard), [0; 2]);
    let (flows, hard) = (300, 16 << 20);
    let example = sizing(hard);
    let FlowSizes { sock, rmem_min, wmem_min, host_floor } = example.sizes;
    let flow = sock + rmem_min + wmem_min + host_floor;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let (least, most) = (sizing(1).dev_queue_bytes, sizing(u64::MAX).dev_queue_bytes);
    format!(
        "\
The container sees one network, 10.0.2.0/24 and fd00::/64: itself at 10.0.2.100 and fd00::100, the gateway at \
10.0.2.2 and fd00::2, a DNS forwarder at 10.0.2.3 and fd00::3. The gateway's addresses reach the loopback of the host, that is every server listening on \
127.0.0.1 or ::1, unless --no-host-loopback is given.

Sizes accept B, KiB, MiB, GiB, KB, MB and GB. low < soft < hard must hold.

How large --hard should be: every flow that is open at the same time is guaranteed
    sock {sock} + rmem_min {rmem_min} + wmem_min {wmem_min} + host floor {host_floor} = {flow} B
and the device queue takes hard/8, at least {} and at most {}.
Example: {flows} flows need {flows} * {flow} B = {}, the queue of --hard {} takes {}: they fit. Flows that move \
data share the remaining memory; more of it makes them faster.
The backlogs of published ports together take hard/8, up to hard/4 if their connections get a window scale then, and \
at least {} each: (backlog + 2) * (receive buffer * 33/32 + 8 KiB), for data received before a connection is accepted.

CMD runs in new user, network, PID and mount namespaces; all processes in them end with skbudget. If the caller is \
root, CMD has the users and files of the host; otherwise CMD is root in a namespace with one user. CMD has the default \
capabilities of a Docker container, but none over its network: ports below 1024 and ping need none. --cap-add adds \
capabilities, which apply to its own namespaces only; --privileged gives all of them. With NET_ADMIN, CMD can change \
its device. A longer queue would hold uncharged memory, so skbudget restores queue length and MTU when they exceed the \
charge, and counts this (RingTampered); until then, a millisecond, on a busy machine tens of them, the kernel may hold \
the frames of a longer queue. CMD can make no cgroup namespace. Descriptors passed by systemd (LISTEN_FDS) go to CMD; \
data sent and received through them is not charged.

Exit code: CMD's own, 128+N when signal N ended it; 1 failure, 2 usage, 125 the container could not be set up, \
126 CMD is not executable, 127 CMD was not found.",
        Size(least),
        Size(most),
        mib(u64::from(flow) * flows),
        Size(hard),
        mib(example.dev_queue_bytes),
        Size(Backlog::least_bytes()),
    )
}

#[derive(Debug, Args)]
#[command(after_help = run_help())]
pub struct RunArgs {
    /// Name of the container [default: run- and a random number]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub name: Option<String>,

    /// Hard limit of TCP buffer memory: never exceeded [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub hard: Option<u64>,

    /// Soft limit: above it the container is under pressure [default: 2/3 of hard]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub soft: Option<u64>,

    /// Low mark: pressure ends when usage falls below it [default: half of hard, at most 3/4 of soft]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub low: Option<u64>,

    /// Refused: a guarantee within the limit of a host with several containers
    #[arg(long, hide = true, value_name = "SIZE", value_parser = parse_size)]
    pub min: Option<u64>,

    /// Refused: a weight among the containers of a host
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub weight: Option<u32>,

    /// Budget of the container: its own, or none
    #[arg(long, value_enum, default_value_t = Isolation::Container)]
    pub isolation: Isolation,

    /// Memory rules: strict, or those of the Linux kernel for comparison
    #[arg(long, value_enum, default_value_t = RuleSet::Strict)]
    pub rules: RuleSet,

    /// Congestion control of data sent to the container
    #[arg(long, value_enum, default_value_t = Congestion::Cubic)]
    pub congestion: Congestion,

    /// Publish TCP port PORT of the container as HOSTPORT of the host, with /udp its UDP port (repeatable); FIRST-LAST
    /// is a range of ports; ADDR is 0.0.0.0 by default, an IPv6 address is written in brackets and forwards to the
    /// container's IPv6 address
    #[arg(short, long, value_name = "[ADDR:]HOSTPORT:PORT[/udp]", value_parser = parse_publish)]
    pub publish: Vec<PublishArg>,

    /// MTU of the container's device, 68 to 65521
    #[arg(long, value_name = "BYTES", default_value_t = MTU_DEFAULT, value_parser = parse_mtu())]
    pub mtu: u16,

    /// IPv6 in addition to IPv4 [default: on if the MTU is 1280 or more and the kernel supports it]
    #[arg(long, value_enum)]
    pub ipv6: Option<OnOff>,

    /// Offload checksums and segmentation to the two kernels
    #[arg(long, value_enum, default_value_t = OnOff::On)]
    pub offload: OnOff,

    /// Refuse connections to the gateway's address instead of forwarding them to the host's loopback
    #[arg(long)]
    pub no_host_loopback: bool,

    /// Name server for the container, in place of the host's (repeatable, up to 8)
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_server)]
    pub dns: Vec<SocketAddr>,

    /// Source address of the container's IPv4 connections to other hosts
    #[arg(long, value_name = "IPV4")]
    pub outbound_addr: Option<Ipv4Addr>,

    /// Give CMD this capability in addition, over its own namespaces (repeatable); ALL gives every capability
    #[arg(long, value_name = "CAP", value_parser = CapSet::parse)]
    pub cap_add: Vec<CapSet>,

    /// Give CMD every capability over its own namespaces, and leave its /proc writable for root
    #[arg(long)]
    pub privileged: bool,

    /// Write every frame, in both directions, to this file (pcap)
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,

    /// Write the final stats to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub stats_file: Option<PathBuf>,

    /// Receive buffer of a flow [default: 4096,131072,6MiB]
    #[arg(long, value_name = "MIN,DEFAULT,MAX", value_parser = parse_triple)]
    pub tcp_rmem: Option<Triple>,

    /// Send buffer of a flow [default: 4096,16384,4MiB]
    #[arg(long, value_name = "MIN,DEFAULT,MAX", value_parser = parse_triple)]
    pub tcp_wmem: Option<Triple>,

    /// Log more to stderr: -v adds info, -vv everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    Container,
    /// Refused: one budget for several containers.
    #[value(hide = true)]
    Shared,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuleSet {
    Strict,
    Linux,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Congestion {
    Cubic,
    Reno,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    On,
    Off,
}

/// `min <= default <= max`, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Triple(pub [u32; 3]);

/// Maximum length of a name, characters: it becomes part of a file name.
const NAME_MAX: usize = 64;

/// An MTU that the kernel accepts for a TAP.
fn parse_mtu() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(i64::from(MTU_MIN)..=i64::from(MTU_MAX))
}

/// Checks the name of a container, which must also be usable as a file name.
pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let fits = (1..=NAME_MAX).contains(&text.len());
    if fits && text.chars().all(allowed) && !text.starts_with(['.', '-']) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "1 to {NAME_MAX} letters, digits, '.', '_' and '-' are allowed; the first must not be '.' or '-'"
    ))
}

/// Parses the address of a name server; the port is 53 by default.
fn parse_server(text: &str) -> Result<SocketAddr, String> {
    const ALLOWED: &str =
        "an address is allowed, e.g. 192.0.2.1, 2001:db8::1, 192.0.2.1:5353 or [2001:db8::1]:5353";
    let addr = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    let addr: SocketAddr = addr.or_else(|_| text.parse()).map_err(|_| ALLOWED.to_owned())?;
    let ip = addr.ip();
    if ip.is_unspecified() || ip.is_multicast() || addr.port() == 0 {
        return Err(format!("{addr} is no server: {ALLOWED}"));
    }
    Ok(addr)
}

fn parse_triple(text: &str) -> Result<Triple, String> {
    const ALLOWED: &str = "min,default,max with 1 <= min <= default <= max < 2GiB is allowed";
    let sizes = text.split(',').map(parse_size).collect::<Result<Vec<_>, _>>()?;
    let &[min, default, max] = &sizes[..] else { return Err(ALLOWED.to_owned()) };
    if !(1 <= min && min <= default && default <= max && max < 1 << 31) {
        return Err(ALLOWED.to_owned());
    }
    Ok(Triple([min as u32, default as u32, max as u32]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let line = ["skbudget", "run"].iter().chain(args);
        Cli::try_parse_from(line).map(|cli| match cli.command {
            Command::Run(run) => *run,
        })
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let run = parse(&["--", "true", "-x"]).unwrap();
        assert_eq!((run.mtu, run.offload, run.weight), (65520, OnOff::On, None));
        assert_eq!(run.command, ["true", "-x"]);
    }

    #[test]
    fn name_servers() {
        let server = |text: &str| parse_server(text).map(|addr| addr.to_string());
        assert_eq!(server("192.0.2.1").as_deref(), Ok("192.0.2.1:53"));
        assert_eq!(server("2001:db8::1").as_deref(), Ok("[2001:db8::1]:53"));
        assert_eq!(server("127.0.0.1:5353").as_deref(), Ok("127.0.0.1:5353"));
        for bad in ["", "name", "0.0.0.0", "::", "224.0.0.1", "192.0.2.1:0", "192.0.2.1:x"] {
            assert!(server(bad).unwrap_err().contains("is allowed"), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        let cases: [(&[&str], &str); 8] = [
            (&["--mtu", "67", "--", "true"], "68..=65521"),
            (&["--mtu", "65522", "--", "true"], "68..=65521"),
            (&["--hard", "12x", "--", "true"], "--hard"),
            (&["--weight", "0", "--", "true"], "1..=10000"),
            (&["--name", "a/b", "--", "true"], "letters"),
            (&["--tcp-rmem", "3,2,1", "--", "true"], "min <= default"),
            (&["--bogus", "--", "true"], "--bogus"),
            (&["--hard", "1MiB"], "CMD"),
        ];
        for (args, expected) in cases {
            let error = parse(args).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(expected), "{args:?}: {error}");
        }
    }

    #[test]
    fn the_help_says_how_the_host_is_reached_and_how_to_size_hard() {
        let help = parse(&["--help"]).unwrap_err();
        assert_eq!(help.exit_code(), 0);
        let text = help.to_string();
        for expected in [
            "loopback of the host",
            "--no-host-loopback",
            "sock 1536 + rmem_min",
            "takes hard/8",
            "at least 65KiB",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
