//! Classifies a frame of the guest: a TCP segment, an answer to send, or a drop with its reason. Every check of
//! untrusted bytes is here, in the modules of the protocols or in smoltcp's `wire`; none of them can panic.

use std::net::SocketAddr;

use smoltcp::wire::{
    ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket,
};

use crate::config::ContainerConfig;
use crate::counters::Stat;
use crate::io::datagram::IpFields;
use crate::io::vnet::{F_DATA_VALID, F_NEEDS_CSUM, VnetHdr};
use crate::wire::addresses::{Addrs, Tuple};
use crate::wire::icmp;
use crate::wire::reassembly::{Datagram, Fragment, Key};
use crate::wire::segment::{self, Segment};
use crate::wire::seq::Seq;
use crate::wire::{arp, configure, ipv6, noroute, udp};

/// Result of parsing a frame.
#[derive(Debug)]
pub(crate) enum Ingress<'a> {
    Tcp(Tuple, Segment<'a>),
    /// A UDP datagram, or an echo request to another host.
    Datagram(udp::Datagram<'a>),
    Fragment(Fragment<'a>),
    /// A message of a DHCP or DHCPv6 client, by the family of its source.
    Configure {
        from: std::net::IpAddr,
        message: &'a [u8],
    },
    /// The guest reports that one of our segments was too large for its path.
    PathMtu {
        tuple: Tuple,
        seq: Seq,
        mtu: u32,
    },
    RouterSolicit {
        from: std::net::Ipv6Addr,
    },
    /// An answer that depends on the frame alone: ARP reply, echo reply, port unreachable.
    Answer(Answer, Stat),
    /// As `Drop`, with an ICMP error for the guest.
    Refuse(Answer, Stat),
    /// Valid, but needs no answer. The guest's hardware address was taken already.
    Nothing,
    Drop(Stat),
}

impl Ingress<'_> {
    /// Sets the fields of the IP header that carried this.
    pub(crate) fn with_ip(mut self, ip: IpFields) -> Self {
        let ecn = ip.traffic_class & 3;
        match &mut self {
            Self::Tcp(_, segment) => segment.ecn = ecn,
            Self::Fragment(fragment) => fragment.ecn = ecn,
            Self::Datagram(datagram) => datagram.ip = ip,
            _ => {}
        }
        self
    }
}

/// A small packet for the guest, complete but for its lower headers.
#[derive(Debug)]
pub(crate) enum Answer {
    Arp(ArpRepr),
    /// An ICMP or ICMPv6 message, by the family of `addrs`.
    Icmp {
        addrs: Addrs,
        hop_limit: u8,
        bytes: Vec<u8>,
    },
}

/// The guest's hardware address from a frame: its source, if that is unicast.
pub(crate) fn guest_mac(frame: &[u8]) -> Option<EthernetAddress> {
    let mac = EthernetAddress::from_bytes(frame.get(6..12)?);
    mac.is_unicast().then_some(mac)
}

/// Checks a frame from the Ethernet header on.
pub(crate) fn parse<'a>(config: &ContainerConfig, vnet: &VnetHdr, frame: &'a [u8]) -> Ingress<'a> {
    let Ok(eth) = EthernetFrame::new_checked(frame) else {
        return Ingress::Drop(Stat::DropShortFrame);
    };
    match (eth.ethertype(), &config.ipv6) {
        (EthernetProtocol::Ipv4, _) => ipv4(config, vnet, eth.payload()),
        (EthernetProtocol::Arp, _) => arp::on_packet(config, eth.payload()),
        (EthernetProtocol::Ipv6, Some(net)) => ipv6::on_packet(config, net, vnet, eth.payload()),
        (EthernetProtocol::Ipv6, None) => Ingress::Drop(Stat::DropIpv6),
        (EthernetProtocol::Unknown(_), _) => Ingress::Drop(Stat::DropEtherType),
    }
}

/// As [`parse`], for a datagram that was reassembled from fragments.
pub(crate) fn parse_whole<'a>(config: &ContainerConfig, datagram: &'a Datagram) -> Ingress<'a> {
    let Datagram { addrs, next, ecn, payload } = datagram;
    let found = if matches!(addrs, Addrs::V6 { .. }) {
        ipv6::on_reassembled(config, *addrs, *next, payload)
    } else {
        // No vnet header vouches for reassembled bytes, so the checksum is verified.
        transport(config, &VnetHdr::default(), *addrs, 0, (*next).into(), payload)
    };
    // The fields of its fragments may differ.
    found.with_ip(IpFields {
        hop_limit: icmp::HOP_LIMIT,
        traffic_class: *ecn,
        dont_fragment: false,
    })
}

/// Checks an IPv4 packet in the order: header, checksum, source, destination, fragmentation, transport.
fn ipv4<'a>(config: &ContainerConfig, vnet: &VnetHdr, bytes: &'a [u8]) -> Ingress<'a> {
    let Ok(packet) = Ipv4Packet::new_checked(bytes) else {
        return Ingress::Drop(Stat::DropIpv4Header);
    };
    // smoltcp checks lengths, not the version.
    if packet.version() != 4 {
        return Ingress::Drop(Stat::DropIpv4Header);
    }
    if !packet.verify_checksum() {
        return Ingress::Drop(Stat::DropIpv4Checksum);
    }
    // A DHCP client may have no address yet.
    if let Some(found) = configure::v4(config, vnet, &packet) {
        return found;
    }
    // Before reassembly: a fragment to a destination without a route must not cost memory.
    if let Some(refused) = check_addrs_v4(config, &packet) {
        return refused;
    }
    let addrs = Addrs::V4 { src: packet.src_addr(), dst: packet.dst_addr() };
    let protocol = packet.next_header();
    // Without vnet: the checksum of a fragment covers the whole datagram and is tested after reassembly.
    if packet.more_frags() || packet.frag_offset() != 0 {
        let key = Key { addrs, id: packet.ident().into(), protocol: protocol.into() };
        return Ingress::Fragment(Fragment {
            key,
            next: protocol.into(),
            offset: packet.frag_offset().into(),
            more: packet.more_frags(),
            ecn: packet.ecn(),
            payload: packet.payload(),
        });
    }
    let ip = IpFields {
        hop_limit: packet.hop_limit(),
        traffic_class: packet.dscp() << 2 | packet.ecn(),
        dont_fragment: packet.dont_frag(),
    };
    transport(config, vnet, addrs, packet.hop_limit(), protocol, packet.payload()).with_ip(ip)
}

/// Checks the addresses of an IPv4 packet of any protocol. `Some`: the packet is not relayed.
fn check_addrs_v4<'a>(
    config: &ContainerConfig,
    packet: &Ipv4Packet<&'a [u8]>,
) -> Option<Ingress<'a>> {
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    // Only the guest is on this link: another source is spoofed, or the guest has a wrong address.
    if src != config.guest_ip {
        return Some(Ingress::Drop(Stat::DropSource));
    }
    (noroute::unroutable(dst) || dst == config.guest_ip).then(|| noroute::v4(config, packet))
}

/// Checks the transport header of a packet of either family. `vnet` holds the device's statement about its checksum.
pub(crate) fn transport<'a>(
    config: &ContainerConfig,
    vnet: &VnetHdr,
    addrs: Addrs,
    hop_limit: u8,
    protocol: IpProtocol,
    payload: &'a [u8],
) -> Ingress<'a> {
    match (protocol, addrs) {
        (IpProtocol::Icmp, Addrs::V4 { src, dst }) => icmp::on_v4(config, (src, dst), payload),
        (IpProtocol::Icmpv6, Addrs::V6 { src, dst }) => match &config.ipv6 {
            Some(net) => icmp::on_v6(config, net, (src, dst), hop_limit, payload),
            None => Ingress::Drop(Stat::DropIpv6),
        },
        (IpProtocol::Tcp, _) => tcp(vnet, addrs, payload),
        (IpProtocol::Udp, Addrs::V6 { src, dst }) if configure::is_for_servers(dst) => {
            configure::v6(vnet, (src, dst), payload)
        }
        (IpProtocol::Udp, _) => udp::on_packet(vnet, addrs, payload),
        _ => Ingress::Drop(check_ends(addrs).err().unwrap_or(Stat::DropProtocol)),
    }
}

/// Checks that each end is one address, for protocols that need that: neighbour discovery does not. IPv4 packets were
/// checked before reassembly.
pub(crate) fn check_ends(addrs: Addrs) -> Result<(), Stat> {
    match addrs {
        Addrs::V6 { src, .. } if src.is_unspecified() => Err(Stat::DropSource),
        Addrs::V6 { dst, .. } if dst.is_multicast() => Err(Stat::DropDestination),
        _ => Ok(()),
    }
}

/// Checks a TCP header and its checksum.
fn tcp<'a>(vnet: &VnetHdr, addrs: Addrs, payload: &'a [u8]) -> Ingress<'a> {
    if let Err(stat) = check_ends(addrs) {
        return Ingress::Drop(stat);
    }
    let Ok(segment) = TcpPacket::new_checked(payload) else {
        return Ingress::Drop(Stat::DropTcpHeader);
    };
    let (src, dst) = addrs.ips();
    // With checksum offload the field holds only the pseudo-header sum (NEEDS_CSUM), or the kernel has verified it
    // (DATA_VALID).
    let vouched = vnet.flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0;
    if !vouched && !segment.verify_checksum(&src.into(), &dst.into()) {
        return Ingress::Drop(Stat::DropTcpChecksum);
    }
    // Port 0 names no endpoint of the guest. As a destination it is refused like any port without a listener.
    if segment.src_port() == 0 {
        return Ingress::Drop(Stat::DropTcpHeader);
    }
    let guest = SocketAddr::new(src, segment.src_port());
    let remote = SocketAddr::new(dst, segment.dst_port());
    Ingress::Tcp(Tuple::new(guest, remote), segment::parse(&segment))
}
