//! The way through an IPv6 packet: the fixed header, then extension headers (RFC 8200 section 4), each with a bound on
//! its length that is checked before it is looked into, and a bound on their number.

use std::net::Ipv6Addr;

use smoltcp::wire::{Icmpv6ParamProblem, Ipv6Packet};

use crate::config::{ContainerConfig, Ipv6Net};
use crate::counters::Stat;
use crate::icmp;
use crate::ingress::{self, Ingress};
use crate::ndp::solicited_node;
use crate::noroute::{self, unroutable_v6};
use crate::reassembly::{Fragment, Key};
use crate::segment::Addrs;
use crate::vnet::VnetHdr;

const HEADER: usize = 40;
/// Extension headers of one packet. A sender that follows RFC 8200 section 4.1 has at most six.
const EXTENSIONS_MAX: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

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
    // Ethernet pads what is short: the header says where the packet ends.
    let packet = &bytes[..HEADER + usize::from(ip.payload_len())];
    let chain = Chain { packet, at: HEADER, naming: 6, next: ip.next_header().into() };
    let addrs = Addrs::V6 { src, dst };
    let nowhere = !net.listens_to(dst) && (unroutable_v6(dst) || net.guest == dst);
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
                ingress::transport(config, vnet, addrs, ip.hop_limit(), protocol.into(), upper);
            match found {
                Ingress::Drop(Stat::DropProtocol) if !dst.is_multicast() => {
                    let reason = Icmpv6ParamProblem::UnrecognizedNxtHdr;
                    let answer = icmp::param_problem(packet, naming, reason);
                    Ingress::Refuse(answer, Stat::DropProtocol)
                }
                found => found.with_ecn(ip.traffic_class() & 3),
            }
        }
        Walked::Fragment(fragment) => Ingress::Fragment(fragment).with_ecn(ip.traffic_class() & 3),
        Walked::Stop(stat) => Ingress::Drop(stat),
        Walked::Problem(pointer, reason, stat) if !src.is_unspecified() => {
            Ingress::Refuse(icmp::param_problem(packet, pointer, reason), stat)
        }
        Walked::Problem(.., stat) => Ingress::Drop(stat),
    }
}

/// Headers in front of a reassembled payload: what RFC 8200 section 4.5 lets stand behind a fragment header.
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
            ingress::transport(config, &vnet, addrs, 0, protocol.into(), &payload[at..])
        }
        // Fragments of fragments.
        Walked::Fragment(_) => Ingress::Drop(Stat::DropFragment),
        Walked::Stop(stat) | Walked::Problem(.., stat) => Ingress::Drop(stat),
    }
}

/// A source that is the guest's: in the prefix and not ours; on this link only (RFC 4291 section 2.5.6); or none yet,
/// which neighbour discovery alone may use.
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
    /// Multicast groups that a router and the owner of our addresses is in.
    fn listens_to(&self, dst: Ipv6Addr) -> bool {
        let all = |group| Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, group);
        dst.is_multicast()
            && (dst == all(1)
                || dst == all(2)
                || self.ours().iter().any(|a| solicited_node(*a) == dst))
    }
}

/// Where a walk along the headers stands: `next` is the kind of what begins at `at`, said by the byte at `naming`.
struct Chain<'a> {
    packet: &'a [u8],
    at: usize,
    naming: usize,
    next: u8,
}

enum Walked<'a> {
    Upper {
        at: usize,
        protocol: u8,
        naming: usize,
    },
    Fragment(Fragment<'a>),
    Stop(Stat),
    /// To be answered: where, what, and the counter.
    Problem(usize, Icmpv6ParamProblem, Stat),
}

impl<'a> Chain<'a> {
    fn walk(mut self, addrs: Addrs) -> Walked<'a> {
        for seen in 0..=EXTENSIONS_MAX {
            // Section 4.3: hop-by-hop options stand right behind the fixed header or nowhere.
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
        Walked::Stop(Stat::DropIpv6Extension)
    }

    /// Over one header; the end of the walk if it is the last.
    fn step(&mut self, addrs: Addrs) -> Option<Walked<'a>> {
        let rest = &self.packet[self.at..];
        let Some(&[next, len, _, left, ..]) = rest.first_chunk::<8>() else {
            return Some(Walked::Stop(Stat::DropIpv6Extension));
        };
        if self.next == FRAGMENT {
            return self.fragment(addrs, next, rest);
        }
        let bytes = (usize::from(len) + 1) * 8;
        let Some(header) = rest.get(..bytes) else {
            return Some(Walked::Stop(Stat::DropIpv6Extension));
        };
        if self.next == ROUTING {
            // Section 4.4. Type 0 is no longer understood by anybody (RFC 5095).
            if left > 0 {
                let (at, reason) = (self.at + 2, Icmpv6ParamProblem::ErroneousHdrField);
                return Some(Walked::Problem(at, reason, Stat::DropIpv6Routing));
            }
        } else if let Some(end) = options(header, self.at) {
            return Some(end);
        }
        (self.naming, self.next) = (self.at, next);
        self.at += bytes;
        None
    }

    fn fragment(&mut self, addrs: Addrs, next: u8, rest: &'a [u8]) -> Option<Walked<'a>> {
        let word = u16::from_be_bytes([rest[2], rest[3]]);
        let (offset, more) = (u32::from(word & !7), word & 1 == 1);
        if offset == 0 && !more {
            // RFC 6946: all of it is here, and it has nothing to do with any other fragment.
            (self.naming, self.next) = (self.at, next);
            self.at += 8;
            return None;
        }
        let id = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]);
        let payload = &rest[8..];
        if more && !payload.len().is_multiple_of(8) {
            // Section 4.5: the length field of the fixed header is what is wrong.
            let reason = Icmpv6ParamProblem::ErroneousHdrField;
            return Some(Walked::Problem(4, reason, Stat::DropFragment));
        }
        // Only the first fragment's next header counts, so that it is not a part of the key.
        let key = Key { addrs, id, protocol: 0 };
        Some(Walked::Fragment(Fragment { key, next, offset, more, ecn: 0, payload }))
    }
}

/// Section 4.2: every option says itself what becomes of a packet when it is not understood.
fn options<'a>(header: &[u8], at: usize) -> Option<Walked<'a>> {
    let mut here = 2;
    for _ in 0..header.len() {
        let &kind = header.get(here)?;
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
            0 => {}
            1 => return Some(Walked::Stop(Stat::DropIpv6Option)),
            // The fourth asks for silence towards multicast, which gets here for neighbour discovery only.
            _ => return Some(Walked::Problem(at + here, reason, Stat::DropIpv6Option)),
        }
        here += 2 + usize::from(len);
    }
    None
}
