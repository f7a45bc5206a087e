//! The two ends a container stack talks to, as values and two small traits: the real loop and the simulator
//! implement them, the stack knows neither descriptors nor clocks.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::time::Duration;

use skbudget_controller::{Budget, Instant};

use crate::chunk::ChunkPool;
use crate::vnet::VnetHdr;

/// Names a flow of one container. The generation makes a late event for a dead flow harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub index: u32,
    pub generation: u32,
}

/// What a host socket can do now. Edge-triggered: said once, holds until an operation answers `WouldBlock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
}

/// Effective (doubled) SO_SNDBUF and SO_RCVBUF of a host socket, bytes: what is charged as `host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCaps {
    pub sndbuf: u32,
    pub rcvbuf: u32,
}

/// How a host operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostError {
    WouldBlock,
    /// ECONNREFUSED
    Refused,
    /// EHOSTUNREACH
    HostUnreachable,
    /// ENETUNREACH, EACCES, EPERM
    NetUnreachable,
    /// ETIMEDOUT: a guest that connects is not answered, its own timer decides; an open flow is reset.
    TimedOut,
    /// ECONNRESET, ECONNABORTED: the peer reset the connection.
    Reset,
    /// EPIPE: the peer ended its stream and then reset the connection.
    ResetAfterEnd,
    /// EMFILE, ENOBUFS, EADDRNOTAVAIL and the like: ours, not the peer's.
    NoResources,
}

/// How a host socket ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// close(2): what the kernel still holds is delivered.
    Graceful,
    /// SO_LINGER 0, close(2): the peer sees RST.
    Reset,
}

/// The host's side of one container's flows.
///
/// A connection that the peer reset behaves as a Linux socket does: `read` gives what arrived before the reset, then
/// the error, once; a `write` that comes first is given the error instead, and `read` then ends with `Ok(0)`. After a
/// peer that ended its stream before it reset the connection, `read` ends with `Ok(0)` and only `write` fails.
pub trait Host {
    /// The window scale of a connection follows from the buffer it began with, for the rest of its life: so it is with
    /// a kernel's sockets, and where there is plenty they connect with a large one. Otherwise a window follows its
    /// buffer at any time.
    fn keeps_scale(&self) -> bool {
        false
    }
    /// Starts a non-blocking connect with buffers set to `caps` first. `Ok`: under way or done; the outcome is asked
    /// with `connect_outcome` once the socket was reported writable.
    fn connect(&mut self, flow: FlowId, to: SocketAddr, caps: HostCaps) -> Result<(), HostError>;
    /// `None`: still under way. `Reset` and `ResetAfterEnd`: it was made, and the peer reset it since.
    fn connect_outcome(&mut self, flow: FlowId) -> Option<Result<(), HostError>>;
    /// writev(2). Never `Ok(0)` for a non-empty write.
    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError>;
    /// readv(2). `Ok(0)` is the end of the stream.
    fn read(&mut self, flow: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError>;
    /// shutdown(SHUT_WR)
    fn shutdown_write(&mut self, flow: FlowId);
    /// SIOCOUTQ: bytes written that the peer has not acknowledged, and one for the end of the stream. 0 when nothing
    /// of it is held any more, as after a reset.
    fn unacknowledged(&mut self, flow: FlowId) -> u64;
    fn set_caps(&mut self, flow: FlowId, caps: HostCaps);
    /// Lowers the caps; returns what the socket may hold until it has drained: the larger of `caps` and what SO_MEMINFO
    /// says it holds, or what the caps were if it does not say.
    fn lower_caps(&mut self, flow: FlowId, caps: HostCaps) -> HostCaps;
    /// SO_KEEPALIVE of an open socket: a peer that was not heard for `every` is probed. It is not given up for the want
    /// of a few answers, only after as many as the kernel counts at most: how many are enough is the guest's to say.
    /// A host whose peers cannot vanish leaves this and the next two as they are.
    fn keep_alive(&mut self, _flow: FlowId, _every: Duration) {}
    /// As `keep_alive`, and a peer not heard for a second is probed now.
    fn ask_peer(&mut self, _flow: FlowId) {}
    /// How long nothing was heard of the peer of an open socket. `None`: not known, or there are bytes that it has not
    /// acknowledged, for which the kernel's own timers decide.
    fn silence(&mut self, _flow: FlowId) -> Option<Duration> {
        None
    }
    /// The flow is over; the id is not used again.
    fn close(&mut self, flow: FlowId, how: Close);
}

/// The container's device: takes frames for the guest.
pub trait Device {
    /// One frame, in parts: Ethernet header first. False: the device is full and took nothing; the caller sends again
    /// later (data) or forgets it (control).
    fn send(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> bool;
}

/// What every operation of a container stack is given: the time, the memory, the two ends.
pub struct Ctx<'a> {
    pub now: Instant,
    pub budget: &'a mut Budget,
    pub pool: &'a mut ChunkPool,
    pub host: &'a mut dyn Host,
    pub device: &'a mut dyn Device,
}

impl std::fmt::Debug for Ctx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx").field("now", &self.now).finish_non_exhaustive()
    }
}
