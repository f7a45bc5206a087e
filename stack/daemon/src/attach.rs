//! Putting a device into a container's network namespace.
//!
//! The device is created in a scratch namespace and then moved, because a descriptor pins the namespace its node was
//! opened in: one opened inside would keep the container's network alive after its last process. A moved one reports
//! the end of the container as soon as it comes.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};
use skbudget_stack::{ContainerConfig, Tap};

use crate::netlink::Netlink;

/// Name of the device in the container.
pub const DEVICE_NAME: &str = "tap0";

const LOOPBACK_NAME: &str = "lo";

/// All of 10.0.2.0/24 is reached through the device.
const SUBNET_PREFIX: u8 = 24;

/// The guest's IPv6 addresses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestNet6 {
    pub ip: Ipv6Addr,
    pub gateway: Ipv6Addr,
    pub prefix_len: u8,
    /// Where the kernel has no IPv6 the device is not set up; otherwise it is set up without.
    pub required: bool,
}

/// What the guest's end of the device looks like.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestNet {
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub ipv6: Option<GuestNet6>,
    /// Told to the guest's kernel: otherwise what waits for the answer to its first ARP request arrives as one burst,
    /// within the very write of the answer, and most of it does not fit the device's queue.
    pub gateway_mac: [u8; 6],
    pub mtu: u16,
    pub txqueuelen: u32,
    pub offload: bool,
}

impl From<&ContainerConfig> for GuestNet {
    fn from(config: &ContainerConfig) -> Self {
        Self {
            ip: config.guest_ip,
            gateway: config.gateway_ip,
            ipv6: config.ipv6.map(|net| GuestNet6 {
                ip: net.guest,
                gateway: net.gateway,
                prefix_len: net.prefix_len,
                required: false,
            }),
            gateway_mac: config.our_mac,
            mtu: config.mtu,
            txqueuelen: config.txqueuelen(),
            offload: config.offload,
        }
    }
}

/// Which step of setting up failed.
#[derive(Debug)]
pub struct AttachError {
    pub step: &'static str,
    pub source: io::Error,
}

impl std::fmt::Display for AttachError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step, self.source)
    }
}

impl std::error::Error for AttachError {}

/// Names the step a result belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, AttachError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, AttachError> {
        self.map_err(|e| AttachError { step, source: e.into() })
    }
}

/// A new network namespace with its loopback up; it lives as long as the descriptor or a process in it. Needs
/// CAP_SYS_ADMIN.
pub fn create_netns() -> Result<OwnedFd, AttachError> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).step("new network namespace")?;
        loopback_up()?;
        current_netns()
    })
}

/// Creates a device in the network namespace and configures it there. Needs CAP_SYS_ADMIN over it.
pub fn tap_into(netns: BorrowedFd<'_>, guest: &GuestNet) -> Result<Tap, AttachError> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).step("scratch network namespace")?;
        tap_into_from_here(netns, guest)
    })
}

/// Joins two namespaces by a pair of devices, without a stack of ours in between: what to compare with. `name` is the
/// device in `world`, with address `near`; the container's has `far`. Segments go through one by one, as over a
/// network: a kernel short of memory always takes one piece into an empty queue, and on a bare pair of devices a piece
/// is 64 KiB. Needs CAP_SYS_ADMIN over both.
pub fn veth_between(
    world: BorrowedFd<'_>,
    name: &str,
    near: Ipv4Addr,
    container: BorrowedFd<'_>,
    far: Ipv4Addr,
) -> Result<(), AttachError> {
    let configure = |device: &str, ip: Ipv4Addr| {
        let index = if_nametoindex(device).step("find the device")?;
        let mut netlink = Netlink::open().step("netlink")?;
        netlink.add_address(index, ip.into(), SUBNET_PREFIX).step("set the address")?;
        netlink.single_segments(index).step("set the device's segments")?;
        netlink.up(index).step("bring the device up")
    };
    run_in(world, || {
        let mut netlink = Netlink::open().step("netlink")?;
        netlink.add_veth(name, DEVICE_NAME, container).step("create the pair of devices")?;
        configure(name, near)
    })??;
    run_in(container, || configure(DEVICE_NAME, far))?
}

/// Runs `work` in the network namespace, on a thread of its own.
pub fn run_in<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, AttachError> {
    on_a_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET).step("enter the network namespace")?;
        Ok(work())
    })
}

/// As `tap_into`, from the scratch namespace that the calling thread is in; the thread ends up in `netns`.
pub(crate) fn tap_into_from_here(
    netns: BorrowedFd<'_>,
    guest: &GuestNet,
) -> Result<Tap, AttachError> {
    let tap = Tap::open(DEVICE_NAME, guest.offload).step("create the device (/dev/net/tun)")?;
    let index = if_nametoindex(DEVICE_NAME).step("find the device")?;
    let mut outside = Netlink::open().step("netlink")?;
    // Before it is up and before anything is in its queue.
    let mtu = guest.mtu.into();
    outside.set_queue(index, mtu, guest.txqueuelen).step("set MTU and queue of the device")?;
    outside.move_device(index, DEVICE_NAME, netns).step("move the device")?;

    setns(netns, CloneFlags::CLONE_NEWNET).step("enter the network namespace")?;
    let mut inside = Netlink::open().step("netlink")?;
    let index = if_nametoindex(DEVICE_NAME).step("find the device that was moved")?;
    no_autoconf();
    inside.add_address(index, guest.ip.into(), SUBNET_PREFIX).step("set the guest's address")?;
    inside.up(index).step("bring the device up")?;
    reach(&mut inside, index, guest.gateway.into(), guest.gateway_mac)?;
    if let Some(net) = &guest.ipv6 {
        match add_ipv6(&mut inside, index, net, guest.gateway_mac) {
            Err(e) if net.required => return Err(e),
            Err(e) => log::warn!("no IPv6 in the container: {e}"),
            Ok(()) => {}
        }
    }
    Ok(tap)
}

fn add_ipv6(
    inside: &mut Netlink,
    index: u32,
    net: &GuestNet6,
    gateway_mac: [u8; 6],
) -> Result<(), AttachError> {
    let (ip, prefix) = (net.ip.into(), net.prefix_len);
    inside.add_address(index, ip, prefix).step("set the guest's IPv6 address")?;
    reach(inside, index, net.gateway.into(), gateway_mac)
}

fn reach(
    inside: &mut Netlink,
    index: u32,
    gateway: IpAddr,
    mac: [u8; 6],
) -> Result<(), AttachError> {
    inside.add_neighbour(index, gateway, mac).step("set the gateway's hardware address")?;
    inside.add_default_route(index, gateway).step("set the default route")
}

/// The guest has the addresses it was given and no others: what a router advertises is for guests that were given
/// none. Where /proc is read-only there will be one more address, which works as well.
fn no_autoconf() {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE_NAME}/accept_ra"), "0");
}

pub(crate) fn loopback_up() -> Result<(), AttachError> {
    let index = if_nametoindex(LOOPBACK_NAME).step("find the loopback")?;
    Netlink::open().step("netlink")?.up(index).step("bring the loopback up")
}

/// The calling thread's.
pub(crate) fn current_netns() -> Result<OwnedFd, AttachError> {
    let fd = File::open("/proc/thread-self/ns/net").step("open /proc/thread-self/ns/net")?;
    Ok(fd.into())
}

/// Namespaces are per thread: what a thread of its own enters does not move its caller.
fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, AttachError> + Send,
) -> Result<T, AttachError> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// `netns` by path, as /proc/PID/ns/net or /run/netns/NAME.
pub fn open_netns(path: &std::path::Path) -> io::Result<OwnedFd> {
    File::open(path)?.as_fd().try_clone_to_owned()
}
