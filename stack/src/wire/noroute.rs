//! Packets for destinations that no network routes: this machine's own addresses (127/8, ::1), this network (0/8, ::),
//! embedded IPv4 (::a.b.c.d, ::ffff:a.b.c.d) and the guest's own address.
//!
//! A kernel that routes drops them in silence, as martians. Here the guest receives an error: it sends them by its
//! default route most of the time, and would retransmit for minutes. The error's source is the gateway, because the
//! guest's kernel drops a packet from a martian source. No error is sent where RFC 1122 section 3.2.2 and RFC 4443
//! section 2.4 forbid it: for multicast and broadcast, for a fragment other than the first, for another error. RFC 1122
//! section 4.2.3.10 also requires a SYN to multicast or broadcast to be dropped in silence.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

use crate::config::{ContainerConfig, Ipv6Net};
use crate::counters::Stat;
use crate::wire::icmp;
use crate::wire::parse::Ingress;

/// Echo requests: the only ICMP and ICMPv6 messages that an error may answer here.
const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;

/// True for IPv4 destinations that no relay can reach.
pub(crate) fn unroutable(ip: Ipv4Addr) -> bool {
    to_many(ip) || ip.is_loopback() || ip.octets()[0] == 0
}

/// As [`unroutable`], plus embedded IPv4: mapped (RFC 4291 section 2.5.5.2) and compatible addresses.
pub(crate) fn unroutable_v6(ip: Ipv6Addr) -> bool {
    ip.is_multicast() || ip.is_loopback() || ip.is_unspecified() || ip.to_ipv4().is_some()
}

/// Multicast or broadcast.
fn to_many(ip: Ipv4Addr) -> bool {
    ip.is_multicast() || ip.is_broadcast()
}

/// Answers or drops an IPv4 packet without a route.
pub(crate) fn v4<'a>(config: &ContainerConfig, packet: &Ipv4Packet<&'a [u8]>) -> Ingress<'a> {
    let (dst, next, payload) = (packet.dst_addr(), packet.next_header(), packet.payload());
    let error = next == IpProtocol::Icmp && payload.first() != Some(&ECHO_V4);
    if to_many(dst) || packet.frag_offset() != 0 || error {
        return DROP;
    }
    let answer = icmp::no_route_v4(config.gateway_ip, packet);
    Ingress::Refuse(answer, Stat::DropDestination)
}

/// Answers or drops an IPv6 packet without a route. `upper` holds the protocol behind the extension headers and its
/// bytes; `None` for a fragment other than the first and for malformed headers.
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
