//! Segments by hand: encoded into frames, and decoded from frames with every checksum verified.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use skbudget_sim::packet::{Datagram, Segment};
use skbudget_stack::VnetHdr;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv6Packet,
    IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket, checksum,
};

use crate::rig::{GATEWAY, GATEWAY6, GUEST, GUEST6};

pub(crate) use skbudget_sim::packet::{
    ACK, CWR, ECE, FIN, GUEST_MAC, OUR_MAC, PSH, RST, SYN, ethernet, ipv4, ipv6, transport_checksum,
};

/// A segment of either direction: ports and addresses are the guest's and the remote's. No remote address: the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seg {
    pub(crate) guest_port: u16,
    pub(crate) remote: Option<Ipv4Addr>,
    /// Over IPv6; the remote is then `remote6`.
    pub(crate) v6: bool,
    pub(crate) remote6: Option<Ipv6Addr>,
    pub(crate) remote_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) wnd: u16,
    pub(crate) mss: Option<u16>,
    pub(crate) wscale: Option<u8>,
    pub(crate) sack_ok: bool,
    pub(crate) ts: Option<(u32, u32)>,
    pub(crate) sack: Vec<(u32, u32)>,
    pub(crate) data: Vec<u8>,
    /// ECN field of the packet.
    pub(crate) ecn: u8,
    /// From the vnet header: segment size of a super-frame.
    pub(crate) gso: u16,
}

impl Seg {
    pub(crate) fn is(&self, flags: u8) -> bool {
        self.flags & !PSH == flags
    }

    pub(crate) fn options(&self) -> Vec<u8> {
        let mut o = Vec::new();
        if let Some(mss) = self.mss {
            o.extend([2, 4]);
            o.extend(mss.to_be_bytes());
        }
        if let Some(shift) = self.wscale {
            o.extend([3, 3, shift, 1]);
        }
        if self.sack_ok {
            o.extend([4, 2, 1, 1]);
        }
        if let Some((val, ecr)) = self.ts {
            o.extend([1, 1, 8, 10]);
            o.extend(val.to_be_bytes());
            o.extend(ecr.to_be_bytes());
        }
        if !self.sack.is_empty() {
            o.extend([1, 1, 5, 2 + 8 * self.sack.len() as u8]);
            for (from, to) in &self.sack {
                o.extend(from.to_be_bytes());
                o.extend(to.to_be_bytes());
            }
        }
        o
    }

    /// The frame of a guest's segment, with complete checksums.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let (src, dst): (IpAddr, IpAddr) = if self.v6 {
            (GUEST6.into(), self.remote6.unwrap_or(GATEWAY6).into())
        } else {
            (GUEST.into(), self.remote.unwrap_or(GATEWAY).into())
        };
        let segment = Segment {
            src,
            dst,
            seq: self.seq,
            ack: self.ack,
            wnd: self.wnd,
            options: self.options(),
            ecn: self.ecn,
            data: self.data.clone(),
            ..Segment::new(self.guest_port, self.remote_port, self.flags)
        };
        segment.frame()
    }
}

/// An ICMPv6 message of the guest: type, code, and the bytes after the checksum.
pub(crate) fn icmpv6(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    ipv6(58, src, dst, &icmpv6_message(src, dst, kind, code, body))
}

pub(crate) fn icmpv6_message(
    src: Ipv6Addr,
    dst: Ipv6Addr,
    kind: u8,
    code: u8,
    body: &[u8],
) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(body);
    transport_checksum(src.into(), dst.into(), 58, &mut message, 2);
    message
}

/// A frame from the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    Tcp(Seg),
    Udp(Datagram),
    Arp {
        operation: ArpOperation,
        source: Ipv4Addr,
        target: Ipv4Addr,
    },
    /// Type, code, and the bytes after the first 8.
    Icmp(u8, u8, Vec<u8>),
    Icmp6 {
        src: Ipv6Addr,
        dst: Ipv6Addr,
        hop_limit: u8,
        kind: u8,
        code: u8,
        /// The bytes after the checksum.
        body: Vec<u8>,
    },
    /// A fragment: identification, offset in bytes, whether more fragments follow, payload.
    Piece(u32, u32, bool, Vec<u8>),
}

/// Decodes a frame of the stack and checks everything that a guest's kernel would.
pub(crate) fn sent(vnet: &VnetHdr, frame: &[u8], mtu: u16, offload: bool) -> Sent {
    let eth = EthernetFrame::new_checked(frame).unwrap();
    assert_eq!(eth.src_addr().0, OUR_MAC);
    if eth.ethertype() == EthernetProtocol::Arp {
        let arp = ArpRepr::parse(&ArpPacket::new_checked(eth.payload()).unwrap()).unwrap();
        let ArpRepr::EthernetIpv4 { operation, source_protocol_addr, target_protocol_addr, .. } =
            arp
        else {
            panic!("{arp:?}")
        };
        return Sent::Arp { operation, source: source_protocol_addr, target: target_protocol_addr };
    }
    if eth.ethertype() == EthernetProtocol::Ipv6 {
        return sent_v6(vnet, &eth, mtu, offload);
    }
    assert_eq!(eth.dst_addr().0, GUEST_MAC);
    let ip = Ipv4Packet::new_checked(eth.payload()).unwrap();
    assert!(ip.verify_checksum());
    assert_eq!(usize::from(ip.total_len()), frame.len() - 14, "nothing before or behind");
    assert_eq!(ip.dst_addr(), GUEST);
    if !offload {
        assert!(ip.total_len() <= mtu, "{} bytes at an MTU of {mtu}", ip.total_len());
        assert_eq!(*vnet, VnetHdr::default());
    }
    if ip.more_frags() || ip.frag_offset() > 0 {
        let (id, at) = (ip.ident().into(), ip.frag_offset().into());
        return Sent::Piece(id, at, ip.more_frags(), ip.payload().to_vec());
    }
    if ip.next_header() == IpProtocol::Icmp {
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum());
        let kind = icmp.msg_type();
        return Sent::Icmp(kind.into(), icmp.msg_code(), ip.payload()[8..].to_vec());
    }
    let (src, dst) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
    if ip.next_header() == IpProtocol::Udp {
        return datagram(vnet, (src, dst), frame, 34, offload);
    }
    let seg = segment(vnet, (src, dst), ip.payload(), mtu, offload);
    Sent::Tcp(Seg { remote: Some(ip.src_addr()), ecn: ip.ecn(), ..seg })
}

fn sent_v6(vnet: &VnetHdr, eth: &EthernetFrame<&[u8]>, mtu: u16, offload: bool) -> Sent {
    let ip = Ipv6Packet::new_checked(eth.payload()).unwrap();
    let (src, dst) = (ip.src_addr(), ip.dst_addr());
    assert_eq!(ip.total_len(), eth.payload().len(), "nothing before or behind");
    if !offload {
        assert!(ip.total_len() <= usize::from(mtu), "{} bytes", ip.total_len());
        assert_eq!(*vnet, VnetHdr::default());
    }
    let bytes = ip.payload();
    match ip.next_header() {
        IpProtocol::Ipv6Frag => {
            let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            let at = word(0) & 0xfff8;
            Sent::Piece(word(4), at, bytes[3] & 1 == 1, bytes[8..].to_vec())
        }
        IpProtocol::Icmpv6 => {
            let icmp = Icmpv6Packet::new_checked(bytes).unwrap();
            assert!(icmp.verify_checksum(&src, &dst));
            let (kind, code, hop_limit) = (bytes[0], bytes[1], ip.hop_limit());
            Sent::Icmp6 { src, dst, hop_limit, kind, code, body: bytes[4..].to_vec() }
        }
        IpProtocol::Udp => {
            let addrs = (IpAddress::Ipv6(src), IpAddress::Ipv6(dst));
            datagram(vnet, addrs, eth.clone().into_inner(), 54, offload)
        }
        IpProtocol::Tcp => {
            assert_eq!((eth.dst_addr().0, dst.segments()[0]), (GUEST_MAC, GUEST6.segments()[0]));
            let addrs = (IpAddress::Ipv6(src), IpAddress::Ipv6(dst));
            let seg = segment(vnet, addrs, bytes, mtu, offload);
            Sent::Tcp(Seg { v6: true, remote6: Some(src), ecn: ip.traffic_class(), ..seg })
        }
        other => panic!("{other:?}"),
    }
}

/// Decodes a whole datagram; its header is at `at`.
fn datagram(
    vnet: &VnetHdr,
    (src, dst): (IpAddress, IpAddress),
    frame: &[u8],
    at: usize,
    offload: bool,
) -> Sent {
    let udp = UdpPacket::new_checked(&frame[at..]).unwrap();
    assert_eq!(usize::from(udp.len()), frame.len() - at, "nothing behind");
    if offload {
        let at = at as u16;
        let hdr = VnetHdr { flags: 1, csum_start: at, csum_offset: 6, ..VnetHdr::default() };
        assert_eq!(*vnet, hdr);
        let len = udp.len().into();
        assert_eq!(udp.checksum(), checksum::pseudo_header(&src, &dst, IpProtocol::Udp, len));
    } else {
        assert!(udp.checksum() != 0 && udp.verify_checksum(&src, &dst));
    }
    Sent::Udp(Datagram::parse(frame).unwrap())
}

/// Decodes a segment in a packet between these addresses.
fn segment(
    vnet: &VnetHdr,
    (src, dst): (IpAddress, IpAddress),
    bytes: &[u8],
    mtu: u16,
    offload: bool,
) -> Seg {
    let tcp = TcpPacket::new_checked(bytes).unwrap();
    let (ip_len, gso_type) = if matches!(src, IpAddress::Ipv4(_)) { (20, 1) } else { (40, 4) };
    if offload {
        assert_eq!((vnet.flags, vnet.csum_start, vnet.csum_offset), (1, 14 + ip_len, 16));
        let len = bytes.len() as u32;
        let partial = checksum::pseudo_header(&src, &dst, IpProtocol::Tcp, len);
        assert_eq!(tcp.checksum(), partial);
        if vnet.gso_type == 0 {
            let total = usize::from(ip_len) + bytes.len();
            assert!(total <= usize::from(mtu), "{total} bytes at an MTU of {mtu}");
        } else {
            let ecn = if bytes[13] & CWR != 0 { 0x80 } else { 0 };
            assert_eq!(vnet.gso_type, gso_type | ecn);
            assert_eq!(vnet.hdr_len, 14 + ip_len + u16::from(tcp.header_len()));
            assert!(ip_len + u16::from(tcp.header_len()) + vnet.gso_size <= mtu);
        }
    } else {
        assert!(tcp.verify_checksum(&src, &dst));
    }
    let bits = bytes[13];
    let mut seg = Seg {
        guest_port: tcp.dst_port(),
        remote_port: tcp.src_port(),
        seq: tcp.seq_number().0.cast_unsigned(),
        ack: tcp.ack_number().0.cast_unsigned(),
        flags: bits,
        wnd: tcp.window_len(),
        data: tcp.payload().to_vec(),
        gso: vnet.gso_size,
        ..Seg::default()
    };
    let mut rest = if tcp.header_len() > 20 { tcp.options() } else { &[] };
    while let [kind, ..] = *rest {
        let len = if kind < 2 { 1 } else { usize::from(rest[1]) };
        let body = if kind < 2 { &[] } else { &rest[2..len] };
        let word = |i: usize| u32::from_be_bytes(body[4 * i..4 * i + 4].try_into().unwrap());
        match kind {
            2 => seg.mss = Some(u16::from_be_bytes([body[0], body[1]])),
            3 => seg.wscale = Some(body[0]),
            4 => seg.sack_ok = true,
            5 => seg.sack = (0..body.len() / 8).map(|i| (word(2 * i), word(2 * i + 1))).collect(),
            8 => seg.ts = Some((word(0), word(1))),
            _ => {}
        }
        rest = &rest[len..];
    }
    seg
}
