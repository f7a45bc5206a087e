//! Builds every frame for the guest: headers in front of the payload, then to the device.
//!
//! With offload a frame carries up to 64 KiB of payload straight from the send queue. The vnet header makes the guest's
//! kernel treat it as segments of `mss` bytes, and the checksum field holds the pseudo-header sum only. Without offload
//! a frame is at most one MTU and its checksum is complete.

use std::io::IoSlice;
use std::mem::replace;
use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{
    ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv6Message,
    IpProtocol, Ipv4Packet, Ipv6FragmentHeader, Ipv6Packet, TcpPacket, TcpSeqNumber, UdpPacket,
    checksum,
};

use crate::config::ContainerConfig;
use crate::io::Device;
use crate::io::datagram::IpFields;
use crate::io::vnet::{F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, VnetHdr};
use crate::queue::send::PARTS_MAX;
use crate::wire::addresses::{Addrs, Tuple};
use crate::wire::icmp::HOP_LIMIT;
use crate::wire::parse::Answer;
use crate::wire::segment::{ECT_0, Outgoing};
use crate::wire::udp::EchoReply;
use crate::wire::udp::UDP;

const ETH: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const FRAGMENT: usize = 8;
const TCP: usize = 20;
const HEADERS_MAX: usize = ETH + IPV6 + TCP + 40;
const TCP_CHECKSUM_OFFSET: u16 = 16;
const UDP_CHECKSUM_OFFSET: u16 = 6;

/// Builds frames and counts them: the container's side of the link.
#[derive(Debug)]
pub(crate) struct Egress {
    our_mac: EthernetAddress,
    /// Hardware address of the guest, learnt from its frames.
    pub(crate) guest_mac: Option<EthernetAddress>,
    offload: bool,
    mtu: usize,
    /// Identification of the latest IP packet; fragments of one packet share it.
    ident: u32,
    /// Frames that the device took.
    pub(crate) frames: u64,
}

/// IP header of an outgoing packet.
#[derive(Debug, Clone, Copy)]
struct IpHeader {
    addrs: Addrs,
    protocol: IpProtocol,
    hop_limit: u8,
    /// Offset of a fragment in bytes, and whether more fragments follow; `None` for a whole packet.
    fragment: Option<(usize, bool)>,
    /// DSCP and the two ECN bits (RFC 2474, RFC 3168 section 5).
    traffic_class: u8,
    dont_fragment: bool,
}

impl IpHeader {
    fn len(&self) -> usize {
        match self.addrs {
            Addrs::V4 { .. } => IPV4,
            Addrs::V6 { .. } if self.fragment.is_some() => IPV6 + FRAGMENT,
            Addrs::V6 { .. } => IPV6,
        }
    }

    fn ethertype(&self) -> EthernetProtocol {
        match self.addrs {
            Addrs::V4 { .. } => EthernetProtocol::Ipv4,
            Addrs::V6 { .. } => EthernetProtocol::Ipv6,
        }
    }

    /// Sum of the pseudo-header for `len` bytes of transport header and payload (RFC 9293 section 3.1).
    fn pseudo_sum(&self, len: usize) -> u16 {
        match self.addrs {
            Addrs::V4 { src, dst } => {
                checksum::pseudo_header_v4(&src, &dst, self.protocol, len as u32)
            }
            Addrs::V6 { src, dst } => {
                checksum::pseudo_header_v6(&src, &dst, self.protocol, len as u32)
            }
        }
    }

    /// Writes the header in front of `len` bytes. `ident` is used by fragments, and by IPv4 in any case.
    fn emit(&self, packet: &mut [u8], ident: u32, len: usize) {
        let (offset, more) = self.fragment.unwrap_or((0, false));
        match self.addrs {
            Addrs::V4 { src, dst } => {
                let mut ip = Ipv4Packet::new_unchecked(packet);
                ip.set_version(4);
                ip.set_header_len(IPV4 as u8);
                ip.set_dscp(self.traffic_class >> 2);
                ip.set_ecn(self.traffic_class & 3);
                ip.set_total_len((IPV4 + len) as u16);
                ip.set_ident(ident as u16);
                ip.clear_flags();
                ip.set_dont_frag(self.dont_fragment && self.fragment.is_none());
                ip.set_more_frags(more);
                ip.set_frag_offset(offset as u16);
                ip.set_hop_limit(self.hop_limit);
                ip.set_next_header(self.protocol);
                ip.set_src_addr(src);
                ip.set_dst_addr(dst);
                ip.fill_checksum();
            }
            Addrs::V6 { src, dst } => {
                let mut ip = Ipv6Packet::new_unchecked(&mut *packet);
                ip.set_version(6);
                ip.set_traffic_class(self.traffic_class);
                ip.set_flow_label(0);
                ip.set_payload_len((self.len() - IPV6 + len) as u16);
                ip.set_next_header(match self.fragment {
                    Some(_) => IpProtocol::Ipv6Frag,
                    None => self.protocol,
                });
                ip.set_hop_limit(self.hop_limit);
                ip.set_src_addr(src);
                ip.set_dst_addr(dst);
                if self.fragment.is_some() {
                    let header = &mut packet[IPV6..];
                    // The fragment header takes over the protocol number; smoltcp's type covers only what follows those
                    // two bytes.
                    header[..2].copy_from_slice(&[self.protocol.into(), 0]);
                    let mut header = Ipv6FragmentHeader::new_unchecked(&mut header[2..]);
                    header.clear_reserved();
                    header.set_frag_offset((offset / 8) as u16);
                    header.set_more_frags(more);
                    header.set_ident(ident);
                }
            }
        }
    }
}

impl Egress {
    pub(crate) fn new(config: &ContainerConfig) -> Self {
        Self {
            our_mac: EthernetAddress(config.our_mac),
            guest_mac: None,
            offload: config.offload,
            mtu: config.mtu.into(),
            ident: 0,
            frames: 0,
        }
    }

    fn ethernet(&self, frame: &mut [u8], ethertype: EthernetProtocol) {
        let mut eth = EthernetFrame::new_unchecked(frame);
        eth.set_src_addr(self.our_mac);
        // Unknown only before the guest's first frame: then ARP requests and solicitations are broadcast.
        eth.set_dst_addr(self.guest_mac.unwrap_or(EthernetAddress::BROADCAST));
        eth.set_ethertype(ethertype);
    }

    /// Sends one segment with `payload`. Returns false if the device is full; nothing was sent then.
    pub(crate) fn segment(
        &mut self,
        device: &mut dyn Device,
        tuple: &Tuple,
        seg: &Outgoing,
        payload: &[IoSlice<'_>],
    ) -> bool {
        let mut options = [0; 40];
        let options_len = seg.options.emit(&mut options);
        let tcp_len = TCP + options_len;
        let payload_len: usize = payload.iter().map(|p| p.len()).sum();
        let ip = IpHeader {
            addrs: tuple.to_guest(),
            protocol: IpProtocol::Tcp,
            hop_limit: HOP_LIMIT,
            fragment: None,
            traffic_class: if seg.ect { ECT_0 } else { 0 },
            // RFC 1191: a router beyond the guest then reports its MTU.
            dont_fragment: true,
        };
        let tcp_at = ETH + ip.len();

        let mut headers = [0; HEADERS_MAX];
        let headers = &mut headers[..tcp_at + tcp_len];
        self.ethernet(headers, ip.ethertype());
        self.ident = self.ident.wrapping_add(1);
        ip.emit(&mut headers[ETH..], self.ident, tcp_len + payload_len);
        write_tcp(&mut headers[tcp_at..], tuple, seg, &options[..options_len]);

        // With offload the device adds header and payload to the pseudo-header sum (VIRTIO_NET_HDR_F_NEEDS_CSUM).
        let pseudo = ip.pseudo_sum(tcp_len + payload_len);
        let sum = if self.offload {
            pseudo
        } else {
            let (header, payload) = (checksum::data(&headers[tcp_at..]), payload_sum(payload));
            !checksum::combine(&[pseudo, header, payload])
        };
        let at = tcp_at + usize::from(TCP_CHECKSUM_OFFSET);
        headers[at..at + 2].copy_from_slice(&sum.to_be_bytes());

        // Headers and payload go out as parts of one frame: the payload is never copied here.
        let vnet = self.vnet(tcp_at, headers.len(), payload_len, seg);
        let mut parts = [IoSlice::new(&[]); PARTS_MAX + 1];
        parts[0] = IoSlice::new(headers);
        // The send queue returns at most PARTS_MAX slices.
        parts[1..=payload.len()].copy_from_slice(payload);
        let sent = device.send(&vnet, &parts[..=payload.len()]);
        self.frames += u64::from(sent);
        sent
    }

    /// The virtio header of a segment: `headers` bytes of headers, of which the TCP header starts at `tcp_at`.
    fn vnet(&self, tcp_at: usize, headers: usize, payload: usize, seg: &Outgoing) -> VnetHdr {
        if !self.offload {
            return VnetHdr::default();
        }
        // A payload of at most one MSS needs no segmentation.
        let gso = payload > usize::from(seg.mss);
        let family = if tcp_at == ETH + IPV4 { GSO_TCPV4 } else { GSO_TCPV6 };
        // Only the first segment may carry CWR (RFC 3168 section 6.1.2).
        let gso_type = if seg.flags.cwr { family | GSO_ECN } else { family };
        VnetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: if gso { gso_type } else { 0 },
            hdr_len: if gso { headers as u16 } else { 0 },
            gso_size: if gso { seg.mss } else { 0 },
            csum_start: tcp_at as u16,
            csum_offset: TCP_CHECKSUM_OFFSET,
        }
    }

    /// Sends a complete small packet. A full device loses it: the guest's retry causes it again.
    pub(crate) fn answer(&mut self, device: &mut dyn Device, answer: &Answer) {
        match answer {
            Answer::Arp(repr) => {
                let mut frame = vec![0; ETH + repr.buffer_len()];
                self.ethernet(&mut frame, EthernetProtocol::Arp);
                repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETH..]));
                self.frames += u64::from(device.send(&VnetHdr::default(), &[IoSlice::new(&frame)]));
            }
            Answer::Icmp { addrs, hop_limit, bytes } => {
                let protocol = match addrs {
                    Addrs::V4 { .. } => IpProtocol::Icmp,
                    Addrs::V6 { .. } => IpProtocol::Icmpv6,
                };
                let (addrs, hop_limit) = (*addrs, *hop_limit);
                let (fragment, traffic_class, dont_fragment) = (None, 0, true);
                let ip =
                    IpHeader { addrs, protocol, hop_limit, fragment, traffic_class, dont_fragment };
                self.packet(device, ip, bytes, &[]);
            }
        }
    }

    /// Sends a datagram of the tuple's remote, in fragments if it is larger than the MTU. Returns false if the device
    /// is full; the datagram is then lost.
    pub(crate) fn datagram(
        &mut self,
        device: &mut dyn Device,
        tuple: &Tuple,
        fields: IpFields,
        payload: &[u8],
    ) -> bool {
        let IpFields { hop_limit, traffic_class, dont_fragment } = fields;
        let ip = IpHeader {
            addrs: tuple.to_guest(),
            protocol: IpProtocol::Udp,
            hop_limit,
            fragment: None,
            traffic_class,
            dont_fragment,
        };
        let len = UDP + payload.len();
        let mut header = [0; UDP];
        let mut udp = UdpPacket::new_unchecked(&mut header);
        udp.set_src_port(tuple.remote_port());
        udp.set_dst_port(tuple.guest_port());
        udp.set_len(len as u16);
        let pseudo = ip.pseudo_sum(len);
        // The device cannot complete the checksum of a datagram in fragments.
        let sum = if self.offload && ip.len() + len <= self.mtu {
            pseudo
        } else {
            let sum = [pseudo, checksum::data(&header), checksum::data(payload)];
            // RFC 768: 0 means that there is no checksum.
            match !checksum::combine(&sum) {
                0 => u16::MAX,
                sum => sum,
            }
        };
        let at = usize::from(UDP_CHECKSUM_OFFSET);
        header[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self.packet(device, ip, &header, payload)
    }

    /// As [`Self::datagram`], with a complete checksum, for clients that read frames from a packet socket: there no
    /// device completes it. A broadcast reaches a client of any hardware address.
    pub(crate) fn complete_datagram(
        &mut self,
        device: &mut dyn Device,
        tuple: &Tuple,
        fields: IpFields,
        payload: &[u8],
    ) -> bool {
        let is_broadcast = tuple.guest().ip() == IpAddr::V4(Ipv4Addr::BROADCAST);
        let to = if is_broadcast { None } else { self.guest_mac };
        let (offload, mac) = (std::mem::take(&mut self.offload), replace(&mut self.guest_mac, to));
        let sent = self.datagram(device, tuple, fields, payload);
        (self.offload, self.guest_mac) = (offload, mac);
        sent
    }

    /// Sends an echo reply of the tuple's remote, with the guest's identifier. `reply`: the message as the host has
    /// received it. Returns false if the device is full; the reply is then lost.
    pub(crate) fn echo_reply(
        &mut self,
        device: &mut dyn Device,
        tuple: &Tuple,
        fields: IpFields,
        reply: &EchoReply<'_>,
    ) -> bool {
        let IpFields { hop_limit, traffic_class, dont_fragment } = fields;
        let (protocol, kind) = match tuple.is_ipv6() {
            true => (IpProtocol::Icmpv6, u8::from(Icmpv6Message::EchoReply)),
            false => (IpProtocol::Icmp, u8::from(Icmpv4Message::EchoReply)),
        };
        let ip = IpHeader {
            addrs: tuple.to_guest(),
            protocol,
            hop_limit,
            fragment: None,
            traffic_class,
            dont_fragment,
        };
        let mut header = [kind, 0, 0, 0, 0, 0, 0, 0];
        header[4..6].copy_from_slice(&tuple.guest_port().to_be_bytes());
        header[6..8].copy_from_slice(&reply.seq.to_be_bytes());
        let (len, data) = (header.len() + reply.data.len(), reply.data);
        // RFC 4443 section 2.3: only ICMPv6 covers the pseudo-header.
        let pseudo = if tuple.is_ipv6() { ip.pseudo_sum(len) } else { 0 };
        let sum = [pseudo, checksum::data(&header), checksum::data(data)];
        header[2..4].copy_from_slice(&(!checksum::combine(&sum)).to_be_bytes());
        self.packet(device, ip, &header, data)
    }

    /// The virtio header of a whole packet: the device completes the checksum of a datagram.
    fn vnet_of(&self, ip: &IpHeader) -> VnetHdr {
        if !self.offload || ip.protocol != IpProtocol::Udp || ip.fragment.is_some() {
            return VnetHdr::default();
        }
        VnetHdr {
            flags: F_NEEDS_CSUM,
            csum_start: (ETH + ip.len()) as u16,
            csum_offset: UDP_CHECKSUM_OFFSET,
            ..VnetHdr::default()
        }
    }

    /// Sends one IP packet with `head` and `body` behind its header, in fragments if it is larger than the MTU. Returns
    /// false if the device did not take all of it.
    fn packet(
        &mut self,
        device: &mut dyn Device,
        whole: IpHeader,
        head: &[u8],
        body: &[u8],
    ) -> bool {
        self.ident = self.ident.wrapping_add(1);
        let len = head.len() + body.len();
        let in_one = whole.len() + len <= self.mtu;
        // An IPv6 fragment's headers are longer, which `step` must count.
        let piece = IpHeader { fragment: Some((0, false)), ..whole };
        // Fragment offsets count units of 8 bytes.
        let step = if in_one { len } else { (self.mtu - piece.len()) & !7 };
        let step = step.max(8);
        // The part of `from` at `start` bytes into the packet that is within a fragment.
        let part = |from: &'_ [u8], start: usize, at: usize| {
            let cut = |offset: usize| offset.saturating_sub(start).min(from.len());
            cut(at)..cut(at + step)
        };
        for at in (0..len).step_by(step) {
            let more = at + step < len;
            let ip = IpHeader { fragment: (!in_one).then_some((at, more)), ..whole };
            let mut headers = [0; ETH + IPV6 + FRAGMENT];
            let headers = &mut headers[..ETH + ip.len()];
            self.ethernet(headers, ip.ethertype());
            let head = &head[part(head, 0, at)];
            let body = &body[part(body, len - body.len(), at)];
            ip.emit(&mut headers[ETH..], self.ident, head.len() + body.len());
            let parts = [IoSlice::new(headers), IoSlice::new(head), IoSlice::new(body)];
            if !device.send(&self.vnet_of(&ip), &parts) {
                return false;
            }
            self.frames += 1;
        }
        true
    }
}

/// Writes the TCP header with its options; the checksum follows later.
fn write_tcp(bytes: &mut [u8], tuple: &Tuple, seg: &Outgoing, options: &[u8]) {
    let header_len = (TCP + options.len()) as u8;
    let mut tcp = TcpPacket::new_unchecked(bytes);
    tcp.set_src_port(tuple.remote_port());
    tcp.set_dst_port(tuple.guest_port());
    tcp.set_seq_number(TcpSeqNumber(seg.seq.0.cast_signed()));
    tcp.set_ack_number(TcpSeqNumber(seg.ack.0.cast_signed()));
    tcp.clear_flags();
    tcp.set_header_len(header_len);
    tcp.set_syn(seg.flags.syn);
    tcp.set_ack(seg.flags.ack);
    tcp.set_fin(seg.flags.fin);
    tcp.set_rst(seg.flags.rst);
    tcp.set_psh(seg.flags.psh);
    tcp.set_ece(seg.flags.ece);
    tcp.set_cwr(seg.flags.cwr);
    tcp.set_window_len(seg.wnd);
    tcp.set_urgent_at(0);
    tcp.options_mut()[..options.len()].copy_from_slice(options);
}

/// One's complement sum over parts of any length. A part that starts at an odd offset contributes with its bytes
/// swapped (RFC 1071 section 2, B).
fn payload_sum(parts: &[IoSlice<'_>]) -> u16 {
    let mut odd = false;
    let mut sum = 0;
    for part in parts {
        let data = checksum::data(part);
        sum = checksum::combine(&[sum, if odd { data.swap_bytes() } else { data }]);
        odd ^= part.len() % 2 == 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use smoltcp::wire::checksum;

    #[test]
    fn a_sum_over_odd_parts_is_the_sum_of_the_whole() {
        let whole: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
        for cut in [1, 2, 333, 334, 999] {
            let (a, b) = whole.split_at(cut);
            let (b, c) = b.split_at(b.len() / 3);
            let parts = [IoSlice::new(a), IoSlice::new(b), IoSlice::new(c)];
            assert_eq!(super::payload_sum(&parts), checksum::data(&whole), "cut at {cut}");
        }
    }
}
