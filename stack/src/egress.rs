//! Headers in front of payload, and out: one place builds every frame for the guest.
//!
//! With offload on a frame carries up to 64 KiB of payload straight out of the send queue; the vnet header asks the
//! guest's kernel to see it as segments of `mss` bytes, and the checksum field holds the pseudo-header sum. With
//! offload off a frame is at most one MTU and the sum is complete.

use std::io::IoSlice;
use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket,
    TcpSeqNumber, checksum,
};

use crate::config::ContainerConfig;
use crate::ingress::Answer;
use crate::io::Device;
use crate::segment::{Outgoing, Tuple};
use crate::txq::PARTS_MAX;
use crate::vnet::{F_NEEDS_CSUM, GSO_TCPV4, VnetHdr};

const ETH: usize = 14;
const IP: usize = 20;
const TCP: usize = 20;
const HEADERS_MAX: usize = ETH + IP + TCP + 40;
const TCP_CHECKSUM_OFFSET: u16 = 16;

/// The container's side of the link.
#[derive(Debug)]
pub(crate) struct Egress {
    our_mac: EthernetAddress,
    /// Learnt from the guest's frames.
    pub(crate) guest_mac: Option<EthernetAddress>,
    offload: bool,
    ident: u16,
    pub(crate) frames: u64,
}

impl Egress {
    pub(crate) fn new(config: &ContainerConfig) -> Self {
        Self {
            our_mac: EthernetAddress(config.our_mac),
            guest_mac: None,
            offload: config.offload,
            ident: 0,
            frames: 0,
        }
    }

    fn ethernet(&self, frame: &mut [u8], ethertype: EthernetProtocol) {
        let mut eth = EthernetFrame::new_unchecked(frame);
        eth.set_src_addr(self.our_mac);
        eth.set_dst_addr(self.guest_mac.unwrap_or(EthernetAddress::BROADCAST));
        eth.set_ethertype(ethertype);
    }

    fn ipv4(
        &mut self,
        packet: &mut [u8],
        src: Ipv4Addr,
        dst: Ipv4Addr,
        of: IpProtocol,
        len: usize,
    ) {
        self.ident = self.ident.wrapping_add(1);
        let mut ip = Ipv4Packet::new_unchecked(packet);
        ip.set_version(4);
        ip.set_header_len(IP as u8);
        ip.set_total_len((IP + len) as u16);
        ip.set_ident(self.ident);
        ip.clear_flags();
        ip.set_dont_frag(true);
        ip.set_frag_offset(0);
        ip.set_hop_limit(64);
        ip.set_next_header(of);
        ip.set_src_addr(src);
        ip.set_dst_addr(dst);
        ip.fill_checksum();
    }

    /// Sends one segment with `payload`. False: the device is full.
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
        let (src, dst) = (*tuple.remote.ip(), *tuple.guest.ip());

        let mut headers = [0; HEADERS_MAX];
        let headers = &mut headers[..ETH + IP + tcp_len];
        self.ethernet(headers, EthernetProtocol::Ipv4);
        self.ipv4(&mut headers[ETH..], src, dst, IpProtocol::Tcp, tcp_len + payload_len);
        write_tcp(&mut headers[ETH + IP..], tuple, seg, &options[..options_len]);

        let pseudo =
            checksum::pseudo_header_v4(&src, &dst, IpProtocol::Tcp, (tcp_len + payload_len) as u32);
        let sum = if self.offload {
            pseudo
        } else {
            !checksum::combine(&[
                pseudo,
                checksum::data(&headers[ETH + IP..]),
                payload_sum(payload),
            ])
        };
        let at = ETH + IP + usize::from(TCP_CHECKSUM_OFFSET);
        headers[at..at + 2].copy_from_slice(&sum.to_be_bytes());

        let vnet = self.vnet(headers.len(), payload_len, seg.mss);
        let mut parts = [IoSlice::new(&[]); PARTS_MAX + 1];
        parts[0] = IoSlice::new(headers);
        parts[1..=payload.len()].copy_from_slice(payload);
        let sent = device.send(&vnet, &parts[..=payload.len()]);
        self.frames += u64::from(sent);
        sent
    }

    fn vnet(&self, headers: usize, payload: usize, mss: u16) -> VnetHdr {
        if !self.offload {
            return VnetHdr::default();
        }
        let gso = payload > usize::from(mss);
        VnetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: if gso { GSO_TCPV4 } else { 0 },
            hdr_len: if gso { headers as u16 } else { 0 },
            gso_size: if gso { mss } else { 0 },
            csum_start: (ETH + IP) as u16,
            csum_offset: TCP_CHECKSUM_OFFSET,
        }
    }

    /// Sends a frame that was built in full. Lost when the device is full: these are asked for again.
    pub(crate) fn answer(&mut self, device: &mut dyn Device, answer: &Answer) {
        let mut frame;
        match answer {
            Answer::Arp(repr) => {
                frame = vec![0; ETH + repr.buffer_len()];
                self.ethernet(&mut frame, EthernetProtocol::Arp);
                repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETH..]));
            }
            Answer::Icmp { to, from, bytes } => {
                frame = vec![0; ETH + IP + bytes.len()];
                self.ethernet(&mut frame, EthernetProtocol::Ipv4);
                self.ipv4(&mut frame[ETH..], *from, *to, IpProtocol::Icmp, bytes.len());
                frame[ETH + IP..].copy_from_slice(bytes);
            }
        }
        self.frames += u64::from(device.send(&VnetHdr::default(), &[IoSlice::new(&frame)]));
    }
}

fn write_tcp(bytes: &mut [u8], tuple: &Tuple, seg: &Outgoing, options: &[u8]) {
    let header_len = (TCP + options.len()) as u8;
    let mut tcp = TcpPacket::new_unchecked(bytes);
    tcp.set_src_port(tuple.remote.port());
    tcp.set_dst_port(tuple.guest.port());
    tcp.set_seq_number(TcpSeqNumber(seg.seq.0.cast_signed()));
    tcp.set_ack_number(TcpSeqNumber(seg.ack.0.cast_signed()));
    tcp.clear_flags();
    tcp.set_header_len(header_len);
    tcp.set_syn(seg.flags.syn);
    tcp.set_ack(seg.flags.ack);
    tcp.set_fin(seg.flags.fin);
    tcp.set_rst(seg.flags.rst);
    tcp.set_psh(seg.flags.psh);
    tcp.set_window_len(seg.wnd);
    tcp.set_urgent_at(0);
    tcp.options_mut()[..options.len()].copy_from_slice(options);
}

/// One's complement sum over parts of any length: a part that begins at an odd offset adds with its bytes swapped
/// (RFC 1071 section 2, B).
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
