//! IPv6 extension headers: skipped, or refused with the reason.

use std::net::Ipv6Addr;

use crate::ipv6::HELLO;
use crate::rig::{GATEWAY6, GUEST6, Rig};
use crate::wire::{Sent, icmpv6, ipv6};

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
fn at_most_a_thousand_icmp_errors_are_sent_a_second() {
    let mut rig = Rig::new();
    let frame = ipv6(132, GUEST6, GATEWAY6, &[0; 16]);
    // Three times the limit of a second.
    for _ in 0..3000 {
        rig.frame(&frame);
    }
    assert_eq!(rig.turn().len(), 1000);
    assert_eq!((rig.stat("DropProtocol"), rig.stat("IcmpRateLimited")), (3000, 2000));
}
