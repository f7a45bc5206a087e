//! Packets of the guest's for addresses that no network leads to: this machine's own (127/8, ::1), this network (0/8,
//! ::), IPv4 in disguise (::a.b.c.d, ::ffff:a.b.c.d), the guest itself.
//!
//! A kernel that routes drops them in silence, as martians. Here the guest is told: what it sends there, by a default
//! route most of the time, would be sent again for minutes. The error comes from the gateway, for a packet from such an
//! address is a martian itself and its kernel would not look at it. Where RFC 1122 section 3.2.2 and RFC 4443 section
//! 2.4 forbid an error there is none: for what went to many (multicast, broadcast), for a fragment that is not the
//! first, for another error. And RFC 1122 section 4.2.3.10 has a SYN to many dropped in silence.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

use crate::config::{ContainerConfig, Ipv6Net};
use crate::counters::Stat;
use crate::icmp;
use crate::ingress::Ingress;

/// Echo requests: of ICMP and ICMPv6 the only ones that an error may answer here.
const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;

/// No relay reaches it.
pub(crate) fn unroutable(ip: Ipv4Addr) -> bool {
    to_many(ip) || ip.is_loopback() || ip.octets()[0] == 0
}

/// As [`unroutable`], and IPv4 in disguise: mapped (RFC 4291 section 2.5.5.2) and compatible addresses.
pub(crate) fn unroutable_v6(ip: Ipv6Addr) -> bool {
    ip.is_multicast() || ip.is_loopback() || ip.is_unspecified() || ip.to_ipv4().is_some()
}

fn to_many(ip: Ipv4Addr) -> bool {
    ip.is_multicast() || ip.is_broadcast()
}

pub(crate) fn v4<'a>(config: &ContainerConfig, packet: &Ipv4Packet<&'a [u8]>) -> Ingress<'a> {
    let (dst, next, payload) = (packet.dst_addr(), packet.next_header(), packet.payload());
    let error = next == IpProtocol::Icmp && payload.first() != Some(&ECHO_V4);
    if to_many(dst) || packet.frag_offset() != 0 || error {
        return DROP;
    }
    let answer = icmp::no_route_v4(config.gateway_ip, packet);
    Ingress::Refuse(answer, Stat::DropDestination)
}

/// `upper` is the protocol behind the extension headers and what is there of it; `None` for a fragment that is not the
/// first, and for headers that are wrong themselves.
pub(crate) fn v6<'a>(net: &Ipv6Net, packet: &[u8], upper: Option<(u8, &[u8])>) -> Ingress<'a> {
    let Some((protocol, payload)) = upper else { return DROP };
    let dst = Ipv6Packet::new_unchecked(packet).dst_addr();
    let is_icmp = IpProtocol::from(protocol) == IpProtocol::Icmpv6;
    if dst.is_multicast() || (is_icmp && payload.first() != Some(&ECHO_V6)) {
        return DROP;
    }
    Ingress::Refuse(icmp::no_route_v6(net.gateway, packet), Stat::DropDestination)
}

const DROP: Ingress<'static> = Ingress::Drop(Stat::DropDestination);
