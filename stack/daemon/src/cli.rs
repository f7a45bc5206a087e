//! The command line as typed. [`crate::config`] checks and interprets it.
#![expect(missing_docs, reason = "clap prints doc comments: a comment here is a help text")]

mod capture;
mod client;
mod generate;
mod publish;
mod reach;
mod values;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use skbudget_controller::FlowSizes;
use skbudget_stack::ContainerConfig;

use crate::caps::CapSet;
use crate::listener::Backlog;
use crate::logger::LogFormat;
use crate::units::{Size, parse_size};

pub use capture::CaptureArgs;
pub use client::{
    AttachArgs, ClientArgs, DetachArgs, EventsArgs, FlowProtocol, FlowState, FlowsArgs, ListArgs,
    PublishArgs, ServeArgs, SetArgs, StatsArgs, TopArgs,
};
pub use generate::{CompletionsArgs, ManArgs};
use publish::parse_publish;
pub use publish::{Protocol, PublishArg};
pub use reach::{Reach, ReachArgs};
pub(crate) use values::parse_name;
pub use values::{Congestion, Isolation, NameServer, OnOff, RuleSet, Triple};
use values::{parse_mtu, parse_server, parse_triple};

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
    /// Run the daemon, which serves any number of containers
    Serve(ServeArgs),
    /// Put a running container, or a network namespace, behind the daemon
    Attach(Box<AttachArgs>),
    /// Remove a container from the daemon: its device disappears, its connections are reset
    Detach(DetachArgs),
    /// List the daemon's containers
    Ls(ListArgs),
    /// Print usage, limits and counters of the daemon's containers
    Stats(StatsArgs),
    /// Print the flows of the daemon's containers, one a line, with their memory as in `ss -tmi`
    Flows(FlowsArgs),
    /// Show the daemon's containers on the terminal, the largest first, and the flows of one
    Top(TopArgs),
    /// Print what happens in the daemon, one JSON object a line, until the daemon or the command ends
    Events(EventsArgs),
    /// Capture the frames of a container while it runs (pcapng)
    Capture(CaptureArgs),
    /// Change limits of a container or a group while it runs, all or none
    Set(SetArgs),
    /// Publish TCP ports of a container while it runs
    Publish(PublishArgs),
    /// Close published ports; connections that are open stay open
    Unpublish(PublishArgs),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
    /// Print a man page, or write all of them
    Man(ManArgs),
}

/// Default of `--mtu`, bytes: that of comparable user-space stacks.
pub(crate) const MTU_DEFAULT: u16 = 65520;

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

    #[command(flatten)]
    pub container: ContainerArgs,

    /// Refused: a guarantee within the limit of a host with several containers
    #[arg(long, hide = true, value_name = "SIZE", value_parser = parse_size)]
    pub min: Option<u64>,

    /// Refused: a weight among the containers of a host
    #[arg(long, hide = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub weight: Option<u32>,

    /// Give CMD this capability in addition, over its own namespaces (repeatable); ALL gives every capability
    #[arg(long, value_name = "CAP", value_parser = CapSet::parse)]
    pub cap_add: Vec<CapSet>,

    /// Give CMD every capability over its own namespaces, and leave its /proc writable for root
    #[arg(long)]
    pub privileged: bool,

    /// Restrict the process that exchanges data with CMD and the network to its files and system calls (Landlock,
    /// seccomp); a forbidden call ends the run
    #[arg(long, value_enum, default_value = "on")]
    pub sandbox: OnOff,

    /// Write every frame, in both directions, to this file (pcapng)
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,

    /// Write the final stats to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub stats_file: Option<PathBuf>,

    /// Write messages to stderr as text, or as one JSON object a line
    #[arg(
        long,
        value_enum,
        default_value = "text",
        hide_possible_values = true,
        value_name = "text|json"
    )]
    pub log_format: LogFormat,

    /// Log more to stderr: -v adds info, -vv everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Options of a container, in whichever way it is started.
#[derive(Debug, Args)]
pub struct ContainerArgs {
    /// Hard limit of TCP buffer memory: never exceeded [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub hard: Option<u64>,

    /// Soft limit: above it the container is under pressure [default: 2/3 of hard]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub soft: Option<u64>,

    /// Low mark: pressure ends when usage falls below it [default: half of hard, at most 3/4 of soft]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub low: Option<u64>,

    /// Budget of the container: its own, or none [default: container]
    #[arg(long, value_enum)]
    pub isolation: Option<Isolation>,

    /// Memory rules: strict, or those of the Linux kernel for comparison [default: strict]
    #[arg(long, value_enum)]
    pub rules: Option<RuleSet>,

    /// Congestion control of data sent to the container [default: cubic]
    #[arg(long, value_enum)]
    pub congestion: Option<Congestion>,

    /// Publish TCP port PORT of the container as HOSTPORT of the host, with /udp its UDP port (repeatable); FIRST-LAST
    /// is a range of ports; ADDR is 0.0.0.0 by default, an IPv6 address is written in brackets and forwards to the
    /// container's IPv6 address
    #[arg(short, long, value_name = "[ADDR:]HOSTPORT:PORT[/udp]", value_parser = parse_publish)]
    pub publish: Vec<PublishArg>,

    /// MTU of the container's device, 68 to 65521 [default: 65520]
    #[arg(long, value_name = "BYTES", value_parser = parse_mtu())]
    pub mtu: Option<u16>,

    /// IPv6 in addition to IPv4 [default: on if the MTU is 1280 or more and the kernel supports it]
    #[arg(long, value_enum)]
    pub ipv6: Option<OnOff>,

    /// Offload checksums and segmentation to the two kernels [default: on]
    #[arg(long, value_enum)]
    pub offload: Option<OnOff>,

    /// Refuse connections to the gateway's address instead of forwarding them to the host's loopback
    #[arg(long)]
    pub no_host_loopback: bool,

    #[command(flatten)]
    pub reach: ReachArgs,

    /// Name server for the container, in place of the host's (repeatable, up to 8)
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_server)]
    pub dns: Vec<SocketAddr>,

    /// Source address of the container's IPv4 connections to other hosts
    #[arg(long, value_name = "IPV4")]
    pub outbound_addr: Option<Ipv4Addr>,

    /// Receive buffer of a flow [default: 4096,131072,6MiB]
    #[arg(long, value_name = "MIN,DEFAULT,MAX", value_parser = parse_triple)]
    pub tcp_rmem: Option<Triple>,

    /// Send buffer of a flow [default: 4096,16384,4MiB]
    #[arg(long, value_name = "MIN,DEFAULT,MAX", value_parser = parse_triple)]
    pub tcp_wmem: Option<Triple>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let line = ["skbudget", "run"].iter().chain(args);
        Cli::try_parse_from(line).map(|cli| match cli.command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
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
        assert_eq!((run.container.mtu, run.container.offload, run.weight), (None, None, None));
        assert_eq!(run.command, ["true", "-x"]);
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
