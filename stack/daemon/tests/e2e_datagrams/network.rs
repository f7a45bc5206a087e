//! Networks around the container: servers on the loopback, and a path with a router.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::unique;

/// A server that sends every datagram back, until it is dropped.
#[derive(Debug)]
pub(crate) struct Echo {
    pub(crate) addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn on(addr: &str) -> Self {
        let socket = UdpSocket::bind(addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let addr = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..len], from);
                }
            }
        };
        Self { addr, stop, thread: Some(thread::spawn(serve)) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// Two namespaces behind this one: a router, and a host behind a link with a smaller MTU.
///
/// `here 198.51.100.1 -- 198.51.100.2 router 203.0.113.1 -- 203.0.113.2 host`
#[derive(Debug)]
pub(crate) struct Path {
    router: String,
    host: String,
}

/// The router's address towards this namespace, and the host's.
pub(crate) const ROUTER: &str = "198.51.100.2";
pub(crate) const HOST: &str = "203.0.113.2";
/// MTU of the link behind the router, bytes.
pub(crate) const NARROW: u32 = 1400;

impl Path {
    pub(crate) fn new() -> Self {
        let names = Self { router: unique("r"), host: unique("h") };
        let Self { router, host } = &names;
        ip(&format!("netns add {router}"));
        ip(&format!("netns add {host}"));
        ip(&format!("link add to-router type veth peer name eth0 netns {router}"));
        ip(&format!("-n {router} link add eth1 type veth peer name eth0 netns {host}"));
        ip("addr add 198.51.100.1/24 dev to-router");
        ip("link set to-router up");
        ip(&format!("-n {router} addr add {ROUTER}/24 dev eth0"));
        ip(&format!("-n {router} addr add 203.0.113.1/24 dev eth1"));
        ip(&format!("-n {host} addr add {HOST}/24 dev eth0"));
        for (netns, device) in [(router, "eth0"), (router, "eth1"), (host, "eth0")] {
            ip(&format!("-n {netns} link set {device} up"));
        }
        for netns in [router, host] {
            ip(&format!("-n {netns} link set lo up"));
        }
        ip(&format!("-n {router} link set eth1 mtu {NARROW}"));
        ip(&format!("-n {host} link set eth0 mtu {NARROW}"));
        ip("route add 203.0.113.0/24 via 198.51.100.2");
        ip(&format!("-n {host} route add default via 203.0.113.1"));
        names.sysctl(router, "net.ipv4.ip_forward=1");
        // The tests send more errors than the kernel's default rate.
        names.sysctl(router, "net.ipv4.icmp_ratelimit=0");
        names.sysctl(host, "net.ipv4.icmp_ratelimit=0");
        names
    }

    /// A program in the host's namespace.
    pub(crate) fn on_host(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.host, program]);
        command
    }

    fn sysctl(&self, netns: &str, setting: &str) {
        let args = ["netns", "exec", netns, "sysctl", "-qw", setting];
        assert!(Command::new("ip").args(args).status().unwrap().success(), "{setting}");
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        for netns in [&self.router, &self.host] {
            let _ = Command::new("ip").args(["netns", "del", netns]).status();
        }
        let _ = Command::new("ip").args(["link", "del", "to-router"]).status();
    }
}
