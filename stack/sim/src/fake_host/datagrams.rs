//! Datagram sockets of the fake host: a test sets what arrives and inspects what was sent.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use skbudget_controller::Instant;
use skbudget_stack::datagram::{
    DatagramError, DatagramSocket, IpFields, RECEIVE_BATCH, ReceivedDatagram, SendDatagram,
    SendStop, Undeliverable,
};
use skbudget_stack::{DatagramHost, DatagramId, HostCaps, HostError};

use super::FakeHost;

/// A datagram: the remote address, header fields, payload.
pub type Sent = (SocketAddr, IpFields, Vec<u8>);

/// One datagram socket.
#[derive(Debug)]
pub struct FakeSocket {
    /// What it was opened for.
    pub spec: DatagramSocket,
    /// Datagrams sent to it, since the test last took them.
    pub sent: Vec<Sent>,
    /// Numbers of datagrams of each send call.
    pub batches: Vec<usize>,
    /// Datagrams that the guest has not received yet.
    pub incoming: VecDeque<Sent>,
    /// Errors: destination, reporter, reason, payload.
    pub errors: VecDeque<(SocketAddr, Option<IpAddr>, Undeliverable, Vec<u8>)>,
    /// Datagrams that it still takes; `usize::MAX` is no limit.
    pub room: usize,
    /// How each datagram to one of these destinations fails.
    pub fails: Vec<(SocketAddr, Option<Undeliverable>)>,
    /// Datagrams that its receive buffer lost, not reported yet.
    pub drops: u32,
    /// The caps set last.
    pub caps: HostCaps,
    /// It was closed.
    pub closed: bool,
}

impl DatagramHost for FakeHost {
    fn open_datagram(&mut self, id: DatagramId, spec: &DatagramSocket) -> Result<(), HostError> {
        self.datagrams_open?;
        let socket = FakeSocket {
            spec: *spec,
            sent: Vec::new(),
            batches: Vec::new(),
            incoming: VecDeque::new(),
            errors: VecDeque::new(),
            room: usize::MAX,
            fails: Vec::new(),
            drops: 0,
            caps: spec.caps,
            closed: false,
        };
        assert!(self.datagrams.insert(id, socket).is_none(), "an id is used once");
        Ok(())
    }

    fn send_datagrams(
        &mut self,
        id: DatagramId,
        batch: &[SendDatagram<'_>],
    ) -> (usize, Option<SendStop>) {
        assert!(!batch.is_empty(), "a batch of nothing");
        let socket = self.datagram(id);
        socket.batches.push(batch.len());
        for (n, datagram) in batch.iter().enumerate() {
            assert_eq!(datagram.to.is_ipv6(), socket.spec.ipv6, "the family of the socket");
            if let Some((_, why)) = socket.fails.iter().find(|(to, _)| *to == datagram.to) {
                return (n, Some(SendStop::Undeliverable(*why)));
            }
            if socket.room == 0 {
                return (n, Some(SendStop::Full));
            }
            socket.room -= usize::from(socket.room != usize::MAX);
            socket.sent.push((datagram.to, datagram.ip, datagram.payload.to_vec()));
        }
        (batch.len(), None)
    }

    fn receive_datagrams(
        &mut self,
        id: DatagramId,
        take: &mut dyn FnMut(&ReceivedDatagram<'_>),
    ) -> bool {
        let socket = self.datagram(id);
        for _ in 0..RECEIVE_BATCH {
            let Some((from, ip, payload)) = socket.incoming.pop_front() else { return false };
            take(&ReceivedDatagram { from, ip, payload: &payload });
        }
        true
    }

    fn receive_errors(&mut self, id: DatagramId, take: &mut dyn FnMut(&DatagramError<'_>)) -> bool {
        let socket = self.datagram(id);
        for _ in 0..RECEIVE_BATCH {
            let Some((to, by, why, payload)) = socket.errors.pop_front() else { return false };
            take(&DatagramError { to, by, why, payload: &payload });
        }
        true
    }

    fn take_datagram_drops(&mut self, id: DatagramId) -> u32 {
        std::mem::take(&mut self.datagram(id).drops)
    }

    fn name_servers(&mut self, _: Instant) -> &[SocketAddr] {
        &self.name_servers
    }

    fn set_datagram_caps(&mut self, id: DatagramId, caps: HostCaps) {
        self.datagram(id).caps = caps;
    }

    fn close_datagram(&mut self, id: DatagramId) {
        let socket = self.datagram(id);
        assert!(!std::mem::replace(&mut socket.closed, true), "closed once");
    }
}

impl FakeHost {
    /// The socket of a mapping.
    ///
    /// # Panics
    /// When the mapping never had one.
    pub fn datagram(&mut self, id: DatagramId) -> &mut FakeSocket {
        self.datagrams.get_mut(&id).expect("a mapping the host knows")
    }
}
