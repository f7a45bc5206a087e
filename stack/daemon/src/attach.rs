//! Creates a device in a container's network namespace.
//!
//! The device is created in a scratch namespace and then moved, because a descriptor pins the namespace in which its
//! device was opened: opened inside, it would keep the container's network alive after the last process. The descriptor
//! of a moved device reports the end of the container's namespace at once.

use std::borrow::Cow;
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

/// Prefix of the addresses of [`veth_between`], bits.
const VETH_PREFIX: u8 = 24;

/// The guest's IPv6 addresses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestNet6 {
    /// The guest's own address.
    pub ip: Ipv6Addr,
    /// The gateway, which is the default route.
    pub gateway: Ipv6Addr,
    /// Prefix length of the guest's address, bits.
    pub prefix_len: u8,
    /// With it a kernel without IPv6 fails the set-up; without it the device then gets IPv4 only.
    pub required: bool,
}

/// Configuration of the guest's end of the device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestNet {
    /// The guest's own IPv4 address.
    pub ip: Ipv4Addr,
    /// The IPv4 gateway, which is the default route.
    pub gateway: Ipv4Addr,
    /// Prefix length of the guest's IPv4 address, bits: this subnet is reached through the device.
    pub prefix_len: u8,
    /// `None`: the guest gets IPv4 only.
    pub ipv6: Option<GuestNet6>,
    /// The gateway's address, set as a permanent neighbour of the guest's kernel. Without that, the frames that wait
    /// for its first ARP answer would all arrive in one burst, within the write of that answer, and most of them do not
    /// fit the device's queue.
    pub gateway_mac: [u8; 6],
    /// The device's own address. `None`: the kernel chooses one.
    pub mac: Option<[u8; 6]>,
    /// MTU of the device, bytes.
    pub mtu: u16,
    /// Length of the device's queue, packets: what the container is charged for (B12).
    pub txqueuelen: u32,
    /// Whether checksums and segmentation are offloaded.
    pub offload: bool,
}

impl From<&ContainerConfig> for GuestNet {
    fn from(config: &ContainerConfig) -> Self {
        Self {
            ip: config.guest_ip,
            gateway: config.gateway_ip,
            prefix_len: config.prefix_len,
            ipv6: config.ipv6.map(|net| GuestNet6 {
                ip: net.guest,
                gateway: net.gateway,
                prefix_len: net.prefix_len,
                required: false,
            }),
            gateway_mac: config.our_mac,
            mac: None,
            mtu: config.mtu,
            txqueuelen: config.txqueuelen(),
            offload: config.offload,
        }
    }
}

/// The step that fails with EEXIST where the namespace has a device of that name.
pub(crate) const MOVE: &str = "move the device";

/// The step that fails with EEXIST where the namespace has a default route.
pub(crate) const DEFAULT_ROUTE: &str = "set the default route";

/// A step of the set-up, and why it failed.
#[derive(Debug)]
pub struct AttachError {
    /// What failed.
    pub step: Cow<'static, str>,
    /// The error of the kernel.
    pub source: io::Error,
}

impl std::fmt::Display for AttachError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step, self.source)
    }
}

impl std::error::Error for AttachError {}

/// Adds the name of the step to an error.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, AttachError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, AttachError> {
        self.map_err(|e| AttachError { step: step.into(), source: e.into() })
    }
}

/// Creates a network namespace with its loopback up. It exists as long as the descriptor, or a process in it. Needs
/// CAP_SYS_ADMIN.
pub fn create_netns() -> Result<OwnedFd, AttachError> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).step("new network namespace")?;
        loopback_up()?;
        current_netns()
    })
}

/// Creates a device and moves it into the network namespace, configured. Needs CAP_SYS_ADMIN over that namespace.
pub fn tap_into(netns: BorrowedFd<'_>, guest: &GuestNet) -> Result<Tap, AttachError> {
    named_tap_into(netns, DEVICE_NAME, guest)
}

/// As [`tap_into`], with a name for the device. After an error the namespace has no such device.
pub fn named_tap_into(
    netns: BorrowedFd<'_>,
    device: &str,
    guest: &GuestNet,
) -> Result<Tap, AttachError> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).step("scratch network namespace")?;
        tap_into_from_here(netns, device, guest)
    })
}

/// Joins two namespaces by a pair of devices, without a stack of this project between them: the reference in
/// comparisons. `name` is the device in `world`, with address `near`; the container's device has address `far`. The
/// devices pass segments one by one, as a network does: a kernel short of memory always accepts one unit into an empty
/// queue, and on a veth pair a unit is 64 KiB by default. Needs CAP_SYS_ADMIN over both namespaces.
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
        netlink.add_address(index, ip.into(), VETH_PREFIX).step("set the address")?;
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

/// Runs `work` in the network namespace, on a thread of its own. The caller's namespace does not change.
pub fn run_in<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, AttachError> {
    on_a_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET).step("enter the network namespace")?;
        Ok(work())
    })
}

/// As `tap_into`, from the scratch namespace of the calling thread. The thread is in `netns` afterwards.
pub(crate) fn tap_into_from_here(
    netns: BorrowedFd<'_>,
    device: &str,
    guest: &GuestNet,
) -> Result<Tap, AttachError> {
    let tap = Tap::open(device, guest.offload).step("create the device (/dev/net/tun)")?;
    let index = if_nametoindex(device).step("find the device")?;
    let mut outside = Netlink::open().step("netlink")?;
    // Set before the device is up, while its queue is empty.
    let mtu = guest.mtu.into();
    outside.set_queue(index, mtu, guest.txqueuelen).step("set MTU and queue of the device")?;
    if let Some(mac) = guest.mac {
        outside.set_mac(index, mac).step("set the hardware address of the device")?;
    }
    outside.move_device(index, device, netns).step(MOVE)?;

    // A socket of the new namespace is needed: `outside` still configures the scratch one.
    setns(netns, CloneFlags::CLONE_NEWNET).step("enter the network namespace")?;
    let mut inside = Netlink::open().step("netlink")?;
    let index = if_nametoindex(device).step("find the device that was moved")?;
    // Before the device is up: a router advertisement could arrive at once.
    no_autoconf(device);
    let prefix = guest.prefix_len;
    inside.add_address(index, guest.ip.into(), prefix).step("set the guest's address")?;
    inside.up(index).step("bring the device up")?;
    // After the device is up: the kernel accepts no route through one that is down.
    reach(&mut inside, index, guest.gateway.into(), guest.gateway_mac)?;
    if let Some(net) = &guest.ipv6 {
        match add_ipv6(&mut inside, index, net, guest.gateway_mac) {
            Err(e) if net.required => return Err(e),
            Err(e) => tracing::warn!("no IPv6 in the container: {e}"),
            Ok(()) => {}
        }
    }
    Ok(tap)
}

/// Adds the guest's IPv6 address and default route.
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

/// Makes the gateway the default route, with a permanent neighbour entry.
fn reach(
    inside: &mut Netlink,
    index: u32,
    gateway: IpAddr,
    mac: [u8; 6],
) -> Result<(), AttachError> {
    inside.add_neighbour(index, gateway, mac).step("set the gateway's hardware address")?;
    inside.add_default_route(index, gateway).step(DEFAULT_ROUTE)
}

/// Disables router advertisements: the guest keeps to the addresses configured here. Where /proc is read-only the guest
/// may get one address more, which works as well.
fn no_autoconf(device: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0");
}

/// Brings the loopback of the calling thread's namespace up.
pub(crate) fn loopback_up() -> Result<(), AttachError> {
    let index = if_nametoindex(LOOPBACK_NAME).step("find the loopback")?;
    Netlink::open().step("netlink")?.up(index).step("bring the loopback up")
}

/// The network namespace of the calling thread.
pub(crate) fn current_netns() -> Result<OwnedFd, AttachError> {
    let fd = File::open("/proc/thread-self/ns/net").step("open /proc/thread-self/ns/net")?;
    Ok(fd.into())
}

/// Runs `work` on a thread of its own. Namespaces are per thread: the caller's does not change.
fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, AttachError> + Send,
) -> Result<T, AttachError> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Opens a namespace by its path, such as /proc/PID/ns/net or /run/netns/NAME.
pub fn open_netns(path: &std::path::Path) -> io::Result<OwnedFd> {
    File::open(path)?.as_fd().try_clone_to_owned()
}
