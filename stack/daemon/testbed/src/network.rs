//! A network for a daemon: the daemon's host sockets and the servers are on the loopback of one namespace, and every
//! other destination is routed to a neighbour that never answers.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
};
use skbudget::attach::{self, GuestNet};
use skbudget::stats::ContainerReport;
use skbudget::{BudgetRef, ContainerSpec, Daemon, DaemonConfig};
use skbudget_controller::{BudgetConfig, LevelConfig, Limits, PAGE_SIZE, Rules, SockLimits};
use skbudget_stack::ContainerConfig;

pub const MTU: u16 = 1500;

/// Makes addresses that never answer: frames are sent to a hardware address that no device has.
const SILENCE: &str = "ip link add va type veth peer name vb; ip link set va up; ip link set vb up; \
     ip addr add 192.0.2.1/24 dev va; ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev va; \
     ip route add 198.51.100.0/24 via 192.0.2.9";

#[derive(Debug)]
pub struct Network {
    netns: OwnedFd,
}

impl Network {
    pub fn create() -> Self {
        let netns = attach::create_netns().unwrap();
        let network = Self { netns };
        let set_up = || Command::new("sh").args(["-ec", SILENCE]).status().unwrap();
        assert!(network.within(set_up).success(), "{SILENCE}");
        network
    }

    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        attach::run_in(self.netns.as_fd(), work).unwrap()
    }

    /// Starts a daemon with this limit for all containers together, bytes.
    pub fn daemon(&self, hard: u64) -> Daemon {
        self.daemon_of(1, hard)
    }

    pub fn daemon_of(&self, workers: usize, hard: u64) -> Daemon {
        let pages = hard / PAGE_SIZE;
        let host = Some(LevelConfig { low: pages / 2, soft: pages * 2 / 3, hard: pages });
        let config = DaemonConfig { workers, host, ..DaemonConfig::default() };
        // Workers run in the namespace of the thread that creates them.
        self.within(|| Daemon::new(config)).unwrap()
    }

    /// A listener on the namespace's loopback.
    pub fn listen(&self, port: u16, backlog: i32) -> TcpListener {
        self.within(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
            let to = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
            bind(fd.as_raw_fd(), &to).unwrap();
            listen(&fd, Backlog::new(backlog).unwrap()).unwrap();
            TcpListener::from(fd)
        })
    }
}

/// A namespace served by the daemon, with a budget of its own. `ip` is its kernel's address: the container's, or
/// another one if a test program sends and receives for the container.
pub fn container(
    daemon: &Daemon,
    name: &str,
    hard: u64,
    ip: Option<Ipv4Addr>,
    offload: bool,
) -> OwnedFd {
    let config = ContainerConfig::new(MTU, offload, Some(hard), [hard, 5]);
    let netns = attach::create_netns().unwrap();
    let mut guest = GuestNet::from(&config);
    guest.ip = ip.unwrap_or(guest.ip);
    let tap = attach::tap_into(netns.as_fd(), &guest).unwrap();
    let budget = BudgetRef::Own(BudgetConfig {
        rules: Rules::Strict,
        limits: Limits::from_bytes(hard, None, None).unwrap(),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 100,
    });
    let (name, publish) = (name.to_owned(), Vec::new());
    let spec = ContainerSpec { name, tap, config, budget, publish, outbound_addr: None };
    daemon.add_container(spec).unwrap();
    netns
}

pub fn report(daemon: &Daemon, name: &str) -> ContainerReport {
    let all = daemon.stats(true).unwrap().containers;
    all.into_iter().find(|container| container.name == name).expect("a container of that name")
}
