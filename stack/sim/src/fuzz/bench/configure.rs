//! Operations of a guest that configures itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use skbudget_stack::fuzz::Script;
use skbudget_stack::vnet::VnetHdr;

use super::Bench;
use crate::packet::{Datagram, GATEWAY, GUEST, GUEST_MAC, ipv6, transport_checksum};

const ICMPV6: u8 = 58;
/// Link-local addresses of two clients.
const CLIENTS: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9)];

impl Bench {
    /// A client of DHCP sends a message with options of any kind.
    pub(in crate::fuzz) fn dhcp(&mut self, script: &mut Script<'_>) {
        let mut message = vec![script.pick(&[1, 1, 1, 2]), 1, 6, 0];
        message.extend(script.u32().to_be_bytes());
        message.extend([0, 0, script.pick(&[0, 0x80]), 0]);
        let addresses = [Ipv4Addr::UNSPECIFIED, GUEST, GATEWAY, Ipv4Addr::new(192, 0, 2, 1)];
        let client = script.pick(&addresses);
        message.extend(client.octets());
        message.resize(28, 0);
        message.extend(GUEST_MAC);
        message[33] ^= script.pick(&[0, 0, 1]);
        message.resize(236, 0);
        message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, script.below(10)]);
        for _ in 0..script.below(6) {
            let kind = script.pick(&[50, 54, 61, 55, 57, 82, 0]);
            let address = script.pick(&addresses).octets();
            match kind {
                50 | 54 => message.extend([&[kind, 4][..], &address].concat()),
                0 => message.push(0),
                _ => {
                    let len = script.below(255);
                    let data = script.bytes(len.into());
                    message.extend([kind, data.len() as u8]);
                    message.extend(data);
                }
            }
        }
        message.push(255);
        // Now and then one that ends early, or that is damaged.
        if script.below(8) == 0 {
            message.truncate(usize::from(script.u16()) % message.len());
        } else if script.below(4) == 0 {
            let at = usize::from(script.u16()) % message.len();
            message[at] ^= script.u8();
        }
        let (src, dst) = match script.below(3) {
            0 => (GUEST, GATEWAY),
            1 => (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 2, 255)),
            _ => (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST),
        };
        let (src, dst) = ((src, 68).into(), (dst, 67).into());
        self.pass_datagram(&Datagram { src, dst, ..Datagram::new(0, 0, &message) });
    }

    /// A client of DHCPv6 sends a message with options of any kind.
    pub(in crate::fuzz) fn dhcpv6(&mut self, script: &mut Script<'_>) {
        let mut message = vec![script.below(14), 1, 2, 3];
        for _ in 0..script.below(12) {
            let kind = script.pick(&[1, 2, 3, 3, 4, 25, 14, 6, 999]);
            let data = match kind {
                2 if script.below(4) > 0 => {
                    [&[0, 3, 0, 1][..], &self.stack.config().our_mac].concat()
                }
                3 if script.below(2) > 0 => {
                    let mut data = vec![0; 12];
                    data.extend([0, 5, 0, 24, 0xfd]);
                    data.resize(40, script.pick(&[0, 1]));
                    data
                }
                14 => Vec::new(),
                _ => {
                    let len = script.below(160);
                    script.bytes(len.into()).to_vec()
                }
            };
            message.extend([0, kind as u8, 0, data.len() as u8]);
            message.extend(data);
        }
        if script.below(4) == 0 {
            let at = usize::from(script.u16()) % message.len();
            message[at] ^= script.u8();
        }
        let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
        let (src, dst) = ((script.pick(&CLIENTS), 546).into(), (servers, 547).into());
        self.pass_datagram(&Datagram { src, dst, ..Datagram::new(0, 0, &message) });
    }

    /// The guest's kernel solicits an advertisement.
    pub(in crate::fuzz) fn router_solicitation(&mut self, script: &mut Script<'_>) {
        let src = script.pick(&[CLIENTS[0], Ipv6Addr::UNSPECIFIED]);
        let dst = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let mut message = vec![133, 0, 0, 0, 0, 0, 0, 0];
        transport_checksum(src.into(), dst.into(), ICMPV6, &mut message, 2);
        let mut frame = ipv6(ICMPV6, src, dst, &message);
        // RFC 4861 section 6.1.1.
        frame[21] = 255;
        self.with_cx(|stack, cx| stack.on_frame(cx, &VnetHdr::default(), &frame));
        self.turn();
    }

    fn pass_datagram(&mut self, datagram: &Datagram) {
        let frame = datagram.frame();
        self.with_cx(|stack, cx| stack.on_frame(cx, &VnetHdr::default(), &frame));
        self.turn();
    }
}
