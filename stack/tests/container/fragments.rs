//! IP fragments, of both families, in both directions.

use skbudget_stack::Container;

use crate::ecn;
use crate::peer::{Hello, Peer, bytes};
use crate::rig::{GATEWAY, GATEWAY6, GUEST, GUEST6, Rig, Setup, one};
use crate::wire::{CWR, ECE, Sent, ethernet, icmpv6_message, ipv4, ipv6, transport_checksum};

/// `payload` in fragments of `step` bytes, a multiple of eight, in order.
fn pieces(v6: bool, protocol: u8, id: u16, payload: &[u8], step: usize) -> Vec<Vec<u8>> {
    let of = |(i, part): (usize, &[u8])| {
        let (at, more) = (i * step, (i + 1) * step < payload.len());
        if v6 {
            // The IPv6 offset is in units of 8 bytes, shifted left by 3: the same number as bytes.
            let word = at as u16 | u16::from(more);
            let mut header = vec![protocol, 0];
            header.extend(word.to_be_bytes());
            header.extend(u32::from(id).to_be_bytes());
            return ipv6(44, GUEST6, GATEWAY6, &[&header, part].concat());
        }
        let mut frame = ipv4(protocol, GUEST, GATEWAY, part);
        // The IPv4 offset is in units of 8 bytes; bit 13 is More Fragments.
        let word = (at / 8) as u16 | u16::from(more) << 13;
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        sum_v4(&mut frame);
        frame
    };
    payload.chunks(step).enumerate().map(of).collect()
}

/// Recomputes the header's checksum.
fn sum_v4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = !smoltcp::wire::checksum::data(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Sets the packet's ECN field, which was zero.
fn mark(v6: bool, frame: &mut [u8], ecn: u8) {
    if v6 {
        frame[15] |= ecn << 4;
    } else {
        frame[15] |= ecn;
        sum_v4(frame);
    }
}

fn echo(v6: bool, len: usize) -> Vec<u8> {
    let body = [&[0, 7, 0, 9][..], &bytes(len)].concat();
    if v6 {
        return icmpv6_message(GUEST6, GATEWAY6, 128, 0, &body);
    }
    let mut message = [&[8, 0, 0, 0][..], &body].concat();
    let sum = !smoltcp::wire::checksum::data(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

#[test]
fn a_ping_larger_than_the_mtu_is_answered_in_pieces() {
    for v6 in [false, true] {
        for len in [4000, 1472, 1473, 1453, 60_000] {
            for backwards in [false, true] {
                let mut rig = Rig::new();
                let protocol = if v6 { 58 } else { 1 };
                let mut frames = pieces(v6, protocol, 77, &echo(v6, len), 1448);
                if backwards {
                    // The last fragment first: the length is known before the first arrives.
                    frames.reverse();
                }
                frames.iter().for_each(|frame| rig.frame(frame));
                let in_one = frames.len() == 1;
                assert_eq!(rig.stat("ReasmOKs"), u64::from(!in_one));
                assert_eq!(rig.stat("IcmpEchoAnswered"), 1);
                let mut whole = Vec::new();
                for sent in rig.turn() {
                    match sent {
                        Sent::Piece(_, at, more, part) => {
                            assert_eq!((at as usize, more), (whole.len(), part.len() >= 1400));
                            assert!(!more || part.len() % 8 == 0);
                            whole.extend(part);
                        }
                        Sent::Icmp(_, _, data) => whole = [&[0; 8][..], &data].concat(),
                        Sent::Icmp6 { body, .. } => whole = [&[0; 4][..], &body].concat(),
                        other => panic!("{other:?}"),
                    }
                }
                assert!(whole[8..] == bytes(len), "{len} bytes, v6 {v6}");
                rig.assert_empty();
            }
        }
    }
}

#[test]
fn a_segment_in_pieces_is_a_segment() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let hello = Hello { v6, mss: Some(1440), ..Hello::default() };
        let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
        let frame = peer.data(&bytes(1000)).frame();
        let tcp = &frame[if v6 { 54 } else { 34 }..];
        for piece in pieces(v6, 6, 5, tcp, 400) {
            rig.frame(&piece);
        }
        rig.turn();
        assert!(rig.sock(peer.flow).received == bytes(1000));
        // A wrong checksum is found once all fragments are there, whatever the vnet header claims.
        let mut bad = peer.data_at(0, &bytes(1000)).frame()[if v6 { 54 } else { 34 }..].to_vec();
        // One bit in the second fragment.
        bad[700] ^= 1;
        for piece in pieces(v6, 6, 6, &bad, 400) {
            let vnet = skbudget_stack::VnetHdr { flags: 2, ..Default::default() };
            rig.with_cx(|stack, cx| stack.on_frame(cx, &vnet, &piece));
        }
        assert_eq!(rig.stat("DropTcpChecksum"), 1);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_mark_on_a_piece_is_echoed_and_beside_one_that_cannot_bear_it_drops_the_segment() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let hello = Hello { v6, mss: Some(1440), ..Hello::default() };
        let (mut peer, _) = ecn::open(&mut rig, &hello, ECE | CWR, 0);
        for (id, ecns, marked) in [(5, [2, 2, 2], 0), (6, [2, 3, 2], 1), (7, [0, 3, 0], 1)] {
            let frame = peer.data(&bytes(1000)).frame();
            let mut frames = pieces(v6, 6, id, &frame[if v6 { 54 } else { 34 }..], 400);
            frames.iter_mut().zip(ecns).for_each(|(frame, ecn)| mark(v6, frame, ecn));
            frames.iter().for_each(|frame| rig.frame(frame));
            rig.turn();
            assert_eq!(rig.stat("InCEPkts"), marked, "{ecns:?}");
        }
        assert_eq!(rig.sock(peer.flow).received.len(), 2000, "RFC 3168 section 5.3");
        assert_eq!((rig.stat("DropFragmentEcn"), rig.stat("ReasmOKs")), (1, 2));
        let ack = one(rig.send(peer.data_at(-1000, &bytes(1000))));
        assert!(ack.flags & ECE != 0);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_header_behind_the_fragment_header_is_skipped_too() {
    let mut rig = Rig::new();
    let options = [58, 0, 1, 4, 0, 0, 0, 0];
    let payload = [&options[..], &echo(true, 2000)].concat();
    pieces(true, 60, 5, &payload, 1000).iter().for_each(|p| rig.frame(p));
    assert_eq!(rig.stat("IcmpEchoAnswered"), 1);
    // But not another fragment header, and no header that belongs before it.
    for kind in [44, 0] {
        let before = rig.stat("DropFragment") + rig.stat("DropIpv6Extension");
        let payload = [&[58, 0, 0, 1, 0, 0, 0, 1][..], &echo(true, 2000)].concat();
        pieces(true, kind, 6 + u16::from(kind), &payload, 1000).iter().for_each(|p| rig.frame(p));
        let after = rig.stat("DropFragment") + rig.stat("DropIpv6Extension");
        assert_eq!(after, before + 1, "header {kind}");
    }
    rig.turn();
    rig.assert_empty();
}

#[test]
fn overlap_is_refused_until_it_is_forgotten() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let protocol = if v6 { 58 } else { 1 };
        let good = echo(v6, 2000);
        let mut other = good.clone();
        other[1100] ^= 1;
        let (good, other) =
            (pieces(v6, protocol, 5, &good, 1000), pieces(v6, protocol, 5, &other, 1000));
        // A repeated fragment is no overlap; one with other contents is, and so is every later fragment.
        for frame in [&good[0], &good[0], &good[1], &other[1], &good[2], &good[0]] {
            rig.frame(frame);
        }
        assert_eq!(rig.stat("DropFragmentOverlap"), 3, "v6 {v6}");
        // Longer than the reassembly timeout of both families.
        rig.pass(61_000);
        assert_eq!(rig.stat("ReasmTimeout"), 1);
        good.iter().for_each(|frame| rig.frame(frame));
        assert_eq!(rig.stat("IcmpEchoAnswered"), 1);
        rig.turn();
        rig.assert_empty();
    }
}

#[test]
fn an_incomplete_datagram_is_charged_and_uncharged() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let frames = pieces(v6, 17, 5, &bytes(30_000), 1400);
        frames[1..].iter().for_each(|frame| rig.frame(frame));
        assert!(rig.memory().frag >= 30_000, "{:?}", rig.memory());
        assert!(rig.usage() >= rig.empty + 30_000);
        rig.pass(if v6 { 59_000 } else { 29_000 });
        assert!(rig.memory().frag > 0);
        rig.pass(2000);
        assert_eq!((rig.memory().frag, rig.stat("ReasmTimeout")), (0, 1));
        rig.assert_empty();
        // The charge is released when the container ends, too.
        frames[1..].iter().for_each(|frame| rig.frame(frame));
        rig.with_cx(Container::abort_all);
        assert_eq!((rig.memory().frag, rig.stack.next_deadline()), (0, None));
    }
}

#[test]
fn time_exceeded_is_sent_only_if_fragment_zero_arrived() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let udp = [&[0x10, 0, 0, 53, 0x0b, 0xc0, 0, 0][..], &bytes(3000)].concat();
        let frames = pieces(v6, 17, 5, &udp, 1400);
        rig.frame(&frames[0]);
        let told = rig.pass(61_000);
        let [(at, sent)] = &told[..] else { panic!("{told:?}") };
        match sent {
            Sent::Icmp(_, 1, quoted) if !v6 => {
                assert_eq!(*at, 30_000);
                assert_eq!(quoted[20..], udp[..8]);
            }
            Sent::Icmp6 { kind: 3, code: 1, body, .. } if v6 => {
                assert_eq!(*at, 60_000);
                assert_eq!(body[4 + 40..], frames[0][54..][..body.len() - 44]);
            }
            other => panic!("{other:?}"),
        }
        // Without the first fragment no Time Exceeded is sent.
        rig.frame(&frames[1]);
        assert_eq!(rig.pass(61_000), []);
        rig.assert_empty();
    }
}

#[test]
fn a_flood_of_pieces_leaves_room_for_flows() {
    let hard = 1 << 20;
    let mut rig = Rig::with(Setup { hard, ..Setup::default() });
    for id in 0..5000u16 {
        let frames = pieces(id % 2 == 0, 17, id, &bytes(9000), 1400);
        rig.frame(&frames[6]);
        rig.frame(&frames[usize::from(id) % 5]);
        assert!(rig.memory().frag <= hard / 8);
    }
    let mut peer = Peer::open(&mut rig);
    rig.send(peer.data(b"through"));
    assert_eq!(rig.sock(peer.flow).received, b"through");
    assert!(rig.budget.meter_stats(rig.now).max_usage_bytes <= hard);
    rig.send(peer.rst());
    rig.pass(60_000);
    rig.assert_empty();
}

#[test]
fn a_udp_datagram_in_pieces_is_answered_as_one() {
    let mut rig = Rig::new();
    // To port 0, which no host has.
    let mut udp = vec![0x10, 0, 0, 0];
    udp.extend(3008u16.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(bytes(3000));
    for v6 in [false, true] {
        if v6 {
            transport_checksum(GUEST6.into(), GATEWAY6.into(), 17, &mut udp, 6);
        }
        pieces(v6, 17, 5, &udp, 1400).iter().for_each(|frame| rig.frame(frame));
    }
    let out = rig.turn();
    assert!(matches!(out[0], Sent::Icmp(3, 3, _)), "{out:?}");
    let Sent::Icmp6 { kind: 1, code: 4, body, .. } = &out[1] else { panic!("{out:?}") };
    // No ICMPv6 error is longer than the smallest MTU (RFC 4443 section 2.4).
    assert_eq!(body.len() + 4 + 40, 1280);
    assert_eq!(rig.stat("UdpUnreachable"), 2);
}

#[test]
fn bytes_behind_a_packet_are_no_part_of_a_piece() {
    let mut rig = Rig::new();
    for mut frame in pieces(true, 58, 5, &echo(true, 20), 16) {
        frame.extend([0xee; 30]);
        rig.frame(&frame);
    }
    assert_eq!(rig.stat("IcmpEchoAnswered"), 1);
    rig.frame(&ethernet(0x86dd, &[]));
    assert_eq!(rig.stat("DropIpv6Header"), 1);
}
