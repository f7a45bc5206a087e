//! UDP datagrams and the fields of their packets.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket,
};

use super::{GATEWAY, GUEST, ipv4, ipv4_checksum, ipv6, transport_checksum};

const UDP: u8 = 17;
const DONT_FRAGMENT: u8 = 0x40;

/// A datagram of either direction. The addresses are of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Source.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The DF flag. Always set over IPv6.
    pub dont_fragment: bool,
    /// The payload.
    pub data: Vec<u8>,
}

impl Datagram {
    /// A datagram from the guest to its gateway over IPv4, with the fields that Linux sends.
    pub fn new(guest_port: u16, remote_port: u16, data: &[u8]) -> Self {
        Self {
            src: (GUEST, guest_port).into(),
            dst: (GATEWAY, remote_port).into(),
            hop_limit: 64,
            traffic_class: 0,
            dont_fragment: true,
            data: data.to_vec(),
        }
    }

    /// UDP header and payload, with a complete checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let mut udp = Vec::with_capacity(8 + self.data.len());
        udp.extend(self.src.port().to_be_bytes());
        udp.extend(self.dst.port().to_be_bytes());
        udp.extend((8 + self.data.len() as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.data);
        transport_checksum(self.src.ip(), self.dst.ip(), UDP, &mut udp, 6);
        // A sum of zero is sent as its other form: zero means that there is no checksum.
        if udp[6..8] == [0, 0] {
            udp[6..8].fill(0xff);
        }
        udp
    }

    /// The datagram in a frame of the guest.
    ///
    /// # Panics
    /// When the addresses are of two families.
    pub fn frame(&self) -> Vec<u8> {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut frame = ipv4(UDP, src, dst, &self.bytes());
                frame[15] = self.traffic_class;
                frame[20] = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
                frame[22] = self.hop_limit;
                ipv4_checksum(&mut frame);
                frame
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut frame = ipv6(UDP, src, dst, &self.bytes());
                frame[14] |= self.traffic_class >> 4;
                frame[15] |= self.traffic_class << 4;
                frame[21] = self.hop_limit;
                frame
            }
            other => panic!("addresses of two families: {other:?}"),
        }
    }

    /// Parses a frame of either direction. `None` for one that carries no whole datagram. Checksums are not verified: a
    /// device with offload leaves them to the receiver.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let eth = EthernetFrame::new_checked(frame).ok()?;
        match eth.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
                let whole = !ip.more_frags() && ip.frag_offset() == 0;
                let udp = whole && ip.next_header() == IpProtocol::Udp;
                let class = ip.dscp() << 2 | ip.ecn();
                let fields = (ip.hop_limit(), class, ip.dont_frag());
                let addrs = (ip.src_addr().into(), ip.dst_addr().into());
                udp.then(|| Self::of(addrs, fields, ip.payload())).flatten()
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(eth.payload()).ok()?;
                let fields = (ip.hop_limit(), ip.traffic_class(), true);
                let addrs = (ip.src_addr().into(), ip.dst_addr().into());
                let udp = ip.next_header() == IpProtocol::Udp;
                udp.then(|| Self::of(addrs, fields, ip.payload())).flatten()
            }
            _ => None,
        }
    }

    fn of(
        (src, dst): (IpAddr, IpAddr),
        (hop_limit, traffic_class, dont_fragment): (u8, u8, bool),
        bytes: &[u8],
    ) -> Option<Self> {
        let udp = UdpPacket::new_checked(bytes).ok()?;
        Some(Self {
            src: SocketAddr::new(src, udp.src_port()),
            dst: SocketAddr::new(dst, udp.dst_port()),
            hop_limit,
            traffic_class,
            dont_fragment,
            data: udp.payload().to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GATEWAY6, GUEST6};
    use super::*;

    #[test]
    fn a_built_datagram_is_well_formed_and_parses_to_the_same() {
        let v4 = Datagram { traffic_class: 0xb9, hop_limit: 7, ..Datagram::new(5000, 53, b"odd") };
        let v6 = Datagram { src: (GUEST6, 5000).into(), dst: (GATEWAY6, 53).into(), ..v4.clone() };
        let free = Datagram { dont_fragment: false, ..v4.clone() };
        for datagram in [v4, v6, free] {
            let frame = datagram.frame();
            let udp =
                UdpPacket::new_checked(&frame[if datagram.src.is_ipv4() { 34 } else { 54 }..]);
            let (src, dst) = (datagram.src.ip().into(), datagram.dst.ip().into());
            assert!(udp.unwrap().verify_checksum(&src, &dst));
            assert_eq!(Datagram::parse(&frame), Some(datagram));
        }
    }
}
