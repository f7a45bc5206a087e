//! Host sockets that follow a script. Bytes are functions of their position in the stream.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_stack::datagram::{
    DatagramError, DatagramSocket, IpFields, ReceivedDatagram, SendDatagram, SendStop,
    Undeliverable,
};
use skbudget_stack::{Close, DatagramHost, DatagramId, FlowId, Host, HostCaps, HostError};

/// The guest's byte at a sequence number.
pub(super) fn guest_byte(seq: u32) -> u8 {
    (seq.wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// The host's byte at a position of its stream.
pub(super) fn host_byte(at: u32) -> u8 {
    (at.wrapping_mul(0x85eb_ca6b) >> 23) as u8
}

#[derive(Debug, Default)]
pub(super) struct Sock {
    pub(super) outcome: Option<Result<(), HostError>>,
    /// Bytes it still has for the guest, and bytes read from it so far.
    pub(super) says: u32,
    said: u32,
    pub(super) ends: bool,
    pub(super) broken: Option<HostError>,
    /// The error was returned by an operation or by `connect_outcome`.
    told: bool,
    /// Bytes that the socket's peer does not acknowledge.
    pub(super) kept: u64,
    /// Bytes received from the guest and not compared yet, and the number of those compared.
    pub(super) heard: Vec<u8>,
    pub(super) compared: u32,
    pub(super) room: usize,
    shut: bool,
    asked: bool,
}

impl Sock {
    pub(super) fn new(outcome: Option<Result<(), HostError>>) -> Self {
        Self { outcome, room: 1 << 16, ..Self::default() }
    }
}

#[derive(Debug, Default)]
pub(super) struct ScriptHost {
    pub(super) socks: BTreeMap<FlowId, Sock>,
    /// Error that the next connect(2) returns.
    pub(super) connect: Option<HostError>,
    pub(super) datagrams: BTreeMap<DatagramId, ScriptSocket>,
    /// How the next sends end, the last one first; without any they succeed.
    pub(super) sends: Vec<SendStop>,
}

/// One datagram socket.
#[derive(Debug, Default)]
pub(super) struct ScriptSocket {
    ipv6: bool,
    /// The latest destination: what the socket receives comes from there.
    pub(super) peer: Option<SocketAddr>,
    /// Sizes of datagrams that arrived, and reasons of errors.
    pub(super) incoming: Vec<u16>,
    pub(super) errors: Vec<Undeliverable>,
    /// The latest payload sent, and the number of times that it is returned as an answer to a question.
    sent: Vec<u8>,
    pub(super) answers: u8,
    caps: u64,
}

/// What a host socket receives.
static PAYLOAD: [u8; 1 << 16] = [0x5a; 1 << 16];

impl DatagramHost for ScriptHost {
    fn open_datagram(&mut self, id: DatagramId, spec: &DatagramSocket) -> Result<(), HostError> {
        if let Some(e) = self.connect.take() {
            return Err(e);
        }
        let caps = u64::from(spec.caps.sndbuf) + u64::from(spec.caps.rcvbuf);
        let socket = ScriptSocket { ipv6: spec.ipv6, caps, ..ScriptSocket::default() };
        assert!(self.datagrams.insert(id, socket).is_none(), "an id is used once");
        Ok(())
    }

    fn send_datagrams(
        &mut self,
        id: DatagramId,
        batch: &[SendDatagram<'_>],
    ) -> (usize, Option<SendStop>) {
        let socket = self.datagrams.get_mut(&id).expect("an open socket");
        assert!(!batch.is_empty() && batch.iter().all(|d| d.to.is_ipv6() == socket.ipv6));
        assert!(batch.iter().all(|d| d.to.port() != 0 && d.ip.hop_limit > 0));
        socket.peer = batch.last().map(|datagram| datagram.to);
        socket.sent = batch.last().map(|datagram| datagram.payload.to_vec()).unwrap_or_default();
        match self.sends.pop() {
            Some(stop) => (batch.len() / 2, Some(stop)),
            None => (batch.len(), None),
        }
    }

    fn receive_datagrams(
        &mut self,
        id: DatagramId,
        take: &mut dyn FnMut(&ReceivedDatagram<'_>),
    ) -> bool {
        let socket = self.datagrams.get_mut(&id).expect("an open socket");
        if let (Some(from), Some(more)) = (socket.peer, socket.answers.checked_sub(1)) {
            socket.answers = more;
            let mut payload = socket.sent.clone();
            // The bit of a DNS message that makes it an answer.
            payload.get_mut(2).into_iter().for_each(|byte| *byte |= 0x80);
            let ip = IpFields { hop_limit: 9, traffic_class: 0, dont_fragment: false };
            take(&ReceivedDatagram { from, ip, payload: &payload });
            return true;
        }
        let (Some(from), Some(len)) = (socket.peer, socket.incoming.pop()) else { return false };
        let ip = IpFields { hop_limit: len as u8, traffic_class: 1, dont_fragment: false };
        // The largest payload of a datagram.
        let payload = &PAYLOAD[..usize::from(len).min(65_507)];
        take(&ReceivedDatagram { from, ip, payload });
        !socket.incoming.is_empty()
    }

    fn receive_errors(&mut self, id: DatagramId, take: &mut dyn FnMut(&DatagramError<'_>)) -> bool {
        let socket = self.datagrams.get_mut(&id).expect("an open socket");
        let (Some(to), Some(why)) = (socket.peer, socket.errors.pop()) else { return false };
        take(&DatagramError { to, by: None, why, payload: &PAYLOAD[..2000] });
        !socket.errors.is_empty()
    }

    fn name_servers(&mut self, _: Instant) -> &[SocketAddr] {
        static SERVERS: [SocketAddr; 2] = [
            SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53)), 53),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 5353),
        ];
        &SERVERS
    }

    fn set_datagram_caps(&mut self, id: DatagramId, caps: HostCaps) {
        let socket = self.datagrams.get_mut(&id).expect("an open socket");
        socket.caps = u64::from(caps.sndbuf) + u64::from(caps.rcvbuf);
    }

    fn close_datagram(&mut self, id: DatagramId) {
        assert!(self.datagrams.remove(&id).is_some(), "closed once");
    }
}

impl ScriptHost {
    /// Caps of all datagram sockets, bytes.
    pub(super) fn datagram_caps(&self) -> u64 {
        self.datagrams.values().map(|socket| socket.caps).sum()
    }
}

impl ScriptHost {
    fn sock(&mut self, flow: FlowId) -> &mut Sock {
        self.socks.get_mut(&flow).expect("a socket that was opened and not closed")
    }
}

impl Host for ScriptHost {
    fn connect(&mut self, flow: FlowId, _: SocketAddr, _: HostCaps) -> Result<(), HostError> {
        let sock = Sock::new(None);
        assert!(self.socks.insert(flow, sock).is_none(), "an id is used once");
        match self.connect.take() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn connect_outcome(&mut self, flow: FlowId) -> Option<Result<(), HostError>> {
        self.sock(flow).outcome
    }

    fn write(&mut self, flow: FlowId, parts: &[IoSlice<'_>]) -> Result<usize, HostError> {
        let sock = self.sock(flow);
        assert!(!sock.shut, "a write after shutdown");
        if let Some(e) = sock.broken {
            // As a Linux socket: the error once, then EPIPE.
            return Err(if std::mem::replace(&mut sock.told, true) {
                HostError::ResetAfterEnd
            } else {
                e
            });
        }
        let mut n = 0;
        for part in parts {
            let take = part.len().min(sock.room);
            sock.heard.extend_from_slice(&part[..take]);
            sock.room -= take;
            n += take;
        }
        if n == 0 { Err(HostError::WouldBlock) } else { Ok(n) }
    }

    fn read(&mut self, flow: FlowId, parts: &mut [IoSliceMut<'_>]) -> Result<usize, HostError> {
        let sock = self.sock(flow);
        if sock.says == 0 {
            return match sock.broken {
                _ if sock.ends => Ok(0),
                Some(e) if !std::mem::replace(&mut sock.told, true) => Err(e),
                Some(_) => Ok(0),
                None => Err(HostError::WouldBlock),
            };
        }
        let mut n = 0;
        for to in parts.iter_mut().flat_map(|part| part.iter_mut()) {
            if sock.says == 0 {
                break;
            }
            *to = host_byte(sock.said);
            sock.said = sock.said.wrapping_add(1);
            sock.says -= 1;
            n += 1;
        }
        Ok(n)
    }

    fn shutdown_write(&mut self, flow: FlowId) {
        let sock = self.sock(flow);
        assert!(!sock.shut, "shut down once");
        sock.shut = true;
    }

    fn unacknowledged(&mut self, flow: FlowId) -> u64 {
        let sock = self.sock(flow);
        if sock.broken.is_some() { 0 } else { sock.kept }
    }

    fn set_caps(&mut self, flow: FlowId, _: HostCaps) {
        self.sock(flow);
    }

    fn lower_caps(&mut self, flow: FlowId, caps: HostCaps) -> HostCaps {
        self.sock(flow);
        caps
    }

    fn keep_alive(&mut self, flow: FlowId, every: Duration) {
        assert!(every >= Duration::from_secs(1), "the kernel refuses less");
        self.sock(flow);
    }

    fn ask_peer(&mut self, flow: FlowId) {
        let sock = self.sock(flow);
        sock.asked = !sock.asked;
    }

    /// Every second probe is answered at once, the others never.
    fn silence(&mut self, flow: FlowId) -> Option<Duration> {
        let sock = self.sock(flow);
        Some(if sock.asked { Duration::ZERO } else { Duration::MAX })
    }

    fn close(&mut self, flow: FlowId, _: Close) {
        assert!(self.socks.remove(&flow).is_some(), "closed once");
    }
}
