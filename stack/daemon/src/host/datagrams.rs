//! The datagram sockets of one container: unconnected UDP and ping sockets of the host, one for each mapping of the
//! guest.
//!
//! Errors of the network arrive in the socket's error queue (IP_RECVERR), with the destination of the datagram. The
//! kernel also fails the next call on the socket with such an error, whatever that call is for: it is repeated.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, sockopt,
};
use skbudget_controller::Instant;
use skbudget_stack::datagram::{
    DatagramError, DatagramKind, DatagramSocket, IpFields, RECEIVE_BATCH, ReceivedDatagram,
    SendDatagram, SendStop, Undeliverable,
};
use skbudget_stack::{DatagramHost, DatagramId, HostCaps, HostError};

use super::errors::map;
use super::{HostSockets, set_buffers};
use crate::token;

#[allow(unsafe_code, reason = "batches with control messages; no other code is in it")]
mod sys;

use sys::{Defaults, ExtendedError, Inbox};

/// Hop limit of most datagrams: the stack is a router that decrements Linux' default.
const HOP_LIMIT: u8 = 63;
/// Privileged ports are not for guests, even if this process may bind them.
const PORT_MIN: u16 = 1024;
/// What a receive queue may hold beyond its cap, bytes: the kernel checks for room before it adds a datagram (M4).
const DATAGRAM_MAX: u32 = 64 << 10;
/// Calls that an error of an earlier datagram may fail before the error counts as the datagram's own.
const TRIES: usize = 2;

/// IP_MTU_DISCOVER and IPV6_MTU_DISCOVER: datagrams may be fragmented, or must not be.
const PMTUDISC_DONT: i32 = 0;
const PMTUDISC_DO: i32 = 2;
/// IPV6_MTU_DISCOVER, which libc does not have for every target.
const IPV6_MTU_DISCOVER: i32 = 23;

/// Origins of an extended error: this host, ICMP, ICMPv6 (linux/errqueue.h).
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

thread_local! {
    /// The worker's buffers, which its containers share. They are made when the first datagram arrives.
    static INBOX: RefCell<Option<Box<Inbox>>> = const { RefCell::new(None) };
}

/// Sockets by mapping index.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    /// A map, because the forwarder's indices are far behind those of the mappings.
    slots: BTreeMap<u32, Slot>,
    /// The host has refused a ping socket, and that was logged.
    echo_refused: bool,
}

#[derive(Debug)]
struct Slot {
    /// Must match the generation in a token, so that late events of a closed socket are dropped.
    generation: u32,
    socket: OwnedFd,
    ipv6: bool,
    /// The caps that are charged for the socket.
    caps: HostCaps,
    /// The option for the path MTU that was set last.
    dont_fragment: bool,
    /// Datagrams dropped by the socket so far, and those already returned.
    drops: u32,
    drops_taken: u32,
}

impl Datagrams {
    fn slot(&mut self, id: DatagramId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(&id.index)?;
        (slot.generation == id.generation).then_some(slot)
    }

    fn insert(&mut self, id: DatagramId, slot: Slot) {
        let before = self.slots.insert(id.index, slot);
        debug_assert!(before.is_none(), "{id:?} has a socket already");
    }

    /// Number of sockets that hold more than is charged for them: their receive cap and one datagram (M4). One system
    /// call for each socket.
    pub(super) fn above_charge(&self) -> u64 {
        let is_above = |slot: &&Slot| {
            let queued = crate::sys::socket_queued_bytes(slot.socket.as_fd());
            queued.is_ok_and(|(_, received)| received > slot.caps.rcvbuf + DATAGRAM_MAX)
        };
        self.slots.values().filter(is_above).count() as u64
    }

    /// Number of open sockets.
    pub(super) fn open(&self) -> usize {
        self.slots.len()
    }
}

impl HostSockets {
    /// The mapping that an event belongs to; `None`: the socket of that token is closed.
    pub(crate) fn datagram(&self, token: mio::Token) -> Option<DatagramId> {
        let index = token::flow_index(token);
        let slot = self.datagrams.slots.get(&index)?;
        let id = DatagramId { index, generation: slot.generation };
        (token::datagram(self.container, id) == token).then_some(id)
    }

    /// Gives a mapping the socket that is bound to a published port.
    pub(crate) fn adopt_datagram(
        &mut self,
        id: DatagramId,
        socket: UdpSocket,
        caps: HostCaps,
    ) -> io::Result<()> {
        let ipv6 = socket.local_addr()?.is_ipv6();
        socket.set_nonblocking(true)?;
        let fd = OwnedFd::from(socket);
        set_options(&fd, ipv6)?;
        set_buffers(&fd, caps);
        let interest = Interest::READABLE;
        let token = token::datagram(self.container, id);
        self.registry.register(&mut SourceFd(&fd.as_raw_fd()), token, interest)?;
        self.datagrams.insert(id, Slot::new(id, fd, ipv6, caps));
        Ok(())
    }

    fn create(&self, id: DatagramId, spec: &DatagramSocket) -> Result<Slot, HostError> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let family = if spec.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let protocol = match spec.kind {
            DatagramKind::Udp => SockProtocol::Udp,
            DatagramKind::Echo if spec.ipv6 => SockProtocol::IcmpV6,
            DatagramKind::Echo => SockProtocol::Icmp,
        };
        let fd = socket::socket(family, SockType::Datagram, flags, protocol).map_err(map)?;
        if spec.ipv6 {
            // Only before the bind.
            setsockopt(&fd, sockopt::Ipv6V6Only, &true).map_err(map)?;
        }
        // Before the bind: the kernel receives from then on.
        set_buffers(&fd, spec.caps);
        set_options(&fd, spec.ipv6).map_err(|e| super::errors::map_io(&e))?;
        bind(&fd, spec).map_err(map)?;
        watch(&self.registry, &fd, token::datagram(self.container, id))?;
        Ok(Slot::new(id, fd, spec.ipv6, spec.caps))
    }
}

fn watch(registry: &Registry, fd: &OwnedFd, token: mio::Token) -> Result<(), HostError> {
    // Not for writes: a full socket loses datagrams, as a router does, so nothing waits for room.
    let registered = registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE);
    registered.map_err(|e| super::errors::map_io(&e))
}

/// Binds to the guest's port if it is free, otherwise to any.
fn bind(fd: &OwnedFd, spec: &DatagramSocket) -> nix::Result<()> {
    let any: IpAddr = match spec.ipv6 {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let bind =
        |port| socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)));
    match spec.port {
        // An identifier has no privileges. Zero is any.
        port if port >= PORT_MIN || spec.kind == DatagramKind::Echo => {
            bind(port).or_else(|_| bind(0))
        }
        _ => bind(0),
    }
}

/// Sets what every socket needs: the fields of received headers, errors, drops.
fn set_options(fd: &OwnedFd, ipv6: bool) -> io::Result<()> {
    let on = |level, name| sys::set_int(fd.as_fd(), level, name, 1);
    on(libc::SOL_SOCKET, libc::SO_RXQ_OVFL)?;
    let (level, hops) = if ipv6 {
        on(libc::IPPROTO_IPV6, libc::IPV6_RECVERR)?;
        on(libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT)?;
        on(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS)?;
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS)
    } else {
        on(libc::IPPROTO_IP, libc::IP_RECVERR)?;
        on(libc::IPPROTO_IP, libc::IP_RECVTTL)?;
        on(libc::IPPROTO_IP, libc::IP_RECVTOS)?;
        (libc::IPPROTO_IP, libc::IP_TTL)
    };
    sys::set_int(fd.as_fd(), level, hops, HOP_LIMIT.into())?;
    set_fragmentation(fd, ipv6, true)
}

/// Whether routers and this host may fragment datagrams.
fn set_fragmentation(fd: &OwnedFd, ipv6: bool, dont_fragment: bool) -> io::Result<()> {
    let (level, name) = match ipv6 {
        true => (libc::IPPROTO_IPV6, IPV6_MTU_DISCOVER),
        false => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    };
    let value = if dont_fragment { PMTUDISC_DO } else { PMTUDISC_DONT };
    sys::set_int(fd.as_fd(), level, name, value)
}

impl Slot {
    /// With a socket that was prepared by `set_options`.
    fn new(id: DatagramId, socket: OwnedFd, ipv6: bool, caps: HostCaps) -> Self {
        let generation = id.generation;
        Self { generation, socket, ipv6, caps, dont_fragment: true, drops: 0, drops_taken: 0 }
    }

    /// Sends the datagrams at the front that have one setting of `dont_fragment`.
    fn send(&mut self, batch: &[SendDatagram<'_>], defaults: &Defaults) -> io::Result<usize> {
        let Some(dont_fragment) = batch.first().map(|first| first.ip.dont_fragment) else {
            return Ok(0);
        };
        if self.dont_fragment != dont_fragment {
            set_fragmentation(&self.socket, self.ipv6, dont_fragment)?;
            self.dont_fragment = dont_fragment;
        }
        let same = batch.iter().take_while(|d| d.ip.dont_fragment == dont_fragment).count();
        sys::send(self.socket.as_fd(), &batch[..same], defaults)
    }

    /// Receives a batch. Repeats the call if an error of an earlier datagram failed it.
    fn receive(&self, inbox: &mut Inbox, errors: bool) -> usize {
        for _ in 0..=TRIES {
            match inbox.receive(self.socket.as_fd(), errors) {
                Ok(count) => return count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return 0,
                Err(_) => {}
            }
        }
        0
    }
}

impl DatagramHost for HostSockets {
    fn open_datagram(&mut self, id: DatagramId, spec: &DatagramSocket) -> Result<(), HostError> {
        let created = self.create(id, spec);
        if spec.kind == DatagramKind::Echo
            && created.as_ref().is_err_and(|e| *e == HostError::NetUnreachable)
            && !std::mem::replace(&mut self.datagrams.echo_refused, true)
        {
            tracing::warn!(
                "the host allows no echo requests (ping): net.ipv4.ping_group_range does not include this process's \
                 group; the container receives \"administratively prohibited\""
            );
        }
        self.note_lack(created.as_ref().map(|_| ()).map_err(|e| *e));
        self.datagrams.insert(id, created?);
        Ok(())
    }

    fn send_datagrams(
        &mut self,
        id: DatagramId,
        batch: &[SendDatagram<'_>],
    ) -> (usize, Option<SendStop>) {
        let defaults = Defaults { hop_limit: HOP_LIMIT, outbound: self.outbound };
        let Some(slot) = self.datagrams.slot(id) else { return (0, None) };
        let (mut sent, mut tries) = (0, 0);
        while sent < batch.len() {
            match slot.send(&batch[sent..], &defaults) {
                Ok(count) => (sent, tries) = (sent + count, 0),
                Err(e) => {
                    let stop = stop_of(&e);
                    tries += 1;
                    // A signal, or the error of an earlier datagram: this one was not even tried.
                    let again = e.kind() == io::ErrorKind::Interrupted
                        || matches!(stop, SendStop::Undeliverable(_)) && tries < TRIES;
                    if !again {
                        return (sent, Some(stop));
                    }
                }
            }
        }
        (sent, None)
    }

    fn receive_datagrams(
        &mut self,
        id: DatagramId,
        take: &mut dyn FnMut(&ReceivedDatagram<'_>),
    ) -> bool {
        let Some(slot) = self.datagrams.slot(id) else { return false };
        with_inbox(|inbox| {
            let count = slot.receive(inbox, false);
            for message in (0..count).filter_map(|at| inbox.message(at)) {
                slot.drops = message.drops.unwrap_or(slot.drops);
                let ip = IpFields {
                    hop_limit: message.hop_limit,
                    traffic_class: message.traffic_class,
                    dont_fragment: false,
                };
                take(&ReceivedDatagram { from: message.addr, ip, payload: message.payload });
            }
            count == RECEIVE_BATCH
        })
    }

    fn receive_errors(&mut self, id: DatagramId, take: &mut dyn FnMut(&DatagramError<'_>)) -> bool {
        let Some(slot) = self.datagrams.slot(id) else { return false };
        with_inbox(|inbox| {
            let count = slot.receive(inbox, true);
            let mut last = None;
            for message in (0..count).filter_map(|at| inbox.message(at)) {
                let Some(why) = message.error.as_ref().and_then(undeliverable) else { continue };
                // A repeated send repeats the error of this host.
                if last.replace((message.addr, why)) == Some((message.addr, why)) {
                    continue;
                }
                let by = message.error.and_then(|error| error.by);
                take(&DatagramError { to: message.addr, by, why, payload: message.payload });
            }
            count == RECEIVE_BATCH
        })
    }

    fn take_datagram_drops(&mut self, id: DatagramId) -> u32 {
        let Some(slot) = self.datagrams.slot(id) else { return 0 };
        // The kernel's counter wraps.
        let drops = slot.drops.wrapping_sub(slot.drops_taken);
        slot.drops_taken = slot.drops;
        drops
    }

    fn name_servers(&mut self, now: Instant) -> &[SocketAddr] {
        self.resolvers.servers(now)
    }

    fn set_datagram_caps(&mut self, id: DatagramId, caps: HostCaps) {
        if let Some(slot) = self.datagrams.slot(id) {
            slot.caps = caps;
            set_buffers(&slot.socket, caps);
        }
    }

    fn close_datagram(&mut self, id: DatagramId) {
        if self.datagrams.slot(id).is_some() {
            // Dropping the slot closes the socket, which also removes it from the poll.
            self.datagrams.slots.remove(&id.index);
        }
    }
}

/// Calls `work` with the buffers of this thread.
fn with_inbox(work: impl FnOnce(&mut Inbox) -> bool) -> bool {
    INBOX.with(|inbox| {
        // Never in use here: no receive is called within another.
        let Ok(mut inbox) = inbox.try_borrow_mut() else { return false };
        work(inbox.get_or_insert_with(|| Box::new(Inbox::new())))
    })
}

/// Why a send failed.
fn stop_of(error: &io::Error) -> SendStop {
    let why = match Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) {
        // ENOBUFS: the queue of the outgoing device dropped it.
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR => return SendStop::Full,
        // The kernel queues an error that has the MTU.
        Errno::EMSGSIZE => None,
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => Some(Undeliverable::Host),
        Errno::EACCES | Errno::EPERM => Some(Undeliverable::Prohibited),
        Errno::ECONNREFUSED => Some(Undeliverable::Port),
        _ => Some(Undeliverable::Net),
    };
    SendStop::Undeliverable(why)
}

/// What an entry of the error queue reports; `None`: nothing that ends a datagram.
fn undeliverable(error: &ExtendedError) -> Option<Undeliverable> {
    match (error.origin, error.kind, error.code) {
        (ORIGIN_LOCAL, ..) if error.errno == libc::EMSGSIZE as u32 => {
            Some(Undeliverable::TooBig(error.info))
        }
        // RFC 792, RFC 1122 section 3.2.2.1.
        (ORIGIN_ICMP, 3, 4) | (ORIGIN_ICMP6, 2, _) => Some(Undeliverable::TooBig(error.info)),
        (ORIGIN_ICMP, 3, 2 | 3) | (ORIGIN_ICMP6, 1, 4) => Some(Undeliverable::Port),
        (ORIGIN_ICMP, 3, 1 | 7 | 8 | 12) | (ORIGIN_ICMP6, 1, 2 | 3) => Some(Undeliverable::Host),
        (ORIGIN_ICMP, 3, 9 | 10 | 13..=15) | (ORIGIN_ICMP6, 1, 1 | 5 | 6) => {
            Some(Undeliverable::Prohibited)
        }
        (ORIGIN_ICMP, 3, _) | (ORIGIN_ICMP6, 1, _) => Some(Undeliverable::Net),
        (ORIGIN_ICMP, 11, 0) | (ORIGIN_ICMP6, 3, 0) => Some(Undeliverable::HopLimit),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
