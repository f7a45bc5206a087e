//! UDP datagrams of the guest: the checks of their header (RFC 768, RFC 8200 section 8.1).

use std::net::SocketAddr;

use smoltcp::wire::{IpProtocol, UdpPacket};

use crate::counters::Stat;
use crate::io::datagram::IpFields;
use crate::io::vnet::{F_DATA_VALID, F_NEEDS_CSUM, VnetHdr};
use crate::wire::addresses::{Addrs, Tuple};
use crate::wire::icmp::{self, HOP_LIMIT, Unreachable};
use crate::wire::parse::{Ingress, check_ends};

/// Length of the header, bytes.
pub(crate) const UDP: usize = 8;

/// A datagram of the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram<'a> {
    pub(crate) tuple: Tuple,
    pub(crate) ip: IpFields,
    /// Header and payload, for errors that quote them.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Datagram<'a> {
    pub(crate) fn payload(&self) -> &'a [u8] {
        &self.bytes[UDP..]
    }
}

/// Checks the header and the checksum. The caller sets `ip`.
pub(crate) fn on_packet<'a>(vnet: &VnetHdr, addrs: Addrs, payload: &'a [u8]) -> Ingress<'a> {
    if let Err(stat) = check_ends(addrs) {
        return Ingress::Drop(stat);
    }
    let Ok(udp) = UdpPacket::new_checked(payload) else {
        return Ingress::Drop(Stat::DropUdp);
    };
    // As the kernel: bytes behind the length of the header are not part of the datagram.
    let bytes = &payload[..usize::from(udp.len())];
    let (src, dst) = addrs.ips();
    let vouched = vnet.flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0;
    // RFC 8200 section 8.1: without a checksum over IPv6 the datagram is dropped. Over IPv4 it is optional.
    let none = udp.checksum() == 0 && matches!(addrs, Addrs::V6 { .. });
    if !vouched && (none || !udp.verify_checksum(&src.into(), &dst.into())) {
        return Ingress::Drop(Stat::DropUdpChecksum);
    }
    // No answer could reach it.
    if udp.src_port() == 0 {
        return Ingress::Drop(Stat::DropUdp);
    }
    // Port 0 is reserved: no socket can have it (RFC 6335 section 6).
    if udp.dst_port() == 0 {
        let answer = icmp::unreachable(addrs, IpProtocol::Udp, bytes, Unreachable::Port);
        return Ingress::Answer(answer, Stat::UdpUnreachable);
    }
    let guest = SocketAddr::new(src, udp.src_port());
    let remote = SocketAddr::new(dst, udp.dst_port());
    let ip = IpFields { hop_limit: HOP_LIMIT, traffic_class: 0, dont_fragment: false };
    Ingress::Udp(Datagram { tuple: Tuple::new(guest, remote), ip, bytes })
}
