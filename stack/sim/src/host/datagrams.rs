//! Datagram sockets of a simulated host, and the servers that answer them.
//!
//! Datagrams are stored whole. A socket's receive queue holds what its cap allows; more is lost and counted, as in the
//! kernel.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_stack::datagram::{
    DatagramError, DatagramKind, DatagramSocket, IpFields, RECEIVE_BATCH, ReceivedDatagram,
    SendDatagram, SendStop, Undeliverable,
};
use skbudget_stack::{DatagramHost, DatagramId, HostCaps, HostError};

use super::SimHost;

/// Bytes that a queued datagram takes beyond its payload.
const OVERHEAD: usize = 1024;

/// A server for datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramServer {
    /// Answers each datagram with `copies` copies of it after `delay`.
    Echo {
        /// Time until the answer is in the socket's queue.
        delay: Duration,
        /// Answers to each datagram.
        copies: usize,
    },
    /// Receives and answers nothing.
    Sink,
    /// No server: port unreachable.
    Closed,
}

/// Counters of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatagramStats {
    /// Datagrams received from guests, and their bytes.
    pub received: u64,
    /// See `received`.
    pub bytes: u64,
    /// Answers that entered a socket's queue.
    pub answered: u64,
    /// Answers lost because the queue was full.
    pub lost: u64,
}

#[derive(Debug)]
struct Socket {
    kind: DatagramKind,
    ipv6: bool,
    caps: HostCaps,
    queue: VecDeque<(SocketAddr, IpFields, Vec<u8>)>,
    queued: usize,
    errors: VecDeque<(SocketAddr, Undeliverable)>,
    drops: u32,
}

/// One answer on its way: when, in which order, to which socket, from where, what.
type Answer = Reverse<(Instant, u64, DatagramId, SocketAddr, Vec<u8>)>;

/// The datagram side of a simulated host.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    servers: BTreeMap<u16, DatagramServer>,
    ports: BTreeMap<u16, DatagramStats>,
    sockets: BTreeMap<DatagramId, Socket>,
    answers: BinaryHeap<Answer>,
    made: u64,
    ready: VecDeque<DatagramId>,
    caps_bytes_max: u64,
}

impl Datagrams {
    pub(super) fn serve(&mut self, port: u16, server: DatagramServer) {
        self.servers.insert(port, server);
    }

    pub(super) fn port(&self, port: u16) -> DatagramStats {
        self.ports.get(&port).copied().unwrap_or_default()
    }

    pub(super) fn open(&self) -> usize {
        self.sockets.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.answers.peek().map(|Reverse((at, ..))| *at)
    }

    pub(super) fn poll_ready(&mut self) -> Option<DatagramId> {
        self.ready.pop_front()
    }

    /// Puts the answers that are due into their sockets.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some(Reverse((at, ..))) = self.answers.peek()
            && *at <= now
        {
            let Some(Reverse((_, _, id, from, payload))) = self.answers.pop() else { break };
            // The mapping has ended meanwhile.
            let Some(socket) = self.sockets.get_mut(&id) else { continue };
            let stats = self.ports.entry(from.port()).or_default();
            // As the kernel: one datagram may exceed the cap.
            if socket.queued > socket.caps.rcvbuf as usize {
                socket.drops += 1;
                stats.lost += 1;
                continue;
            }
            stats.answered += 1;
            socket.queued += payload.len() + OVERHEAD;
            let ip = IpFields { hop_limit: 64, traffic_class: 0, dont_fragment: false };
            socket.queue.push_back((from, ip, payload));
            self.ready.push_back(id);
        }
    }

    fn deliver(&mut self, id: DatagramId, datagram: &SendDatagram<'_>, now: Instant) {
        let port = datagram.to.port();
        if let Some(socket) = self.sockets.get(&id).filter(|s| s.kind == DatagramKind::Echo) {
            // Every host answers, a millisecond later.
            let mut payload = datagram.payload.to_vec();
            payload[0] = if socket.ipv6 { 129 } else { 0 };
            self.made += 1;
            let at = now + Duration::from_millis(1);
            return self.answers.push(Reverse((at, self.made, id, datagram.to, payload)));
        }
        let stats = self.ports.entry(port).or_default();
        stats.received += 1;
        stats.bytes += datagram.payload.len() as u64;
        match self.servers.get(&port).copied().unwrap_or(DatagramServer::Closed) {
            DatagramServer::Echo { delay, copies } => {
                for _ in 0..copies {
                    self.made += 1;
                    let (from, payload) = (datagram.to, datagram.payload.to_vec());
                    self.answers.push(Reverse((now + delay, self.made, id, from, payload)));
                }
            }
            DatagramServer::Sink => {}
            DatagramServer::Closed => {
                if let Some(socket) = self.sockets.get_mut(&id) {
                    socket.errors.push_back((datagram.to, Undeliverable::Port));
                    self.ready.push_back(id);
                }
            }
        }
    }

    fn note_caps(&mut self) {
        let caps = self.sockets.values().map(|socket| socket.caps);
        let sum = caps.map(|caps| u64::from(caps.sndbuf) + u64::from(caps.rcvbuf)).sum();
        self.caps_bytes_max = self.caps_bytes_max.max(sum);
    }
}

impl DatagramHost for SimHost {
    fn open_datagram(&mut self, id: DatagramId, spec: &DatagramSocket) -> Result<(), HostError> {
        let socket = Socket {
            kind: spec.kind,
            ipv6: spec.ipv6,
            caps: spec.caps,
            queue: VecDeque::new(),
            queued: 0,
            errors: VecDeque::new(),
            drops: 0,
        };
        let old = self.datagrams.sockets.insert(id, socket);
        assert!(old.is_none(), "{id:?} is opened twice");
        self.datagrams.note_caps();
        Ok(())
    }

    fn send_datagrams(
        &mut self,
        id: DatagramId,
        batch: &[SendDatagram<'_>],
    ) -> (usize, Option<SendStop>) {
        let Some(socket) = self.datagrams.sockets.get(&id) else { return (0, None) };
        assert!(batch.iter().all(|datagram| datagram.to.is_ipv6() == socket.ipv6));
        let now = self.now;
        batch.iter().for_each(|datagram| self.datagrams.deliver(id, datagram, now));
        (batch.len(), None)
    }

    fn receive_datagrams(
        &mut self,
        id: DatagramId,
        take: &mut dyn FnMut(&ReceivedDatagram<'_>),
    ) -> bool {
        let Some(socket) = self.datagrams.sockets.get_mut(&id) else { return false };
        for _ in 0..RECEIVE_BATCH {
            let Some((from, ip, payload)) = socket.queue.pop_front() else { return false };
            socket.queued -= payload.len() + OVERHEAD;
            take(&ReceivedDatagram { from, ip, payload: &payload });
        }
        true
    }

    fn receive_errors(&mut self, id: DatagramId, take: &mut dyn FnMut(&DatagramError<'_>)) -> bool {
        let Some(socket) = self.datagrams.sockets.get_mut(&id) else { return false };
        for _ in 0..RECEIVE_BATCH {
            let Some((to, why)) = socket.errors.pop_front() else { return false };
            take(&DatagramError { to, by: None, why, payload: &[] });
        }
        true
    }

    fn take_datagram_drops(&mut self, id: DatagramId) -> u32 {
        let socket = self.datagrams.sockets.get_mut(&id);
        socket.map_or(0, |socket| std::mem::take(&mut socket.drops))
    }

    fn set_datagram_caps(&mut self, id: DatagramId, caps: HostCaps) {
        if let Some(socket) = self.datagrams.sockets.get_mut(&id) {
            socket.caps = caps;
            self.datagrams.note_caps();
        }
    }

    fn close_datagram(&mut self, id: DatagramId) {
        let closed = self.datagrams.sockets.remove(&id);
        assert!(closed.is_some(), "{id:?} is closed twice");
    }
}

impl SimHost {
    /// Puts a server for datagrams behind this port of any address. A port without one is unreachable.
    pub fn serve_datagrams(&mut self, port: u16, server: DatagramServer) {
        self.datagrams.serve(port, server);
    }

    /// Counters of datagrams of one port.
    pub fn datagram_port(&self, port: u16) -> DatagramStats {
        self.datagrams.port(port)
    }

    /// Largest sum of the caps of all datagram sockets so far, bytes.
    pub fn datagram_caps_bytes_max(&self) -> u64 {
        self.datagrams.caps_bytes_max
    }
}
