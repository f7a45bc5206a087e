//! Datagrams of the guest: the checks of a UDP header (RFC 768, RFC 8200 section 8.1), and echo requests as datagrams.

use std::net::SocketAddr;

use smoltcp::wire::{Icmpv4Message, Icmpv6Message, IpProtocol, UdpPacket};

use crate::counters::Stat;
use crate::io::datagram::{DatagramKind, IpFields};
use crate::io::vnet::{F_DATA_VALID, F_NEEDS_CSUM, VnetHdr};
use crate::wire::addresses::{Addrs, Tuple};
use crate::wire::icmp::{self, HOP_LIMIT, Unreachable};
use crate::wire::parse::{Ingress, check_ends};

/// Length of the header, bytes.
pub(crate) const UDP: usize = 8;

/// A datagram or an echo request of the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram<'a> {
    pub(crate) kind: DatagramKind,
    /// Of an echo request: the identifier is the guest's port, the remote's is 0.
    pub(crate) tuple: Tuple,
    pub(crate) ip: IpFields,
    /// Header and payload, for errors that quote them.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// What a host socket of this kind takes.
    pub(crate) fn payload(&self) -> &'a [u8] {
        match self.kind {
            DatagramKind::Udp => &self.bytes[UDP..],
            DatagramKind::Echo => self.bytes,
        }
    }

    pub(crate) fn protocol(&self) -> IpProtocol {
        protocol(self.kind, &self.tuple)
    }
}

/// The protocol of datagrams of this kind and family.
pub(crate) fn protocol(kind: DatagramKind, tuple: &Tuple) -> IpProtocol {
    match kind {
        DatagramKind::Udp => IpProtocol::Udp,
        DatagramKind::Echo if tuple.is_ipv6() => IpProtocol::Icmpv6,
        DatagramKind::Echo => IpProtocol::Icmp,
    }
}

/// An echo request to another host. `message` starts with its header, and its checksum was verified. The caller sets
/// `ip`.
pub(crate) fn echo(addrs: Addrs, ident: u16, message: &[u8]) -> Ingress<'_> {
    let (src, dst) = addrs.ips();
    let tuple = Tuple::new(SocketAddr::new(src, ident), SocketAddr::new(dst, 0));
    Ingress::Datagram(Datagram { kind: DatagramKind::Echo, tuple, ip: NO_FIELDS, bytes: message })
}

/// Until the caller sets them.
const NO_FIELDS: IpFields =
    IpFields { hop_limit: HOP_LIMIT, traffic_class: 0, dont_fragment: false };

/// Checks the header and the checksum. Returns header and payload.
pub(crate) fn checked<'a>(
    vnet: &VnetHdr,
    addrs: Addrs,
    payload: &'a [u8],
) -> Result<(UdpPacket<&'a [u8]>, &'a [u8]), Stat> {
    let udp = UdpPacket::new_checked(payload).map_err(|_| Stat::DropUdp)?;
    // As the kernel: bytes behind the length of the header are not part of the datagram.
    let bytes = &payload[..usize::from(udp.len())];
    let (src, dst) = addrs.ips();
    let vouched = vnet.flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0;
    // RFC 8200 section 8.1: without a checksum over IPv6 the datagram is dropped. Over IPv4 it is optional.
    let none = udp.checksum() == 0 && matches!(addrs, Addrs::V6 { .. });
    if !vouched && (none || !udp.verify_checksum(&src.into(), &dst.into())) {
        return Err(Stat::DropUdpChecksum);
    }
    Ok((udp, bytes))
}

/// Checks a datagram of the guest. The caller sets `ip`.
pub(crate) fn on_packet<'a>(vnet: &VnetHdr, addrs: Addrs, payload: &'a [u8]) -> Ingress<'a> {
    if let Err(stat) = check_ends(addrs) {
        return Ingress::Drop(stat);
    }
    let (udp, bytes) = match checked(vnet, addrs, payload) {
        Ok(checked) => checked,
        Err(stat) => return Ingress::Drop(stat),
    };
    // No answer could reach it.
    if udp.src_port() == 0 {
        return Ingress::Drop(Stat::DropUdp);
    }
    // Port 0 is reserved: no socket can have it (RFC 6335 section 6).
    if udp.dst_port() == 0 {
        let answer = icmp::unreachable(addrs, IpProtocol::Udp, bytes, Unreachable::Port);
        return Ingress::Answer(answer, Stat::UdpUnreachable);
    }
    let (src, dst) = addrs.ips();
    let guest = SocketAddr::new(src, udp.src_port());
    let remote = SocketAddr::new(dst, udp.dst_port());
    let tuple = Tuple::new(guest, remote);
    Ingress::Datagram(Datagram { kind: DatagramKind::Udp, tuple, ip: NO_FIELDS, bytes })
}

/// An echo reply from the host's network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EchoReply<'a> {
    pub(crate) seq: u16,
    pub(crate) data: &'a [u8],
}

impl<'a> EchoReply<'a> {
    /// Parses a message that a host socket received; `None`: no echo reply. The kernel has verified the checksum.
    pub(crate) fn parse(message: &'a [u8], ipv6: bool) -> Option<Self> {
        let (header, data) = message.split_first_chunk::<8>()?;
        let kind = if ipv6 {
            u8::from(Icmpv6Message::EchoReply)
        } else {
            u8::from(Icmpv4Message::EchoReply)
        };
        let seq = u16::from_be_bytes([header[6], header[7]]);
        (header[0] == kind && header[1] == 0).then_some(Self { seq, data })
    }
}
