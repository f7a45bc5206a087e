//! The frames of the raw TCP client: Ethernet headers around ARP replies and TCP segments.

use std::net::Ipv4Addr;

use skbudget_sim::smoltcp::phy::ChecksumCapabilities;
use skbudget_sim::smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket, TcpRepr,
};

/// Addresses of a flood.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FloodAddresses {
    pub own_mac: [u8; 6],
    pub own_ip: Ipv4Addr,
    pub peer_mac: [u8; 6],
    pub to: Ipv4Addr,
    pub to_port: u16,
    /// Each connection has its own server port, counted from `to_port`; otherwise all use that one.
    pub port_each: bool,
}

impl FloodAddresses {
    /// The reply to an ARP request for the own address; `None` for any other packet.
    pub(super) fn arp_reply(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let parsed = ArpPacket::new_checked(bytes).and_then(|p| ArpRepr::parse(&p));
        let Ok(ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = parsed
        else {
            return None;
        };
        // The kernel in the namespace has another address and does not reply for this one.
        if target_protocol_addr != self.own_ip {
            return None;
        }
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(self.own_mac),
            source_protocol_addr: target_protocol_addr,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        let mut frame = vec![0; 14 + reply.buffer_len()];
        let mut eth = EthernetFrame::new_unchecked(&mut frame[..]);
        let header = EthernetRepr {
            src_addr: EthernetAddress(self.own_mac),
            dst_addr: source_hardware_addr,
            ethertype: EthernetProtocol::Arp,
        };
        header.emit(&mut eth);
        reply.emit(&mut ArpPacket::new_unchecked(eth.payload_mut()));
        Some(frame)
    }

    /// A frame with one TCP segment.
    pub(super) fn frame(&self, tcp: &TcpRepr<'_>) -> Vec<u8> {
        let ip = Ipv4Repr {
            src_addr: self.own_ip,
            dst_addr: self.to,
            next_header: IpProtocol::Tcp,
            payload_len: tcp.buffer_len(),
            hop_limit: 64,
        };
        let mut frame = vec![0; 14 + ip.buffer_len() + tcp.buffer_len()];
        let mut eth = EthernetFrame::new_unchecked(&mut frame[..]);
        let header = EthernetRepr {
            src_addr: EthernetAddress(self.own_mac),
            dst_addr: EthernetAddress(self.peer_mac),
            ethertype: EthernetProtocol::Ipv4,
        };
        header.emit(&mut eth);
        let sums = ChecksumCapabilities::default();
        let mut packet = Ipv4Packet::new_unchecked(eth.payload_mut());
        ip.emit(&mut packet, &sums);
        let (src, dst) = (IpAddress::Ipv4(ip.src_addr), IpAddress::Ipv4(ip.dst_addr));
        let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
        tcp.emit(&mut segment, &src, &dst, &sums);
        frame
    }
}

/// The window scale option of a SYN; 0 without one.
pub(super) fn window_scale(options: &[u8]) -> u8 {
    let mut rest = options;
    while let Some((&kind, tail)) = rest.split_first() {
        match kind {
            // End of option list (RFC 9293 section 3.2).
            0 => break,
            // No-operation: a single byte.
            1 => rest = tail,
            _ => {
                let len = tail.first().map_or(0, |l| usize::from(*l));
                // A malformed length ends the parse.
                if len < 2 || rest.len() < len {
                    break;
                }
                // Window scale (RFC 7323 section 2.2).
                if kind == 3 && len == 3 {
                    return rest[2];
                }
                rest = &rest[len..];
            }
        }
    }
    0
}
