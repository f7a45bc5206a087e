//! Messages of DHCP clients (RFC 2131) and DHCPv6 clients (RFC 8415) among the guest's datagrams. Their addresses are
//! checked here: a client may have none yet, and sends to broadcast or to a multicast group.

use std::net::Ipv6Addr;

use smoltcp::wire::{IpProtocol, Ipv4Packet};

use crate::config::ContainerConfig;
use crate::counters::Stat;
use crate::io::vnet::VnetHdr;
use crate::wire::addresses::Addrs;
use crate::wire::parse::Ingress;
use crate::wire::udp::{self, UDP};

/// Ports of client and server.
pub(crate) const PORTS_V4: (u16, u16) = (68, 67);
pub(crate) const PORTS_V6: (u16, u16) = (546, 547);
/// All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1).
const SERVERS_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// True for the group of the DHCPv6 servers of the link.
pub(crate) fn is_for_servers(dst: Ipv6Addr) -> bool {
    dst == SERVERS_V6
}

/// The message of a DHCP client in an IPv4 packet; `None`: the packet is another one. A message in fragments is none.
pub(crate) fn v4<'a>(
    config: &ContainerConfig,
    vnet: &VnetHdr,
    packet: &Ipv4Packet<&'a [u8]>,
) -> Option<Ingress<'a>> {
    let (src, dst, payload) = (packet.src_addr(), packet.dst_addr(), packet.payload());
    let whole = !packet.more_frags() && packet.frag_offset() == 0;
    if packet.next_header() != IpProtocol::Udp || !whole || ports(payload)? != PORTS_V4 {
        return None;
    }
    let to_server =
        dst.is_broadcast() || dst == config.gateway_ip || config.is_broadcast(dst.into());
    if !to_server || !(src.is_unspecified() || src == config.guest_ip) {
        return None;
    }
    Some(message(vnet, Addrs::V4 { src, dst }, payload))
}

/// The message of a DHCPv6 client in a datagram to the group of the servers.
pub(crate) fn v6<'a>(
    vnet: &VnetHdr,
    (src, dst): (Ipv6Addr, Ipv6Addr),
    payload: &'a [u8],
) -> Ingress<'a> {
    // RFC 8415 section 13.2: clients use their link-local address. Relay agents, which use the same port, do not.
    if !src.is_unicast_link_local() || ports(payload) != Some(PORTS_V6) {
        return Ingress::Drop(Stat::DropDhcp);
    }
    message(vnet, Addrs::V6 { src, dst }, payload)
}

/// Ports of a datagram.
fn ports(payload: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = payload.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn message<'a>(vnet: &VnetHdr, addrs: Addrs, payload: &'a [u8]) -> Ingress<'a> {
    match udp::checked(vnet, addrs, payload) {
        Ok((_, bytes)) => Ingress::Configure { from: addrs.ips().0, message: &bytes[UDP..] },
        Err(stat) => Ingress::Drop(stat),
    }
}
