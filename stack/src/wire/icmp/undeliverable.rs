//! Errors about datagrams that were relayed: what the host's network reports, as the guest's network would report it.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4TimeExceeded, Icmpv6DstUnreachable,
    Icmpv6Message, Icmpv6Packet, Icmpv6TimeExceeded, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet,
};

use super::{HOP_LIMIT, header_v6};
use crate::io::datagram::Undeliverable;
use crate::wire::addresses::Addrs;
use crate::wire::parse::Answer;

/// Header of the message, bytes.
const ICMP: usize = 8;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// Bytes of a packet that an error may have at most: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c).
const MOST_V4: usize = 576;
const MOST_V6: usize = 1280;

/// A packet that an error quotes: the guest's, behind its IP header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quoted<'a> {
    /// From the guest to its destination.
    pub(crate) addrs: Addrs,
    pub(crate) protocol: IpProtocol,
    pub(crate) header: [u8; 8],
    pub(crate) payload: &'a [u8],
}

/// Builds the error. `by`: the router or host that reports it, as the guest sees it.
pub(crate) fn answer(quoted: &Quoted<'_>, by: IpAddr, why: Undeliverable) -> Answer {
    let Quoted { addrs, protocol, header, payload } = quoted;
    match (*addrs, by) {
        (Addrs::V4 { src, dst }, IpAddr::V4(by)) => {
            let most = MOST_V4 - 2 * IPV4 - ICMP - header.len();
            let payload = &payload[..payload.len().min(most)];
            let mut bytes = vec![0; ICMP + IPV4];
            let len = header.len() + payload.len();
            let ip = Ipv4Repr {
                src_addr: src,
                dst_addr: dst,
                next_header: *protocol,
                payload_len: len,
                hop_limit: HOP_LIMIT,
            };
            let mut packet = Ipv4Packet::new_unchecked(&mut bytes[ICMP..]);
            ip.emit(&mut packet, &ChecksumCapabilities::default());
            bytes.extend(header);
            bytes.extend(payload);
            let (kind, code) = kind_v4(why);
            let mut icmp = Icmpv4Packet::new_unchecked(bytes.as_mut_slice());
            icmp.set_msg_type(kind);
            icmp.set_msg_code(code);
            if let Undeliverable::TooBig(mtu) = why {
                // RFC 1191 section 4: the low half of the second word, which smoltcp has no name for.
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
                icmp.into_inner()[6..8].copy_from_slice(&mtu);
            }
            Icmpv4Packet::new_unchecked(bytes.as_mut_slice()).fill_checksum();
            Answer::Icmp { addrs: Addrs::V4 { src: by, dst: src }, hop_limit: HOP_LIMIT, bytes }
        }
        (Addrs::V6 { src, dst }, IpAddr::V6(by)) => {
            let most = MOST_V6 - 2 * IPV6 - ICMP - header.len();
            let payload = &payload[..payload.len().min(most)];
            let mut bytes = vec![0; ICMP + IPV6];
            let ip = header_v6(src, dst, *protocol, header.len() + payload.len());
            ip.emit(&mut Ipv6Packet::new_unchecked(&mut bytes[ICMP..]));
            bytes.extend(header);
            bytes.extend(payload);
            let (kind, code) = kind_v6(why);
            if let Undeliverable::TooBig(mtu) = why {
                bytes[4..ICMP].copy_from_slice(&mtu.to_be_bytes());
            }
            let mut icmp = Icmpv6Packet::new_unchecked(bytes.as_mut_slice());
            icmp.set_msg_type(kind);
            icmp.set_msg_code(code);
            icmp.fill_checksum(&by, &src);
            Answer::Icmp { addrs: Addrs::V6 { src: by, dst: src }, hop_limit: HOP_LIMIT, bytes }
        }
        // The reporter is of the other family: the guest learns it from the destination itself.
        (addrs, _) => answer(quoted, addrs.ips().1, why),
    }
}

fn kind_v4(why: Undeliverable) -> (Icmpv4Message, u8) {
    let unreachable = |reason: Icmpv4DstUnreachable| (Icmpv4Message::DstUnreachable, reason.into());
    match why {
        Undeliverable::Net => unreachable(Icmpv4DstUnreachable::NetUnreachable),
        Undeliverable::Host => unreachable(Icmpv4DstUnreachable::HostUnreachable),
        Undeliverable::Port => unreachable(Icmpv4DstUnreachable::PortUnreachable),
        Undeliverable::Prohibited => unreachable(Icmpv4DstUnreachable::CommProhibited),
        Undeliverable::TooBig(_) => unreachable(Icmpv4DstUnreachable::FragRequired),
        Undeliverable::HopLimit => {
            (Icmpv4Message::TimeExceeded, Icmpv4TimeExceeded::TtlExpired.into())
        }
    }
}

fn kind_v6(why: Undeliverable) -> (Icmpv6Message, u8) {
    let unreachable = |reason: Icmpv6DstUnreachable| (Icmpv6Message::DstUnreachable, reason.into());
    match why {
        Undeliverable::Net => unreachable(Icmpv6DstUnreachable::NoRoute),
        Undeliverable::Host => unreachable(Icmpv6DstUnreachable::AddrUnreachable),
        Undeliverable::Port => unreachable(Icmpv6DstUnreachable::PortUnreachable),
        Undeliverable::Prohibited => unreachable(Icmpv6DstUnreachable::AdminProhibit),
        Undeliverable::TooBig(_) => (Icmpv6Message::PktTooBig, 0),
        Undeliverable::HopLimit => {
            (Icmpv6Message::TimeExceeded, Icmpv6TimeExceeded::HopLimitExceeded.into())
        }
    }
}
