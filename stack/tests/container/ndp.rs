//! Neighbour discovery (RFC 4861) as the guest sees it.

use std::net::{Ipv6Addr, SocketAddr};

use crate::peer::Hello;
use crate::rig::{GATEWAY6, GUEST6, Rig, segs};
use crate::wire::{GUEST_MAC, OUR_MAC, RST, Seg, Sent, icmpv6, icmpv6_message, ipv6};

const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const GUEST_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
const DNS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

fn group_of(ip: Ipv6Addr) -> Ipv6Addr {
    let o = ip.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, o[13], o[14], o[15]])
}

fn lladdr() -> Vec<u8> {
    [&[1, 1][..], &GUEST_MAC].concat()
}

fn solicitation(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    icmpv6(src, dst, 135, 0, &[&[0; 4][..], &target.octets(), options].concat())
}

/// Source, destination, flags, target and hardware address of the only advertisement sent.
fn advertised(rig: &mut Rig) -> (Ipv6Addr, Ipv6Addr, u8, Ipv6Addr, Vec<u8>) {
    let out = rig.turn();
    let [Sent::Icmp6 { src, dst, hop_limit: 255, kind: 136, code: 0, body }] = &out[..] else {
        panic!("{out:?}")
    };
    let target: [u8; 16] = body[4..20].try_into().unwrap();
    (*src, *dst, body[0], target.into(), body[20..].to_vec())
}

#[test]
fn our_addresses_are_advertised_to_solicitations() {
    for ours in [GATEWAY6, "fd00::3".parse().unwrap(), ROUTER] {
        for (src, dst) in [(GUEST6, group_of(ours)), (GUEST6, ours), (GUEST_LL, group_of(ours))] {
            let mut rig = Rig::new();
            rig.frame(&solicitation(src, dst, ours, &lladdr()));
            let (from, to, flags, target, options) = advertised(&mut rig);
            assert_eq!((from, to, target), (ours, src, ours));
            // Flags: router, solicited, override.
            assert_eq!(flags, 0xe0);
            assert_eq!(options, [&[2, 1][..], &OUR_MAC].concat());
            assert_eq!(rig.stat("NdpAnswered"), 1);
        }
    }
}

#[test]
fn duplicate_address_detection_defends_only_our_address() {
    let mut rig = Rig::new();
    for own in [GUEST6, GUEST_LL, "fd00::5054:ff:fe12:3456".parse().unwrap()] {
        rig.frame(&solicitation(ANY, group_of(own), own, &[]));
        assert_eq!(rig.turn(), [], "{own}");
    }
    // With a nonce (RFC 7527), as kernels send it.
    rig.frame(&solicitation(ANY, group_of(GATEWAY6), GATEWAY6, &[14, 1, 1, 2, 3, 4, 5, 6]));
    let (_, to, flags, target, _) = advertised(&mut rig);
    assert_eq!((to, target), (ALL_NODES, GATEWAY6));
    assert_eq!(flags & 0x40, 0, "nobody in particular asked");
}

#[test]
fn what_breaks_the_rules_of_discovery_is_dropped() {
    let group = group_of(GATEWAY6);
    let mut far = solicitation(GUEST6, group, GATEWAY6, &lladdr());
    far[21] = 254;
    let mut coded = vec![0; 4];
    coded.extend(GATEWAY6.octets());
    let broken = [
        far,
        // A DAD probe with a source link-layer address, or to one node.
        solicitation(ANY, group, GATEWAY6, &lladdr()),
        solicitation(ANY, GATEWAY6, GATEWAY6, &[]),
        solicitation(GUEST6, group, ALL_NODES, &[]),
        icmpv6(ANY, ALL_ROUTERS, 133, 0, &[&[0; 4][..], &lladdr()].concat()),
        // Only routers send this.
        icmpv6(GUEST_LL, ALL_NODES, 134, 0, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for frame in broken {
        let mut rig = Rig::new();
        rig.frame(&frame);
        assert_eq!(rig.turn(), []);
        assert_eq!(rig.stat("DropNdp"), 1, "{frame:?}");
    }
    // Cut short, an option of length zero, a code other than 0.
    let unreadable = [
        icmpv6(GUEST6, group, 135, 0, &[0; 12]),
        solicitation(GUEST6, group, GATEWAY6, &[1, 0, 0, 0, 0, 0, 0, 0]),
        icmpv6(GUEST6, group, 135, 1, &coded),
    ];
    for frame in unreadable {
        let mut rig = Rig::new();
        rig.frame(&frame);
        assert_eq!(rig.turn(), []);
        assert_eq!(rig.stat("DropIcmp"), 1, "{frame:?}");
    }
}

#[test]
fn neither_in_fragments() {
    // RFC 6980.
    let mut rig = Rig::new();
    let body = [&[0; 4][..], &GATEWAY6.octets(), &lladdr(), &[0; 0]].concat();
    let message = icmpv6_message(GUEST6, GATEWAY6, 135, 0, &body);
    for (at, more) in [(0usize, 1u8), (16, 0)] {
        let end = if more == 1 { 16 } else { message.len() };
        let header = [58, 0, 0, at as u8 | more, 0, 0, 0, 9];
        rig.frame(&ipv6(44, GUEST6, GATEWAY6, &[&header[..], &message[at..end]].concat()));
    }
    assert_eq!((rig.stat("ReasmOKs"), rig.stat("DropNdp")), (1, 1));
    assert_eq!(rig.turn(), []);
}

#[test]
fn solicitations_are_answered_with_advertisements_not_too_often() {
    let mut rig = Rig::new();
    let ask = icmpv6(GUEST_LL, ALL_ROUTERS, 133, 0, &[&[0; 4][..], &lladdr()].concat());
    rig.frame(&ask);
    let out = rig.turn();
    let [Sent::Icmp6 { src, dst, hop_limit: 255, kind: 134, code: 0, body }] = &out[..] else {
        panic!("{out:?}")
    };
    assert_eq!((*src, *dst), (ROUTER, GUEST_LL));
    // Hop limit 64, managed and other, lifetime half an hour.
    assert_eq!(body[..4], [64, 0xc0, 7, 8]);
    let mut options = &body[12..];
    let mut seen = Vec::new();
    while let [kind, len, ..] = *options {
        let option = &options[..usize::from(len) * 8];
        match kind {
            1 => assert_eq!(option[2..8], OUR_MAC),
            5 => assert_eq!(option[4..8], 1500u32.to_be_bytes()),
            3 => {
                // 64 bits, on link, autonomous address configuration.
                assert_eq!(option[2..4], [64, 0xc0]);
                assert_eq!(option[16..32], Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0).octets());
            }
            // Name server, for half an hour.
            25 => assert_eq!(option[4..24], [&[0, 0, 7, 8][..], &DNS6.octets()].concat()),
            other => panic!("option {other}"),
        }
        seen.push(kind);
        options = &options[option.len()..];
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 3, 5, 25]);
    for _ in 0..100 {
        rig.frame(&ask);
    }
    assert_eq!(rig.turn(), []);
    rig.pass(3000);
    rig.frame(&icmpv6(ANY, ALL_ROUTERS, 133, 0, &[0; 4]));
    assert!(matches!(rig.turn()[..], [Sent::Icmp6 { dst: ALL_NODES, kind: 134, .. }]));
    assert_eq!((rig.stat("RouterAdverts"), rig.stat("RouterSolicitsIgnored")), (2, 100));
}

#[test]
fn an_advertisement_is_repeated_before_its_lifetimes_end() {
    let mut rig = Rig::new();
    rig.pass(7_200_000);
    assert_eq!(rig.stat("RouterAdverts"), 0, "no guest has sent a solicitation");
    rig.frame(&icmpv6(GUEST_LL, ALL_ROUTERS, 133, 0, &[0; 4]));
    rig.turn();
    let sent = rig.pass(7_200_000);
    let mut last = 0;
    for (at, advertisement) in &sent {
        assert!(matches!(advertisement, Sent::Icmp6 { dst: ALL_NODES, kind: 134, .. }));
        // Two in a row may be lost.
        assert!((300_000..600_000).contains(&(at - last)), "{last} to {at}");
        last = *at;
    }
    assert!(sent.len() > 12, "{} in two hours", sent.len());
}

#[test]
fn an_advertisement_has_the_search_domains() {
    let search = ["a.example", "b.example"].map(str::to_owned).to_vec();
    let mut rig = Rig::configured(|config| config.search = search);
    rig.frame(&icmpv6(GUEST_LL, ALL_ROUTERS, 133, 0, &[0; 4]));
    let out = rig.turn();
    let [Sent::Icmp6 { kind: 134, body, .. }] = &out[..] else { panic!("{out:?}") };
    // Behind the flags and times: hardware address, MTU, prefix, name server.
    let option = &body[12 + 8 + 8 + 32 + 24..];
    assert_eq!(option[..8], [31, 4, 0, 0, 0, 0, 7, 8]);
    assert_eq!(option[8..], *b"\x01a\x07example\0\x01b\x07example\0\0\0");
}

#[test]
fn an_unknown_neighbour_is_solicited() {
    let mut rig = Rig::new();
    let from = SocketAddr::from((Ipv6Addr::LOCALHOST, 5555));
    rig.accept(8080, from);
    let out = rig.turn();
    let [Sent::Icmp6 { src, dst, hop_limit: 255, kind: 135, body, .. }] = &out[..] else {
        panic!("{out:?}")
    };
    assert_eq!((*src, *dst), (GATEWAY6, group_of(GUEST6)));
    assert_eq!(body[4..20], GUEST6.octets());
    // Any frame of the guest reveals its address; usually its advertisement.
    let body = [&[0x60, 0, 0, 0][..], &GUEST6.octets(), &[2, 1], &GUEST_MAC].concat();
    rig.frame(&icmpv6(GUEST6, GATEWAY6, 136, 0, &body));
    let syn = segs(rig.turn());
    assert!(syn.len() == 1 && syn[0].v6, "{syn:?}");
    let port = syn[0].remote_port;
    let hello = Hello { v6: true, ..Hello::default() };
    rig.send(Seg { flags: RST | crate::wire::ACK, ack: syn[0].seq + 1, ..hello.syn(8080, port) });
    rig.assert_empty();
}
