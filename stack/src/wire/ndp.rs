//! Neighbour discovery (RFC 4861) for the few addresses that are ours: solicited advertisements, and router
//! advertisements for guests that configure themselves.
//!
//! The stack learns only the guest's one hardware address, which every frame carries: a guest cannot fill a neighbour
//! table because there is none. The stack answers for its own addresses only. So a guest that tests an address of its
//! own (duplicate address detection, RFC 4862 section 5.4) receives no answer, and one that tests an address of ours
//! learns that it is taken.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags,
    NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use crate::config::{ContainerConfig, Ipv6Net};
use crate::counters::Stat;
use crate::wire::addresses::Addrs;
use crate::wire::domains;
use crate::wire::parse::{Answer, Ingress};

/// RFC 4861 section 7.1: a lower hop limit shows that the message crossed a router.
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 4861 section 6.2.1: AdvDefaultLifetime, AdvValidLifetime and AdvPreferredLifetime.
const ROUTER_LIFETIME: Duration = Duration::from_secs(1800);
const VALID_LIFETIME: Duration = Duration::from_secs(86_400);
/// Types of the options of RFC 8106, and the length of the names in one of them: the advertisement fits the smallest
/// MTU of IPv6.
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;
const SEARCH_BYTES_MAX: usize = 512;
const PREFERRED_LIFETIME: Duration = Duration::from_secs(14_400);

/// Handles a neighbour discovery message after its checksum and length were checked.
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
            // RFC 4861 section 7.1.1: a probe is sent to the solicited-node address and carries no hardware address.
            let probe = src.is_unspecified();
            let fits = !probe || (dst == solicited_node(target_addr) && lladdr.is_none());
            if target_addr.is_multicast() || !fits {
                return Ingress::Drop(Stat::DropNdp);
            }
            // Its own address (duplicate address detection) or one that does not exist.
            let of_sibling =
                config.siblings && net.contains(target_addr) && target_addr != net.guest;
            if !net.is_ours(target_addr) && !of_sibling {
                return Ingress::Nothing;
            }
            Ingress::Answer(advertisement(config, target_addr, src), Stat::NdpAnswered)
        }
        NdiscRepr::RouterSolicit { lladdr } => {
            // RFC 4861 section 6.1.1: a solicitation without source address must not carry a hardware address.
            if src.is_unspecified() && lladdr.is_some() {
                return Ingress::Drop(Stat::DropNdp);
            }
            Ingress::RouterSolicit { from: src }
        }
        // The answer to our solicitation: the frame's source address was taken already.
        NdiscRepr::NeighborAdvert { .. } => Ingress::Nothing,
        // Only the router may send these, and the stack is the router.
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => Ingress::Drop(Stat::DropNdp),
    }
}

/// Section 7.2.4: sent to the node that solicited it, or to all nodes if that has no address yet.
fn advertisement(config: &ContainerConfig, target_addr: Ipv6Addr, asked_by: Ipv6Addr) -> Answer {
    let probe = asked_by.is_unspecified();
    let mut flags = NdiscNeighborFlags::OVERRIDE;
    // A container that answers here is no router.
    let is_ours = config.ipv6.is_some_and(|net| net.is_ours(target_addr));
    flags.set(NdiscNeighborFlags::ROUTER, is_ours);
    flags.set(NdiscNeighborFlags::SOLICITED, !probe);
    let lladdr = Some(EthernetAddress(config.our_mac).into());
    let repr = NdiscRepr::NeighborAdvert { flags, target_addr, lladdr };
    answer(target_addr, if probe { ALL_NODES } else { asked_by }, repr)
}

/// Section 6.2.3: announces the router, the prefix as on-link, that addresses may be formed from it, and the name
/// server with its search domains (RFC 8106). The two flags announce DHCPv6: published ports lead to the address that
/// DHCPv6 gives, not to one that the guest forms.
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
        flags: NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER,
        router_lifetime: ROUTER_LIFETIME,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(config.our_mac).into()),
        mtu: Some(config.mtu.into()),
        prefix_info: Some(prefix_info),
    };
    let to = if asked_by.is_unspecified() { ALL_NODES } else { asked_by };
    with_options(answer(net.router, to, repr), &[name_server(net), search_domains(config)].concat())
}

/// Appends options that smoltcp does not have to a message.
fn with_options(mut answer: Answer, options: &[u8]) -> Answer {
    if let Answer::Icmp { addrs: Addrs::V6 { src, dst }, bytes, .. } = &mut answer {
        bytes.extend(options);
        Icmpv6Packet::new_unchecked(bytes.as_mut_slice()).fill_checksum(src, dst);
    }
    answer
}

/// The recursive DNS server option (RFC 8106 section 5.1).
fn name_server(net: &Ipv6Net) -> Vec<u8> {
    let mut option = vec![RDNSS, 3, 0, 0];
    option.extend((ROUTER_LIFETIME.secs() as u32).to_be_bytes());
    option.extend(net.dns.octets());
    option
}

/// The DNS search list option (RFC 8106 section 5.2); empty without domains.
fn search_domains(config: &ContainerConfig) -> Vec<u8> {
    let names = domains::write(&config.search, SEARCH_BYTES_MAX);
    if names.is_empty() {
        return Vec::new();
    }
    // The length counts units of 8 bytes, with zeros behind the names.
    let len = (8 + names.len()).next_multiple_of(8);
    let mut option = vec![DNSSL, (len / 8) as u8, 0, 0];
    option.extend((ROUTER_LIFETIME.secs() as u32).to_be_bytes());
    option.extend(names);
    option.resize(len, 0);
    option
}

/// Requests the guest's hardware address.
pub(crate) fn solicitation(config: &ContainerConfig, net: &Ipv6Net) -> Answer {
    let lladdr = Some(EthernetAddress(config.our_mac).into());
    let repr = NdiscRepr::NeighborSolicit { target_addr: net.guest, lladdr };
    answer(net.gateway, solicited_node(net.guest), repr)
}

/// Builds the ICMPv6 packet of a message.
fn answer(src: Ipv6Addr, dst: Ipv6Addr, repr: NdiscRepr<'_>) -> Answer {
    let repr = Icmpv6Repr::Ndisc(repr);
    let mut bytes = vec![0; repr.buffer_len()];
    let mut packet = Icmpv6Packet::new_unchecked(bytes.as_mut_slice());
    repr.emit(&src, &dst, &mut packet, &ChecksumCapabilities::default());
    let addrs = Addrs::V6 { src, dst };
    Answer::Icmp { addrs, hop_limit: HOP_LIMIT, bytes }
}

/// Solicited-node multicast address (RFC 4291 section 2.7.1).
pub(crate) fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c))
}

/// True for the solicited-node address of any node.
pub(crate) fn is_solicited_node(ip: Ipv6Addr) -> bool {
    let [.., a, b, c] = ip.octets();
    ip == solicited_node(Ipv6Addr::from_bits(u32::from_be_bytes([0, a, b, c]).into()))
}
