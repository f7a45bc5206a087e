//! Echo requests of the guest to other hosts: a ping socket for each identifier.

use std::net::{IpAddr, SocketAddr};

use skbudget_sim::packet::ipv4_checksum;
use skbudget_stack::HostError;
use skbudget_stack::datagram::{DatagramKind, IpFields, Undeliverable};

use crate::peer::bytes;
use crate::rig::{GATEWAY, GATEWAY6, GUEST, GUEST6, Rig, Setup};
use crate::udp::{FAR, FAR6, error_of, only, open, socket};
use crate::wire::{Sent, icmpv6, icmpv6_message, ipv4};

const FIELDS: IpFields = IpFields { hop_limit: 50, traffic_class: 0, dont_fragment: false };

/// An ICMP message: type, identifier, sequence number, data.
fn message(kind: u8, ident: u16, seq: u16, data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(ident.to_be_bytes());
    message.extend(seq.to_be_bytes());
    message.extend(data);
    let sum = !smoltcp::wire::checksum::data(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An echo request of the guest, in a frame.
pub(crate) fn request(v6: bool, ident: u16, seq: u16, hop_limit: u8, data: &[u8]) -> Vec<u8> {
    if v6 {
        let body = [&ident.to_be_bytes()[..], &seq.to_be_bytes(), data].concat();
        let mut frame = icmpv6(GUEST6, FAR6, 128, 0, &body);
        frame[21] = hop_limit;
        return frame;
    }
    let mut frame = ipv4(1, GUEST, FAR.into(), &message(8, ident, seq, data));
    frame[22] = hop_limit;
    ipv4_checksum(&mut frame);
    frame
}

fn far(v6: bool) -> SocketAddr {
    if v6 { (FAR6, 0).into() } else { (FAR, 0).into() }
}

/// The reply as a ping socket receives it: with its own identifier.
fn reply(v6: bool, seq: u16, data: &[u8]) -> Vec<u8> {
    message(if v6 { 129 } else { 0 }, 0xbeef, seq, data)
}

#[test]
fn a_request_reaches_the_host_and_the_reply_the_guest() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        rig.frame(&request(v6, 77, 1, 64, b"abcdefgh"));
        assert_eq!(rig.turn(), []);
        let id = only(&rig);
        let sock = socket(&mut rig, id);
        assert_eq!((sock.spec.kind, sock.spec.ipv6, sock.spec.port), (DatagramKind::Echo, v6, 77));
        let (to, ip, payload) = sock.sent.remove(0);
        assert_eq!((to, ip.hop_limit), (far(v6), 63));
        // The kernel writes identifier and checksum.
        assert_eq!((payload[0], &payload[6..]), (if v6 { 128 } else { 8 }, &b"\0\x01abcdefgh"[..]));
        sock.incoming.push_back((to, FIELDS, reply(v6, 1, b"abcdefgh")));
        rig.stack.on_datagram_ready(id);
        match &rig.turn()[..] {
            [Sent::Icmp(0, 0, data)] if !v6 => assert_eq!(data, b"abcdefgh"),
            [Sent::Icmp6 { src, hop_limit: 49, kind: 129, code: 0, body, .. }] if v6 => {
                assert_eq!((*src, &body[..]), (FAR6, &b"\0M\0\x01abcdefgh"[..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!((rig.stat("IcmpOutEchos"), rig.stat("IcmpInEchoReps")), (1, 1));
        assert_eq!(rig.stat("UdpOutDatagrams"), 0);
        // RFC 5508 REQ-1: sixty seconds.
        rig.pass(59_000);
        assert_eq!(open(&rig), [id]);
        rig.pass(2000);
        rig.assert_empty();
    }
}

#[test]
fn identifiers_have_sockets_of_their_own_and_udp_ports_others() {
    let mut rig = Rig::new();
    rig.frame(&request(false, 77, 1, 64, b"x"));
    rig.frame(&request(false, 78, 1, 64, b"x"));
    rig.frame(&crate::udp::out(77, (FAR, 7), b"x").frame());
    rig.turn();
    let of = |rig: &Rig| rig.host.datagrams.values().map(|s| (s.spec.kind, s.spec.port)).collect();
    let kinds: Vec<(DatagramKind, u16)> = of(&rig);
    let (echo, udp) = (DatagramKind::Echo, DatagramKind::Udp);
    assert_eq!(kinds, [(echo, 77), (echo, 78), (udp, 77)]);
    crate::udp::rest(&mut rig);
}

#[test]
fn what_is_no_reply_is_not_passed_on() {
    let mut rig = Rig::new();
    rig.frame(&request(false, 77, 1, 64, b"x"));
    rig.turn();
    let id = only(&rig);
    let stranger: SocketAddr = "192.0.2.77:0".parse().unwrap();
    for (from, payload) in [
        (far(false), message(8, 1, 1, b"a request")),
        (far(false), vec![0; 7]),
        (far(false), vec![]),
        (stranger, reply(false, 1, b"x")),
    ] {
        socket(&mut rig, id).incoming.push_back((from, FIELDS, payload));
    }
    rig.stack.on_datagram_ready(id);
    assert_eq!(rig.turn(), []);
    assert_eq!(rig.stat("UdpFiltered"), 4);
    rig.pass(61_000);
    rig.assert_empty();
}

#[test]
fn a_large_reply_is_sent_in_fragments() {
    for v6 in [false, true] {
        let mut rig = Rig::with(Setup { offload: true, ..Setup::default() });
        rig.frame(&request(v6, 77, 5, 64, b"x"));
        rig.turn();
        let id = only(&rig);
        let data = bytes(5000);
        socket(&mut rig, id).incoming.push_back((far(v6), FIELDS, reply(v6, 5, &data)));
        rig.stack.on_datagram_ready(id);
        let mut whole = Vec::new();
        for sent in rig.turn() {
            let Sent::Piece(_, at, _, piece) = sent else { panic!("{sent:?}") };
            assert_eq!(at as usize, whole.len());
            whole.extend(piece);
        }
        let body = [&77u16.to_be_bytes()[..], &5u16.to_be_bytes(), &data].concat();
        let expected =
            if v6 { icmpv6_message(FAR6, GUEST6, 129, 0, &body) } else { message(0, 77, 5, &data) };
        assert_eq!(whole, expected, "with the checksum of the whole");
        rig.pass(61_000);
        rig.assert_empty();
    }
}

#[test]
fn errors_quote_the_request_with_the_guests_identifier() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        rig.frame(&request(v6, 77, 9, 64, b"abcdefgh"));
        rig.turn();
        let id = only(&rig);
        let router: IpAddr = if v6 { "2001:db8:1::7" } else { "198.51.100.7" }.parse().unwrap();
        let quoted = message(if v6 { 128 } else { 8 }, 0xbeef, 9, b"abcdefgh");
        let entry = (far(v6), Some(router), Undeliverable::HopLimit, quoted);
        socket(&mut rig, id).errors.push_back(entry);
        rig.stack.on_datagram_ready(id);
        rig.with_cx(skbudget_stack::Container::turn);
        let frame = rig.wire.frames[0].1.clone();
        rig.taken();
        let (src, kind, code, _, quoted) = crate::udp::error(&frame);
        assert_eq!((src, kind, code), (router, if v6 { 3 } else { 11 }, 0));
        let at = if v6 { 40 } else { 20 };
        assert_eq!(quoted[at], if v6 { 128 } else { 8 });
        assert_eq!(quoted[at + 4..], *b"\0M\0\x09abcdefgh");
        rig.pass(61_000);
        rig.assert_empty();
    }
}

/// As `traceroute -I` does it.
#[test]
fn the_last_hop_is_answered_by_the_gateway() {
    let mut rig = Rig::new();
    let (src, kind, code, _, quoted) = error_of(&mut rig, &request(false, 77, 1, 1, b"x"));
    assert_eq!((src, kind, code, quoted[20]), (GATEWAY.into(), 11, 0, 8));
    let (src, kind, code, _, quoted) = error_of(&mut rig, &request(true, 77, 1, 1, b"x"));
    assert_eq!((src, kind, code, quoted[40]), (GATEWAY6.into(), 3, 0, 128));
    assert!(rig.host.datagrams.is_empty());
    rig.assert_empty();
}

#[test]
fn a_host_without_ping_sockets_prohibits() {
    let mut rig = Rig::new();
    rig.host.datagrams_open = Err(HostError::NetUnreachable);
    let (src, kind, code, _, _) = error_of(&mut rig, &request(false, 77, 1, 64, b"x"));
    assert_eq!((src, kind, code), (GATEWAY.into(), 3, 13));
    let (src, kind, code, _, _) = error_of(&mut rig, &request(true, 77, 1, 64, b"x"));
    assert_eq!((src, kind, code), (GATEWAY6.into(), 1, 1));
    assert_eq!((rig.stat("IcmpEchoProhibited"), rig.memory().udp), (2, 0));
    // A want of descriptors is none of the network's business.
    rig.host.datagrams_open = Err(HostError::NoResources);
    rig.frame(&request(false, 77, 1, 64, b"x"));
    assert_eq!((rig.turn(), rig.stat("UdpMappingsRefused")), (vec![], 1));
    rig.assert_empty();
}

#[test]
fn hosts_that_do_not_exist_are_unreachable_and_groups_have_no_answer() {
    let mut rig = Rig::new();
    let (_, kind, code, _, _) =
        error_of(&mut rig, &ipv4(1, GUEST, [10, 0, 2, 50].into(), &message(8, 7, 1, b"x")));
    assert_eq!((kind, code, rig.stat("IcmpEchoUnreachable")), (3, 1, 1));
    rig.frame(&ipv4(1, GUEST, [10, 0, 2, 255].into(), &message(8, 7, 1, b"x")));
    rig.frame(&icmpv6(GUEST6, "ff02::1".parse().unwrap(), 128, 0, &[0, 7, 0, 1]));
    assert_eq!((rig.turn(), rig.host.datagrams.len()), (vec![], 0));
    rig.assert_empty();
}
