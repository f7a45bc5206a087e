//! What callers of the daemon, the daemon and its workers exchange.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use skbudget_controller::{BudgetConfig, LevelConfig, LimitError};
use skbudget_stack::{ContainerConfig, Tap};

use crate::listener;
use crate::stats::ContainerReport;
use crate::units::Size;

/// What the daemon reports without a request. A budget is named as in the stats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonEvent {
    /// The container's device was closed or deleted. All that it held is released.
    ContainerEnded {
        /// The container.
        name: String,
    },
    /// The budget's usage rose above soft.
    PressureStarted {
        /// The budget.
        budget: String,
    },
    /// The usage fell below low.
    PressureEnded {
        /// The budget.
        budget: String,
        /// Time since the usage rose above soft, milliseconds.
        after_ms: u64,
    },
    /// A SYN was dropped: its reservation did not fit in time, or the queue of SYNs was full.
    FlowRefused {
        /// The budget.
        budget: String,
        /// The container; `None` if it was removed since.
        container: Option<String>,
    },
    /// A charge was refused at hard, the first one after a charge that was granted.
    HardReached {
        /// The budget.
        budget: String,
    },
    /// Events that this channel had no room for.
    Lost {
        /// Their number.
        events: u64,
    },
}

/// What is known of a container that ended by itself.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its last report: all flows are closed, and only the device queue is still charged.
    pub report: ContainerReport,
    /// Flows that the end reset with undelivered data.
    pub lost_flows: u64,
    /// Bytes of these flows that were acknowledged to the guest.
    pub lost_bytes: u64,
}

/// A group of containers: a meter above their budgets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// Unique among the groups of the daemon.
    pub name: String,
    /// The group around it; `None`: the host.
    pub parent: Option<String>,
    /// Limits of all its containers together.
    pub limits: LevelConfig,
    /// Share among its siblings, groups and containers, while the level above is under pressure.
    pub weight: u32,
}

/// The group of containers that are in no group of the config.
pub(crate) const GROUP_DEFAULT: &str = "default";

/// A budget shared by containers: the index of its worker, and its index there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BudgetId {
    pub(crate) worker: usize,
    pub(crate) index: usize,
}

/// The budget that a container is charged to.
#[derive(Debug, Clone)]
pub enum BudgetRef {
    /// A budget of its own, removed with the container.
    Own(BudgetConfig),
    /// As `Own`, in this group.
    InGroup(String, BudgetConfig),
    /// A budget created with [`crate::Daemon::add_budget`].
    Shared(BudgetId),
}

/// A port of the host that forwards to one of the guest. The caller binds it, so that a port in use is an early error.
#[derive(Debug)]
pub struct Publish {
    /// The socket on the host.
    pub socket: PublishSocket,
    /// Port in the container.
    pub guest_port: u16,
}

/// Addresses of published ports on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPorts {
    /// TCP ports.
    pub tcp: Vec<SocketAddr>,
    /// UDP ports.
    pub udp: Vec<SocketAddr>,
}

/// Sockets, each with its port in the container.
pub(crate) type Ports<S> = Vec<(S, u16)>;

/// The socket of a published port.
#[derive(Debug)]
pub enum PublishSocket {
    /// Listens for connections.
    Tcp(TcpListener),
    /// Receives datagrams.
    Udp(UdpSocket),
}

impl Publish {
    /// Binds a port of the host. An IPv6 address accepts IPv6 only: `0.0.0.0` and `[::]` can both be bound, and each
    /// forwards to the container's address of its family.
    pub fn bind(addr: SocketAddr, guest_port: u16) -> io::Result<Self> {
        Ok(Self { socket: PublishSocket::Tcp(listener::bind(addr)?), guest_port })
    }

    /// As [`Self::bind`], for a UDP port. At most one port of each family can forward to a port of the container.
    pub fn bind_udp(addr: SocketAddr, guest_port: u16) -> io::Result<Self> {
        Ok(Self { socket: PublishSocket::Udp(listener::bind_udp(addr)?), guest_port })
    }

    /// Address and port on the host.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            PublishSocket::Tcp(listener) => listener.local_addr(),
            PublishSocket::Udp(socket) => socket.local_addr(),
        }
    }

    /// Separates listeners from datagram sockets, each with its port in the container.
    pub(crate) fn split(all: Vec<Self>) -> (Ports<TcpListener>, Ports<UdpSocket>) {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for Self { socket, guest_port } in all {
            match socket {
                PublishSocket::Tcp(listener) => tcp.push((listener, guest_port)),
                PublishSocket::Udp(socket) => udp.push((socket, guest_port)),
            }
        }
        (tcp, udp)
    }
}

/// A container to be added.
#[derive(Debug)]
pub struct ContainerSpec {
    /// Unique among the containers of the daemon.
    pub name: String,
    /// The container's device.
    pub tap: Tap,
    /// Parameters of its stack.
    pub config: ContainerConfig,
    /// The budget that it is charged to.
    pub budget: BudgetRef,
    /// Ports of the host that forward to it.
    pub publish: Vec<Publish>,
    /// Source address of its IPv4 connections to hosts other than this one.
    pub outbound_addr: Option<Ipv4Addr>,
}

/// Why a request to the daemon failed.
#[derive(Debug)]
pub enum DaemonError {
    /// Another container has this name.
    NameInUse(String),
    /// No container has this name.
    NoSuchContainer(String),
    /// No budget has this id.
    NoSuchBudget,
    /// No group has this name.
    NoSuchGroup(String),
    /// Containers or groups are in the group.
    GroupInUse(String),
    /// The guarantees below a level exceed its new hard limit.
    GuaranteesAboveHard {
        /// Their sum.
        min_bytes: u64,
        /// The limit that was requested.
        hard_bytes: u64,
    },
    /// A level above has no room for the charge of a container that is moved below it.
    NoRoomInGroup,
    /// The limits are not in order.
    Limits(LimitError),
    /// The budget has no room for the container's device queue.
    NoRoom {
        /// Charge of the device queue.
        dev_bytes: u64,
    },
    /// The budget has no room for the memory that connections to the published ports can hold before they are accepted.
    NoRoomForPorts {
        /// Number of published ports.
        ports: usize,
        /// What their backlogs can hold, bytes.
        backlog_bytes: u64,
    },
    /// A published UDP port of the container: the budget has no room for its socket, it is published twice, or the
    /// container lacks its family.
    UdpPort {
        /// Port in the container.
        guest_port: u16,
    },
    /// The container does not publish this port.
    NoSuchPort(SocketAddr),
    /// A system call failed.
    Io(io::Error),
    /// The worker has ended: it was shut down, or it failed and logged why.
    Stopped,
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameInUse(name) => write!(f, "name {name:?} is in use"),
            Self::NoSuchContainer(name) => write!(f, "no container is named {name:?}"),
            Self::NoSuchBudget => write!(f, "no such budget"),
            Self::NoSuchGroup(name) => write!(f, "no group is named {name:?}"),
            Self::GroupInUse(name) => write!(f, "group {name:?} has containers or groups in it"),
            Self::GuaranteesAboveHard { min_bytes, hard_bytes } => {
                let (min, hard) = (Size(*min_bytes), Size(*hard_bytes));
                write!(f, "hard {hard} is below the guarantees of the containers, {min} together")
            }
            Self::NoRoomInGroup => write!(f, "the group has no room for what the container holds"),
            Self::Limits(e) => write!(f, "limits: {}", crate::units::describe(e)),
            Self::NoRoom { dev_bytes } => {
                write!(f, "the budget has no room for the device queue of {dev_bytes} bytes")
            }
            Self::NoRoomForPorts { ports, backlog_bytes } => write!(
                f,
                "the budget has no room for the backlogs of {ports} published ports, {backlog_bytes} bytes"
            ),
            Self::UdpPort { guest_port } => write!(
                f,
                "UDP port {guest_port} of the container cannot be published: there is no room for its socket, another \
                 port leads there, or the container lacks its address family"
            ),
            Self::NoSuchPort(addr) => write!(f, "port {addr} is not published"),
            Self::Io(e) => write!(f, "{e}"),
            Self::Stopped => write!(f, "the daemon has stopped"),
        }
    }
}

impl std::error::Error for DaemonError {}

impl From<io::Error> for DaemonError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}
