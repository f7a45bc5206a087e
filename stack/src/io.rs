//! The two ends of a container's stack, as values and two small traits: host sockets and the device. The worker loop
//! and the simulator implement them; the stack itself has neither descriptors nor clocks.

pub mod datagram;
pub mod vnet;

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::time::Duration;

use datagram::DatagramHost;
use vnet::VnetHdr;

/// Names a flow of one container. Because of the generation, a late event for a flow that has ended has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    /// Index in the container's table. It is used again after the flow.
    pub index: u32,
    /// Number of flows that had this index before.
    pub generation: u32,
}

/// What a host socket is ready for. Edge-triggered: reported once, valid until an operation returns `WouldBlock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// A read returns data, the end of the stream, or an error.
    pub readable: bool,
    /// A write takes data, or returns an error; the connect has ended.
    pub writable: bool,
}

/// Effective (doubled) SO_SNDBUF and SO_RCVBUF of a host socket, bytes: the amount charged as `host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCaps {
    /// SO_SNDBUF.
    pub sndbuf: u32,
    /// SO_RCVBUF.
    pub rcvbuf: u32,
}

/// Error of a host operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostError {
    /// EAGAIN: nothing to read, or no room to write.
    WouldBlock,
    /// ECONNREFUSED
    Refused,
    /// EHOSTUNREACH
    HostUnreachable,
    /// ENETUNREACH, EACCES, EPERM
    NetUnreachable,
    /// ETIMEDOUT. While the guest connects it receives nothing and its own timer decides; an open flow is reset.
    TimedOut,
    /// ECONNRESET, ECONNABORTED: the peer reset the connection.
    Reset,
    /// EPIPE: the peer ended its stream and then reset the connection.
    ResetAfterEnd,
    /// EMFILE, ENOBUFS, EADDRNOTAVAIL and similar: a shortage here, not an answer of the peer.
    NoResources,
}

/// How a host socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// close(2): the kernel still delivers what it has queued.
    Graceful,
    /// SO_LINGER 0, then close(2): the peer receives a RST.
    Reset,
}

/// The host sockets of one container's flows, and its datagram sockets.
///
/// A connection that the peer reset behaves as a Linux socket does: `read` returns the data that arrived before the
/// reset, then the error, once. A `write` before that returns the error instead, and `read` then ends with `Ok(0)`. If
/// the peer ended its stream before it reset the connection, `read` ends with `Ok(0)` and only `write` fails.
pub trait Host: DatagramHost {
    /// True if a connection's window scale follows from its receive buffer at connect and stays fixed, as with Linux
    /// sockets: with plenty of memory they connect with a large buffer. False if the window follows the buffer at any
    /// time.
    fn window_scale_fixed_at_connect(&self) -> bool {
        false
    }
    /// Sets the buffers to `caps`, then starts a non-blocking connect. `Ok`: under way or done; `connect_outcome`
    /// returns the result once the socket was reported writable.
    fn connect(&mut self, flow: FlowId, to: SocketAddr, caps: HostCaps) -> Result<(), HostError>;
    /// Result of the connect. `None`: still under way. `Reset` and `ResetAfterEnd`: it succeeded and the peer has reset
    /// the connection since.
    fn connect_outcome(&mut self, flow: FlowId) -> Option<Result<(), HostError>>;
    /// writev(2). Never returns `Ok(0)` for a non-empty write.
    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError>;
    /// readv(2). `Ok(0)` means the end of the stream.
    fn read(&mut self, flow: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError>;
    /// shutdown(SHUT_WR)
    fn shutdown_write(&mut self, flow: FlowId);
    /// SIOCOUTQ: bytes written that the peer has not acknowledged, plus one for an unacknowledged FIN. 0 when the
    /// socket holds none of them any more, as after a reset.
    fn unacknowledged(&mut self, flow: FlowId) -> u64;
    /// Sets both buffer caps; the caller has charged them.
    fn set_caps(&mut self, flow: FlowId, caps: HostCaps);
    /// Lowers the caps. Returns what the socket may hold until it has drained: the larger of `caps` and the usage that
    /// SO_MEMINFO reports, or the former caps if it reports none.
    fn lower_caps(&mut self, flow: FlowId, caps: HostCaps) -> HostCaps;
    /// SO_KEEPALIVE of an open socket: a peer that is silent for `every` is probed. The kernel gives it up only after
    /// the largest number of unanswered probes that it can count, because the guest decides how many are enough. A host
    /// with peers that cannot vanish may keep the defaults of this and the next two.
    fn keep_alive(&mut self, _flow: FlowId, _every: Duration) {}
    /// As `keep_alive`, and probes the peer now if it was silent for a second.
    fn ask_peer(&mut self, _flow: FlowId) {}
    /// Time since the last segment of an open socket's peer. `None`: unknown, or there are unacknowledged bytes, for
    /// which the kernel's own timers decide.
    fn silence(&mut self, _flow: FlowId) -> Option<Duration> {
        None
    }
    /// Closes the socket of a flow that ended. The id is not used again.
    fn close(&mut self, flow: FlowId, how: Close);
}

/// The container's device, towards the guest.
pub trait Device {
    /// Sends one frame, given in parts, the Ethernet header first. Returns false if the device is full and took
    /// nothing: the caller sends data again later and forgets control packets.
    fn send(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> bool;
}
