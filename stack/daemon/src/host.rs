//! The host's side of one container's flows: non-blocking kernel sockets, watched edge-triggered.

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

use crate::sys;
use crate::token;

mod closing;
mod descriptors;
mod errors;
mod keepalive;

pub(crate) use descriptors::grow_descriptor_table;
use errors::{map, map_io};

/// The kernel doubles what it is given for SO_SNDBUF and SO_RCVBUF; caps are counted as what comes out.
const KERNEL_DOUBLES: u32 = 2;

/// Segments towards the host's own loopback, whose MSS is 64 KiB otherwise: a send buffer at its floor then holds one
/// segment, which the receiver acknowledges 40 ms later. Nothing is cut for it, the loopback moves larger units whole.
const LOOPBACK_MSS: u32 = 4096;

/// Sockets of one container, by flow index.
#[derive(Debug)]
pub(crate) struct HostSockets {
    registry: Registry,
    seat: u16,
    outbound: Option<Ipv4Addr>,
    slots: Vec<Option<Slot>>,
    open: usize,
    /// connect(2)s since it was last asked.
    begun: u32,
    /// What a connect(2) lacked, likewise.
    lack: Option<Errno>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    stream: TcpStream,
    to: Option<SocketAddr>,
    /// Effective SO_SNDBUF.
    sndbuf: u32,
    /// What is charged for it: its caps, or more until it has drained.
    charged: HostCaps,
}

impl HostSockets {
    pub(crate) fn new(registry: Registry, seat: u16, outbound: Option<Ipv4Addr>) -> Self {
        Self { registry, seat, outbound, slots: Vec::new(), open: 0, begun: 0, lack: None }
    }

    /// The flow an event is for; `None` when the flow of that token is over.
    pub(crate) fn flow(&self, token: mio::Token) -> Option<FlowId> {
        let index = token::flow_index(token);
        let slot = self.slots.get(index as usize)?.as_ref()?;
        let id = FlowId { index, generation: slot.generation };
        (token::flow(self.seat, id) == token).then_some(id)
    }

    /// Gives the flow a connection that a published port accepted from `peer`. Its buffers are those of the listener
    /// until now. The socket has no peer any more when it was reset before it was accepted: what it received until then
    /// can be read all the same.
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

    /// connect(2)s since this was last asked.
    pub(crate) fn take_begun(&mut self) -> u32 {
        std::mem::take(&mut self.begun)
    }

    /// Sockets open.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// What the kernel holds in their queues right now, to be compared with what is charged as `host`; and of how many
    /// sockets that is more than is charged.
    pub(crate) fn queued(&self) -> (u64, u64) {
        let (mut bytes, mut above) = (0, 0);
        for slot in self.slots.iter().flatten() {
            let Ok((sent, received)) = sys::socket_queued_bytes(slot.stream.as_fd()) else {
                continue;
            };
            bytes += u64::from(sent) + u64::from(received);
            above += u64::from(sent > slot.charged.sndbuf || received > slot.charged.rcvbuf);
        }
        (bytes, above)
    }

    fn watch(
        &mut self,
        flow: FlowId,
        stream: TcpStream,
        to: Option<SocketAddr>,
        caps: HostCaps,
    ) -> io::Result<()> {
        let fd = stream.as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut SourceFd(&fd), token::flow(self.seat, flow), interest)?;
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

    fn slot(&mut self, flow: FlowId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(flow.index as usize)?.as_mut()?;
        (slot.generation == flow.generation).then_some(slot)
    }

    /// A flow without a socket (adopting one failed) is told that the connection is reset.
    fn stream(&mut self, flow: FlowId) -> Result<&TcpStream, HostError> {
        self.slot(flow).map(|slot| &slot.stream).ok_or(HostError::Reset)
    }

    fn start(&mut self, flow: FlowId, to: SocketAddr, caps: HostCaps) -> Result<(), HostError> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket::socket(family, SockType::Stream, flags, None).map_err(map)?;
        // The window scale follows from the buffer at the moment of connect, and only then (tcp_select_initial_window):
        // far away it must allow for a large window, although the buffer is small until the flow proved fast. On
        // loopback the handshake is over before the buffer could be lowered again: half of it is promised to the
        // remote at once, so it is what is charged, no more.
        let far = !to.ip().is_loopback();
        set_buffers(&fd, if far { HostCaps { rcvbuf: FAR_RCVBUF, ..caps } } else { caps });
        setsockopt(&fd, sockopt::TcpNoDelay, &true).map_err(map)?;
        closing::reset_on_close(&fd);
        if !far {
            let _ = setsockopt(&fd, sockopt::TcpMaxSeg, &LOOPBACK_MSS);
            unpaced(&fd);
        } else if let Some(ip) = self.outbound.filter(|_| to.is_ipv4()) {
            setsockopt(&fd, sockopt::IpBindAddressNoPort, &true).map_err(map)?;
            let from = SockaddrIn::from(SocketAddrV4::new(ip, 0));
            socket::bind(fd.as_raw_fd(), &from).map_err(map)?;
        }
        match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => {}
            Err(errno) => return Err(map(errno)),
        }
        if far {
            set_buffers(&fd, caps);
        }
        unclamp(&fd);
        // Registered only now: an unconnected socket reports a hang-up.
        self.watch(flow, TcpStream::from(fd), Some(to), caps).map_err(|e| map_io(&e))
    }
}

impl Host for HostSockets {
    fn keeps_scale(&self) -> bool {
        true
    }

    fn connect(&mut self, flow: FlowId, to: SocketAddr, caps: HostCaps) -> Result<(), HostError> {
        self.begun += 1;
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
        // A closed port in the ephemeral range of our own loopback may meet itself: nobody listens there.
        let to_itself = slot.to.take().is_some_and(|to| {
            to.ip().is_loopback() && slot.stream.local_addr().is_ok_and(|from| from == to)
        });
        Some(if to_itself { Err(HostError::Refused) } else { Ok(()) })
    }

    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let slot = self.slot(flow).ok_or(HostError::Reset)?;
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
            // Fails only when the connection is gone already, which the next read or write tells.
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
        // The kernel keeps what it holds; without an answer it is taken to hold all it may.
        let (sent, received) =
            sys::socket_queued_bytes(slot.stream.as_fd()).unwrap_or((before.sndbuf, before.rcvbuf));
        let held = HostCaps { sndbuf: caps.sndbuf.max(sent), rcvbuf: caps.rcvbuf.max(received) };
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
        // Dropping it closes it, which also takes it off the poll.
    }
}

/// A small send buffer is meant to be small. The kernel asks whether it is full only before it begins a new segment: to
/// the last one, as long as it is unsent, it adds up to 64 KiB.
const WATCHED_BELOW: u32 = 128 << 10;

/// One write of at most `max` bytes, as a segment that no later one is added to.
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

/// Chunks that `WATCHED_BELOW / 2` bytes can lie in.
const WRITE_PARTS: usize = 18;

fn retry<T>(mut op: impl FnMut() -> io::Result<T>) -> Result<T, HostError> {
    loop {
        match op() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(|e| map_io(&e)),
        }
    }
}

/// Receive buffer at the moment of connecting to another machine.
const FAR_RCVBUF: u32 = 4 << 20;

/// As `set_buffers`, for a listener: what it accepts starts like that.
pub(crate) fn prepare_listener(socket: &impl AsFd, caps: HostCaps) {
    closing::reset_on_close(socket);
    set_buffers(socket, caps);
    let _ = setsockopt(socket, sockopt::TcpMaxSeg, &LOOPBACK_MSS);
}

/// No network lies between the two ends of a loopback connection: a host that paces (BBR) would only set timers for
/// nothing. Reno is in every kernel and open to everyone; nothing is lost on loopback that it could slow down for.
fn unpaced(socket: &impl AsFd) {
    let _ = setsockopt(socket, sockopt::TcpCongestion, &OsString::from("reno"));
}

/// Failure leaves the smaller buffer of before: what is charged is then more than what can be held, never less.
fn set_buffers(socket: &impl AsFd, caps: HostCaps) {
    let _ = setsockopt(socket, sockopt::SndBuf, &((caps.sndbuf / KERNEL_DOUBLES) as usize));
    let _ = setsockopt(socket, sockopt::RcvBuf, &((caps.rcvbuf / KERNEL_DOUBLES) as usize));
}

/// A connection's window stays below what the buffer was when it began (tcp_connect_init, tcp_openreq_init_rwin) or
/// when the size of arriving segments last changed (tcp_measure_rcv_mss), though the buffer is larger now. The buffer
/// is to be the limit, nothing else.
fn unclamp(socket: &impl AsFd) {
    let _ = sys::set_window_clamp(socket.as_fd(), WINDOW_MAX);
}

/// The largest window TCP can express (RFC 7323 section 2.3).
const WINDOW_MAX: u32 = 1 << 30;
