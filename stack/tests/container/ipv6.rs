//! TCP over IPv6 and ICMPv6.

use std::net::{Ipv6Addr, SocketAddr};

use skbudget_stack::{Close, HostError};

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{GATEWAY6, GUEST6, Rig, Setup, one};
use crate::wire::{ACK, FIN, RST, SYN, Seg, Sent, icmpv6, ipv6, transport_checksum};

pub(crate) const HELLO: Hello = Hello {
    seq: 1000,
    wnd: 64_000,
    mss: Some(1440),
    wscale: Some(7),
    sack_ok: true,
    ts: None,
    v6: true,
};

pub(crate) const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

pub(crate) fn open(rig: &mut Rig) -> Peer {
    Peer::open_with(rig, 40_000, &HELLO)
}

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, port))
}

#[test]
fn the_gateway_leads_to_the_hosts_loopback() {
    let mut rig = Rig::new();
    let peer = open(&mut rig);
    assert_eq!(rig.sock(peer.flow).to, Some(local(80)));
    let info = rig.flow(peer.flow).unwrap();
    assert_eq!(info.guest, SocketAddr::from((GUEST6, 40_000)));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn the_mss_leaves_room_for_the_longer_header() {
    for (mtu, offload, expected) in
        [(1500, false, 1440), (1500, true, 1440), (65_520, true, 1460), (1280, false, 1220)]
    {
        let mut rig = Rig::with(Setup { mtu, offload, ..Setup::default() });
        let syn = HELLO.syn(40_000, 80);
        rig.send(syn);
        let flow = rig.host.connects[0];
        let answer = one(rig.ready(flow, false, true));
        assert_eq!((answer.v6, answer.mss), (true, Some(expected)), "MTU {mtu}");
    }
}

#[test]
fn data_both_ways_and_a_close_from_either_side() {
    for offload in [false, true] {
        for guest_first in [true, false] {
            let mut rig = Rig::with(Setup { offload, ..Setup::default() });
            let mut peer = open(&mut rig);
            for part in bytes(20_000).chunks(1000) {
                let data = peer.data(part);
                for seg in rig.send(data) {
                    peer.note(&seg);
                }
            }
            assert!(rig.sock(peer.flow).received == bytes(20_000));
            let mut said = rig.host_sends(peer.flow, &bytes(30_000));
            let mut heard = Vec::new();
            while !said.is_empty() {
                assert!(said.iter().all(|s| s.v6 && (s.data.len() <= 1440 || s.gso == 1440)));
                assert!(offload || said.iter().all(|s| s.gso == 0));
                heard.extend(peer.receive(&said));
                said = rig.send(peer.pure_ack());
            }
            assert!(heard == bytes(30_000), "{} of 30000", heard.len());
            if guest_first {
                let ack = one(rig.send(peer.fin()));
                assert!(ack.is(ACK) && rig.sock(peer.flow).shut);
                let fin = rig.host_ends(peer.flow);
                peer.receive(&fin);
                rig.send(peer.pure_ack());
            } else {
                let fin = one(rig.host_ends(peer.flow));
                assert!(fin.is(FIN | ACK), "{fin:?}");
                peer.receive(&[fin]);
                rig.send(peer.pure_ack());
                let ack = one(rig.send(peer.fin()));
                assert!(ack.is(ACK));
            }
            assert_eq!(rig.sock(peer.flow).closed, Some(Close::Graceful));
            rig.assert_empty();
        }
    }
}

#[test]
fn time_wait_answers_a_retransmitted_fin() {
    let mut rig = Rig::new();
    let mut peer = open(&mut rig);
    let fin = rig.host_ends(peer.flow);
    peer.receive(&fin);
    rig.send(peer.pure_ack());
    let last = peer.fin();
    rig.send(last.clone());
    assert_eq!(rig.stack.stats().time_wait, 1);
    let again = one(rig.send(last));
    assert!(again.is(ACK) && again.v6);
    rig.assert_empty();
}

#[test]
fn resets_pass_through_both_ways() {
    let mut rig = Rig::new();
    let peer = open(&mut rig);
    rig.send(peer.rst());
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Reset));
    let peer = Peer::open_with(&mut rig, 40_001, &HELLO);
    let rst = one(rig.host_breaks(peer.flow, HostError::Reset));
    assert!(rst.is(RST | ACK) && rst.v6, "{rst:?}");
    rig.assert_empty();
}

#[test]
fn refused_is_a_reset_and_unreachable_an_error() {
    let cases = [
        (HostError::Refused, None),
        (HostError::HostUnreachable, Some(3)),
        (HostError::NetUnreachable, Some(0)),
    ];
    for (error, code) in cases {
        let mut rig = Rig::new();
        rig.host.outcome = Some(Err(error));
        let syn = Seg { remote6: Some(FAR), ..HELLO.syn(40_000, 80) };
        assert_eq!(rig.send(syn.clone()), []);
        let flow = rig.host.connects[0];
        assert_eq!(rig.sock(flow).to, Some(SocketAddr::from((FAR, 80))));
        rig.stack.on_host_ready(flow, skbudget_stack::Ready { readable: false, writable: true });
        let mut answers = rig.turn();
        assert_eq!(answers.len(), 1, "{answers:?}");
        match (answers.remove(0), code) {
            (Sent::Tcp(rst), None) => assert!(rst.is(RST | ACK) && rst.remote6 == Some(FAR)),
            (Sent::Icmp6 { src, dst, kind: 1, code: said, body, .. }, Some(code)) => {
                assert_eq!((src, dst, said), (FAR, GUEST6, code));
                // The error quotes the SYN: addresses, ports, sequence number.
                let sent = syn.frame();
                assert_eq!(body[4..][8..40], sent[14..][8..40]);
                assert_eq!(body[44..52], sent[54..62]);
            }
            other => panic!("{error:?}: {other:?}"),
        }
        rig.assert_empty();
    }
}

#[test]
fn the_destination_of_a_syn_decides_where_it_connects() {
    let mut rig = Rig::new();
    let to = |ip: &str| Seg { remote6: Some(ip.parse().unwrap()), ..HELLO.syn(40_000, 80) };
    // The link's other addresses are unused; our own addresses except the gateway's have no ports.
    rig.frame(&to("fd00::77").frame());
    assert!(matches!(rig.turn()[..], [Sent::Icmp6 { kind: 1, code: 3, .. }]));
    assert!(one(rig.send(to("fd00::3"))).is(RST | ACK));
    assert_eq!(rig.host.connects.len(), 0);
    rig.assert_empty();
}

#[test]
fn a_source_that_is_not_the_guests_is_dropped() {
    let mut rig = Rig::new();
    let mut tcp = HELLO.syn(40_000, 80).frame()[54..].to_vec();
    for src in
        ["fd00::2", "fd00::3", "fe80::2", "::", "fd01::100", "2001:db8::1", "fd00::", "fe80::7"]
    {
        let src: Ipv6Addr = src.parse().unwrap();
        let dst = if src.is_unicast_link_local() { FAR } else { GATEWAY6 };
        transport_checksum(src.into(), dst.into(), 6, &mut tcp, 16);
        let before = rig.stat("DropSource");
        rig.frame(&ipv6(6, src, dst, &tcp));
        assert_eq!(rig.stat("DropSource"), before + 1, "{src}");
    }
    // An address that the guest configured itself is as good as the assigned one.
    let own: Ipv6Addr = "fd00::5054:ff:fe12:3456".parse().unwrap();
    transport_checksum(own.into(), GATEWAY6.into(), 6, &mut tcp, 16);
    rig.frame(&ipv6(6, own, GATEWAY6, &tcp));
    rig.turn();
    assert_eq!(rig.host.connects.len(), 1);
}

#[test]
fn a_published_port_uses_the_address_family_of_its_client() {
    let mut rig = Rig::new();
    rig.send(Seg { flags: RST, ..HELLO.syn(1, 1) });
    let from = SocketAddr::from((Ipv6Addr::LOCALHOST, 5555));
    let mut peer = Peer::accept_from(&mut rig, 8080, from);
    assert!(peer.v6 && peer.remote_port == 5555);
    one(rig.send(peer.data(b"banner")));
    assert_eq!(rig.sock(peer.flow).received, b"banner");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn without_ipv6_its_frames_are_dropped_and_its_clients_come_over_ipv4() {
    let mut rig = Rig::with(Setup { mtu: 1279, ..Setup::default() });
    assert_eq!(rig.send(HELLO.syn(40_000, 80)), []);
    assert_eq!(rig.stat("DropIpv6"), 1);
    let peer = Peer::accept_from(&mut rig, 8080, SocketAddr::from((FAR, 5555)));
    assert!(!peer.v6);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn echo_is_answered_by_our_addresses() {
    let mut rig = Rig::new();
    for to in ["fd00::2", "fd00::3"] {
        let to = to.parse().unwrap();
        rig.frame(&icmpv6(GUEST6, to, 128, 0, &[0, 7, 0, 9, 1, 2, 3]));
        let [Sent::Icmp6 { src, dst, kind: 129, code: 0, body, .. }] = &rig.turn()[..] else {
            panic!("no reply")
        };
        assert_eq!((*src, *dst, &body[..]), (to, GUEST6, &[0, 7, 0, 9, 1, 2, 3][..]));
    }
    assert_eq!((rig.stat("IcmpEchoAnswered"), rig.host.datagrams.len()), (2, 0));
}

#[test]
fn udp_without_a_port_is_answered_with_port_unreachable() {
    let mut rig = Rig::new();
    let mut udp = vec![0x10, 0, 0, 0, 0, 12, 0, 0, 1, 2, 3, 4];
    transport_checksum(GUEST6.into(), GATEWAY6.into(), 17, &mut udp, 6);
    rig.frame(&ipv6(17, GUEST6, GATEWAY6, &udp));
    let [Sent::Icmp6 { src, kind: 1, code: 4, body, .. }] = &rig.turn()[..] else {
        panic!("no error")
    };
    assert_eq!(*src, GATEWAY6);
    assert_eq!(body[44..], udp[..], "the whole packet is quoted");
}

#[test]
fn an_unanswered_syn_over_ipv6_is_retransmitted() {
    let mut rig = Rig::new();
    rig.send(HELLO.syn(40_000, 80));
    let flow = rig.host.connects[0];
    let syn_ack = one(rig.ready(flow, false, true));
    let again = rig.pass_segs(1500);
    assert!(again.iter().any(|(_, s)| s.is(SYN | ACK) && s.seq == syn_ack.seq && s.v6));
    rig.send(Seg { flags: RST, seq: 1001, ..HELLO.syn(40_000, 80) });
    rig.assert_empty();
}

#[test]
fn without_an_mss_option_segments_fit_every_ipv6_link() {
    let mut rig = Rig::new();
    let hello = Hello { v6: true, mss: None, sack_ok: false, ..Hello::default() };
    let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
    let said = rig.host_sends(peer.flow, &bytes(3000));
    assert!(said.iter().all(|seg| seg.data.len() <= 1220), "{said:?}");
    assert_eq!(said[0].data.len(), 1220, "RFC 9293 section 3.7.1");
    peer.receive(&said);
    rig.send(peer.rst());
    rig.assert_empty();
}
