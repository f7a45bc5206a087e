//! Frames between a guest and its stack, built and parsed by hand: for tests and floods without a TCP of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, checksum,
};

mod udp;

pub use udp::Datagram;

/// Addresses of `ContainerConfig::new`: the guest and its gateway.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// See [`GUEST`].
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// See [`GUEST`].
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
/// See [`GUEST`].
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// Hardware address of a guest. The stack learns it from the guest's frames.
pub const GUEST_MAC: [u8; 6] = [2, 0x67, 0x75, 0x65, 0x73, 0x74];
/// Hardware address of the stack.
pub const OUR_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];

/// Flags of a TCP segment (RFC 9293 section 3.1).
pub const FIN: u8 = 1;
/// See [`FIN`].
pub const SYN: u8 = 2;
/// See [`FIN`].
pub const RST: u8 = 4;
/// See [`FIN`].
pub const PSH: u8 = 8;
/// See [`FIN`].
pub const ACK: u8 = 16;
/// See [`FIN`].
pub const URG: u8 = 32;
/// See [`FIN`], and RFC 3168 section 6.1.
pub const ECE: u8 = 64;
/// See [`ECE`].
pub const CWR: u8 = 128;

/// Longest option list, bytes: the data offset has four bits.
const OPTIONS_MAX: usize = 40;
const TCP: u8 = 6;

/// A frame from the guest to the stack.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend(OUR_MAC);
    frame.extend(GUEST_MAC);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet in a frame of the guest.
pub fn ipv4(protocol: u8, src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut ip = Vec::with_capacity(20 + payload.len());
    ip.extend([0x45, 0]);
    ip.extend((20 + payload.len() as u16).to_be_bytes());
    // Don't fragment, as Linux sends with path MTU discovery.
    ip.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(src.octets());
    ip.extend(dst.octets());
    ip.extend(payload);
    let mut frame = ethernet(0x0800, &ip);
    ipv4_checksum(&mut frame);
    frame
}

/// An IPv6 packet in a frame of the guest; `next` is the type of its payload.
pub fn ipv6(next: u8, src: Ipv6Addr, dst: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut ip = Vec::with_capacity(40 + payload.len());
    ip.extend([0x60, 0, 0, 0]);
    ip.extend((payload.len() as u16).to_be_bytes());
    // Neighbour discovery requires a hop limit of 255; other protocols accept any.
    ip.extend([next, 255]);
    ip.extend(src.octets());
    ip.extend(dst.octets());
    ip.extend(payload);
    ethernet(0x86dd, &ip)
}

/// Fills in the header checksum of a frame's IPv4 packet, for the header length that the packet states.
pub fn ipv4_checksum(frame: &mut [u8]) {
    let ip = &mut frame[14..];
    let len = (usize::from(ip[0] & 15) * 4).max(20).min(ip.len());
    ip[10..12].fill(0);
    let sum = !checksum::data(&ip[..len]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Fills in the checksum at `at` of a transport header and its payload. It covers a pseudo-header with the addresses
/// (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &mut [u8], at: usize) {
    bytes[at..at + 2].fill(0);
    let len = bytes.len() as u32;
    let pseudo = checksum::pseudo_header(&src.into(), &dst.into(), protocol.into(), len);
    let sum = !checksum::combine(&[pseudo, checksum::data(bytes)]);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A TCP segment and the fields of its packet. The addresses are of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Addresses of the packet.
    pub src: IpAddr,
    /// See `src`.
    pub dst: IpAddr,
    /// Ports of the segment.
    pub src_port: u16,
    /// See `src_port`.
    pub dst_port: u16,
    /// Sequence number of the first byte, or of the SYN.
    pub seq: u32,
    /// Acknowledgement number; it counts only with the flag ACK.
    pub ack: u32,
    /// [`FIN`] and the others.
    pub flags: u8,
    /// The field as sent, not scaled.
    pub wnd: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Encoded options: at most 40 bytes. Zeros (end of list) fill them up to a multiple of four.
    pub options: Vec<u8>,
    /// ECN field of the packet.
    pub ecn: u8,
    /// The payload.
    pub data: Vec<u8>,
}

impl Segment {
    /// A segment from the guest to its gateway over IPv4, with the largest window field.
    pub fn new(guest_port: u16, remote_port: u16, flags: u8) -> Self {
        Self {
            src: GUEST.into(),
            dst: GATEWAY.into(),
            src_port: guest_port,
            dst_port: remote_port,
            seq: 0,
            ack: 0,
            flags,
            wnd: 0xffff,
            urgent: 0,
            options: Vec::new(),
            ecn: 0,
            data: Vec::new(),
        }
    }

    /// TCP header and payload, with a complete checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let options = &self.options[..self.options.len().min(OPTIONS_MAX)];
        let header = 20 + options.len().next_multiple_of(4);
        let mut tcp = Vec::with_capacity(header + self.data.len());
        tcp.extend(self.src_port.to_be_bytes());
        tcp.extend(self.dst_port.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([(header as u8 / 4) << 4, self.flags]);
        tcp.extend(self.wnd.to_be_bytes());
        tcp.extend([0, 0]);
        tcp.extend(self.urgent.to_be_bytes());
        tcp.extend(options);
        tcp.resize(header, 0);
        tcp.extend(&self.data);
        transport_checksum(self.src, self.dst, TCP, &mut tcp, 16);
        tcp
    }

    /// The segment in a frame of the guest.
    ///
    /// # Panics
    /// When the addresses are of two families.
    pub fn frame(&self) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut frame = ipv4(TCP, src, dst, &self.bytes());
                frame[15] |= self.ecn;
                ipv4_checksum(&mut frame);
                frame
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut frame = ipv6(TCP, src, dst, &self.bytes());
                // The traffic class is split over the first two bytes.
                frame[15] |= self.ecn << 4;
                frame
            }
            other => panic!("addresses of two families: {other:?}"),
        }
    }

    /// Parses a frame of either direction. `None` for one that carries no whole TCP segment. Checksums are not
    /// verified: a device with offload leaves them to the receiver.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let eth = EthernetFrame::new_checked(frame).ok()?;
        match eth.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
                let whole = !ip.more_frags() && ip.frag_offset() == 0;
                let is_tcp = whole && ip.next_header() == IpProtocol::Tcp;
                let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
                is_tcp.then(|| Self::of(src, dst, ip.ecn(), ip.payload())).flatten()
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(eth.payload()).ok()?;
                let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
                let is_tcp = ip.next_header() == IpProtocol::Tcp;
                is_tcp.then(|| Self::of(src, dst, ip.traffic_class() & 3, ip.payload())).flatten()
            }
            _ => None,
        }
    }

    fn of(src: IpAddr, dst: IpAddr, ecn: u8, bytes: &[u8]) -> Option<Self> {
        let tcp = TcpPacket::new_checked(bytes).ok()?;
        Some(Self {
            src,
            dst,
            src_port: tcp.src_port(),
            dst_port: tcp.dst_port(),
            seq: tcp.seq_number().0.cast_unsigned(),
            ack: tcp.ack_number().0.cast_unsigned(),
            flags: bytes[13],
            wnd: tcp.window_len(),
            urgent: tcp.urgent_at(),
            options: bytes[20..usize::from(tcp.header_len())].to_vec(),
            ecn,
            data: tcp.payload().to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::IpAddress;

    #[test]
    fn a_built_frame_is_well_formed_and_parses_to_the_same_segment() {
        let v4 = Segment {
            seq: 7,
            ack: 9,
            options: vec![2, 4, 5, 180],
            ecn: 2,
            data: b"odd".to_vec(),
            ..Segment::new(40_000, 80, ACK | PSH)
        };
        let v6 = Segment { src: GUEST6.into(), dst: GATEWAY6.into(), ..v4.clone() };
        for segment in [v4, v6] {
            let frame = segment.frame();
            let at = if segment.src.is_ipv4() { 34 } else { 54 };
            let tcp = TcpPacket::new_checked(&frame[at..]).unwrap();
            let (src, dst) = (IpAddress::from(segment.src), IpAddress::from(segment.dst));
            assert!(tcp.verify_checksum(&src, &dst));
            if at == 34 {
                assert!(Ipv4Packet::new_checked(&frame[14..]).unwrap().verify_checksum());
            }
            assert_eq!(Segment::parse(&frame), Some(segment));
        }
    }

    #[test]
    fn options_are_padded_and_cut() {
        let of = |len: usize| Segment { options: vec![1; len], ..Segment::new(1, 2, SYN) };
        assert_eq!(of(5).bytes().len(), 28);
        assert_eq!(of(50).bytes().len(), 60);
        assert_eq!(Segment::parse(&ipv4(17, GUEST, GATEWAY, &[0; 20])), None, "UDP");
    }
}
