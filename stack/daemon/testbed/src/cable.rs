//! Two set-ups around one relay: the guest's kernel against our stack, and against another kernel.
//!
//! ```text
//! ours    guest netns ─ tap ─ relay ─ SOCK_SEQPACKET ─ stack ─ loopback of the test's namespace
//! kernel  guest netns ─ tap ─ relay ─ tap ─ far netns
//! ```
//! In both, a guest connects to 10.0.2.2, and the server that answers must listen where [`Bench::far`] runs.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt,
    socket, socketpair, sockopt,
};
use skbudget::attach::{self, GuestNet};
use skbudget::{BudgetRef, ContainerSpec, Daemon, DaemonConfig};
use skbudget_controller::{BudgetConfig, Limits, Rules, SockLimits};
use skbudget_sim::packet::{GATEWAY, GATEWAY6, GUEST, GUEST_MAC, GUEST6};
use skbudget_sim::{Faults, LinkConfig, WhenFull};
use skbudget_stack::tap::CaptureWriter;
use skbudget_stack::{ContainerConfig, Tap};

use crate::relay::{Relay, Report};

const MTU: u16 = 1500;
/// Queue of frames between kernel and relay: the relay thread may not run for a while, and a full device drops
/// silently.
const TXQUEUELEN: u32 = 4096;
/// A socket pair's queue, for the same reason.
const PAIR_BYTES: usize = 16 << 20;
pub const HARD: u64 = 256 << 20;

/// The TCP that answers the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Far {
    Ours,
    Kernel,
}

/// How the cable impairs frames, equally in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Cable {
    /// Delay of both directions together.
    pub round_trip: Duration,
    pub bits_per_second: Option<u64>,
    pub faults: Faults,
    pub seed: u64,
}

/// A guest behind a cable.
#[derive(Debug)]
pub struct Bench {
    guest: OwnedFd,
    far: Option<OwnedFd>,
    relay: Option<Relay>,
    daemon: Option<Daemon>,
}

impl Bench {
    pub fn new(far: Far, cable: Cable, capture: Option<CaptureWriter>) -> Self {
        let config = ContainerConfig::new(MTU, false, Some(HARD), [cable.seed, 5]);
        let (guest, left) = plain(GUEST, GATEWAY, config.our_mac, GUEST_MAC);
        let link = LinkConfig {
            delay: cable.round_trip / 2,
            bits_per_second: cable.bits_per_second,
            // A quarter of a second at a gigabit: the queue itself must lose nothing.
            queue_frames: 20_000,
            when_full: WhenFull::Drop,
            express_max: 0,
            faults: cable.faults,
        };
        let (far, right, daemon) = match far {
            Far::Kernel => {
                let (netns, right) = plain(GATEWAY, GUEST, GUEST_MAC, config.our_mac);
                (Some(netns), right, None)
            }
            Far::Ours => {
                let (ours, right) = pair();
                (None, right, Some(daemon(Tap::from_fd(ours).unwrap(), config)))
            }
        };
        let relay = Relay::start(left, right, link, link, cable.seed, capture);
        Self { guest, far, relay: Some(relay), daemon }
    }

    pub fn in_guest<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        attach::run_in(self.guest.as_fd(), work).unwrap()
    }

    /// Runs where the guest's servers must be.
    pub fn far<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.far {
            Some(netns) => attach::run_in(netns.as_fd(), work).unwrap(),
            None => work(),
        }
    }

    /// Starts a server for the guest and connects the guest to it.
    pub fn connect(&self, congestion: &str) -> (TcpStream, TcpStream) {
        self.connect_to(GATEWAY.into(), Ipv4Addr::LOCALHOST.into(), congestion)
    }

    /// The same over IPv6, which this call configures in the namespaces.
    pub fn connect_v6(&self, congestion: &str) -> (TcpStream, TcpStream) {
        let mac = ContainerConfig::new(MTU, false, Some(HARD), [0; 2]).our_mac;
        self.in_guest(|| ipv6_up(GUEST6, GATEWAY6, mac));
        if self.far.is_some() {
            self.far(|| ipv6_up(GATEWAY6, GUEST6, GUEST_MAC));
        }
        self.connect_to(GATEWAY6.into(), Ipv6Addr::LOCALHOST.into(), congestion)
    }

    fn connect_to(&self, at: IpAddr, here: IpAddr, congestion: &str) -> (TcpStream, TcpStream) {
        let ip = if self.far.is_some() { at } else { here };
        let listener = self.far(|| server(ip, congestion));
        let port = listener.local_addr().unwrap().port();
        let client = self.in_guest(|| client(SocketAddr::new(at, port), congestion));
        (client, listener.accept().unwrap().0)
    }

    /// Sets a value under /proc/sys/net/ipv4 of the guest's namespace.
    pub fn set_guest(&self, name: &str, value: &str) {
        self.in_guest(|| set(&format!("ipv4/{name}"), value));
    }

    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// Frames that the guest's device dropped before the relay read them.
    pub fn device_drops(&self) -> u64 {
        let text = self.in_guest(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let line = text.lines().find_map(|line| line.trim().strip_prefix("tap0:"));
        let field = line.and_then(|line| line.split_whitespace().nth(11)?.parse().ok());
        field.expect("the twelfth number is what was not sent")
    }

    pub fn end(mut self) -> Report {
        let report = self.relay.take().map(Relay::stop).unwrap_or_default();
        if let Some(daemon) = self.daemon.take() {
            daemon.shutdown().unwrap();
        }
        report
    }
}

/// The TCP that answers, and the open end of its cable, for frames built by hand.
#[derive(Debug)]
pub struct Bare {
    pub wire: OwnedFd,
    far: Option<OwnedFd>,
    _daemon: Option<Daemon>,
}

impl Bare {
    pub fn new(far: Far) -> Self {
        let config = ContainerConfig::new(MTU, false, Some(HARD), [3, 5]);
        match far {
            Far::Kernel => {
                let (netns, wire) = plain(GATEWAY, GUEST, GUEST_MAC, config.our_mac);
                let v6 = || ipv6_up(GATEWAY6, GUEST6, GUEST_MAC);
                attach::run_in(netns.as_fd(), v6).unwrap();
                Self { wire, far: Some(netns), _daemon: None }
            }
            Far::Ours => {
                let (ours, wire) = pair();
                let daemon = daemon(Tap::from_fd(ours).unwrap(), config);
                Self { wire, far: None, _daemon: Some(daemon) }
            }
        }
    }

    /// A listener that a guest reaches through the gateway's address.
    pub fn listen(&self, v6: bool) -> TcpListener {
        self.at_the_gateway(v6, |ip| TcpListener::bind((ip, 0)).unwrap())
    }

    /// A UDP socket that a guest reaches through the gateway's address.
    pub fn bind_udp(&self, v6: bool) -> UdpSocket {
        self.at_the_gateway(v6, |ip| UdpSocket::bind((ip, 0)).unwrap())
    }

    /// Calls `bind` with the address that a guest reaches as the gateway, in its namespace.
    fn at_the_gateway<T: Send>(&self, v6: bool, bind: impl FnOnce(IpAddr) -> T + Send) -> T {
        let (at, here): (IpAddr, IpAddr) = match v6 {
            true => (GATEWAY6.into(), Ipv6Addr::LOCALHOST.into()),
            false => (GATEWAY.into(), Ipv4Addr::LOCALHOST.into()),
        };
        match &self.far {
            Some(netns) => attach::run_in(netns.as_fd(), || bind(at)).unwrap(),
            None => bind(here),
        }
    }
}

/// A namespace with a device without offload, and a permanent entry for its one neighbour.
fn plain(
    ip: Ipv4Addr,
    gateway: Ipv4Addr,
    gateway_mac: [u8; 6],
    mac: [u8; 6],
) -> (OwnedFd, OwnedFd) {
    let guest = GuestNet {
        ip,
        gateway,
        gateway_mac,
        mac: None,
        prefix_len: 24,
        ipv6: None,
        mtu: MTU,
        txqueuelen: TXQUEUELEN,
        offload: false,
    };
    let netns = attach::create_netns().unwrap();
    let tap = attach::tap_into(netns.as_fd(), &guest).unwrap();
    attach::run_in(netns.as_fd(), || {
        // Frames that the kernel sends by itself would belong to no flow.
        set("ipv6/conf/all/disable_ipv6", "1");
        ip_command(&["link", "set", "tap0", "address", &mac_text(mac)]);
        // The change of the address removed the entry. Without it the guest would send ARP requests through the cable,
        // possibly to a peer without ARP.
        let (gateway, gateway_mac) = (gateway.to_string(), mac_text(gateway_mac));
        ip_command(&["neigh", "replace", &gateway, "lladdr", &gateway_mac, "dev", "tap0"]);
        // Metrics cached from earlier connections would affect later ones.
        set("ipv4/tcp_no_metrics_save", "1");
    })
    .unwrap();
    (netns, tap.as_fd().try_clone_to_owned().unwrap())
}

/// Runs `ip` in the namespace of the calling thread.
fn ip_command(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {}", args.join(" "));
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    for end in [&a, &b] {
        setsockopt(end, sockopt::SndBufForce, &PAIR_BYTES).unwrap();
    }
    (a, b)
}

fn daemon(tap: Tap, config: ContainerConfig) -> Daemon {
    let budget = BudgetConfig {
        rules: Rules::Strict,
        limits: Limits::from_bytes(HARD, None, None).unwrap(),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 100,
    };
    let daemon = Daemon::new(DaemonConfig::default()).unwrap();
    let budget = BudgetRef::Own(budget);
    let name = "impaired".to_owned();
    let spec =
        ContainerSpec { name, tap, config, budget, publish: Vec::new(), outbound_addr: None };
    daemon.add_container(spec).unwrap();
    daemon
}

/// Sets a value under /proc/sys/net in the namespace of the calling thread.
fn set(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(value.as_bytes()).unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Configures IPv6 in the namespace of the calling thread: an address without duplicate address detection, and its one
/// neighbour.
fn ipv6_up(ip: Ipv6Addr, gateway: Ipv6Addr, gateway_mac: [u8; 6]) {
    set("ipv6/conf/all/disable_ipv6", "0");
    set("ipv6/conf/tap0/accept_ra", "0");
    ip_command(&["-6", "addr", "replace", &format!("{ip}/64"), "dev", "tap0", "nodad"]);
    let (gateway, mac) = (gateway.to_string(), mac_text(gateway_mac));
    ip_command(&["-6", "neigh", "replace", &gateway, "lladdr", &mac, "dev", "tap0"]);
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn stream_socket(ip: IpAddr, congestion: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, flags, None).unwrap();
    setsockopt(&fd, sockopt::TcpCongestion, &congestion.into())
        .unwrap_or_else(|e| panic!("TCP_CONGESTION {congestion}: {e}"));
    fd
}

fn server(ip: IpAddr, congestion: &str) -> TcpListener {
    use std::os::fd::AsRawFd;
    let fd = stream_socket(ip, congestion);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, 0))).unwrap();
    listen(&fd, Backlog::new(8).unwrap()).unwrap();
    TcpListener::from(fd)
}

fn client(to: SocketAddr, congestion: &str) -> TcpStream {
    use std::os::fd::AsRawFd;
    let fd = stream_socket(to.ip(), congestion);
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).unwrap_or_else(|e| panic!("connect: {e}"));
    TcpStream::from(fd)
}
