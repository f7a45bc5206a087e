//! A frame from the guest becomes a value: a segment for TCP, an answer to send, or a drop with its reason.
//! Every check on untrusted bytes is here or in smoltcp's `wire`, and none can panic.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    TcpPacket, UdpPacket,
};

use crate::config::ContainerConfig;
use crate::counters::Stat;
use crate::segment::{self, Segment, Tuple, unroutable};
use crate::vnet::{F_DATA_VALID, F_NEEDS_CSUM, VnetHdr};

/// What a frame means.
#[derive(Debug)]
pub(crate) enum Ingress<'a> {
    Tcp(Tuple, Segment<'a>),
    /// An answer that needs nothing but the frame: ARP reply, echo reply, port unreachable.
    Answer(Answer, Stat),
    /// The guest told its hardware address and nothing else.
    Nothing,
    Drop(Stat),
}

/// A small frame for the guest, built in full.
#[derive(Debug)]
pub(crate) enum Answer {
    Arp(ArpRepr),
    Icmp { to: Ipv4Addr, from: Ipv4Addr, bytes: Vec<u8> },
}

/// Hardware address of the guest when the frame tells it: any unicast source.
pub(crate) fn guest_mac(frame: &[u8]) -> Option<EthernetAddress> {
    let mac = EthernetAddress::from_bytes(frame.get(6..12)?);
    mac.is_unicast().then_some(mac)
}

pub(crate) fn parse<'a>(config: &ContainerConfig, vnet: &VnetHdr, frame: &'a [u8]) -> Ingress<'a> {
    let Ok(eth) = EthernetFrame::new_checked(frame) else {
        return Ingress::Drop(Stat::DropShortFrame);
    };
    match eth.ethertype() {
        EthernetProtocol::Ipv4 => ipv4(config, vnet, eth.payload()),
        EthernetProtocol::Arp => arp(config, eth.payload()),
        EthernetProtocol::Ipv6 => Ingress::Drop(Stat::DropIpv6),
        EthernetProtocol::Unknown(_) => Ingress::Drop(Stat::DropEtherType),
    }
}

/// Every address of the subnet but the guest's own is ours, so that the guest finds a neighbour whatever it asks.
fn arp<'a>(config: &ContainerConfig, bytes: &[u8]) -> Ingress<'a> {
    let parsed = ArpPacket::new_checked(bytes).and_then(|p| ArpRepr::parse(&p));
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = parsed
    else {
        return Ingress::Drop(Stat::DropArp);
    };
    // A probe (RFC 5227) asks for an address from 0.0.0.0: answering it for the guest's own would be a conflict.
    if operation != ArpOperation::Request || target_protocol_addr == config.guest_ip {
        return Ingress::Nothing;
    }
    if !config.in_subnet(target_protocol_addr) {
        return Ingress::Drop(Stat::DropArp);
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(config.our_mac),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    Ingress::Answer(Answer::Arp(reply), Stat::ArpAnswered)
}

fn ipv4<'a>(config: &ContainerConfig, vnet: &VnetHdr, bytes: &'a [u8]) -> Ingress<'a> {
    let Ok(packet) = Ipv4Packet::new_checked(bytes) else {
        return Ingress::Drop(Stat::DropIpv4Header);
    };
    if packet.version() != 4 {
        return Ingress::Drop(Stat::DropIpv4Header);
    }
    if !packet.verify_checksum() {
        return Ingress::Drop(Stat::DropIpv4Checksum);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Ingress::Drop(Stat::DropFragment);
    }
    if packet.src_addr() != config.guest_ip {
        return Ingress::Drop(Stat::DropSource);
    }
    if unroutable(packet.dst_addr()) || packet.dst_addr() == config.guest_ip {
        return Ingress::Drop(Stat::DropDestination);
    }
    match packet.next_header() {
        IpProtocol::Tcp => tcp(vnet, &packet),
        IpProtocol::Icmp => icmp(config, &packet),
        IpProtocol::Udp => udp(&packet),
        _ => Ingress::Drop(Stat::DropProtocol),
    }
}

fn tcp<'a>(vnet: &VnetHdr, packet: &Ipv4Packet<&'a [u8]>) -> Ingress<'a> {
    let Ok(segment) = TcpPacket::new_checked(packet.payload()) else {
        return Ingress::Drop(Stat::DropTcpHeader);
    };
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    // With checksum offload the sum is not there yet (RFC 1624's partial sum) or the kernel vouches for it.
    let vouched = vnet.flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0;
    if !vouched && !segment.verify_checksum(&IpAddress::Ipv4(src), &IpAddress::Ipv4(dst)) {
        return Ingress::Drop(Stat::DropTcpChecksum);
    }
    if segment.src_port() == 0 || segment.dst_port() == 0 {
        return Ingress::Drop(Stat::DropTcpHeader);
    }
    let tuple = Tuple {
        guest: SocketAddrV4::new(src, segment.src_port()),
        remote: SocketAddrV4::new(dst, segment.dst_port()),
    };
    Ingress::Tcp(tuple, segment::parse(&segment))
}

/// Echo requests to our own addresses are answered; others would need a host socket.
fn icmp<'a>(config: &ContainerConfig, packet: &Ipv4Packet<&'a [u8]>) -> Ingress<'a> {
    let dst = packet.dst_addr();
    let caps = ChecksumCapabilities::default();
    let parsed = Icmpv4Packet::new_checked(packet.payload())
        .and_then(|p| Icmpv4Repr::parse(&p, &caps).map(|r| (r, p.into_inner())));
    let Ok((Icmpv4Repr::EchoRequest { ident, seq_no, data }, _)) = parsed else {
        return Ingress::Drop(Stat::DropIcmp);
    };
    // The reply is as long as the request, and no guest takes a packet larger than its MTU.
    let fits = packet.total_len() <= config.mtu;
    if dst != config.gateway_ip && dst != config.dns_ip || !fits {
        return Ingress::Drop(Stat::DropIcmp);
    }
    let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
    Ingress::Answer(icmp_answer(packet.src_addr(), dst, &reply), Stat::IcmpEchoAnswered)
}

/// UDP is not relayed yet: the guest learns it at once (RFC 1122 section 4.1.3.1).
fn udp<'a>(packet: &Ipv4Packet<&'a [u8]>) -> Ingress<'a> {
    let bytes = packet.payload();
    if UdpPacket::new_checked(bytes).is_err() {
        return Ingress::Drop(Stat::DropUdp);
    }
    let repr = Icmpv4Repr::DstUnreachable {
        reason: Icmpv4DstUnreachable::PortUnreachable,
        header: header_of(packet.src_addr(), packet.dst_addr(), IpProtocol::Udp, bytes.len()),
        data: &bytes[..8],
    };
    let answer = icmp_answer(packet.src_addr(), packet.dst_addr(), &repr);
    Ingress::Answer(answer, Stat::UdpUnreachable)
}

/// Asks the guest for its hardware address.
pub(crate) fn who_has(config: &ContainerConfig) -> Answer {
    Answer::Arp(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(config.our_mac),
        source_protocol_addr: config.gateway_ip,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: config.guest_ip,
    })
}

/// The ICMP error that answers a SYN whose destination the host cannot reach.
pub(crate) fn unreachable(tuple: &Tuple, syn_seq: u32, reason: Icmpv4DstUnreachable) -> Answer {
    let mut quoted = [0; 8];
    quoted[..2].copy_from_slice(&tuple.guest.port().to_be_bytes());
    quoted[2..4].copy_from_slice(&tuple.remote.port().to_be_bytes());
    quoted[4..].copy_from_slice(&syn_seq.to_be_bytes());
    let (guest, remote) = (*tuple.guest.ip(), *tuple.remote.ip());
    let header = header_of(guest, remote, IpProtocol::Tcp, 20);
    icmp_answer(guest, remote, &Icmpv4Repr::DstUnreachable { reason, header, data: &quoted })
}

fn header_of(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    next_header: IpProtocol,
    payload_len: usize,
) -> Ipv4Repr {
    Ipv4Repr { src_addr: src, dst_addr: dst, next_header, payload_len, hop_limit: 64 }
}

fn icmp_answer(to: Ipv4Addr, from: Ipv4Addr, repr: &Icmpv4Repr<'_>) -> Answer {
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(
        &mut Icmpv4Packet::new_unchecked(bytes.as_mut_slice()),
        &ChecksumCapabilities::default(),
    );
    Answer::Icmp { to, from, bytes }
}
