//! The host side of one container's flows: non-blocking kernel sockets, polled edge-triggered.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrStorage, setsockopt,
    sockopt,
};
use skbudget_stack::{Close, FlowId, Host, HostCaps, HostError};

use crate::resolv_conf::HostServers;
use crate::sys;
use crate::token;

mod closing;
mod datagrams;
mod descriptors;
mod errors;
mod keepalive;
mod resolvers;

use datagrams::Datagrams;
pub(crate) use descriptors::grow_descriptor_table;
use errors::{map, map_io};
use resolvers::Resolvers;

/// The kernel doubles the value that it is given for SO_SNDBUF and SO_RCVBUF; caps are in bytes after the doubling.
const KERNEL_DOUBLES: u32 = 2;

/// MSS towards the host's own loopback, bytes. Its default is 64 KiB: a send buffer at its floor then holds a single
/// segment, which the receiver acknowledges 40 ms later. The smaller MSS costs no segmentation, because the loopback
/// passes larger units on whole.
const LOOPBACK_MSS: u32 = 4096;

/// Sockets of one container: those of flows by flow index, and those of mappings.
#[derive(Debug)]
pub(crate) struct HostSockets {
    /// Watches the sockets in the worker's poll.
    registry: Registry,
    /// Index of the container in the worker, part of each token.
    container: u16,
    /// Source address of IPv4 connections to other hosts.
    outbound: Option<Ipv4Addr>,
    slots: Vec<Option<Slot>>,
    open: usize,
    datagrams: Datagrams,
    resolvers: Resolvers,
    /// Why a connect(2) failed since `take_lack`, when a local resource was missing.
    lack: Option<Errno>,
}

#[derive(Debug)]
struct Slot {
    /// Must match the generation in a token, so that late events of a closed flow are dropped.
    generation: u32,
    stream: TcpStream,
    /// The destination until the connection is established, to detect a connection to itself.
    to: Option<SocketAddr>,
    /// Effective SO_SNDBUF.
    sndbuf: u32,
    /// The caps that are charged for the socket: those set, or more while its queues still hold more.
    charged: HostCaps,
}

impl HostSockets {
    /// `name_servers`: those of the container's forwarder; `None`: the host's, which another process hands over, or
    /// which are read from a file.
    pub(crate) fn new(
        registry: Registry,
        container: u16,
        outbound: Option<Ipv4Addr>,
        name_servers: Option<Vec<SocketAddr>>,
        handed: Option<HostServers>,
    ) -> Self {
        Self {
            registry,
            container,
            outbound,
            slots: Vec::new(),
            open: 0,
            datagrams: Datagrams::default(),
            resolvers: Resolvers::new(name_servers, handed),
            lack: None,
        }
    }

    /// Changes the name servers of the forwarder; `None`: those of the host.
    pub(crate) fn set_name_servers(&mut self, servers: Option<Vec<SocketAddr>>) {
        self.resolvers.replace(servers);
    }

    /// The flow that an event belongs to; `None`: the flow of that token is closed.
    pub(crate) fn flow(&self, token: mio::Token) -> Option<FlowId> {
        let index = token::flow_index(token);
        let slot = self.slots.get(index as usize)?.as_ref()?;
        let id = FlowId { index, generation: slot.generation };
        (token::flow(self.container, id) == token).then_some(id)
    }

    /// Gives the flow a connection that a published port accepted from `peer`. Until now it has the listener's buffers.
    /// `peer` is an argument because the socket has none any more if the connection was reset before the accept; the
    /// bytes received before the reset can be read all the same.
    pub(crate) fn adopt(
        &mut self,
        flow: FlowId,
        stream: TcpStream,
        peer: SocketAddr,
        caps: HostCaps,
    ) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        if peer.ip().is_loopback() {
            unpaced(&stream);
        }
        set_buffers(&stream, caps);
        unclamp(&stream);
        self.watch(flow, stream, None, caps)
    }

    /// Number of open sockets.
    pub(crate) fn open(&self) -> usize {
        self.open + self.datagrams.open()
    }

    /// Bytes that the kernel holds in the queues of flows' sockets now, to compare with the `host` charge; and the
    /// number of sockets, those of mappings included, that hold more than is charged for them. One system call for each
    /// socket.
    pub(crate) fn queued(&self) -> (u64, u64) {
        let (mut bytes, mut above) = (0, 0);
        for slot in self.slots.iter().flatten() {
            let Ok((sent, received)) = sys::socket_queued_bytes(slot.stream.as_fd()) else {
                continue;
            };
            bytes += u64::from(sent) + u64::from(received);
            above += u64::from(sent > slot.charged.sndbuf || received > slot.charged.rcvbuf);
        }
        (bytes, above + self.datagrams.above_charge())
    }

    /// Registers the socket for reads and writes, and stores it as the flow's.
    fn watch(
        &mut self,
        flow: FlowId,
        stream: TcpStream,
        to: Option<SocketAddr>,
        caps: HostCaps,
    ) -> io::Result<()> {
        let fd = stream.as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut SourceFd(&fd), token::flow(self.container, flow), interest)?;
        let index = flow.index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        let (generation, sndbuf, charged) = (flow.generation, caps.sndbuf, caps);
        let slot = Slot { generation, stream, to, sndbuf, charged };
        let before = self.slots[index].replace(slot);
        debug_assert!(before.is_none(), "{flow:?} has a socket already");
        self.open += usize::from(before.is_none());
        Ok(())
    }

    /// The flow's socket; `None` if it was closed, or belongs to a later flow at the same index.
    fn slot(&mut self, flow: FlowId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(flow.index as usize)?.as_mut()?;
        (slot.generation == flow.generation).then_some(slot)
    }

    /// The flow's stream. A flow without a socket (`adopt` failed) gets the error of a reset connection.
    fn stream(&mut self, flow: FlowId) -> Result<&TcpStream, HostError> {
        self.slot(flow).map(|slot| &slot.stream).ok_or(HostError::Reset)
    }

    /// Creates the socket of a flow and starts its connect(2).
    fn start(&mut self, flow: FlowId, to: SocketAddr, caps: HostCaps) -> Result<(), HostError> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket::socket(family, SockType::Stream, flags, None).map_err(map)?;
        // The kernel derives the window scale from the buffer at connect, and only then (tcp_select_initial_window).
        // Towards another machine the scale must allow for a large window, although the buffer stays small until the
        // flow is fast. On loopback the handshake ends before the buffer could be lowered again, and half of the buffer
        // is advertised at once: so the buffer is what is charged, and no more.
        let far = !to.ip().is_loopback();
        set_buffers(&fd, if far { HostCaps { rcvbuf: FAR_RCVBUF, ..caps } } else { caps });
        // The guest's TCP has delayed small segments already: a second Nagle would only add latency.
        setsockopt(&fd, sockopt::TcpNoDelay, &true).map_err(map)?;
        // Until the stack has delivered everything: whatever ends this process, no send queue outlives it uncharged.
        closing::reset_on_close(&fd);
        if !far {
            let _ = setsockopt(&fd, sockopt::TcpMaxSeg, &LOOPBACK_MSS);
            unpaced(&fd);
        } else if let Some(ip) = self.outbound.filter(|_| to.is_ipv4()) {
            // The kernel then chooses the port at connect, so that many connections can share one port towards
            // different hosts.
            setsockopt(&fd, sockopt::IpBindAddressNoPort, &true).map_err(map)?;
            let from = SockaddrIn::from(SocketAddrV4::new(ip, 0));
            socket::bind(fd.as_raw_fd(), &from).map_err(map)?;
        }
        match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => {}
            Err(errno) => return Err(map(errno)),
        }
        // The scale is set: the buffer returns to what is charged.
        if far {
            set_buffers(&fd, caps);
        }
        unclamp(&fd);
        // Registered after connect: an unconnected socket would report a hang-up.
        self.watch(flow, TcpStream::from(fd), Some(to), caps).map_err(|e| map_io(&e))
    }
}

impl Host for HostSockets {
    fn window_scale_fixed_at_connect(&self) -> bool {
        true
    }

    fn connect(&mut self, flow: FlowId, to: SocketAddr, caps: HostCaps) -> Result<(), HostError> {
        let outcome = self.start(flow, to, caps);
        self.note_lack(outcome);
        outcome
    }

    fn connect_outcome(&mut self, flow: FlowId) -> Option<Result<(), HostError>> {
        let Some(slot) = self.slot(flow) else { return Some(Err(HostError::Reset)) };
        match slot.stream.take_error() {
            Ok(None) => {}
            Ok(Some(e)) | Err(e) => return Some(Err(map_io(&e))),
        }
        match slot.stream.peer_addr() {
            Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => return None,
            Err(e) => return Some(Err(map_io(&e))),
            Ok(_) => {}
        }
        // A connect to a closed port in the ephemeral range of the host's loopback can pick that port as its source and
        // connect to itself (simultaneous open). No server listens there: the guest gets a refusal.
        let to_itself = slot.to.take().is_some_and(|to| {
            to.ip().is_loopback() && slot.stream.local_addr().is_ok_and(|from| from == to)
        });
        Some(if to_itself { Err(HostError::Refused) } else { Ok(()) })
    }

    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let slot = self.slot(flow).ok_or(HostError::Reset)?;
        // At a small cap the kernel would take up to 64 KiB more than it is charged for (see `WATCHED_BELOW`).
        if slot.sndbuf <= WATCHED_BELOW {
            return write_within(&slot.stream, slot.sndbuf as usize / 2, parts);
        }
        let mut stream = &slot.stream;
        retry(|| stream.write_vectored(parts))
    }

    fn read(&mut self, flow: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError> {
        let mut stream = self.stream(flow)?;
        retry(|| stream.read_vectored(parts))
    }

    fn shutdown_write(&mut self, flow: FlowId) {
        if let Some(slot) = self.slot(flow) {
            // Fails only after the connection is closed, which the next read or write reports.
            let _ = slot.stream.shutdown(Shutdown::Write);
        }
    }

    fn unacknowledged(&mut self, flow: FlowId) -> u64 {
        self.slot(flow).map_or(0, |slot| closing::unacknowledged(&slot.stream))
    }

    fn set_caps(&mut self, flow: FlowId, caps: HostCaps) {
        if let Some(slot) = self.slot(flow) {
            (slot.sndbuf, slot.charged) = (caps.sndbuf, caps);
            set_buffers(&slot.stream, caps);
            unclamp(&slot.stream);
        }
    }

    fn lower_caps(&mut self, flow: FlowId, caps: HostCaps) -> HostCaps {
        let Some(before) = self.slot(flow).map(|slot| slot.charged) else { return caps };
        self.set_caps(flow, caps);
        let Some(slot) = self.slot(flow) else { return caps };
        // The kernel keeps the bytes that are queued. If it does not answer, both queues count as full.
        let (sent, received) =
            sys::socket_queued_bytes(slot.stream.as_fd()).unwrap_or((before.sndbuf, before.rcvbuf));
        let held = HostCaps { sndbuf: caps.sndbuf.max(sent), rcvbuf: caps.rcvbuf.max(received) };
        // Not above the caps of before, which are the charge so far.
        slot.charged = HostCaps {
            sndbuf: held.sndbuf.min(before.sndbuf),
            rcvbuf: held.rcvbuf.min(before.rcvbuf),
        };
        held
    }

    fn keep_alive(&mut self, flow: FlowId, every: Duration) {
        self.probe_every(flow, every);
    }

    fn ask_peer(&mut self, flow: FlowId) {
        self.probe_now(flow);
    }

    fn silence(&mut self, flow: FlowId) -> Option<Duration> {
        self.peer_silence(flow)
    }

    fn close(&mut self, flow: FlowId, how: Close) {
        if self.slot(flow).is_none() {
            return;
        }
        let slot = self.slots[flow.index as usize].take();
        self.open -= 1;
        if let (Some(slot), Close::Graceful) = (&slot, how) {
            closing::deliver_on_close(&slot.stream);
        }
        // Dropping the slot closes the socket, which also removes it from the poll.
    }
}

/// Caps up to this size, bytes, are enforced by the write, because the kernel would exceed them: it checks for room
/// only before it opens a new segment, and appends up to 64 KiB to the last one while that is unsent.
const WATCHED_BELOW: u32 = 128 << 10;

/// Writes at most `max` bytes, as a segment that no later write is appended to (MSG_EOR).
fn write_within(stream: &TcpStream, max: usize, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
    let mut list = [IoSlice::new(&[]); WRITE_PARTS];
    let (mut used, mut left) = (0, max);
    for (slot, part) in list.iter_mut().zip(parts) {
        let take = part.len().min(left);
        if take == 0 {
            break;
        }
        *slot = IoSlice::new(&part[..take]);
        (used, left) = (used + 1, left - take);
    }
    let flags = MsgFlags::MSG_EOR | MsgFlags::MSG_NOSIGNAL;
    let send = || {
        let (fd, parts) = (stream.as_raw_fd(), &list[..used]);
        Ok(socket::sendmsg::<()>(fd, parts, &[], flags, None)?)
    };
    retry(send)
}

/// Number of chunks that `WATCHED_BELOW / 2` bytes can be spread over.
const WRITE_PARTS: usize = 18;

/// Repeats the call while a signal interrupts it.
fn retry<T>(mut op: impl FnMut() -> io::Result<T>) -> Result<T, HostError> {
    loop {
        match op() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(|e| map_io(&e)),
        }
    }
}

/// Receive buffer during a connect to another machine, bytes: gives a window scale for windows of this size.
const FAR_RCVBUF: u32 = 4 << 20;

/// Sets buffers and options of a listener; the sockets that it accepts inherit them.
pub(crate) fn prepare_listener(socket: &impl AsFd, caps: HostCaps) {
    closing::reset_on_close(socket);
    set_buffers(socket, caps);
    let _ = setsockopt(socket, sockopt::TcpMaxSeg, &LOOPBACK_MSS);
}

/// Selects Reno for a loopback connection. There is no network between its ends: a pacing host default (BBR) would only
/// set timers. Every kernel has Reno and lets any user select it, and on loopback there is no loss to slow it down.
fn unpaced(socket: &impl AsFd) {
    let _ = setsockopt(socket, sockopt::TcpCongestion, &OsString::from("reno"));
}

/// Sets the buffers. On failure the smaller buffer of before remains: the charge then exceeds what the socket can hold,
/// never the reverse.
fn set_buffers(socket: &impl AsFd, caps: HostCaps) {
    let _ = setsockopt(socket, sockopt::SndBuf, &((caps.sndbuf / KERNEL_DOUBLES) as usize));
    let _ = setsockopt(socket, sockopt::RcvBuf, &((caps.rcvbuf / KERNEL_DOUBLES) as usize));
}

/// Removes the clamp on the receive window, so that the buffer is the only bound. The kernel sets it from the buffer
/// when the connection starts (tcp_connect_init, tcp_openreq_init_rwin) and when the size of arriving segments changes
/// (tcp_measure_rcv_mss), and keeps it when the buffer grows.
fn unclamp(socket: &impl AsFd) {
    let _ = sys::set_window_clamp(socket.as_fd(), WINDOW_MAX);
}

/// The largest window TCP can express, bytes (RFC 7323 section 2.3).
const WINDOW_MAX: u32 = 1 << 30;
