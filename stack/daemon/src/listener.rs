//! Published ports on the host: how many connections wait in a backlog, what each of them may hold, and what is
//! charged for that (H6).
//!
//! A connection is in the backlog until the container has room for it. The kernel receives for it meanwhile, up to the
//! receive buffer that it has from the listener, and no socket of ours knows of it: so all that a backlog can hold is
//! charged when the port is published. The window scale of a connection follows from the same buffer, for the rest of
//! its life: below 256 KiB a remote far away sends 64 KiB in a round trip at most, or less. So the buffer is large
//! where the container can pay for it, and the backlog is short.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use skbudget_controller::Limits;
use skbudget_stack::HostCaps;

/// The backlogs of a container's published ports, all of them alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// As listen(2) takes it. The kernel queues one more (`sk_acceptq_is_full`).
    length: u32,
    /// Effective SO_RCVBUF of the listener and of what it accepts, bytes.
    rcvbuf: u32,
}

/// The kernel grants no socket less to send from (SOCK_MIN_SNDBUF).
const SNDBUF_LEAST: u32 = 4608;

const LENGTH_MAX: u32 = 32;
/// With the large buffer a backlog is this long, or as long as a quarter of the hard limit allows.
const LENGTH_GOOD: u32 = 16;
/// If that is less than this, the buffer is the small one.
const LENGTH_LARGE_MIN: u32 = 8;
const LENGTH_MIN: u32 = 2;

/// Window scale 2, which allows for windows of 256 KiB.
const RCVBUF_LARGE: u32 = 256 << 10;
/// The receive buffer of a host socket at its floor.
const RCVBUF_SMALL: u32 = 8 << 10;

/// What a connection holds beyond its receive buffer, as measured (Linux 6.18, loopback and veth, writes of 1 byte to
/// 1 MiB): the kernel asks whether the buffer is full before it adds a segment, up to 5.4 KiB beyond, and rounds up to
/// pages; the socket and its request take 2.8 KiB. A larger buffer takes more segments and is exceeded by more.
const BEYOND: u64 = 8 << 10;
const BEYOND_PART: u64 = 32;

impl Backlog {
    /// The backlogs for so many ports of a container with these limits. All together take an
    /// eighth of it, up to a quarter where that is needed for large buffers, or the least there is.
    pub fn fit(limits: Limits, ports: usize) -> Self {
        let ports = ports.max(1) as u64;
        let of_each = |part: u64| limits.hard_bytes() / part / ports;
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

    /// The longest that `bytes` pay for.
    fn longest(rcvbuf: u32, bytes: u64) -> Self {
        let one = Self { length: 1, rcvbuf };
        let connections = bytes / one.bytes_of_one();
        Self { length: connections.saturating_sub(2).min(LENGTH_MAX.into()) as u32, rcvbuf }
    }

    fn bytes_of_one(self) -> u64 {
        u64::from(self.rcvbuf) + u64::from(self.rcvbuf) / BEYOND_PART + BEYOND
    }

    /// What one port may hold, bytes: its backlog, and a connection that was accepted and waits for room.
    pub fn bytes(self) -> u64 {
        u64::from(self.length + 2) * self.bytes_of_one()
    }

    /// The least that a published port is charged, bytes.
    pub fn least_bytes() -> u64 {
        Self { length: LENGTH_MIN, rcvbuf: RCVBUF_SMALL }.bytes()
    }

    /// Listens, from now on with this backlog.
    pub(crate) fn listen(self, listener: &TcpListener) -> io::Result<()> {
        let caps = HostCaps { sndbuf: SNDBUF_LEAST, rcvbuf: self.rcvbuf };
        crate::host::prepare_listener(listener, caps);
        Ok(socket::listen(&listener.as_fd(), socket::Backlog::new(self.length as i32)?)?)
    }
}

/// A listener for one address; for IPv6 only, if it is of IPv6. It is known at once that the port is free. Until the
/// container is there one connection may wait, with the smallest buffer.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if addr.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    let listener = TcpListener::from(fd);
    Backlog { length: 0, rcvbuf: RCVBUF_SMALL }.listen(&listener)?;
    Ok(listener)
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
