//! Frames that no honest guest sends: dropped, counted by reason, never a panic, never a leak.

use std::net::Ipv6Addr;

use skbudget_seed::Rng;
use skbudget_sim::packet::ipv4_checksum;
use skbudget_stack::VnetHdr;
use skbudget_stack::controller::Rules;

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{GATEWAY, GATEWAY6, GUEST, GUEST6, Rig, Setup};
use crate::wire::{ACK, FIN, GUEST_MAC, RST, SYN, Seg, ethernet, icmpv6, ipv4, ipv6};

/// One frame of each kind that a guest sends, with its name.
fn samples(peer: &Peer) -> Vec<(&'static str, Vec<u8>)> {
    let full = Hello { ts: Some(9), ..Hello::default() };
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(GUEST_MAC);
    arp.extend(GUEST.octets());
    arp.extend([0; 6]);
    arp.extend(GATEWAY.octets());
    let echo = [8, 0, 0xf7, 0xfb, 0, 1, 0, 3];
    let udp = [0x10, 0, 0x20, 0, 0, 12, 0, 0, 1, 2, 3, 4];
    let sack = vec![(peer.ack, peer.ack.wrapping_add(9))];
    let v6 = Hello { v6: true, ..full };
    let ask = [&[0; 4][..], &GATEWAY6.octets(), &[1, 1], &GUEST_MAC].concat();
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let tcp = v6.syn(41_002, 81).frame()[54..].to_vec();
    let extended =
        [&[60, 0, 5, 2, 0, 0, 1, 0, 43, 0, 1, 4, 0, 0, 0, 0][..], &[6, 0, 4, 0, 0, 0, 0, 0], &tcp]
            .concat();
    let piece = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &[7; 64]].concat();
    let mut piece_v4 = ipv4(17, GUEST, GATEWAY, &[7; 64]);
    piece_v4[20] = 0x20;
    ipv4_checksum(&mut piece_v4);
    vec![
        ("v6 syn", v6.syn(41_002, 81).frame()),
        ("v6 data", Seg { v6: true, ..peer.data_at(0, &bytes(200)) }.frame()),
        ("v6 echo", icmpv6(GUEST6, GATEWAY6, 128, 0, &[0, 1, 0, 3, 9])),
        ("v6 udp", ipv6(17, GUEST6, GATEWAY6, &udp)),
        ("v6 headers", ipv6(0, GUEST6, GATEWAY6, &extended)),
        ("v6 piece", ipv6(44, GUEST6, GATEWAY6, &piece)),
        ("v4 piece", piece_v4),
        ("neighbour", icmpv6(GUEST6, GATEWAY6, 135, 0, &ask)),
        ("router", icmpv6(GUEST6, routers, 133, 0, &[0; 4])),
        ("arp", ethernet(0x0806, &arp)),
        ("echo", ipv4(1, GUEST, GATEWAY, &echo)),
        ("udp", ipv4(17, GUEST, GATEWAY, &udp)),
        ("syn", full.syn(41_000, 81).frame()),
        ("data", peer.data_at(0, &bytes(200)).frame()),
        ("ofo", peer.data_at(500, &bytes(200)).frame()),
        ("sack", Seg { sack, ..peer.pure_ack() }.frame()),
        ("fin", Seg { flags: FIN | ACK, ..peer.pure_ack() }.frame()),
        ("rst", peer.rst().frame()),
        ("syn-ack", Seg { flags: SYN | ACK, ..full.syn(41_001, 81) }.frame()),
    ]
}

fn drops(rig: &Rig) -> u64 {
    let named = rig.stack.stats().counters;
    named.iter().filter(|(name, _)| name.starts_with("Drop")).map(|(_, n)| n).sum()
}

#[test]
fn every_frame_cut_short_is_dropped_and_counted() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    for (name, frame) in samples(&peer) {
        // Every length, so that each parser meets its end of data.
        for len in 0..frame.len() {
            let before = drops(&rig);
            rig.frame(&frame[..len]);
            assert_eq!(drops(&rig), before + 1, "{name} cut to {len} of {}", frame.len());
            assert_eq!(rig.turn(), [], "{name} cut to {len} is not answered");
        }
    }
    assert_eq!(rig.host.connects.len(), 1);
    assert_eq!(rig.state(peer.flow), "ESTAB");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_frame_with_bytes_behind_it_is_as_good_as_without() {
    // Ethernet pads short frames.
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let mut frame = peer.data(b"padded").frame();
    frame.extend([0xee; 40]);
    rig.frame(&frame);
    rig.turn();
    assert_eq!(rig.sock(peer.flow).received, b"padded");
    rig.send(peer.rst());
    rig.assert_empty();
}

/// Applies `change` to a good data frame; checks that it raises this counter and no other.
fn one_drop(counter: &str, change: impl Fn(&mut Vec<u8>)) {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let mut frame = peer.data_at(0, b"good").frame();
    change(&mut frame);
    let before = drops(&rig);
    rig.frame(&frame);
    assert_eq!((rig.stat(counter), drops(&rig)), (1, before + 1), "{counter}");
    assert_eq!(rig.turn(), []);
    rig.send(peer.rst());
    rig.assert_empty();
}

/// Changes one byte of the IPv4 header and corrects its checksum.
fn ip_byte(at: usize, value: u8) -> impl Fn(&mut Vec<u8>) {
    move |frame| {
        frame[14 + at] = value;
        ipv4_checksum(frame);
    }
}

#[test]
fn each_reason_has_its_counter() {
    one_drop("DropShortFrame", |f| f.truncate(13));
    one_drop("DropEtherType", |f| f[12] = 0x88);
    one_drop("DropIpv6Header", |f| f[12..14].copy_from_slice(&[0x86, 0xdd]));
    one_drop("DropArp", |f| f[12..14].copy_from_slice(&[0x08, 0x06]));
    one_drop("DropIpv4Header", ip_byte(0, 0x65));
    one_drop("DropIpv4Header", ip_byte(2, 0xff));
    one_drop("DropIpv4Checksum", |f| f[24] ^= 1);
    // Invalid fragments: not a multiple of eight, beyond the end of any packet, and a TCP header split in two.
    one_drop("DropFragment", |f| {
        f.truncate(f.len() - 1);
        f[17] -= 1;
        ip_byte(6, 0x20)(f);
    });
    one_drop("DropFragment", |f| {
        f[21] = 0xff;
        ip_byte(6, 0x1f)(f);
    });
    one_drop("DropFragmentTiny", ip_byte(7, 0x01));
    one_drop("DropSource", ip_byte(12, 11));
    one_drop("DropDestination", ip_byte(16, 224));
    one_drop("DropDestination", ip_byte(16, 239));
    one_drop("DropProtocol", ip_byte(9, 132));
    one_drop("DropTcpHeader", |f| f[46] = 0x40);
    one_drop("DropTcpHeader", |f| f[46] = 0xf0);
    one_drop("DropTcpChecksum", |f| f[50] ^= 1);
}

#[test]
fn a_header_shorter_than_a_header_is_no_header() {
    for ihl in 0..5 {
        let mut rig = Rig::new();
        let peer = Peer::open(&mut rig);
        // A checksum that is correct for the few bytes that the field covers.
        let mut frame = peer.data_at(0, b"good").frame();
        frame[14] = 0x40 | ihl;
        frame[24..26].fill(0);
        let end = 14 + 4 * usize::from(ihl);
        let sum = !smoltcp::wire::checksum::data(&frame[14..end]);
        if ihl > 2 {
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        } else if ihl > 0 {
            // These bytes have no checksum field: the identification is chosen to match.
            frame[16..18].copy_from_slice(&[0xff, 0xff]);
        }
        rig.frame(&frame);
        assert_eq!(rig.stat("DropIpv4Header"), 1, "a header of {ihl} words");
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_super_frame_with_wrong_lengths_is_delivered_by_its_header_or_dropped() {
    let mut rig = Rig::with(Setup { offload: true, ..Setup::default() });
    let mut peer = Peer::open(&mut rig);
    let frame = peer.data_at(0, &bytes(10_000)).frame();
    let good = VnetHdr {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };
    let lies = [
        VnetHdr { gso_size: 0, ..good },
        VnetHdr { gso_size: u16::MAX, ..good },
        VnetHdr { hdr_len: u16::MAX, ..good },
        VnetHdr { csum_start: u16::MAX, csum_offset: u16::MAX, ..good },
        VnetHdr { gso_type: 0xff, ..good },
        VnetHdr { flags: 0xff, ..good },
    ];
    for vnet in lies {
        rig.with_cx(|stack, cx| stack.on_frame(cx, &vnet, &frame));
        rig.turn();
    }
    assert_eq!(rig.sock(peer.flow).received, bytes(10_000), "once, the rest is old");
    peer.seq = peer.seq.wrapping_add(10_000);
    // Total lengths above or below the real one.
    let mut rng = Rng::new(77);
    for _ in 0..2000 {
        let mut lying = peer.data_at(0, &bytes(3000)).frame();
        let claimed = rng.index(65_536) as u16;
        lying[16..18].copy_from_slice(&claimed.to_be_bytes());
        ipv4_checksum(&mut lying);
        let before = drops(&rig);
        rig.with_cx(|stack, cx| stack.on_frame(cx, &good, &lying));
        if usize::from(claimed) > lying.len() - 14 || claimed < 40 {
            assert_eq!(drops(&rig), before + 1, "{claimed} bytes claimed");
        }
        rig.turn();
    }
    let heard = rig.sock(peer.flow).received.len();
    peer.seq = peer.seq.wrapping_add(heard as u32 - 10_000);
    rig.send(peer.rst());
    rig.assert_empty();
}

/// Passes `cases` frames to stacks in many states; checks that they keep working and that nothing is left at the end.
fn storm(seed: u64, cases: usize, mut make: impl FnMut(&mut Rng, &Peer) -> Vec<u8>) {
    let mut rng = Rng::new(seed);
    let mut done = 0;
    while done < cases {
        let offload = rng.index(2) == 1;
        let hard = [300 << 10, 1 << 20, 64 << 20][rng.index(3)];
        let rules = [Rules::Strict, Rules::Linux][rng.index(2)];
        let mut rig = Rig::with(Setup { rules, offload, hard, ..Setup::default() });
        let mut peer =
            Peer::open_with(&mut rig, 40_000, &Hello { ts: Some(3), ..Hello::default() });
        for round in 0..50 {
            for _ in 0..40 {
                let frame = make(&mut rng, &peer);
                // Half of the frames claim a verified checksum in the vnet header, so that they get further.
                let flags = if rng.index(2) == 1 { 2 } else { 0 };
                let vnet = VnetHdr { flags, ..VnetHdr::default() };
                rig.with_cx(|stack, cx| stack.on_frame(cx, &vnet, &frame));
                done += 1;
            }
            // The guest's hardware address may be arbitrary by now.
            rig.frame(&Seg { flags: RST, ..Hello::default().syn(1, 1) }.frame());
            let connects = rig.host.connects.clone();
            for flow in connects {
                if rig.flow(flow).is_some() {
                    match (round + rng.index(9)) % 9 {
                        0 => drop(rig.host_sends(flow, &bytes(3000))),
                        1 => drop(rig.host_ends(flow)),
                        2 => rig.sock(flow).room = 0,
                        3 => rig.sock(flow).room = usize::MAX,
                        _ => {}
                    }
                }
            }
            let out = rig.turn();
            if let Some(crate::wire::Sent::Tcp(seg)) = out.last()
                && seg.guest_port == peer.guest_port
            {
                peer.note(seg);
            }
            rig.pass(50);
        }
        let usage = rig.budget.meter_stats(rig.now);
        let within = Some(usage.max_usage_bytes) <= usage.hard_bytes;
        assert!(within || rules == Rules::Linux, "hard is hard");
        // Whatever state the flows are in, everything must be released.
        rig.with_cx(skbudget_stack::Container::abort_all);
        assert_eq!(rig.pool.live(), 0, "chunks nobody holds");
        let dev = rig.stack.config().dev_queue_bytes;
        assert_eq!(rig.usage(), if rules == Rules::Linux { 0 } else { dev }, "{:?}", rig.memory());
        assert!(rig.host.socks.values().all(|s| s.closed.is_some()));
        assert_eq!(rig.stack.next_deadline(), None);
    }
}

#[test]
fn changed_bytes_in_good_frames() {
    storm(1, 200_000, |rng, peer| {
        let mut all = samples(peer);
        let which = rng.index(all.len());
        let mut frame = all.swap_remove(which).1;
        for _ in 0..1 + rng.index(4) {
            // The hardware addresses stay: the rig reads the replies.
            let at = 12 + rng.index(frame.len() - 12);
            frame[at] = match rng.index(4) {
                0 => 0,
                1 => 0xff,
                2 => frame[at] ^ (1 << rng.index(8)),
                _ => rng.next_u64() as u8,
            };
        }
        if rng.index(2) == 0 && frame[12..14] == [8, 0] {
            ipv4_checksum(&mut frame);
        }
        frame
    });
}

#[test]
fn good_frames_with_any_numbers_and_flags() {
    storm(2, 100_000, |rng, peer| {
        let near = |rng: &mut Rng, n: u32| match rng.index(4) {
            0 => n,
            1 => n.wrapping_add(rng.index(3000) as u32),
            2 => n.wrapping_sub(rng.index(3000) as u32),
            _ => rng.next_u64() as u32,
        };
        let mut seg = peer.data_at(0, &[]);
        seg.data = bytes(if rng.index(3) == 0 { 0 } else { rng.index(3000) });
        seg.seq = near(rng, peer.seq);
        seg.ack = near(rng, peer.ack);
        seg.flags = if rng.index(3) == 0 { rng.next_u64() as u8 } else { ACK };
        seg.wnd = rng.next_u64() as u16;
        seg.ts = (rng.index(2) == 0).then(|| (near(rng, 3), near(rng, 3)));
        seg.mss = (rng.index(8) == 0).then(|| rng.next_u64() as u16);
        seg.wscale = (rng.index(8) == 0).then(|| rng.next_u64() as u8);
        if rng.index(5) == 0 {
            seg.guest_port = 40_000 + rng.index(40) as u16;
        }
        seg.v6 = rng.index(3) == 0;
        seg.frame()
    });
}

/// IPv6 headers in any number and order in front of good segments, fragmented or whole.
#[test]
fn ipv6_headers_of_any_kind_and_length() {
    storm(4, 60_000, |rng, peer| {
        let seg = Seg { v6: true, ..peer.data_at(0, &bytes(rng.index(300))) };
        let mut packet = seg.frame()[54..].to_vec();
        let mut next = 6;
        for _ in 0..rng.index(11) {
            let kind = [0, 43, 44, 60, 60, 60][rng.index(6)];
            let units = rng.index(4);
            let mut header = vec![next, units as u8];
            header.extend((0..6 + 8 * units).map(|_| {
                if rng.index(3) == 0 { rng.next_u64() as u8 } else { rng.index(2) as u8 }
            }));
            if kind == 44 {
                // Few identifications, so that fragments belong together.
                header[4..8].copy_from_slice(&[0, 0, 0, rng.index(3) as u8]);
                header.truncate(8);
            }
            if rng.index(12) == 0 {
                header[1] = rng.next_u64() as u8;
            }
            packet.splice(0..0, header);
            next = kind;
        }
        let dst =
            if rng.index(10) == 0 { Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1) } else { GATEWAY6 };
        ipv6(next, GUEST6, dst, &packet)
    });
}

#[test]
fn garbage() {
    storm(3, 60_000, |rng, _| {
        let len = rng.index(200);
        let mut frame: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
        if (12..15).contains(&len) {
            frame[6..12].copy_from_slice(&GUEST_MAC);
        }
        if len > 14 {
            frame[6..12].copy_from_slice(&GUEST_MAC);
            let kinds = [[8, 0], [8, 6], [0x86, 0xdd], [1, 2]];
            frame[12..14].copy_from_slice(&kinds[rng.index(4)]);
        }
        if len > 34 && rng.index(2) == 0 {
            let total = (len as u16 - 14).to_be_bytes();
            frame[14] = 0x45;
            frame[16..18].copy_from_slice(&total);
            frame[20..22].fill(0);
            frame[23] = [1, 6, 17][rng.index(3)];
            frame[26..30].copy_from_slice(&GUEST.octets());
            frame[30..34].copy_from_slice(&GATEWAY.octets());
            ipv4_checksum(&mut frame);
        }
        frame
    });
}
