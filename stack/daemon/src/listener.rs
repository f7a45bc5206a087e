//! Published ports on the host: how many connections a backlog holds, what each of them may receive, and the charge for
//! that (H6).
//!
//! A connection is in the backlog until the container has room for it. Meanwhile the kernel receives for it, up to the
//! receive buffer that it inherits from the listener, and no socket of this process accounts for the bytes. So all that
//! a backlog can hold is charged when the port is published. The same buffer sets the window scale of a connection for
//! its lifetime: below 256 KiB a remote sends at most 64 KiB in a round trip. So the buffer is large where the
//! container can afford it, and the backlog is short.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use skbudget_controller::Limits;
use skbudget_stack::HostCaps;

/// The backlogs of a container's published ports, which are all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// The argument of listen(2). The kernel queues one connection more (`sk_acceptq_is_full`).
    length: u32,
    /// Effective SO_RCVBUF of the listener and of the connections it accepts, bytes.
    rcvbuf: u32,
}

/// The smallest send buffer that the kernel grants, bytes (SOCK_MIN_SNDBUF).
const SNDBUF_LEAST: u32 = 4608;

/// The longest backlog, connections.
const LENGTH_MAX: u32 = 32;
/// Target length with the large buffer, as far as a quarter of the hard limit allows.
const LENGTH_GOOD: u32 = 16;
/// With fewer large buffers than this the backlog takes the small buffer.
const LENGTH_LARGE_MIN: u32 = 8;
/// The shortest backlog, connections, whatever the limit is.
const LENGTH_MIN: u32 = 2;

/// Allows for window scale 2, that is for windows of 256 KiB.
const RCVBUF_LARGE: u32 = 256 << 10;
/// The receive buffer of a host socket at its floor, bytes.
const RCVBUF_SMALL: u32 = 8 << 10;

/// Bytes that a connection holds beyond its receive buffer, as measured (Linux 6.18, loopback and veth, writes of 1
/// byte to 1 MiB). The kernel checks for room before it adds a segment, which exceeds the buffer by up to 5.4 KiB, and
/// rounds up to pages; the socket and its request take 2.8 KiB. A larger buffer holds more segments and is exceeded by
/// more: by one part in `BEYOND_PART`.
const BEYOND: u64 = 8 << 10;
const BEYOND_PART: u64 = 32;

impl Backlog {
    /// The backlogs for `ports` ports of a container with these limits. Together they take an eighth of `hard`, up to a
    /// quarter where large buffers need that, or the minimum if `hard` is too small for either.
    pub fn fit(limits: Limits, ports: usize) -> Self {
        let ports = ports.max(1) as u64;
        let of_each = |part: u64| limits.hard_bytes() / part / ports;
        // Three steps (H6): long with large buffers, short with large buffers, small buffers.
        let usual = Self::longest(RCVBUF_LARGE, of_each(8));
        if usual.length >= LENGTH_GOOD {
            return usual;
        }
        let large = Self::longest(RCVBUF_LARGE, of_each(4));
        if large.length >= LENGTH_LARGE_MIN {
            return Self { length: large.length.min(LENGTH_GOOD), ..large };
        }
        let small = Self::longest(RCVBUF_SMALL, of_each(8));
        Self { length: small.length.max(LENGTH_MIN), ..small }
    }

    /// The longest backlog that `bytes` can be charged for.
    fn longest(rcvbuf: u32, bytes: u64) -> Self {
        let one = Self { length: 1, rcvbuf };
        let connections = bytes / one.bytes_of_one();
        // Two less: the kernel queues one more, and one accepted connection may wait for room.
        Self { length: connections.saturating_sub(2).min(LENGTH_MAX.into()) as u32, rcvbuf }
    }

    /// Charge for one connection, bytes.
    fn bytes_of_one(self) -> u64 {
        u64::from(self.rcvbuf) + u64::from(self.rcvbuf) / BEYOND_PART + BEYOND
    }

    /// Charge for one port, bytes: its backlog, the one more that the kernel queues, and an accepted connection that
    /// waits for room.
    pub fn bytes(self) -> u64 {
        u64::from(self.length + 2) * self.bytes_of_one()
    }

    /// The smallest charge for a published port, bytes.
    pub fn least_bytes() -> u64 {
        Self { length: LENGTH_MIN, rcvbuf: RCVBUF_SMALL }.bytes()
    }

    /// Listens with this backlog from now on.
    pub(crate) fn listen(self, listener: &TcpListener) -> io::Result<()> {
        let caps = HostCaps { sndbuf: SNDBUF_LEAST, rcvbuf: self.rcvbuf };
        // Before listen(2), so that every connection inherits the buffers.
        crate::host::prepare_listener(listener, caps);
        Ok(socket::listen(&listener.as_fd(), socket::Backlog::new(self.length as i32)?)?)
    }
}

/// Binds and listens on one address; an IPv6 address accepts IPv6 only. A port in use is an error here. Until the
/// container runs, one connection can wait, with the smallest buffer.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Connections of an earlier run may still be in TIME-WAIT on this port.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if addr.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    let listener = TcpListener::from(fd);
    Backlog { length: 0, rcvbuf: RCVBUF_SMALL }.listen(&listener)?;
    Ok(listener)
}

/// Binds a UDP port; an IPv6 address receives IPv6 only. Until the container runs, the socket has the smallest buffer.
pub(crate) fn bind_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::RcvBuf, &1)?;
    if addr.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    Ok(UdpSocket::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn fit(hard: u64, ports: usize) -> Backlog {
        Backlog::fit(Limits::from_bytes(hard, None, None).unwrap(), ports)
    }

    #[test]
    fn backlogs_are_as_long_as_an_eighth_of_the_limit_pays_for_and_scaled_where_a_quarter_does() {
        let large = |length| Backlog { length, rcvbuf: RCVBUF_LARGE };
        let small = |length| Backlog { length, rcvbuf: RCVBUF_SMALL };
        for (hard, ports, expected) in [
            (256 * MIB, 1, large(32)),
            (256 * MIB, 5, large(22)),
            (256 * MIB, 12, large(16)),
            (256 * MIB, 20, large(10)),
            (256 * MIB, 40, small(32)),
            (16 * MIB, 1, large(13)),
            (16 * MIB, 2, small(32)),
            (4 * MIB, 1, small(29)),
            (MIB, 1, small(5)),
            (MIB / 2, 5, small(2)),
        ] {
            assert_eq!(fit(hard, ports), expected, "{ports} ports in {hard}");
            let all = expected.bytes() * ports as u64;
            assert!(all <= hard / 4 || expected.length == LENGTH_MIN, "{all} of {hard}");
        }
        assert_eq!(Backlog::fit(Limits::NONE, 1000), large(32));
    }
}
