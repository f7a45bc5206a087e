//! The host side of one simulated container: sockets with bounded buffers and edge-triggered readiness, and the servers
//! behind them.
//!
//! A socket's send side holds half of `caps.sndbuf` (the kernel counts overhead in the other half) plus the server's
//! own receive buffer. Its receive side holds half of `caps.rcvbuf`. Bytes are not stored: the stack's writes are
//! checked against the stream's pattern, and its reads are filled from it.
//!
//! The sockets do not fix their window scale at connect (`Host::window_scale_fixed_at_connect`), so they connect with
//! small buffers. With large ones all data of a server arrives at once and frames become as large as the guest's
//! window. A slow link carries a frame whole, so each then waits for the ACK of the one before: 84 instead of 92 of 100
//! Mbit/s into 64 KiB, with limits or without. A device that takes a frame in no time has no such wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_stack::{Close, DatagramId, FlowId, Host, HostCaps, HostError, Ready};

mod datagrams;

pub use datagrams::{DatagramServer, DatagramStats};

use crate::server::{Accept, Server};
use crate::sock::{PortStats, Sock};

/// The host sockets of one container, and the servers behind them.
#[derive(Debug, Default)]
pub struct SimHost {
    now: Instant,
    servers: Vec<(RangeInclusive<u16>, Server)>,
    socks: BTreeMap<FlowId, Sock>,
    ports: BTreeMap<u16, PortStats>,
    timers: BinaryHeap<Reverse<(Instant, u64, FlowId)>>,
    timers_made: u64,
    ready: VecDeque<(FlowId, Ready)>,
    broken: VecDeque<FlowId>,
    datagrams: datagrams::Datagrams,
    caps_bytes_max: u64,
}

impl SimHost {
    /// A host without servers: it refuses every connect.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a server behind these ports of any address. The latest registration wins; a port without server refuses.
    pub fn serve(&mut self, ports: RangeInclusive<u16>, server: Server) {
        self.servers.push((ports, server));
    }

    /// Servers on these ports start to read now.
    pub fn start_reading(&mut self, ports: RangeInclusive<u16>, now: Instant) {
        for (range, server) in &mut self.servers {
            if range.start() >= ports.start() && range.end() <= ports.end() {
                server.reads_from = now;
            }
        }
        let flows: Vec<FlowId> =
            self.socks.iter().filter(|(_, s)| ports.contains(&s.port())).map(|(f, _)| *f).collect();
        self.now = now;
        for flow in flows {
            if let Some(sock) = self.socks.get_mut(&flow) {
                sock.start_reading(now);
            }
            self.step(flow);
        }
    }

    /// A client has connected to a published port: creates its socket for the flow that the stack named.
    pub fn adopt(&mut self, flow: FlowId, port: u16, server: Server, caps: HostCaps) {
        let now = self.now;
        self.ports.entry(port).or_default().connects += 1;
        self.socks.insert(flow, Sock::open(port, server, caps, now));
        self.step(flow);
    }

    /// Counters of one port, all zero if it was never used.
    pub fn port(&self, port: u16) -> PortStats {
        self.ports.get(&port).copied().unwrap_or_default()
    }
    /// The sum over a range of ports.
    pub fn ports(&self, ports: RangeInclusive<u16>) -> PortStats {
        let mut sum = PortStats::default();
        for (_, p) in self.ports.range(ports) {
            let PortStats { connects, written, consumed, read, eofs, closed, resets, corrupt } = *p;
            sum.connects += connects;
            sum.written += written;
            sum.consumed += consumed;
            sum.read += read;
            sum.eofs += eofs;
            sum.closed += closed;
            sum.resets += resets;
            sum.corrupt += corrupt;
        }
        sum
    }
    /// Writes with bytes that differ from what the guest sent.
    pub fn corrupt(&self) -> u64 {
        self.ports.values().map(|p| p.corrupt).sum()
    }
    /// Number of sockets that are not closed.
    pub fn open_sockets(&self) -> usize {
        self.socks.len() + self.datagrams.open()
    }
    /// Largest sum of the caps of all sockets so far, bytes.
    pub fn caps_bytes_max(&self) -> u64 {
        self.caps_bytes_max
    }

    // ---- the world's side ----

    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }
    /// Runs the sockets' timers up to `now`.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some(Reverse((at, _, flow))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            self.now = self.now.max(at);
            if let Some(sock) = self.socks.get_mut(&flow) {
                sock.timer_fired(at);
                self.step(flow);
            }
        }
        self.now = now;
        self.datagrams.advance(now);
    }
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _, _))| *at);
        timer.into_iter().chain(self.datagrams.next_deadline()).min()
    }
    pub(crate) fn poll_ready(&mut self) -> Option<(FlowId, Ready)> {
        self.ready.pop_front()
    }

    pub(crate) fn poll_broken(&mut self) -> Option<FlowId> {
        self.broken.pop_front()
    }

    pub(crate) fn poll_datagram_ready(&mut self) -> Option<DatagramId> {
        self.datagrams.poll_ready()
    }

    /// Updates a socket and collects its events. Called after every operation on it.
    fn step(&mut self, flow: FlowId) {
        let Some(sock) = self.socks.get_mut(&flow) else { return };
        let stats = self.ports.entry(sock.port()).or_default();
        if let Some(ready) = sock.step(self.now, stats) {
            self.ready.push_back((flow, ready));
        }
        if sock.take_broke() {
            self.broken.push_back(flow);
        }
        if let Some(at) = sock.arm_timer() {
            self.timers_made += 1;
            self.timers.push(Reverse((at, self.timers_made, flow)));
        }
    }

    fn note_caps(&mut self) {
        let sum = self.socks.values().map(Sock::caps_bytes).sum();
        self.caps_bytes_max = self.caps_bytes_max.max(sum);
    }
}

impl Host for SimHost {
    fn connect(&mut self, flow: FlowId, to: SocketAddr, caps: HostCaps) -> Result<(), HostError> {
        let port = to.port();
        // The latest registration wins.
        let server = self.servers.iter().rev().find(|(range, _)| range.contains(&port));
        let server = server.map_or_else(|| Server::fails(HostError::Refused), |(_, s)| s.clone());
        if let Accept::Fails(HostError::NetUnreachable) = server.accept {
            // The only failure that connect(2) returns at once.
            return Err(HostError::NetUnreachable);
        }
        self.ports.entry(port).or_default().connects += 1;
        let old = self.socks.insert(flow, Sock::connecting(port, server, caps, self.now));
        assert!(old.is_none(), "{flow:?} connects twice");
        self.note_caps();
        self.step(flow);
        Ok(())
    }

    fn connect_outcome(&mut self, flow: FlowId) -> Option<Result<(), HostError>> {
        self.socks.get_mut(&flow)?.outcome()
    }

    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let now = self.now;
        let sock = self.socks.get_mut(&flow).ok_or(HostError::Reset)?;
        let stats = self.ports.entry(sock.port()).or_default();
        let out = sock.write(now, parts, stats);
        self.step(flow);
        out
    }

    fn read(&mut self, flow: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError> {
        let sock = self.socks.get_mut(&flow).ok_or(HostError::Reset)?;
        let stats = self.ports.entry(sock.port()).or_default();
        let out = sock.read(parts, stats);
        self.step(flow);
        out
    }

    fn shutdown_write(&mut self, flow: FlowId) {
        if let Some(sock) = self.socks.get_mut(&flow) {
            sock.shutdown_write();
            self.step(flow);
        }
    }

    fn unacknowledged(&mut self, flow: FlowId) -> u64 {
        self.socks.get(&flow).map_or(0, |sock| sock.unacknowledged(self.now))
    }

    fn set_caps(&mut self, flow: FlowId, caps: HostCaps) {
        if let Some(sock) = self.socks.get_mut(&flow) {
            sock.set_caps(caps);
            self.note_caps();
            self.step(flow);
        }
    }

    fn lower_caps(&mut self, flow: FlowId, caps: HostCaps) -> HostCaps {
        self.set_caps(flow, caps);
        let Some(sock) = self.socks.get(&flow) else { return caps };
        let (to_host, from_host) = sock.held();
        HostCaps { sndbuf: caps.sndbuf.max(to_host), rcvbuf: caps.rcvbuf.max(from_host) }
    }

    fn keep_alive(&mut self, flow: FlowId, every: Duration) {
        if let Some(sock) = self.socks.get_mut(&flow) {
            sock.peer(self.now).keep_alive(every);
            self.step(flow);
        }
    }

    fn ask_peer(&mut self, flow: FlowId) {
        if let Some(sock) = self.socks.get_mut(&flow) {
            sock.peer(self.now).ask(self.now);
        }
    }

    fn silence(&mut self, flow: FlowId) -> Option<Duration> {
        self.socks.get_mut(&flow)?.peer(self.now).silence(self.now)
    }

    fn close(&mut self, flow: FlowId, how: Close) {
        let Some(sock) = self.socks.remove(&flow) else { return };
        let stats = self.ports.entry(sock.port()).or_default();
        stats.closed += 1;
        match how {
            Close::Graceful => sock.deliver_rest(self.now, stats),
            Close::Reset => {
                sock.deliver_acknowledged(self.now, stats);
                stats.resets += 1;
            }
        }
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
