//! The commands of the daemon and of its clients.
#![expect(missing_docs, reason = "clap prints doc comments: a comment here is a help text")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::Args;

use super::{ContainerArgs, OnOff, PublishArg, parse_name, parse_publish};
pub use crate::flows::{FlowProtocol, FlowState};
use crate::flows::{parse_protocol, parse_state};
use crate::logger::LogFormat;
use crate::units::parse_size;

/// Most worker threads: more than any machine that this runs on has cores for.
const WORKERS_MAX: i64 = 1024;

const SERVE_HELP: &str = "\
As root the daemon serves any container. As another user it serves containers in user namespaces of that user, and the \
user needs access to /dev/net/tun. It serves the containers of the config and those that clients attach until SIGTERM or \
SIGINT; then it accepts no more requests, delivers what containers have sent already for at most `drain` seconds of \
[daemon] (default 5), and removes the devices. A container whose network namespace ends is removed by itself, and its \
name is free again. SIGHUP reads the config again and applies what changed in it.

Two processes: a parent with the privileges, and one without any that exchanges data with containers and clients. If \
the latter ends, the parent starts a new one with the same devices: connections are lost, and nothing else.

A daemon that starts again, also after it was killed, attaches the containers that still exist: with the same device, \
addresses, limits, group and ports. Connections are lost.

The socket accepts root, the user that started the daemon, and members of --socket-group. A second daemon on the same socket is refused; the socket \
of a daemon that was killed is taken over.

Exit code: 0 after a signal, 1 failure, 2 the command line or the config is wrong.";

#[derive(Debug, Args)]
#[command(after_help = SERVE_HELP)]
pub struct ServeArgs {
    /// Configuration (TOML): limits of the host, groups, templates, containers
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check the config, print what is wrong with it, and exit
    #[arg(long, requires = "config")]
    pub check: bool,

    /// Control socket [default: SKBUDGET_SOCKET, or /run/skbudget/skbudget.sock, or for other users than
    /// root $XDG_RUNTIME_DIR/skbudget/skbudget.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Group whose members may connect to the socket, too: they can attach any container
    #[arg(long, value_name = "NAME|GID")]
    pub socket_group: Option<String>,

    /// Where a daemon that starts again finds its containers [default: state, beside the socket]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    pub workers: Option<u32>,

    /// Restrict the process that exchanges data with containers and clients to its system calls, and close the file
    /// system to it (Landlock, seccomp); a forbidden call ends that process, and a new one serves the containers
    #[arg(long, value_enum, default_value = "on")]
    pub sandbox: OnOff,

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
}

/// How a client reaches the daemon.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// Control socket of the daemon [default: SKBUDGET_SOCKET, or /run/skbudget/skbudget.sock, or for other users than
    /// root $XDG_RUNTIME_DIR/skbudget/skbudget.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

const ATTACH_HELP: &str = "\
The container gets a device with an address of the daemon's subnet (10.213.0.0/16 and fd00:0:0:213::/64, or as the \
config gives it) and a default route through it, so its namespace must have neither a default route nor a device of \
that name. The gateway is 10.213.0.2, the DNS forwarder 10.213.0.3. It is served until it is detached or its \
namespace ends. --min and --weight act below a limit of the host or of a group ([host] and [[group]] of the daemon's \
config).

Exit code: 0, 1 the daemon refused or is not there, 2 the command line or a limit is wrong.";

#[derive(Debug, Args)]
#[command(after_help = ATTACH_HELP)]
pub struct AttachArgs {
    /// Name of the container
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub name: String,

    /// A process in the container
    #[arg(long, value_name = "PID", required_unless_present = "netns", conflicts_with = "netns",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Option<u32>,

    /// The container's network namespace, such as /run/netns/NAME
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,

    /// Group of the daemon's config that the container is charged to, too
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,

    /// Name of the device in the container [default: eth0]
    #[arg(long, value_name = "NAME")]
    pub ifname: Option<String>,

    /// IPv4 address, one of the daemon's subnet; the IPv6 address has the same number [default: the next free one]
    #[arg(long, value_name = "ADDR")]
    pub address: Option<Ipv4Addr>,

    /// Guarantee within the limits of the host and the group
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub min: Option<u64>,

    /// Weight among its siblings while the host or the group is under pressure [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub weight: Option<u32>,

    #[command(flatten)]
    pub container: ContainerArgs,

    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Name of the container
    #[arg(value_name = "NAME")]
    pub name: String,

    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Name of a container [default: all]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,

    /// Print JSON (skbudget.stats/1)
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub client: ClientArgs,
}

const FLOWS_HELP: &str = "\
Each line has protocol, state, the bytes that the host (RECV-Q) and the container (SEND-Q) have not taken yet, both ends, \
and details. A UDP port of the container, or an identifier of its echo requests, is one line, with the peer it last sent \
to. On a terminal the details are below.

skmem:(...) has the names of ss, in bytes: r received, rb its bound, tb bound of w, f charged and empty (open window, \
unused reserve), w queued for the container, o the flow itself, d segments dropped for want of memory; t and bl are \
always 0 here. host: is the charge of the host socket's buffers: r, f, w, o and host: add up to all that is charged. \
rto and rtt are in milliseconds, the rest in bytes; from_guest is what the container sent.

STATE is a name of ss, such as established or close-wait; connecting: the host's side is not open yet; orphan: the \
container's end is closed, and its data is still delivered.";

#[derive(Debug, Args)]
#[command(after_help = FLOWS_HELP)]
pub struct FlowsArgs {
    /// Name of a container [default: all]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,

    /// Print JSON (skbudget.flows/1)
    #[arg(long)]
    pub json: bool,

    /// Only flows of this protocol: tcp, udp or icmp
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    pub protocol: Option<FlowProtocol>,

    /// Only flows in this state
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    pub state: Option<FlowState>,

    /// Only flows with this port at either end
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Only flows with this address at either end
    #[arg(long, value_name = "ADDR")]
    pub addr: Option<IpAddr>,

    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Resume after the event of this number
    #[arg(long, value_name = "ID")]
    pub after: Option<u64>,

    #[command(flatten)]
    pub client: ClientArgs,
}

const TOP_HELP: &str = "\
Refreshed every second. Keys: s the next order, r the reverse order, / a part of names to select, Up, Down, PageUp and \
PageDown another container, Enter its flows (those that hold most first), Esc back, q the end.

OF HARD is the usage as a part of hard, with marks at low and soft: green, yellow under pressure, red if a charge was \
refused. SENT/s and RECV/s are bytes a second, REFUSED flows refused so far, CPU% the worker's time for the container.

Exit code: 0 after q, 128+N when signal N ended it; 1 no daemon at the start, 2 not a terminal.";

#[derive(Debug, Args)]
#[command(after_help = TOP_HELP)]
pub struct TopArgs {
    #[command(flatten)]
    pub client: ClientArgs,
}

const SET_HELP: &str = "\
Keys of a container: hard, soft, low, min (a size, or `default` for the value that follows from the others) and group \
(a name, or `default` for none). Keys of a group, and of the host as @host: hard, soft, low; soft and low follow from \
hard if they are not given with it. All of them change, or none. A limit below the current usage is allowed: there is \
no more memory then until the usage has fallen, and nothing that is buffered is dropped.";

#[derive(Debug, Args)]
#[command(after_help = SET_HELP)]
pub struct SetArgs {
    /// Name of a container, or @ and the name of a group
    #[arg(value_name = "NAME|@GROUP")]
    pub name: String,

    /// Limits to change
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub values: Vec<String>,

    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Name of the container
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Ports, of TCP unless /udp follows; ADDR is 0.0.0.0 by default, an IPv6 address is written in brackets,
    /// FIRST-LAST is a range
    #[arg(value_name = "[ADDR:]HOSTPORT:PORT[/udp]", required = true, value_parser = parse_publish)]
    pub ports: Vec<PublishArg>,

    #[command(flatten)]
    pub client: ClientArgs,
}
