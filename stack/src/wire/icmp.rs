//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo requests, the errors that the guest must receive, and
//! the one error of the guest that the stack uses: Packet Too Big, which reports a narrower path.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv4TimeExceeded,
    Icmpv6DstUnreachable, Icmpv6Message, Icmpv6Packet, Icmpv6ParamProblem, Icmpv6Repr,
    Icmpv6TimeExceeded, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
};

use crate::config::{ContainerConfig, Ipv6Net};
use crate::counters::Stat;
use crate::wire::addresses::{Addrs, Tuple};
use crate::wire::parse::{Answer, Ingress};
use crate::wire::reassembly::Expired;
use crate::wire::seq::Seq;
use crate::wire::{ndp, udp};

pub(crate) mod undeliverable;

/// Hop limit of all packets except neighbour discovery.
pub(crate) const HOP_LIMIT: u8 = 64;
/// Bytes of a TCP header that an error must quote (RFC 792): ports and sequence number.
const QUOTED: usize = 8;

/// Reason why a packet of the guest was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Net,
    Host,
    Port,
}

impl Unreachable {
    fn v4(self) -> Icmpv4DstUnreachable {
        match self {
            Self::Net => Icmpv4DstUnreachable::NetUnreachable,
            Self::Host => Icmpv4DstUnreachable::HostUnreachable,
            Self::Port => Icmpv4DstUnreachable::PortUnreachable,
        }
    }

    fn v6(self) -> Icmpv6DstUnreachable {
        match self {
            Self::Net => Icmpv6DstUnreachable::NoRoute,
            Self::Host => Icmpv6DstUnreachable::AddrUnreachable,
            Self::Port => Icmpv6DstUnreachable::PortUnreachable,
        }
    }
}

/// Handles an ICMP message. Echo requests to our own addresses are answered, others are relayed.
pub(crate) fn on_v4<'a>(
    config: &ContainerConfig,
    (src, dst): (Ipv4Addr, Ipv4Addr),
    payload: &'a [u8],
) -> Ingress<'a> {
    let Ok(packet) = Icmpv4Packet::new_checked(payload) else {
        return DROP;
    };
    // smoltcp drops the MTU field of this message, so it is parsed by hand.
    let too_big = u8::from(Icmpv4DstUnreachable::FragRequired);
    if packet.msg_type() == Icmpv4Message::DstUnreachable && packet.msg_code() == too_big {
        // Checked here, because `Icmpv4Repr::parse` below does it for all other messages.
        return if packet.verify_checksum() { too_big_v4(payload) } else { DROP };
    }
    // Verifies the checksum, too.
    match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()) {
        Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data })
            if dst == config.gateway_ip || dst == config.dns_ip =>
        {
            let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
            Ingress::Answer(answer_v4(src, dst, &reply), Stat::IcmpEchoAnswered)
        }
        Ok(Icmpv4Repr::EchoRequest { ident, .. }) => {
            udp::echo(Addrs::V4 { src, dst }, ident, payload)
        }
        _ => DROP,
    }
}

const DROP: Ingress<'static> = Ingress::Drop(Stat::DropIcmp);

/// Fragmentation needed (RFC 1191 section 4): carries the next hop's MTU and the header of one of our packets.
fn too_big_v4<'a>(payload: &[u8]) -> Ingress<'a> {
    // In bounds: `new_checked` has tested the 8 bytes of this message's header.
    let mtu = u16::from_be_bytes([payload[6], payload[7]]);
    let Ok(quoted) = Ipv4Packet::new_checked(&payload[8..]).or_else(|_| cut_short(&payload[8..]))
    else {
        return DROP;
    };
    let header = usize::from(quoted.header_len());
    let (src, dst) = (quoted.src_addr().into(), quoted.dst_addr().into());
    path_mtu(quoted.next_header(), src, dst, payload.get(8 + header..), mtu.into())
}

/// Accepts a quoted packet that is cut after its first bytes, as errors quote only those.
fn cut_short(bytes: &[u8]) -> Result<Ipv4Packet<&[u8]>, smoltcp::wire::Error> {
    let header = usize::from(bytes.first().copied().unwrap_or(0) & 15) * 4;
    // Long enough for the header that it states, plus the 8 bytes that `path_mtu` reads.
    let whole = header >= 20 && bytes.len() >= header + QUOTED && bytes[0] >> 4 == 4;
    if whole { Ok(Ipv4Packet::new_unchecked(bytes)) } else { Err(smoltcp::wire::Error) }
}

/// Names the segment that an error quotes. `src` is the remote's address: our segments carry it as their source.
fn path_mtu<'a>(
    protocol: IpProtocol,
    src: std::net::IpAddr,
    dst: std::net::IpAddr,
    tcp: Option<&[u8]>,
    mtu: u32,
) -> Ingress<'a> {
    let Some(&[a, b, c, d, e, f, g, h]) = tcp.and_then(|tcp| tcp.first_chunk::<QUOTED>()) else {
        return DROP;
    };
    if protocol != IpProtocol::Tcp {
        return DROP;
    }
    let remote = SocketAddr::new(src, u16::from_be_bytes([a, b]));
    let guest = SocketAddr::new(dst, u16::from_be_bytes([c, d]));
    let seq = Seq(u32::from_be_bytes([e, f, g, h]));
    Ingress::PathMtu { tuple: Tuple::new(guest, remote), seq, mtu }
}

/// As [`on_v4`] for ICMPv6, with neighbour discovery.
pub(crate) fn on_v6<'a>(
    config: &ContainerConfig,
    net: &Ipv6Net,
    (src, dst): (Ipv6Addr, Ipv6Addr),
    hop_limit: u8,
    payload: &'a [u8],
) -> Ingress<'a> {
    let Ok(packet) = Icmpv6Packet::new_checked(payload) else {
        return DROP;
    };
    // Before parsing: a message with a wrong checksum is not examined further.
    if !packet.verify_checksum(&src, &dst) {
        return DROP;
    }
    if packet.msg_type() == Icmpv6Message::PktTooBig {
        return too_big_v6(&packet);
    }
    match Icmpv6Repr::parse(&src, &dst, &packet, &ChecksumCapabilities::ignored()) {
        Ok(Icmpv6Repr::EchoRequest { ident, seq_no, data })
            if net.is_ours(dst) && !src.is_unspecified() =>
        {
            let reply = Icmpv6Repr::EchoReply { ident, seq_no, data };
            Ingress::Answer(answer_v6(src, dst, &reply), Stat::IcmpEchoAnswered)
        }
        Ok(Icmpv6Repr::EchoRequest { ident, .. })
            if !dst.is_multicast() && !src.is_unspecified() =>
        {
            udp::echo(Addrs::V6 { src, dst }, ident, payload)
        }
        Ok(Icmpv6Repr::Ndisc(message)) => {
            ndp::on_message(config, net, (src, dst), hop_limit, &message)
        }
        _ => DROP,
    }
}

/// Packet Too Big (RFC 4443 section 3.2).
fn too_big_v6<'a>(packet: &Icmpv6Packet<&[u8]>) -> Ingress<'a> {
    let quoted = packet.payload();
    // Extension headers in the quotation are not followed: our packets have none.
    if quoted.len() < 40 || quoted[0] >> 4 != 6 {
        return DROP;
    }
    let header = Ipv6Packet::new_unchecked(quoted);
    let (src, dst) = (header.src_addr().into(), header.dst_addr().into());
    path_mtu(header.next_header(), src, dst, quoted.get(40..), packet.pkt_too_big_mtu())
}

/// Builds the error for a SYN with a destination that the host cannot reach.
pub(crate) fn syn_unreachable(tuple: &Tuple, syn_seq: u32, why: Unreachable) -> Answer {
    // Only the fields that are known of the SYN. RFC 792 requires 8 bytes, and receivers use only ports and sequence
    // number.
    let mut quoted = [0; 20];
    quoted[..2].copy_from_slice(&tuple.guest_port().to_be_bytes());
    quoted[2..4].copy_from_slice(&tuple.remote_port().to_be_bytes());
    quoted[4..8].copy_from_slice(&syn_seq.to_be_bytes());
    // Data offset of 5 words and the SYN flag make it a valid header for parsers that check it.
    quoted[12] = 5 << 4;
    quoted[13] = 2;
    unreachable(tuple.to_guest().reversed(), IpProtocol::Tcp, &quoted, why)
}

/// Builds the error for a packet of the guest, from that packet's destination.
pub(crate) fn unreachable(
    of: Addrs,
    protocol: IpProtocol,
    payload: &[u8],
    why: Unreachable,
) -> Answer {
    match of {
        Addrs::V4 { src, dst } => {
            let header = Ipv4Repr {
                src_addr: src,
                dst_addr: dst,
                next_header: protocol,
                payload_len: payload.len(),
                hop_limit: HOP_LIMIT,
            };
            // RFC 792: the IP header and the first 8 bytes behind it.
            let data = &payload[..payload.len().min(QUOTED)];
            let reason = why.v4();
            answer_v4(src, dst, &Icmpv4Repr::DstUnreachable { reason, header, data })
        }
        Addrs::V6 { src, dst } => {
            let header = header_v6(src, dst, protocol, payload.len());
            let reason = why.v6();
            answer_v6(src, dst, &Icmpv6Repr::DstUnreachable { reason, header, data: payload })
        }
    }
}

/// Builds the error for a packet with an unroutable destination. Its source is `gateway`: the destination would be a
/// martian source for the guest.
pub(crate) fn no_route_v4(gateway: Ipv4Addr, packet: &Ipv4Packet<&[u8]>) -> Answer {
    let header = Ipv4Repr {
        src_addr: packet.src_addr(),
        dst_addr: packet.dst_addr(),
        next_header: packet.next_header(),
        payload_len: packet.payload().len(),
        hop_limit: packet.hop_limit(),
    };
    let data = &packet.payload()[..packet.payload().len().min(QUOTED)];
    let reason = Unreachable::Net.v4();
    let repr = Icmpv4Repr::DstUnreachable { reason, header, data };
    answer_v4(packet.src_addr(), gateway, &repr)
}

/// As [`no_route_v4`]; `packet` starts with the IPv6 header.
pub(crate) fn no_route_v6(gateway: Ipv6Addr, packet: &[u8]) -> Answer {
    let ip = Ipv6Packet::new_unchecked(packet);
    let (src, dst) = (ip.src_addr(), ip.dst_addr());
    let header = header_v6(src, dst, ip.next_header(), ip.payload_len().into());
    let header = Ipv6Repr { hop_limit: ip.hop_limit(), ..header };
    let reason = Unreachable::Net.v6();
    answer_v6(src, gateway, &Icmpv6Repr::DstUnreachable { reason, header, data: &packet[40..] })
}

/// Builds the error for a datagram with missing fragments. It quotes the first fragment as it was received.
pub(crate) fn reassembly_timeout(expired: &Expired) -> Answer {
    let Expired { key, next, begin } = expired;
    match key.addrs {
        Addrs::V4 { src, dst } => {
            let header = Ipv4Repr {
                src_addr: src,
                dst_addr: dst,
                next_header: (*next).into(),
                payload_len: begin.len(),
                hop_limit: HOP_LIMIT,
            };
            let data = &begin[..begin.len().min(QUOTED)];
            let reason = Icmpv4TimeExceeded::FragExpired;
            answer_v4(src, dst, &Icmpv4Repr::TimeExceeded { reason, header, data })
        }
        Addrs::V6 { src, dst } => {
            // A fragment header with offset 0 and the flag for more fragments.
            let mut data = vec![*next, 0, 0, 1];
            data.extend(key.id.to_be_bytes());
            data.extend(begin);
            let header = header_v6(src, dst, IpProtocol::Ipv6Frag, data.len());
            let reason = Icmpv6TimeExceeded::FragReassemExceeded;
            answer_v6(src, dst, &Icmpv6Repr::TimeExceeded { reason, header, data: &data })
        }
    }
}

/// Builds the error for a header that RFC 8200 requires to be reported. `packet` starts with the IPv6 header; `pointer`
/// is the offset of the offending byte in it.
pub(crate) fn param_problem(packet: &[u8], pointer: usize, reason: Icmpv6ParamProblem) -> Answer {
    let ip = Ipv6Packet::new_unchecked(packet);
    let (src, dst) = (ip.src_addr(), ip.dst_addr());
    let header = header_v6(src, dst, ip.next_header(), ip.payload_len().into());
    let data = &packet[40..];
    let pointer = pointer as u32;
    answer_v6(src, dst, &Icmpv6Repr::ParamProblem { reason, pointer, header, data })
}

fn header_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: IpProtocol, payload_len: usize) -> Ipv6Repr {
    Ipv6Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: protocol,
        payload_len,
        hop_limit: HOP_LIMIT,
    }
}

/// Wraps the answer to a packet from `src` to `dst`: addresses are swapped.
fn answer_v4(src: Ipv4Addr, dst: Ipv4Addr, repr: &Icmpv4Repr<'_>) -> Answer {
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(
        &mut Icmpv4Packet::new_unchecked(bytes.as_mut_slice()),
        &ChecksumCapabilities::default(),
    );
    Answer::Icmp { addrs: Addrs::V4 { src: dst, dst: src }, hop_limit: HOP_LIMIT, bytes }
}

fn answer_v6(src: Ipv6Addr, dst: Ipv6Addr, repr: &Icmpv6Repr<'_>) -> Answer {
    let mut bytes = vec![0; repr.buffer_len()];
    let mut packet = Icmpv6Packet::new_unchecked(bytes.as_mut_slice());
    repr.emit(&dst, &src, &mut packet, &ChecksumCapabilities::default());
    Answer::Icmp { addrs: Addrs::V6 { src: dst, dst: src }, hop_limit: HOP_LIMIT, bytes }
}
