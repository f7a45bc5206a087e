//! Operations on datagrams.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use skbudget_stack::datagram::{SendStop, Undeliverable};
use skbudget_stack::fuzz::Script;
use skbudget_stack::vnet::VnetHdr;

use super::Bench;
use crate::packet::{Datagram, GATEWAY, GATEWAY6, GUEST6};

const REASONS: [Undeliverable; 6] = [
    Undeliverable::Net,
    Undeliverable::Host,
    Undeliverable::Port,
    Undeliverable::Prohibited,
    Undeliverable::TooBig(1280),
    Undeliverable::HopLimit,
];
const STOPS: [SendStop; 4] = [
    SendStop::Full,
    SendStop::Undeliverable(None),
    SendStop::Undeliverable(Some(Undeliverable::Net)),
    SendStop::Undeliverable(Some(Undeliverable::TooBig(576))),
];

impl Bench {
    /// The guest sends a datagram, from one of a few ports to one of a few destinations.
    pub(in crate::fuzz) fn datagram(&mut self, script: &mut Script<'_>) {
        let v6 = script.below(2) == 1 && self.stack.config().ipv6.is_some();
        let far: IpAddr = match (script.below(5), v6) {
            (0, false) => GATEWAY.into(),
            (0, true) => GATEWAY6.into(),
            (1, false) => [10, 0, 2, 255].into(),
            (2, false) => [224, 0, 0, 251].into(),
            (n, false) => [192, 0, 2, n].into(),
            (n, true) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into(),
        };
        let port = script.pick(&[53, 443, 0, 7]);
        let len = usize::from(script.u16() % 3000);
        let plain = Datagram::new(5000 + u16::from(script.below(6)), port, &vec![7; len]);
        let src = if v6 { (GUEST6, plain.src.port()).into() } else { plain.src };
        let datagram = Datagram {
            src,
            dst: SocketAddr::new(far, port),
            hop_limit: script.pick(&[64, 1, 0, 2]),
            traffic_class: script.u8(),
            dont_fragment: script.below(2) == 1,
            ..plain
        };
        let mut frame = datagram.frame();
        // Now and then a damaged one.
        if script.below(8) == 0 {
            let at = usize::from(script.u8()) % frame.len();
            frame[at] ^= script.u8();
        }
        self.with_cx(|stack, cx| stack.on_frame(cx, &VnetHdr::default(), &frame));
        // Several frames in a turn.
        if script.below(3) == 0 {
            self.turn();
        }
    }

    /// The guest sends a question to the DNS forwarder.
    pub(in crate::fuzz) fn question(&mut self, script: &mut Script<'_>) {
        let mut message = vec![0, script.below(4), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let label = 1 + script.below(20);
        message.push(label);
        message.extend((0..label).map(|n| b'a' + n));
        message.extend([0, 0, 1, 0, 1]);
        if script.below(4) == 0 {
            let at = usize::from(script.u8()) % message.len();
            message[at] ^= script.u8();
        }
        let dst = SocketAddr::from(([10, 0, 2, 3], 53));
        let port = 5000 + u16::from(script.below(6));
        let datagram = Datagram { dst, ..Datagram::new(port, 53, &message) };
        let frame = datagram.frame();
        self.with_cx(|stack, cx| stack.on_frame(cx, &VnetHdr::default(), &frame));
        self.turn();
    }

    /// A datagram socket receives, reports an error, or the next sends fail.
    pub(in crate::fuzz) fn socket_event(&mut self, script: &mut Script<'_>) {
        match script.below(6) {
            0 => self.host.sends.push(script.pick(&STOPS)),
            1 => self.host.connect = Some(skbudget_stack::HostError::NoResources),
            _ => {}
        }
        let open = self.host.datagrams.len();
        if open == 0 {
            return;
        }
        let which = usize::from(script.u8()) % open;
        let Some((&id, socket)) = self.host.datagrams.iter_mut().nth(which) else { return };
        match script.below(4) {
            3 => socket.answers = script.below(3),
            0 => socket.errors.push(script.pick(&REASONS)),
            1 => socket.incoming.push(script.u16()),
            _ => socket.incoming.extend((0..script.below(50)).map(|_| 1200)),
        }
        self.stack.on_datagram_ready(id);
        self.turn();
    }
}
