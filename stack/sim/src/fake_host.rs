//! Host sockets without a kernel, for tests that move every byte by hand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_stack::{Close, DatagramId, FlowId, Host, HostCaps, HostError};

mod datagrams;

pub use datagrams::{FakeSocket, Sent};

/// One host socket.
#[derive(Debug, Default)]
pub struct Sock {
    /// Destination of the connect.
    pub to: Option<SocketAddr>,
    /// Result of connect(2); `None`: still in progress.
    pub outcome: Option<Result<(), HostError>>,
    /// Bytes from the peer that were not read yet.
    pub incoming: VecDeque<u8>,
    /// The peer ended its stream after these bytes.
    pub ends: bool,
    /// The connection broke with this error.
    pub broken: Option<HostError>,
    /// The error was returned to a caller.
    pub error_returned: bool,
    /// Bytes and end of stream that the peer has not acknowledged.
    pub unacked: u64,
    /// Bytes written to the socket.
    pub received: Vec<u8>,
    /// Bytes that it still takes; `usize::MAX` is no limit.
    pub room: usize,
    /// `shutdown_write` was called.
    pub shut: bool,
    /// How it was closed.
    pub closed: Option<Close>,
    /// The caps set last.
    pub caps: Option<HostCaps>,
    /// Bytes that stay in its send buffer when its caps are lowered.
    pub kept: u32,
    /// Number of times that its caps were lowered.
    pub lowered: usize,
    /// Number of writes.
    pub writes: usize,
    /// The peer's time to answer a probe (`None`: it is gone).
    pub rtt: Option<Duration>,
    /// Arrival of the peer's last segment.
    pub last_segment: Instant,
    /// The peer has not acknowledged all that it was sent.
    pub owes_ack: bool,
    /// Keep-alive interval.
    pub keep_alive: Option<Duration>,
    probed_at: Option<Instant>,
    /// Number of probes sent, and of polls for their answer.
    pub probes: usize,
    /// See `probes`.
    pub polls: usize,
}

impl Sock {
    /// An accepted socket, without data, that takes everything.
    pub fn open() -> Self {
        Self { room: usize::MAX, ..Self::default() }
    }
}

/// Host sockets that a test drives by hand: it sets what their peers do and inspects what they received.
#[derive(Debug)]
pub struct FakeHost {
    /// The time of the test's clock.
    pub now: Instant,
    /// All sockets, closed ones included.
    pub socks: BTreeMap<FlowId, Sock>,
    /// Result of connect(2) itself.
    pub connect: Result<(), HostError>,
    /// Outcome that new sockets report later.
    pub outcome: Option<Result<(), HostError>>,
    /// Flows, in the order of their connect(2).
    pub connects: Vec<FlowId>,
    /// All datagram sockets, closed ones included.
    pub datagrams: BTreeMap<DatagramId, FakeSocket>,
    /// Name servers of the host.
    pub name_servers: Vec<SocketAddr>,
    /// Result of opening a datagram socket.
    pub datagrams_open: Result<(), HostError>,
}

impl FakeHost {
    /// A host on which every connect succeeds.
    pub fn new(now: Instant) -> Self {
        let (socks, connects) = (BTreeMap::new(), Vec::new());
        Self {
            now,
            socks,
            connect: Ok(()),
            outcome: Some(Ok(())),
            connects,
            datagrams: BTreeMap::new(),
            name_servers: Vec::new(),
            datagrams_open: Ok(()),
        }
    }

    /// The socket of a flow.
    ///
    /// # Panics
    /// When the flow never had one.
    pub fn sock(&mut self, flow: FlowId) -> &mut Sock {
        self.socks.get_mut(&flow).expect("a flow the host knows")
    }
}

impl Host for FakeHost {
    fn connect(&mut self, flow: FlowId, to: SocketAddr, caps: HostCaps) -> Result<(), HostError> {
        self.connects.push(flow);
        let sock = Sock {
            to: Some(to),
            outcome: self.outcome,
            room: usize::MAX,
            caps: Some(caps),
            ..Sock::default()
        };
        assert!(self.socks.insert(flow, sock).is_none(), "an id is used once");
        self.connect
    }
    fn connect_outcome(&mut self, flow: FlowId) -> Option<Result<(), HostError>> {
        self.sock(flow).outcome
    }
    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let sock = self.sock(flow);
        assert!(!sock.shut && sock.closed.is_none(), "a write after the end");
        sock.writes += 1;
        if let Some(e) = sock.broken {
            // Like SO_ERROR: the error is returned once, afterwards the socket is merely broken.
            let returned = std::mem::replace(&mut sock.error_returned, true);
            return Err(if returned { HostError::ResetAfterEnd } else { e });
        }
        let mut n = 0;
        for part in parts {
            let take = part.len().min(sock.room);
            sock.received.extend_from_slice(&part[..take]);
            sock.room -= if sock.room == usize::MAX { 0 } else { take };
            n += take;
        }
        if n == 0 { Err(HostError::WouldBlock) } else { Ok(n) }
    }
    fn read(&mut self, flow: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError> {
        let sock = self.sock(flow);
        // Data that arrived before a reset is read before the error, as on Linux.
        assert!(parts.iter().any(|p| !p.is_empty()), "a read of nothing");
        if sock.incoming.is_empty() {
            return match sock.broken {
                _ if sock.ends => Ok(0),
                Some(e) if !std::mem::replace(&mut sock.error_returned, true) => Err(e),
                Some(_) => Ok(0),
                None => Err(HostError::WouldBlock),
            };
        }
        let mut n = 0;
        for part in parts {
            for to in part.iter_mut() {
                let Some(b) = sock.incoming.pop_front() else { return Ok(n) };
                *to = b;
                n += 1;
            }
        }
        Ok(n)
    }
    fn shutdown_write(&mut self, flow: FlowId) {
        let sock = self.sock(flow);
        assert!(!sock.shut, "shut down once");
        sock.shut = true;
    }
    fn unacknowledged(&mut self, flow: FlowId) -> u64 {
        self.sock(flow).unacked
    }
    fn set_caps(&mut self, flow: FlowId, caps: HostCaps) {
        self.sock(flow).caps = Some(caps);
    }
    fn lower_caps(&mut self, flow: FlowId, caps: HostCaps) -> HostCaps {
        let sock = self.sock(flow);
        sock.lowered += 1;
        HostCaps { sndbuf: caps.sndbuf.max(sock.kept), ..caps }
    }
    fn keep_alive(&mut self, flow: FlowId, every: Duration) {
        let sock = self.sock(flow);
        assert!(sock.closed.is_none(), "an open socket");
        sock.keep_alive = Some(every);
    }
    fn ask_peer(&mut self, flow: FlowId) {
        let now = self.now;
        let sock = self.sock(flow);
        sock.probes += 1;
        sock.probed_at = Some(now);
    }
    fn silence(&mut self, flow: FlowId) -> Option<Duration> {
        let now = self.now;
        let sock = self.sock(flow);
        sock.polls += 1;
        if let (Some(probed), Some(rtt)) = (sock.probed_at, sock.rtt)
            && probed + rtt <= now
        {
            sock.last_segment = sock.last_segment.max(probed + rtt);
        }
        (!sock.owes_ack).then(|| now.since(sock.last_segment))
    }
    fn close(&mut self, flow: FlowId, how: Close) {
        let sock = self.sock(flow);
        assert!(sock.closed.is_none(), "closed once");
        sock.closed = Some(how);
    }
}
