//! UDP: mappings, what passes in both directions, what does not, and how long it lasts.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use skbudget_sim::fake_host::FakeSocket;
use skbudget_sim::packet::Datagram;
use skbudget_stack::datagram::IpFields;
use skbudget_stack::vnet::F_NEEDS_CSUM;
use skbudget_stack::{Container, DatagramId, VnetHdr};

use crate::peer::bytes;
use crate::rig::{GATEWAY, GATEWAY6, GUEST, GUEST6, Rig, Setup};
use crate::wire::{Sent, ipv4, ipv6};

pub(crate) const FAR: [u8; 4] = [192, 0, 2, 9];
pub(crate) const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
pub(crate) const FIELDS: IpFields =
    IpFields { hop_limit: 60, traffic_class: 0, dont_fragment: false };

/// A datagram of the guest to a host outside.
pub(crate) fn out(guest_port: u16, to: impl Into<SocketAddr>, data: &[u8]) -> Datagram {
    let dst = to.into();
    let src: IpAddr = if dst.is_ipv4() { GUEST.into() } else { GUEST6.into() };
    Datagram { src: (src, guest_port).into(), dst, ..Datagram::new(0, 0, data) }
}

/// Passes datagrams of the guest and runs a turn; returns what the stack sent to the guest.
pub(crate) fn send(rig: &mut Rig, datagrams: &[Datagram]) -> Vec<Sent> {
    datagrams.iter().for_each(|datagram| rig.frame(&datagram.frame()));
    rig.turn()
}

/// The ids of the open mappings, in the order of their sockets.
pub(crate) fn open(rig: &Rig) -> Vec<DatagramId> {
    rig.host.datagrams.iter().filter(|(_, s)| !s.closed).map(|(id, _)| *id).collect()
}

/// The only open mapping.
#[track_caller]
pub(crate) fn only(rig: &Rig) -> DatagramId {
    let ids = open(rig);
    assert_eq!(ids.len(), 1, "one mapping");
    ids[0]
}

pub(crate) fn socket(rig: &mut Rig, id: DatagramId) -> &mut FakeSocket {
    rig.host.datagram(id)
}

/// The host's network delivers a datagram; returns what the guest receives.
pub(crate) fn deliver(
    rig: &mut Rig,
    id: DatagramId,
    from: impl Into<SocketAddr>,
    data: &[u8],
) -> Vec<Sent> {
    socket(rig, id).incoming.push_back((from.into(), FIELDS, data.to_vec()));
    rig.stack.on_datagram_ready(id);
    rig.turn()
}

pub(crate) fn received(sent: Vec<Sent>) -> Vec<Datagram> {
    let udp = |sent| if let Sent::Udp(datagram) = sent { datagram } else { panic!("{sent:?}") };
    sent.into_iter().map(udp).collect()
}

/// Lets all mappings expire.
pub(crate) fn rest(rig: &mut Rig) {
    rig.pass(121_000);
    rig.assert_empty();
}

/// An ICMP or ICMPv6 error in a frame: source, type, code, the second word, and the quoted packet.
pub(crate) fn error(frame: &[u8]) -> (IpAddr, u8, u8, u32, Vec<u8>) {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let at = if v6 { 54 } else { 34 };
    let src: IpAddr = match v6 {
        true => Ipv6Addr::from(*frame[22..].first_chunk::<16>().unwrap()).into(),
        false => std::net::Ipv4Addr::from(*frame[26..].first_chunk::<4>().unwrap()).into(),
    };
    let word = u32::from_be_bytes(*frame[at + 4..].first_chunk().unwrap());
    (src, frame[at], frame[at + 1], word, frame[at + 8..].to_vec())
}

/// Passes a frame and runs a turn; returns the only answer as an error.
#[track_caller]
pub(crate) fn error_of(rig: &mut Rig, frame: &[u8]) -> (IpAddr, u8, u8, u32, Vec<u8>) {
    rig.frame(frame);
    rig.with_cx(Container::turn);
    let frames: Vec<_> = rig.wire.frames.iter().map(|(_, frame)| frame.clone()).collect();
    // Decodes them, and checks their checksums.
    rig.taken();
    assert_eq!(frames.len(), 1, "one answer");
    error(&frames[0])
}

#[test]
fn a_datagram_reaches_the_host_and_the_answer_the_guest() {
    for to in [SocketAddr::from((FAR, 4000)), SocketAddr::from((FAR6, 4000))] {
        let mut rig = Rig::new();
        assert_eq!(send(&mut rig, &[out(5000, to, b"question")]), []);
        let id = only(&rig);
        let sock = socket(&mut rig, id);
        assert_eq!((sock.spec.ipv6, sock.spec.port), (to.is_ipv6(), 5000));
        // The stack is a hop.
        let fields = IpFields { hop_limit: 63, traffic_class: 0, dont_fragment: true };
        assert_eq!(sock.sent, [(to, fields, b"question".to_vec())]);
        let answers = received(deliver(&mut rig, id, to, b"answer"));
        let expected = Datagram {
            hop_limit: 59,
            dont_fragment: to.is_ipv6(),
            src: to,
            dst: out(5000, to, b"").src,
            ..Datagram::new(0, 0, b"answer")
        };
        assert_eq!(answers, [expected]);
        assert_eq!((rig.stat("UdpOutDatagrams"), rig.stat("UdpInDatagrams")), (1, 1));
        assert_eq!(rig.stack.stats().mappings, 1);
        rest(&mut rig);
    }
}

#[test]
fn the_gateway_is_the_hosts_loopback() {
    let mut rig = Rig::new();
    for (gateway, loopback) in
        [(IpAddr::from(GATEWAY), "127.0.0.1:53"), (GATEWAY6.into(), "[::1]:53")]
    {
        let loopback: SocketAddr = loopback.parse().unwrap();
        send(&mut rig, &[Datagram { hop_limit: 1, ..out(5000, (gateway, 53), b"x") }]);
        let id = *open(&rig).last().unwrap();
        let (to, ip, _) = socket(&mut rig, id).sent[0];
        // The gateway is no hop on the way to itself.
        assert_eq!((to, ip.hop_limit), (loopback, 1));
        let answers = received(deliver(&mut rig, id, loopback, b"y"));
        assert_eq!((answers[0].src, answers[0].hop_limit), ((gateway, 53).into(), 60));
    }
    rest(&mut rig);
}

#[test]
fn without_the_hosts_loopback_the_gateway_refuses() {
    let mut rig = Rig::with(Setup { host_loopback: false, ..Setup::default() });
    let (src, kind, code, _, _) = error_of(&mut rig, &out(5000, (GATEWAY, 53), b"x").frame());
    assert_eq!((src, kind, code), (GATEWAY.into(), 3, 3));
    let (src, kind, code, _, _) = error_of(&mut rig, &out(5000, (GATEWAY6, 53), b"x").frame());
    assert_eq!((src, kind, code), (GATEWAY6.into(), 1, 4));
    assert!(rig.host.datagrams.is_empty());
    assert_eq!(rig.stat("UdpUnreachable"), 2);
    rig.assert_empty();
}

/// RFC 4787 REQ-1.
#[test]
fn a_port_of_the_guest_has_one_socket_for_all_destinations() {
    let mut rig = Rig::new();
    let to = |n: u8| SocketAddr::from(([192, 0, 2, n], 4000 + u16::from(n)));
    send(&mut rig, &[out(5000, to(1), b"a"), out(5000, to(2), b"b"), out(5001, to(1), b"c")]);
    let ids = open(&rig);
    assert_eq!(ids.len(), 2);
    let sent = |sock: &FakeSocket| sock.sent.iter().map(|s| (s.0, s.2.clone())).collect::<Vec<_>>();
    let (a, b, c) = (b"a".to_vec(), b"b".to_vec(), b"c".to_vec());
    assert_eq!(sent(socket(&mut rig, ids[0])), [(to(1), a), (to(2), b)]);
    assert_eq!(sent(socket(&mut rig, ids[1])), [(to(1), c)]);
    rest(&mut rig);
}

/// RFC 4787 REQ-8: address-dependent.
#[test]
fn only_addresses_that_the_guest_has_sent_to_may_answer() {
    let mut rig = Rig::new();
    send(&mut rig, &[out(5000, (FAR, 4000), b"x")]);
    let id = only(&rig);
    // A TFTP server answers from another port of the same address.
    assert_eq!(received(deliver(&mut rig, id, (FAR, 4001), b"y")).len(), 1);
    for stranger in ["192.0.2.10:4000", "127.0.0.1:4000", "10.0.2.2:4000"] {
        let stranger: SocketAddr = stranger.parse().unwrap();
        assert_eq!(deliver(&mut rig, id, stranger, b"z"), []);
    }
    assert_eq!(rig.stat("UdpFiltered"), 3);
    rest(&mut rig);
}

/// RFC 4787 REQ-5, REQ-6: two minutes after the last datagram of the guest, whatever arrives for it.
#[test]
fn a_mapping_ends_two_minutes_after_the_guests_last_datagram() {
    let mut rig = Rig::new();
    send(&mut rig, &[out(5000, (FAR, 4000), b"x")]);
    rig.pass(110_000);
    let id = only(&rig);
    assert_eq!(received(deliver(&mut rig, id, (FAR, 4000), b"y")).len(), 1);
    send(&mut rig, &[out(5000, (FAR, 4000), b"x")]);
    rig.pass(119_000);
    assert_eq!(only(&rig), id, "the same mapping");
    rig.pass(2000);
    assert_eq!((open(&rig).len(), rig.stat("UdpMappingsExpired")), (0, 1));
    assert_eq!(rig.memory().udp, 0);
    rig.assert_empty();
}

#[test]
fn a_mapping_that_only_asked_for_names_ends_after_twenty_seconds() {
    let mut rig = Rig::new();
    let dns = SocketAddr::from((FAR, 53));
    send(&mut rig, &[out(5000, dns, b"q"), out(5001, dns, b"q"), out(5001, (FAR, 54), b"x")]);
    rig.pass(19_000);
    assert_eq!(open(&rig).len(), 2);
    rig.pass(2000);
    assert_eq!(open(&rig).len(), 1, "the other one sent elsewhere, too");
    rig.pass(100_000);
    rig.assert_empty();
}

#[test]
fn datagrams_of_a_turn_leave_in_batches_in_their_order() {
    let mut rig = Rig::new();
    let datagrams: Vec<Datagram> =
        (0..100u16).map(|n| out(5000 + n % 2, (FAR, 4000), &bytes(100 + usize::from(n)))).collect();
    send(&mut rig, &datagrams);
    for (i, id) in open(&rig).into_iter().enumerate() {
        let sock = socket(&mut rig, id);
        let lengths: Vec<usize> = sock.sent.iter().map(|s| s.2.len()).collect();
        let expected: Vec<usize> = (0..50).map(|n| 100 + 2 * n + i).collect();
        assert_eq!(lengths, expected);
        // 64 datagrams are stored at most: one batch for half of them, another for those of the turn's end.
        assert_eq!(sock.batches, [32, 18]);
    }
    assert_eq!(rig.pool.live(), 0);
    rest(&mut rig);
}

#[test]
fn a_large_datagram_needs_no_memory_and_keeps_its_place() {
    let mut rig = Rig::with(Setup { mtu: 65_520, ..Setup::default() });
    let large = bytes(60_000);
    send(
        &mut rig,
        &[out(5000, (FAR, 1), b"before"), out(5000, (FAR, 2), &large), out(5000, (FAR, 3), b"")],
    );
    let id = only(&rig);
    let sent: Vec<usize> = socket(&mut rig, id).sent.iter().map(|s| s.2.len()).collect();
    assert_eq!(sent, [6, 60_000, 0]);
    // The other way, too.
    let answers = received(deliver(&mut rig, id, (FAR, 2), &large));
    assert_eq!(answers[0].data, large);
    assert_eq!(received(deliver(&mut rig, id, (FAR, 2), b""))[0].data, b"");
    rest(&mut rig);
}

#[test]
fn dscp_ecn_and_the_hop_limit_pass_in_both_directions() {
    for to in [SocketAddr::from((FAR, 4000)), SocketAddr::from((FAR6, 4000))] {
        let mut rig = Rig::new();
        let datagram = Datagram { traffic_class: 0xb9, hop_limit: 9, ..out(5000, to, b"x") };
        send(&mut rig, &[datagram.clone(), Datagram { dont_fragment: false, ..datagram }]);
        let id = only(&rig);
        let fields = IpFields { hop_limit: 8, traffic_class: 0xb9, dont_fragment: true };
        // IPv6 has no flag: routers never fragment.
        let free = IpFields { dont_fragment: to.is_ipv6(), ..fields };
        let sent: Vec<IpFields> = socket(&mut rig, id).sent.iter().map(|s| s.1).collect();
        assert_eq!(sent, [fields, free]);
        let marked = IpFields { hop_limit: 1, traffic_class: 3, dont_fragment: false };
        socket(&mut rig, id).incoming.push_back((to, marked, b"y".to_vec()));
        rig.stack.on_datagram_ready(id);
        let answer = &received(rig.turn())[0];
        assert_eq!((answer.hop_limit, answer.traffic_class), (1, 3), "never zero");
        rest(&mut rig);
    }
}

#[test]
fn checksums_are_complete_or_left_to_the_device() {
    for offload in [false, true] {
        let mut rig = Rig::with(Setup { offload, ..Setup::default() });
        for to in [SocketAddr::from((FAR, 4000)), SocketAddr::from((FAR6, 4000))] {
            send(&mut rig, &[out(5000, to, b"x")]);
            let id = *open(&rig).last().unwrap();
            // Every length around the alignment; the rig verifies each checksum.
            for len in [0, 1, 2, 3, 1000, 1001, 1452, 1472 - if to.is_ipv6() { 20 } else { 0 }] {
                let answer = received(deliver(&mut rig, id, to, &bytes(len)));
                assert_eq!(answer[0].data, bytes(len));
            }
            // A sum of zero is sent as 0xffff. With all-zero payload one word can make it so.
            for word in 0..=u16::MAX {
                if word % 257 == 0 {
                    deliver(&mut rig, id, to, &word.to_be_bytes());
                }
            }
        }
        rest(&mut rig);
    }
}

#[test]
fn a_datagram_above_the_mtu_is_sent_in_fragments() {
    for offload in [false, true] {
        let mut rig = Rig::with(Setup { offload, ..Setup::default() });
        for to in [SocketAddr::from((FAR, 4000)), SocketAddr::from((FAR6, 4000))] {
            send(&mut rig, &[out(5000, to, b"x")]);
            let id = *open(&rig).last().unwrap();
            let data = bytes(4000);
            let mut whole = Vec::new();
            for sent in deliver(&mut rig, id, to, &data) {
                let Sent::Piece(_, at, more, piece) = sent else { panic!("{sent:?}") };
                assert_eq!(at as usize, whole.len());
                whole.extend(piece);
                assert_eq!(more, whole.len() < 4008);
            }
            assert_eq!(whole[8..], data);
            // The first fragment carries the checksum of the whole.
            let (src, dst) = (to.ip(), out(0, to, b"").src.ip());
            let udp = smoltcp::wire::UdpPacket::new_checked(&whole[..]).unwrap();
            assert!(udp.verify_checksum(&src.into(), &dst.into()));
        }
        rest(&mut rig);
    }
}

#[test]
fn a_datagram_in_fragments_is_relayed_whole() {
    let mut rig = Rig::new();
    let whole = out(5000, (FAR, 4000), &bytes(3000));
    let udp = whole.bytes();
    for (at, more) in [(1480, true), (0, true), (2960, false)] {
        let end = (at + 1480).min(udp.len());
        let mut frame = ipv4(17, GUEST, FAR.into(), &udp[at..end]);
        let field = (at as u16 / 8) | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        skbudget_sim::packet::ipv4_checksum(&mut frame);
        rig.frame(&frame);
    }
    rig.turn();
    let id = only(&rig);
    let (_, ip, payload) = socket(&mut rig, id).sent[0].clone();
    // The host's kernel may fragment it again.
    assert!(payload == bytes(3000) && !ip.dont_fragment);
    rest(&mut rig);
}

#[test]
fn wrong_checksums_lengths_and_ports_are_dropped() {
    let mut rig = Rig::new();
    let good = out(5000, (FAR, 4000), b"good");
    // Over IPv4 the checksum is optional.
    let mut none = good.frame();
    none[40..42].fill(0);
    rig.frame(&none);
    assert_eq!((rig.turn(), open(&rig).len()), (vec![], 1));
    let mut wrong = good.frame();
    wrong[45] ^= 1;
    rig.frame(&wrong);
    // Over IPv6 it is not.
    let good6 = out(5000, (FAR6, 4000), b"good");
    let mut none6 = good6.frame();
    none6[60..62].fill(0);
    rig.frame(&none6);
    assert_eq!(rig.stat("DropUdpChecksum"), 2);
    // A device that vouches for it.
    rig.with_cx(|stack, cx| {
        let vnet = VnetHdr { flags: F_NEEDS_CSUM, ..VnetHdr::default() };
        stack.on_frame(cx, &vnet, &wrong);
    });
    for length in [0u16, 7, 13, 0xffff] {
        let mut udp = good.bytes();
        udp[4..6].copy_from_slice(&length.to_be_bytes());
        rig.frame(&ipv4(17, GUEST, FAR.into(), &udp));
        rig.frame(&ipv6(17, GUEST6, FAR6, &udp));
    }
    // No answer can reach port 0.
    rig.frame(&out(0, (FAR, 4000), b"x").frame());
    assert_eq!(rig.stat("DropUdp"), 9);
    assert_eq!(rig.turn(), []);
    // Bytes behind the datagram are none of it.
    let mut padded = good.bytes();
    padded.extend([0xee; 9]);
    rig.frame(&ipv4(17, GUEST, FAR.into(), &padded));
    rig.turn();
    let id = only(&rig);
    assert_eq!(socket(&mut rig, id).sent.last().unwrap().2, b"good");
    rest(&mut rig);
}

#[test]
fn destinations_that_are_no_host_have_no_socket() {
    let mut rig = Rig::new();
    // Port 0, and addresses of the subnet that no host has.
    let (_, kind, code, _, _) = error_of(&mut rig, &out(5000, (FAR, 0), b"x").frame());
    assert_eq!((kind, code), (3, 3));
    let (_, kind, code, _, _) = error_of(&mut rig, &out(5000, ([10, 0, 2, 50], 7), b"x").frame());
    assert_eq!((kind, code), (3, 1));
    let local: Ipv6Addr = "fd00::50".parse().unwrap();
    let (_, kind, code, _, _) = error_of(&mut rig, &out(5000, (local, 7), b"x").frame());
    assert_eq!((kind, code), (1, 3));
    assert_eq!(rig.stat("UdpUnreachable"), 3);
    // No error answers what is sent to many.
    for to in ["10.0.2.255", "255.255.255.255", "224.0.0.251", "239.255.255.250"] {
        let to: IpAddr = to.parse().unwrap();
        assert_eq!(send(&mut rig, &[out(5353, (to, 5353), b"x")]), [], "{to}");
    }
    let mdns: Ipv6Addr = "ff02::fb".parse().unwrap();
    assert_eq!(send(&mut rig, &[out(5353, (mdns, 5353), b"x")]), []);
    assert_eq!((rig.stat("DropDestination"), rig.host.datagrams.len()), (5, 0));
    rig.assert_empty();
}
