//! Errors about datagrams: those of the host's network, and the stack's own.

use std::net::{IpAddr, SocketAddr};

use skbudget_sim::packet::Datagram;
use skbudget_stack::Container;
use skbudget_stack::datagram::Undeliverable;

use crate::peer::bytes;
use crate::rig::{GATEWAY, GATEWAY6, GUEST, GUEST6, Rig};
use crate::udp::{FAR, FAR6, error, error_of, only, out, rest, send, socket};

#[test]
fn errors_of_the_network_are_reported_to_the_guest() {
    let router: IpAddr = "198.51.100.7".parse().unwrap();
    let (gateway, far) = (IpAddr::from(GATEWAY), IpAddr::from(FAR));
    let cases = [
        (Undeliverable::Net, (3, 0), 0),
        (Undeliverable::Host, (3, 1), 0),
        (Undeliverable::Port, (3, 3), 0),
        (Undeliverable::Prohibited, (3, 13), 0),
        (Undeliverable::TooBig(1400), (3, 4), 1400),
        (Undeliverable::HopLimit, (11, 0), 0),
    ];
    let mut rig = Rig::new();
    send(&mut rig, &[out(5000, (FAR, 33_434), b"probe")]);
    let id = only(&rig);
    for (why, (kind, code), word) in cases {
        for (by, from) in [(Some(router), router), (None, gateway), (Some(far), far)] {
            let entry = ((FAR, 33_434).into(), by, why, b"probe".to_vec());
            socket(&mut rig, id).errors.push_back(entry);
            rig.stack.on_datagram_ready(id);
            rig.with_cx(Container::turn);
            let frame = rig.wire.frames[0].1.clone();
            rig.taken();
            let (src, k, c, w, quoted) = error(&frame);
            assert_eq!((src, k, c, w), (from, kind, code, word), "{why:?}");
            // The header and the ports that the guest sent.
            assert_eq!(quoted[12..20], [GUEST.octets(), FAR].concat());
            assert_eq!(quoted[20..28], [0x13, 0x88, 0x82, 0x9a, 0, 13, 0, 0]);
            assert_eq!(quoted[28..], *b"probe");
        }
    }
    assert_eq!(rig.stat("UdpErrorsRelayed"), 18);
    // An address that the guest never sent to, from a spoofed error.
    let entry = ("192.0.2.77:1".parse().unwrap(), None, Undeliverable::Port, Vec::new());
    socket(&mut rig, id).errors.push_back(entry);
    rig.stack.on_datagram_ready(id);
    assert_eq!(rig.turn(), []);
    rest(&mut rig);
}

#[test]
fn errors_over_ipv6_have_its_types_and_at_most_1280_bytes() {
    let cases = [
        (Undeliverable::Net, (1, 0), 0),
        (Undeliverable::Host, (1, 3), 0),
        (Undeliverable::Port, (1, 4), 0),
        (Undeliverable::Prohibited, (1, 1), 0),
        (Undeliverable::TooBig(1300), (2, 0), 1300),
        (Undeliverable::HopLimit, (3, 0), 0),
    ];
    let mut rig = Rig::new();
    let to = SocketAddr::from((FAR6, 443));
    send(&mut rig, &[out(5000, to, b"x")]);
    let id = only(&rig);
    let router: IpAddr = "2001:db8:1::7".parse().unwrap();
    let link_local: IpAddr = "fe80::1".parse().unwrap();
    for (why, (kind, code), word) in cases {
        // The guest cannot reach a link-local address of the host's network.
        for (by, from) in [(router, router), (link_local, GATEWAY6.into())] {
            socket(&mut rig, id).errors.push_back((to, Some(by), why, bytes(2000)));
            rig.stack.on_datagram_ready(id);
            rig.with_cx(Container::turn);
            let frame = rig.wire.frames[0].1.clone();
            rig.taken();
            let (src, k, c, w, quoted) = error(&frame);
            assert_eq!((src, k, c, w), (from, kind, code, word), "{why:?}");
            assert_eq!(frame.len(), 14 + 1280);
            assert_eq!(quoted[8..40], [GUEST6.octets(), FAR6.octets()].concat());
        }
    }
    rest(&mut rig);
}

#[test]
fn a_send_that_fails_is_reported_and_the_others_are_sent() {
    let mut rig = Rig::new();
    let to = |n: u8| SocketAddr::from(([192, 0, 2, n], 7));
    send(&mut rig, &[out(5000, to(1), b"first")]);
    let id = only(&rig);
    let sock = socket(&mut rig, id);
    sock.fails = vec![(to(2), Some(Undeliverable::Net)), (to(3), None)];
    sock.errors.push_back((to(3), None, Undeliverable::TooBig(1280), b"large".to_vec()));
    sock.sent.clear();
    for n in 1..=4 {
        rig.frame(&out(5000, to(n), b"large").frame());
    }
    rig.with_cx(Container::turn);
    let frames: Vec<_> = rig.wire.frames.iter().map(|(_, frame)| error(frame)).collect();
    rig.taken();
    let of = |e: &(IpAddr, u8, u8, u32, Vec<u8>)| (e.1, e.2, e.3, e.4[19]);
    assert_eq!(frames.iter().map(of).collect::<Vec<_>>(), [(3, 0, 0, 2), (3, 4, 1280, 3)]);
    let sent: Vec<SocketAddr> = socket(&mut rig, id).sent.iter().map(|s| s.0).collect();
    assert_eq!(sent, [to(1), to(4)]);
    assert_eq!((rig.stat("UdpOutErrors"), rig.stat("UdpOutDatagrams")), (2, 3));
    rest(&mut rig);
}

#[test]
fn the_last_hop_is_answered_by_the_gateway() {
    let mut rig = Rig::new();
    for hop_limit in [0, 1] {
        let probe = Datagram { hop_limit, ..out(5000, (FAR, 33_434), b"probe") };
        let (src, kind, code, _, quoted) = error_of(&mut rig, &probe.frame());
        assert_eq!((src, kind, code), (GATEWAY.into(), 11, 0));
        assert_eq!(quoted[20..24], [0x13, 0x88, 0x82, 0x9a]);
    }
    let probe = Datagram { hop_limit: 1, ..out(5000, (FAR6, 33_434), b"probe") };
    let (src, kind, code, _, _) = error_of(&mut rig, &probe.frame());
    assert_eq!((src, kind, code), (GATEWAY6.into(), 3, 0));
    assert_eq!((rig.stat("IpHopLimitExceeded"), rig.host.datagrams.len()), (3, 0));
    rig.assert_empty();
}
