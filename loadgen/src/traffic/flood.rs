//! The handcrafted flood on a packet socket in the container's namespace. The kernel there has another address, so it
//! does not reset connections that it does not know.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::raw_tcp::{FloodAddresses, RawTcpClient};
use super::{AssignedLoad, Shared};

/// A locally administered address, unique on this link.
const OWN_MAC: [u8; 6] = [0x02, 0x66, 0x6c, 0x6f, 0x6f, 0x64];
/// Interval between two polls.
const EVERY: Duration = Duration::from_micros(500);
/// Maximum frames per poll, each way.
const BATCH: usize = 256;

pub(super) fn run(load: &AssignedLoad, until_ns: u64, shared: &Shared) {
    let AssignedLoad::Flood { to: SocketAddr::V4(to), kind, connections, per_second, net } = *load
    else {
        return;
    };
    let addresses = FloodAddresses {
        own_mac: OWN_MAC,
        own_ip: net.own_ip,
        peer_mac: net.peer_mac,
        to: *to.ip(),
        to_port: to.port(),
        // One server accepts all connections on one port.
        port_each: false,
    };
    let from = shared.clock.now();
    let mut flood = RawTcpClient::new(addresses, kind, connections, per_second, from, until_ns);
    let Ok(device) = device() else {
        shared.note_broken();
        return;
    };
    let mut buf = vec![0; 65_600];
    while !shared.stopped() {
        for _ in 0..BATCH {
            match recv(device.as_raw_fd(), &mut buf, MsgFlags::MSG_DONTWAIT) {
                Ok(n) => flood.on_frame(shared.clock.now(), &buf[..n]),
                Err(_) => break,
            }
        }
        flood.poll(shared.clock.now(), BATCH, |frame| {
            // A frame that the device refuses is lost, as on any network.
            let _ = send(device.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT);
        });
        thread::sleep(EVERY);
    }
    for _ in 0..flood.connected {
        shared.note_connected();
    }
}

/// Opens a packet socket on the device of the namespace.
fn device() -> io::Result<OwnedFd> {
    let name = skbudget::attach::DEVICE_NAME;
    let link = |i: nix::ifaddrs::InterfaceAddress| {
        let own = i.interface_name == name;
        own.then_some(i.address?).and_then(|a| a.as_link_addr().copied())
    };
    let addr: LinkAddr = getifaddrs()?.find_map(link).ok_or(Errno::ENODEV)?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    // The address has no protocol, so the bind keeps that of the socket.
    bind(fd.as_raw_fd(), &addr)?;
    Ok(fd)
}
