//! TCP over IPv6, ICMPv6, and extension headers.

use std::net::{Ipv6Addr, SocketAddr};

use skbudget_stack::{Close, HostError};

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{GATEWAY6, GUEST6, Rig, Setup, one};
use crate::wire::{ACK, FIN, RST, SYN, Seg, Sent, checksum_v6, icmpv6, ipv6};

const HELLO: Hello = Hello {
    seq: 1000,
    wnd: 64_000,
    mss: Some(1440),
    wscale: Some(7),
    sack_ok: true,
    ts: None,
    v6: true,
};

const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

fn open(rig: &mut Rig) -> Peer {
    Peer::open_with(rig, 40_000, &HELLO)
}

fn local(port: u16) -> SocketAddr {
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
            assert!(rig.sock(peer.flow).heard == bytes(20_000));
            let mut said = rig.host_says(peer.flow, &bytes(30_000));
            let mut heard = Vec::new();
            while !said.is_empty() {
                assert!(said.iter().all(|s| s.v6 && (s.data.len() <= 1440 || s.gso == 1440)));
                assert!(offload || said.iter().all(|s| s.gso == 0));
                heard.extend(peer.hear(&said));
                said = rig.send(peer.pure_ack());
            }
            assert!(heard == bytes(30_000), "{} of 30000", heard.len());
            if guest_first {
                let ack = one(rig.send(peer.fin()));
                assert!(ack.is(ACK) && rig.sock(peer.flow).shut);
                let fin = rig.host_ends(peer.flow);
                peer.hear(&fin);
                rig.send(peer.pure_ack());
            } else {
                let fin = one(rig.host_ends(peer.flow));
                assert!(fin.is(FIN | ACK), "{fin:?}");
                peer.hear(&[fin]);
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
fn time_wait_answers_a_fin_said_again() {
    let mut rig = Rig::new();
    let mut peer = open(&mut rig);
    let fin = rig.host_ends(peer.flow);
    peer.hear(&fin);
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
fn where_a_syn_goes_is_by_its_destination() {
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
        checksum_v6(src, dst, 6, &mut tcp, 16);
        let before = rig.stat("DropSource");
        rig.frame(&ipv6(6, src, dst, &tcp));
        assert_eq!(rig.stat("DropSource"), before + 1, "{src}");
    }
    // An address that the guest configured itself is as good as the assigned one.
    let own: Ipv6Addr = "fd00::5054:ff:fe12:3456".parse().unwrap();
    checksum_v6(own, GATEWAY6, 6, &mut tcp, 16);
    rig.frame(&ipv6(6, own, GATEWAY6, &tcp));
    rig.turn();
    assert_eq!(rig.host.connects.len(), 1);
}

#[test]
fn a_published_port_speaks_the_family_of_its_client() {
    let mut rig = Rig::new();
    rig.send(Seg { flags: RST, ..HELLO.syn(1, 1) });
    let from = SocketAddr::from((FAR, 5555));
    let mut peer = Peer::accept_from(&mut rig, 8080, from);
    assert!(peer.v6 && peer.remote_port == 5555);
    one(rig.send(peer.data(b"banner")));
    assert_eq!(rig.sock(peer.flow).heard, b"banner");
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
    rig.frame(&icmpv6(GUEST6, FAR, 128, 0, &[0, 7, 0, 9]));
    assert_eq!(rig.turn(), []);
    assert_eq!((rig.stat("IcmpEchoAnswered"), rig.stat("DropIcmp")), (2, 1));
}

#[test]
fn udp_learns_that_nobody_listens() {
    let mut rig = Rig::new();
    let mut udp = vec![0x10, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
    checksum_v6(GUEST6, GATEWAY6, 17, &mut udp, 6);
    rig.frame(&ipv6(17, GUEST6, GATEWAY6, &udp));
    let [Sent::Icmp6 { src, kind: 1, code: 4, body, .. }] = &rig.turn()[..] else {
        panic!("no error")
    };
    assert_eq!(*src, GATEWAY6);
    assert_eq!(body[44..], udp[..], "the whole packet is quoted");
}

// ---- extension headers ----

/// A SYN behind these extension headers: kind and content, which contains its own length.
fn behind(headers: &[(u8, &[u8])]) -> Vec<u8> {
    let tcp = HELLO.syn(40_000, 80).frame()[54..].to_vec();
    let kinds = headers.iter().map(|h| h.0).chain([6]).collect::<Vec<_>>();
    let mut payload = Vec::new();
    for (i, (_, content)) in headers.iter().enumerate() {
        payload.push(kinds[i + 1]);
        payload.extend(*content);
    }
    payload.extend(tcp);
    ipv6(kinds[0], GUEST6, GATEWAY6, &payload)
}

const PAD: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
const ROUTE_DONE: &[u8] = &[0, 4, 0, 0, 0, 0, 0];

#[test]
fn extension_headers_are_skipped() {
    let router_alert: &[u8] = &[0, 5, 2, 0, 0, 1, 0];
    let long: Vec<u8> = [&[1, 1, 12][..], &[0; 12]].concat();
    let unknown_skip: &[u8] = &[0, 0x1e, 4, 9, 9, 9, 9];
    let cases: [&[(u8, &[u8])]; 8] = [
        &[(0, PAD)],
        &[(0, router_alert)],
        &[(60, PAD)],
        &[(60, &long)],
        &[(43, ROUTE_DONE)],
        &[(0, PAD), (60, PAD), (43, ROUTE_DONE), (60, unknown_skip)],
        // An atomic fragment: the whole packet in one (RFC 6946).
        &[(44, &[0, 0, 0, 1, 2, 3, 4])],
        &[(60, PAD), (60, PAD), (60, PAD), (60, PAD), (60, PAD), (60, PAD), (60, PAD), (60, PAD)],
    ];
    for headers in cases {
        let mut rig = Rig::new();
        rig.frame(&behind(headers));
        rig.turn();
        assert_eq!(rig.host.connects.len(), 1, "{headers:?}");
    }
}

/// Passes a frame; checks the counter that it raises and the ICMPv6 parameter problem (code, pointer) that answers it.
#[track_caller]
fn refused(frame: &[u8], counter: &str, problem: Option<(u8, u32)>) {
    let mut rig = Rig::new();
    rig.frame(frame);
    assert_eq!(rig.stat(counter), 1, "{counter}");
    let answers = rig.turn();
    match (&answers[..], problem) {
        ([], None) => {}
        ([Sent::Icmp6 { kind: 4, code, body, .. }], Some((expected, pointer))) => {
            // The pointer names the offending byte of the packet (RFC 4443 section 3.4).
            let said = u32::from_be_bytes(body[..4].try_into().unwrap());
            assert_eq!((*code, said), (expected, pointer));
            let quoted = &frame[14..][..(frame.len() - 14).min(1280 - 48)];
            assert_eq!(body[4..][8..], quoted[8..], "what it quotes");
        }
        other => panic!("{counter}: {other:?}"),
    }
    assert_eq!(rig.host.connects.len(), 0);
    rig.assert_empty();
}

#[test]
fn what_may_not_be_skipped_is_refused() {
    // Unknown options: the two high bits of the type decide (RFC 8200 section 4.2).
    refused(&behind(&[(60, &[0, 0x41, 4, 0, 0, 0, 0])]), "DropIpv6Option", None);
    refused(&behind(&[(60, &[0, 0x81, 4, 0, 0, 0, 0])]), "DropIpv6Option", Some((2, 42)));
    refused(&behind(&[(60, &[0, 0, 0xc2, 2, 0, 0, 0])]), "DropIpv6Option", Some((2, 43)));
    // Nothing is reported to a group, unless the option demands it (RFC 8200 section 4.2).
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to_group = |option: u8| ipv6(60, GUEST6, group, &[58, 0, option, 4, 0, 0, 0, 0]);
    refused(&to_group(0xc2), "DropIpv6Option", None);
    refused(&to_group(0x81), "DropIpv6Option", Some((2, 42)));
    // A routing header with segments left.
    refused(&behind(&[(43, &[0, 0, 1, 0, 0, 0, 0])]), "DropIpv6Routing", Some((0, 42)));
    refused(
        &behind(&[(60, PAD), (43, &[0, 9, 255, 0, 0, 0, 0])]),
        "DropIpv6Routing",
        Some((0, 50)),
    );
    // Hop-by-hop options are valid only as the first header.
    refused(&behind(&[(60, PAD), (0, PAD)]), "DropIpv6Extension", Some((1, 40)));
    refused(&behind(&[(0, PAD), (0, PAD)]), "DropIpv6Extension", Some((1, 40)));
    // Protocols that the stack does not support, named by the fixed header or by the last extension header.
    refused(&ipv6(132, GUEST6, GATEWAY6, &[0; 16]), "DropProtocol", Some((1, 6)));
    refused(&ipv6(59, GUEST6, GATEWAY6, &[]), "DropProtocol", Some((1, 6)));
    refused(
        &ipv6(1, GUEST6, GATEWAY6, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
        "DropProtocol",
        Some((1, 6)),
    );
    let mut unknown = behind(&[(60, PAD)]);
    unknown[54] = 200;
    refused(&unknown, "DropProtocol", Some((1, 40)));
    // Too many headers.
    let many: Vec<(u8, &[u8])> = vec![(60, PAD); 9];
    refused(&behind(&many), "DropIpv6Extension", None);
    // A header longer than the packet, and options longer than their header.
    refused(&behind(&[(60, &[255, 1, 4, 0, 0, 0, 0])]), "DropIpv6Extension", None);
    refused(&behind(&[(60, &[0, 1, 5, 0, 0, 0, 0])]), "DropIpv6Extension", None);
    refused(&behind(&[(60, &[0, 1, 3, 0, 0, 0, 0x1e])]), "DropIpv6Extension", None);
    refused(&ipv6(60, GUEST6, GATEWAY6, &[6, 0, 0]), "DropIpv6Extension", None);
}

#[test]
fn each_reason_has_its_counter() {
    let good = HELLO.syn(40_000, 80).frame();
    let changed = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    refused(&good[..53], "DropIpv6Header", None);
    refused(&good[..60], "DropIpv6Header", None);
    refused(&changed(14, 0x40), "DropIpv6Header", None);
    refused(&changed(18, 0xff), "DropIpv6Header", None);
    refused(&changed(70, good[70] ^ 1), "DropTcpChecksum", None);
    refused(&changed(66, 0xf0), "DropTcpHeader", None);
    refused(&ipv6(17, GUEST6, GATEWAY6, &[0, 1, 0, 2, 0, 9, 0, 0]), "DropUdp", None);
    let mut echo = icmpv6(GUEST6, GATEWAY6, 128, 0, &[0; 8]);
    echo[60] ^= 1;
    refused(&echo, "DropIcmp", None);
    refused(&icmpv6(GUEST6, GATEWAY6, 129, 0, &[0; 8]), "DropIcmp", None);
    refused(&icmpv6(GUEST6, GATEWAY6, 1, 4, &[0; 60]), "DropIcmp", None);
}

#[test]
fn a_guest_is_not_told_more_than_a_thousand_times_a_second() {
    let mut rig = Rig::new();
    let frame = ipv6(132, GUEST6, GATEWAY6, &[0; 16]);
    // Three times the limit of a second.
    for _ in 0..3000 {
        rig.frame(&frame);
    }
    assert_eq!(rig.turn().len(), 1000);
    assert_eq!((rig.stat("DropProtocol"), rig.stat("IcmpRateLimited")), (3000, 2000));
}

// ---- path MTU ----

/// The guest's ICMP error: the packet that started at `seq` exceeded `mtu`.
fn too_big(peer: &Peer, mtu: u32, seq: u32) -> Vec<u8> {
    let quoted_tcp = |of: &mut Vec<u8>| {
        of.extend(peer.remote_port.to_be_bytes());
        of.extend(peer.guest_port.to_be_bytes());
        of.extend(seq.to_be_bytes());
    };
    if peer.v6 {
        let mut body = mtu.to_be_bytes().to_vec();
        body.extend([0x60, 0, 0, 0, 0x05, 0xa0, 6, 64]);
        body.extend(GATEWAY6.octets());
        body.extend(GUEST6.octets());
        quoted_tcp(&mut body);
        return icmpv6(GUEST6, GATEWAY6, 2, 0, &body);
    }
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend((mtu as u16).to_be_bytes());
    icmp.extend([0x45, 0, 0x05, 0xdc, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    icmp.extend(crate::rig::GATEWAY.octets());
    icmp.extend(crate::rig::GUEST.octets());
    quoted_tcp(&mut icmp);
    let sum = !smoltcp::wire::checksum::data(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    crate::wire::ipv4(1, crate::rig::GUEST, crate::rig::GATEWAY, &icmp)
}

#[test]
fn a_narrower_path_is_believed_when_it_names_what_is_in_flight() {
    for (v6, mtu, expected) in
        [(true, 1300, 1240), (false, 1300, 1260), (true, 100, 1220), (false, 100, 512)]
    {
        let mut rig = Rig::new();
        let hello = Hello { v6, mss: Some(if v6 { 1440 } else { 1460 }), ..Hello::default() };
        let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
        let first = rig.host_says(peer.flow, &bytes(4000));
        let full = if v6 { 1440 } else { 1460 };
        assert!(first.iter().any(|s| s.data.len() == full));
        // Before or beyond the data in flight, of another connection, or no smaller: forged.
        let stranger = Peer { guest_port: 40_001, ..peer.clone() };
        let lies = [
            too_big(&peer, mtu, peer.ack.wrapping_sub(1)),
            too_big(&peer, mtu, peer.ack.wrapping_add(4000)),
            too_big(&stranger, mtu, peer.ack),
            too_big(&peer, 1500, peer.ack),
            too_big(&peer, u32::MAX >> 16, peer.ack),
        ];
        for (i, lie) in lies.iter().enumerate() {
            rig.frame(lie);
            assert_eq!(rig.stat("PathMtuIgnored"), i as u64 + 1, "{lie:?}");
            assert_eq!(rig.turn(), []);
        }
        rig.frame(&too_big(&peer, mtu, peer.ack));
        assert_eq!(rig.stat("PathMtuLowered"), 1);
        let mut said = crate::rig::segs(rig.turn());
        assert!(!said.is_empty(), "sent again at once");
        let mut heard = Vec::new();
        while !said.is_empty() {
            assert!(said.iter().all(|s| s.data.len() <= expected), "v6 {v6}, MTU {mtu}");
            heard.extend(peer.hear(&said));
            said = rig.send(peer.pure_ack());
        }
        assert!(heard == bytes(4000));
        // An error with the same MTU changes nothing the second time.
        rig.host_says(peer.flow, &bytes(100));
        rig.frame(&too_big(&peer, mtu, peer.ack));
        assert_eq!(rig.stat("PathMtuLowered"), 1);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_syn_without_an_answer_is_said_over_ipv6_again() {
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
fn a_guest_that_does_not_say_its_segment_size_gets_what_every_ipv6_link_carries() {
    let mut rig = Rig::new();
    let hello = Hello { v6: true, mss: None, sack_ok: false, ..Hello::default() };
    let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
    let said = rig.host_says(peer.flow, &bytes(3000));
    assert!(said.iter().all(|seg| seg.data.len() <= 1220), "{said:?}");
    assert_eq!(said[0].data.len(), 1220, "RFC 9293 section 3.7.1");
    peer.hear(&said);
    rig.send(peer.rst());
    rig.assert_empty();
}
