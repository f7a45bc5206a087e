//! Walks an IPv6 packet: the fixed header, then extension headers (RFC 8200 section 4). The length of each header is
//! checked before its content is read, and the number of headers is bounded.

use std::net::Ipv6Addr;

use smoltcp::wire::{Icmpv6ParamProblem, Ipv6Packet};

use crate::config::{ContainerConfig, Ipv6Net};
use crate::counters::Stat;
use crate::io::datagram::IpFields;
use crate::io::vnet::VnetHdr;
use crate::wire::addresses::Addrs;
use crate::wire::configure;
use crate::wire::icmp;
use crate::wire::ndp::{is_solicited_node, solicited_node};
use crate::wire::noroute::{self, unroutable_v6};
use crate::wire::parse::{self, Ingress};
use crate::wire::reassembly::{Fragment, Key};

const HEADER: usize = 40;
/// Most extension headers in one packet. A sender that follows RFC 8200 section 4.1 uses at most six.
const EXTENSIONS_MAX: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Checks an IPv6 packet and classifies its content.
pub(crate) fn on_packet<'a>(
    config: &ContainerConfig,
    net: &Ipv6Net,
    vnet: &VnetHdr,
    bytes: &'a [u8],
) -> Ingress<'a> {
    let Ok(ip) = Ipv6Packet::new_checked(bytes) else {
        return Ingress::Drop(Stat::DropIpv6Header);
    };
    if ip.version() != 6 {
        return Ingress::Drop(Stat::DropIpv6Header);
    }
    let (src, dst) = (ip.src_addr(), ip.dst_addr());
    if !is_guest(net, src, dst) {
        return Ingress::Drop(Stat::DropSource);
    }
    // Ethernet pads short packets: the header has the real length.
    let packet = &bytes[..HEADER + usize::from(ip.payload_len())];
    let chain = Chain { packet, at: HEADER, naming: 6, next: ip.next_header().into() };
    let addrs = Addrs::V6 { src, dst };
    // Walk the headers even without a route: the error depends on what the packet carries (RFC 4443 section 2.4).
    // Solicited-node and all-nodes groups are multicast, too, but the stack is a member.
    let nowhere = !net.listens_to(dst, config.siblings) && (unroutable_v6(dst) || net.guest == dst);
    // No router fragments an IPv6 packet (RFC 8200 section 5).
    let fields = IpFields {
        hop_limit: ip.hop_limit(),
        traffic_class: ip.traffic_class(),
        dont_fragment: true,
    };
    match chain.walk(addrs) {
        Walked::Upper { at, protocol, .. } if nowhere => {
            noroute::v6(net, packet, Some((protocol, &packet[at..])))
        }
        Walked::Fragment(Fragment { next, offset: 0, payload, .. }) if nowhere => {
            noroute::v6(net, packet, Some((next, payload)))
        }
        _ if nowhere => noroute::v6(net, packet, None),
        Walked::Upper { at, protocol, naming } => {
            let upper = &packet[at..];
            let found =
                parse::transport(config, vnet, addrs, ip.hop_limit(), protocol.into(), upper);
            match found {
                // RFC 4443 section 3.4: an unknown next header is reported, except to multicast.
                Ingress::Drop(Stat::DropProtocol) if !dst.is_multicast() => {
                    let reason = Icmpv6ParamProblem::UnrecognizedNxtHdr;
                    let answer = icmp::param_problem(packet, naming, reason);
                    Ingress::Refuse(answer, Stat::DropProtocol)
                }
                found => found.with_ip(fields),
            }
        }
        Walked::Fragment(fragment) => Ingress::Fragment(fragment).with_ip(fields),
        Walked::Stop(stat) => Ingress::Drop(stat),
        // An unspecified source cannot receive an error (RFC 4443 section 2.4, e.6).
        Walked::Problem(pointer, reason, stat) if !src.is_unspecified() => {
            Ingress::Refuse(icmp::param_problem(packet, pointer, reason), stat)
        }
        Walked::Problem(.., stat) => Ingress::Drop(stat),
    }
}

/// Walks the headers behind a fragment header of a reassembled datagram (RFC 8200 section 4.5).
pub(crate) fn on_reassembled<'a>(
    config: &ContainerConfig,
    addrs: Addrs,
    next: u8,
    payload: &'a [u8],
) -> Ingress<'a> {
    let chain = Chain { packet: payload, at: 0, naming: 0, next };
    match chain.walk(addrs) {
        Walked::Upper { at, protocol, .. } => {
            let vnet = VnetHdr::default();
            // Hop limit 0 makes neighbour discovery drop the message, as RFC 6980 requires of fragments.
            parse::transport(config, &vnet, addrs, 0, protocol.into(), &payload[at..])
        }
        // A fragment inside fragments.
        Walked::Fragment(_) => Ingress::Drop(Stat::DropFragment),
        // Not answered: the pointer would count from a packet that was never sent.
        Walked::Stop(stat) | Walked::Problem(.., stat) => Ingress::Drop(stat),
    }
}

/// True if the guest may use this source: an address of the prefix that is not ours, a link-local address towards this
/// link (RFC 4291 section 2.5.6), or the unspecified address, which `transport` lets through for ICMPv6 only.
fn is_guest(net: &Ipv6Net, src: Ipv6Addr, dst: Ipv6Addr) -> bool {
    if net.is_ours(src) || src == net.prefix() {
        return false;
    }
    if src.is_unspecified() || src.is_unicast_link_local() {
        return dst.is_multicast() || net.is_ours(dst);
    }
    net.contains(src)
}

impl Ipv6Net {
    /// True for multicast groups that a router, DHCPv6 server and owner of our addresses joins: all nodes, all routers,
    /// all DHCP servers, solicited-node. `siblings`: the solicited-node groups of all addresses of the prefix.
    fn listens_to(&self, dst: Ipv6Addr, siblings: bool) -> bool {
        let all = |group| Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, group);
        dst.is_multicast()
            && (dst == all(1)
                || dst == all(2)
                || configure::is_for_servers(dst)
                || siblings && is_solicited_node(dst)
                || self.ours().iter().any(|a| solicited_node(*a) == dst))
    }
}

/// Position of a walk along the headers: `next` is the type of the header at `at`, and the byte at `naming` holds that
/// type.
struct Chain<'a> {
    packet: &'a [u8],
    at: usize,
    naming: usize,
    next: u8,
}

/// How a walk ends: at a header that is no extension header, at a fragment header, or with a drop.
enum Walked<'a> {
    Upper {
        at: usize,
        protocol: u8,
        naming: usize,
    },
    Fragment(Fragment<'a>),
    Stop(Stat),
    /// Drop, answered with a Parameter Problem: pointer, code, counter.
    Problem(usize, Icmpv6ParamProblem, Stat),
}

impl<'a> Chain<'a> {
    fn walk(mut self, addrs: Addrs) -> Walked<'a> {
        for seen in 0..=EXTENSIONS_MAX {
            // Section 4.3: hop-by-hop options follow the fixed header directly or are an error.
            match self.next {
                HOP_BY_HOP if self.at != HEADER || seen > 0 => {
                    let reason = Icmpv6ParamProblem::UnrecognizedNxtHdr;
                    return Walked::Problem(self.naming, reason, Stat::DropIpv6Extension);
                }
                HOP_BY_HOP | DESTINATION | ROUTING | FRAGMENT => {}
                protocol => {
                    let (at, naming) = (self.at, self.naming);
                    return Walked::Upper { at, protocol, naming };
                }
            }
            if let Some(end) = self.step(addrs) {
                return end;
            }
        }
        // Too many headers: a chain of tiny headers must not cost unbounded time.
        Walked::Stop(Stat::DropIpv6Extension)
    }

    /// Steps over one header. Returns the end of the walk if the walk stops there.
    fn step(&mut self, addrs: Addrs) -> Option<Walked<'a>> {
        let rest = &self.packet[self.at..];
        let Some(&[next, len, _, left, ..]) = rest.first_chunk::<8>() else {
            return Some(Walked::Stop(Stat::DropIpv6Extension));
        };
        if self.next == FRAGMENT {
            return self.fragment(addrs, next, rest);
        }
        // The length field counts units of 8 bytes beyond the first.
        let bytes = (usize::from(len) + 1) * 8;
        let Some(header) = rest.get(..bytes) else {
            return Some(Walked::Stop(Stat::DropIpv6Extension));
        };
        if self.next == ROUTING {
            // Section 4.4: only a routing header without segments left may be skipped. Type 0 is deprecated (RFC 5095).
            if left > 0 {
                let (at, reason) = (self.at + 2, Icmpv6ParamProblem::ErroneousHdrField);
                return Some(Walked::Problem(at, reason, Stat::DropIpv6Routing));
            }
        } else if let Some(end) = options(header, self.at, addrs.to_multicast()) {
            return Some(end);
        }
        (self.naming, self.next) = (self.at, next);
        self.at += bytes;
        None
    }

    /// Handles the fragment header at the start of `rest`.
    fn fragment(&mut self, addrs: Addrs, next: u8, rest: &'a [u8]) -> Option<Walked<'a>> {
        let word = u16::from_be_bytes([rest[2], rest[3]]);
        let (offset, more) = (u32::from(word & !7), word & 1 == 1);
        if offset == 0 && !more {
            // RFC 6946: an atomic fragment is a whole packet and never joins other fragments.
            (self.naming, self.next) = (self.at, next);
            self.at += 8;
            return None;
        }
        let id = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]);
        let payload = &rest[8..];
        if more && !payload.len().is_multiple_of(8) {
            // Section 4.5: the pointer is the payload length field of the fixed header.
            let reason = Icmpv6ParamProblem::ErroneousHdrField;
            return Some(Walked::Problem(4, reason, Stat::DropFragment));
        }
        // Only the first fragment's next header counts (section 4.5), so it is not part of the key.
        let key = Key { addrs, id, protocol: 0 };
        Some(Walked::Fragment(Fragment { key, next, offset, more, ecn: 0, payload }))
    }
}

/// Section 4.2: the two highest bits of an option type state what to do with a packet if the option is unknown.
fn options<'a>(header: &[u8], at: usize, to_multicast: bool) -> Option<Walked<'a>> {
    let mut here = 2;
    for _ in 0..header.len() {
        let &kind = header.get(here)?;
        // Pad1 is the only option without a length byte.
        if kind == 0 {
            here += 1;
            continue;
        }
        let Some(&len) = header.get(here + 1) else {
            return Some(Walked::Stop(Stat::DropIpv6Extension));
        };
        if here + 2 + usize::from(len) > header.len() {
            return Some(Walked::Stop(Stat::DropIpv6Extension));
        }
        let reason = Icmpv6ParamProblem::UnrecognizedOption;
        match kind >> 6 {
            // Skip; drop in silence; drop and report; drop and report unless the destination is multicast.
            0 => {}
            1 => return Some(Walked::Stop(Stat::DropIpv6Option)),
            3 if to_multicast => return Some(Walked::Stop(Stat::DropIpv6Option)),
            _ => return Some(Walked::Problem(at + here, reason, Stat::DropIpv6Option)),
        }
        here += 2 + usize::from(len);
    }
    None
}
