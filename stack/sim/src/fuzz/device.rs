//! A device that checks every frame of the stack and keeps the guest's view of each connection.

use std::collections::BTreeMap;
use std::io::IoSlice;

use skbudget_stack::Device;
use skbudget_stack::vnet::{F_NEEDS_CSUM, VnetHdr};
use smoltcp::wire::{
    ArpPacket, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpOption, TcpPacket, UdpPacket,
};

use super::host::host_byte;

/// The guest's view of one connection. Sequence numbers belong to the latest handshake.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peer {
    /// Next sequence number of the guest.
    pub(super) seq: u32,
    /// Next sequence number of the stack, behind all received so far.
    pub(super) ack: u32,
    /// Latest timestamp value of the stack.
    pub(super) ts: Option<u32>,
    /// ISN of the stack; ISN of the guest as the stack acknowledged it.
    iss: u32,
    pub(super) irs: Option<u32>,
    /// Sequence number of the guest's latest SYN.
    pub(super) hello: Option<u32>,
    /// The stack sent a SYN and the handshake is not complete.
    opening: bool,
}

/// Connections by guest port and remote port.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) peers: BTreeMap<(u16, u16), Peer>,
    pub(super) mtu: usize,
    pub(super) offload: bool,
    /// Frames that the device still takes before it is full.
    pub(super) room: usize,
}

impl Checked {
    fn ipv4(&mut self, vnet: &VnetHdr, bytes: &[u8]) {
        let ip = Ipv4Packet::new_checked(bytes).expect("a whole packet");
        assert!(ip.verify_checksum());
        assert_eq!(usize::from(ip.total_len()), bytes.len(), "nothing behind");
        self.packet(vnet, bytes.len());
        if ip.next_header() == IpProtocol::Tcp {
            let addrs = [ip.src_addr().into(), ip.dst_addr().into()];
            self.tcp(vnet, 20, addrs, ip.payload());
        } else if ip.next_header() == IpProtocol::Udp && !ip.more_frags() && ip.frag_offset() == 0 {
            let addrs = [ip.src_addr().into(), ip.dst_addr().into()];
            self.udp(vnet, 20, addrs, ip.payload());
        }
    }

    fn ipv6(&mut self, vnet: &VnetHdr, bytes: &[u8]) {
        let ip = Ipv6Packet::new_checked(bytes).expect("a whole packet");
        assert_eq!(40 + usize::from(ip.payload_len()), bytes.len(), "nothing behind");
        self.packet(vnet, bytes.len());
        if ip.next_header() == IpProtocol::Tcp {
            let addrs = [ip.src_addr().into(), ip.dst_addr().into()];
            self.tcp(vnet, 40, addrs, ip.payload());
        } else if ip.next_header() == IpProtocol::Udp {
            let addrs = [ip.src_addr().into(), ip.dst_addr().into()];
            self.udp(vnet, 40, addrs, ip.payload());
        }
    }

    /// Checks the length against the MTU. Only super-frames may exceed it.
    fn packet(&self, vnet: &VnetHdr, len: usize) {
        if !self.offload {
            assert_eq!(*vnet, VnetHdr::default());
        }
        // The guest's kernel cuts a super-frame into segments, each within the MTU.
        if vnet.gso_type == 0 {
            assert!(len <= self.mtu, "{len} bytes at an MTU of {}", self.mtu);
        }
    }

    /// Checks header and checksum of a whole datagram.
    fn udp(&self, vnet: &VnetHdr, ip: u16, addrs: [IpAddress; 2], bytes: &[u8]) {
        let udp = UdpPacket::new_checked(bytes).expect("a whole datagram");
        assert_eq!(usize::from(udp.len()), bytes.len(), "nothing behind");
        assert!(udp.src_port() != 0 && udp.dst_port() != 0);
        // Answers of the DHCP servers have a complete checksum: clients read frames, not packets of the kernel.
        let of_server = [67, 547].contains(&udp.src_port());
        if self.offload && !of_server {
            assert_eq!((vnet.flags, vnet.gso_type), (F_NEEDS_CSUM, 0));
            assert_eq!((vnet.csum_start, vnet.csum_offset), (14 + ip, 6));
        } else {
            assert_eq!(*vnet, VnetHdr::default());
            assert!(udp.checksum() != 0 && udp.verify_checksum(&addrs[0], &addrs[1]));
        }
    }

    /// Checks header, checksum and GSO fields of a segment.
    fn tcp(&mut self, vnet: &VnetHdr, ip: usize, addrs: [IpAddress; 2], bytes: &[u8]) {
        let tcp = TcpPacket::new_checked(bytes).expect("a whole segment");
        if self.offload {
            assert_eq!(vnet.flags, F_NEEDS_CSUM);
            let headers = ip + usize::from(tcp.header_len());
            let fits = headers + usize::from(vnet.gso_size) <= self.mtu;
            assert!(vnet.gso_type == 0 || vnet.gso_size > 0 && fits, "{vnet:?}");
        } else {
            assert!(tcp.verify_checksum(&addrs[0], &addrs[1]));
        }
        let seq = tcp.seq_number().0.cast_unsigned();
        let peer = self.peers.entry((tcp.dst_port(), tcp.src_port())).or_default();
        peer.hear(&tcp, seq);
    }
}

impl Peer {
    /// Updates the guest's view by a segment of the stack and checks its payload.
    fn hear(&mut self, tcp: &TcpPacket<&[u8]>, seq: u32) {
        let mut options = if tcp.header_len() > 20 { tcp.options() } else { &[] };
        while let Ok((next, option)) = TcpOption::parse(options) {
            if let TcpOption::TimeStamp { tsval, .. } = option {
                self.ts = Some(tsval);
            }
            options = next;
        }
        if tcp.rst() {
            return;
        }
        let acked = tcp.ack_number().0.cast_unsigned();
        if tcp.syn() {
            self.iss = seq;
            self.ack = seq.wrapping_add(1);
            self.opening = !tcp.ack();
            // A SYN-ACK acknowledges the guest's ISN plus one.
            self.irs = tcp.ack().then(|| acked.wrapping_sub(1));
        } else if self.opening && tcp.ack() {
            self.opening = false;
            // An ACK that covers data, too, does not reveal the ISN.
            let began = acked.wrapping_sub(1);
            self.irs = (self.hello == Some(began)).then_some(began);
        }
        let end = seq.wrapping_add(tcp.payload().len() as u32);
        for (i, byte) in tcp.payload().iter().enumerate() {
            let at = seq.wrapping_add(i as u32).wrapping_sub(self.iss).wrapping_sub(1);
            // A probe of a zero window or of a silent guest may repeat the byte before the stream.
            assert!(at == u32::MAX || *byte == host_byte(at), "byte {at} of the host's");
        }
        let end = end.wrapping_add(u32::from(tcp.fin()));
        if end.wrapping_sub(self.ack).cast_signed() > 0 {
            self.ack = end;
        }
    }
}

impl Device for Checked {
    fn send(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        let frame: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let eth = EthernetFrame::new_checked(&frame[..]).expect("a whole frame");
        match eth.ethertype() {
            EthernetProtocol::Arp => {
                ArpPacket::new_checked(eth.payload()).expect("a whole packet");
            }
            EthernetProtocol::Ipv4 => self.ipv4(vnet, eth.payload()),
            EthernetProtocol::Ipv6 => self.ipv6(vnet, eth.payload()),
            other @ EthernetProtocol::Unknown(_) => panic!("a frame of type {other}"),
        }
        true
    }
}
