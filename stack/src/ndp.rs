//! Neighbour discovery (RFC 4861) for the few addresses that are ours: solicited advertisements, router
//! advertisements for guests that configure themselves.
//!
//! Nothing is learnt from it but what every frame tells, the one hardware address of the guest: there is no neighbour
//! table that a guest could fill. Only our own addresses are answered for, so a guest that tests an address of its own
//! (duplicate address detection, RFC 4862 section 5.4) hears nothing, and one that tests an address of ours hears that
//! it is taken.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags,
    NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use crate::config::{ContainerConfig, Ipv6Net};
use crate::counters::Stat;
use crate::ingress::{Answer, Ingress};
use crate::segment::Addrs;

/// RFC 4861 section 7.1: what came through a router is not from this link.
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 4861 section 6.2.1: AdvDefaultLifetime, AdvValidLifetime and AdvPreferredLifetime.
const ROUTER_LIFETIME: Duration = Duration::from_secs(1800);
const VALID_LIFETIME: Duration = Duration::from_secs(86_400);
const PREFERRED_LIFETIME: Duration = Duration::from_secs(14_400);

/// A neighbour discovery message whose checksum and length hold.
pub(crate) fn on_message<'a>(
    config: &ContainerConfig,
    net: &Ipv6Net,
    (src, dst): (Ipv6Addr, Ipv6Addr),
    hop_limit: u8,
    message: &NdiscRepr<'_>,
) -> Ingress<'a> {
    if hop_limit != HOP_LIMIT {
        return Ingress::Drop(Stat::DropNdp);
    }
    match *message {
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            // RFC 4861 section 7.1.1: a probe goes to the solicited-node address and names no hardware address.
            let probe = src.is_unspecified();
            let fits = !probe || (dst == solicited_node(target_addr) && lladdr.is_none());
            if target_addr.is_multicast() || !fits {
                return Ingress::Drop(Stat::DropNdp);
            }
            if !net.is_ours(target_addr) {
                return Ingress::Nothing;
            }
            Ingress::Answer(advertisement(config, target_addr, src), Stat::NdpAnswered)
        }
        NdiscRepr::RouterSolicit { lladdr } => {
            // RFC 4861 section 6.1.1.
            if src.is_unspecified() && lladdr.is_some() {
                return Ingress::Drop(Stat::DropNdp);
            }
            Ingress::RouterSolicit { from: src }
        }
        NdiscRepr::NeighborAdvert { .. } => Ingress::Nothing,
        // Routers and redirects are ours to send.
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => Ingress::Drop(Stat::DropNdp),
    }
}

/// Section 7.2.4: to who asked, or to all when nobody may be named yet.
fn advertisement(config: &ContainerConfig, target_addr: Ipv6Addr, asked_by: Ipv6Addr) -> Answer {
    let probe = asked_by.is_unspecified();
    let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::SOLICITED, !probe);
    let lladdr = Some(EthernetAddress(config.our_mac).into());
    let repr = NdiscRepr::NeighborAdvert { flags, target_addr, lladdr };
    answer(target_addr, if probe { ALL_NODES } else { asked_by }, repr)
}

/// Section 6.2.3: this is the router, the prefix is on the link, make yourself an address.
pub(crate) fn router_advertisement(
    config: &ContainerConfig,
    net: &Ipv6Net,
    asked_by: Ipv6Addr,
) -> Answer {
    let prefix_info = NdiscPrefixInformation {
        prefix_len: net.prefix_len,
        flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
        valid_lifetime: VALID_LIFETIME,
        preferred_lifetime: PREFERRED_LIFETIME,
        prefix: net.prefix(),
    };
    let repr = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: ROUTER_LIFETIME,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(config.our_mac).into()),
        mtu: Some(config.mtu.into()),
        prefix_info: Some(prefix_info),
    };
    answer(net.router, if asked_by.is_unspecified() { ALL_NODES } else { asked_by }, repr)
}

/// Asks the guest for its hardware address.
pub(crate) fn solicitation(config: &ContainerConfig, net: &Ipv6Net) -> Answer {
    let lladdr = Some(EthernetAddress(config.our_mac).into());
    let repr = NdiscRepr::NeighborSolicit { target_addr: net.guest, lladdr };
    answer(net.gateway, solicited_node(net.guest), repr)
}

fn answer(src: Ipv6Addr, dst: Ipv6Addr, repr: NdiscRepr<'_>) -> Answer {
    let repr = Icmpv6Repr::Ndisc(repr);
    let mut bytes = vec![0; repr.buffer_len()];
    let mut packet = Icmpv6Packet::new_unchecked(bytes.as_mut_slice());
    repr.emit(&src, &dst, &mut packet, &ChecksumCapabilities::default());
    let addrs = Addrs::V6 { src, dst };
    Answer::Icmp { addrs, hop_limit: HOP_LIMIT, bytes }
}

/// RFC 4291 section 2.7.1.
pub(crate) fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c))
}
