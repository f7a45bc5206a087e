//! Datagram sockets of the host, as values and a small trait: one unconnected socket for each mapping of the guest.

use std::net::{IpAddr, SocketAddr};

use skbudget_controller::Instant;

use super::{HostCaps, HostError};

/// Names a datagram socket of one container. Because of the generation, a late event for a socket that was closed has
/// no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatagramId {
    /// Index in the container's table of mappings. It is used again after the mapping.
    pub index: u32,
    /// Number of mappings that had this index before.
    pub generation: u32,
}

/// What a datagram socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DatagramKind {
    /// UDP. Payloads are those of the datagrams.
    Udp,
    /// ICMP or ICMPv6 echo, by a ping socket (icmp(7)). Payloads are whole messages; their identifier is the socket's
    /// port. Addresses have port 0.
    Echo,
}

/// What a new datagram socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramSocket {
    /// What it carries.
    pub kind: DatagramKind,
    /// It sends and receives IPv6, otherwise IPv4.
    pub ipv6: bool,
    /// Port or identifier that the guest uses. The socket has the same one if it is free and not privileged, otherwise
    /// any.
    pub port: u16,
    /// Buffers; the caller has charged them.
    pub caps: HostCaps,
}

/// Fields of an IP header that pass from one network to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpFields {
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN (RFC 2474, RFC 3168).
    pub traffic_class: u8,
    /// No router may fragment the packet. Not known of a received datagram.
    pub dont_fragment: bool,
}

/// A datagram for the host's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendDatagram<'a> {
    /// Destination.
    pub to: SocketAddr,
    /// Fields of its header.
    pub ip: IpFields,
    /// Payload.
    pub payload: &'a [u8],
}

/// A datagram that the host's network delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedDatagram<'a> {
    /// Source.
    pub from: SocketAddr,
    /// Fields of its header.
    pub ip: IpFields,
    /// Payload.
    pub payload: &'a [u8],
}

/// Why a datagram was not delivered, as ICMP and ICMPv6 report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeliverable {
    /// Net unreachable; no route to destination.
    Net,
    /// Host unreachable; address unreachable.
    Host,
    /// Port unreachable.
    Port,
    /// Communication administratively prohibited.
    Prohibited,
    /// Fragmentation needed, packet too big: the MTU of the path, bytes.
    TooBig(u32),
    /// Time to live exceeded in transit.
    HopLimit,
}

/// A report that a datagram was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramError<'a> {
    /// Destination of the datagram.
    pub to: SocketAddr,
    /// The router or host that reported it; `None`: this machine.
    pub by: Option<IpAddr>,
    /// The reason.
    pub why: Undeliverable,
    /// The start of the datagram's payload, as far as the report has it.
    pub payload: &'a [u8],
}

/// Why a batch was not sent to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendStop {
    /// The send buffer is full.
    Full,
    /// The next datagram has no route or is not allowed; `None`: the reason is among the errors (`receive_errors`).
    Undeliverable(Option<Undeliverable>),
}

/// The datagram sockets of one container. The default is a host without any.
pub trait DatagramHost {
    /// Creates a socket that is bound and not connected.
    fn open_datagram(&mut self, _id: DatagramId, _spec: &DatagramSocket) -> Result<(), HostError> {
        Err(HostError::NoResources)
    }
    /// Sends the datagrams in their order. Returns the number that the socket took, and why it is not all of them. An
    /// error that an earlier datagram caused fails none of these.
    fn send_datagrams(
        &mut self,
        _id: DatagramId,
        _batch: &[SendDatagram<'_>],
    ) -> (usize, Option<SendStop>) {
        (0, Some(SendStop::Full))
    }
    /// Passes received datagrams to `take`, at most [`RECEIVE_BATCH`]. Returns false when none is left.
    fn receive_datagrams(
        &mut self,
        _id: DatagramId,
        _take: &mut dyn FnMut(&ReceivedDatagram<'_>),
    ) -> bool {
        false
    }
    /// Passes reported errors to `take`, at most [`RECEIVE_BATCH`]. Returns false when none is left.
    fn receive_errors(
        &mut self,
        _id: DatagramId,
        _take: &mut dyn FnMut(&DatagramError<'_>),
    ) -> bool {
        false
    }
    /// Returns the number of datagrams that a full receive buffer lost since the last call.
    fn take_datagram_drops(&mut self, _id: DatagramId) -> u32 {
        0
    }
    /// The name servers that the container's forwarder uses, the preferred one first.
    fn name_servers(&mut self, _now: Instant) -> &[SocketAddr] {
        &[]
    }
    /// Sets both buffer caps; the caller has charged them.
    fn set_datagram_caps(&mut self, _id: DatagramId, _caps: HostCaps) {}
    /// Closes the socket of a mapping that ended. The id is not used again.
    fn close_datagram(&mut self, _id: DatagramId) {}
}

/// Datagrams received, or errors read, with one call.
pub const RECEIVE_BATCH: usize = 32;
/// Datagrams sent with one call, at most.
pub const SEND_BATCH: usize = 32;
