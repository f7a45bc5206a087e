//! Destinations without a route: the guest receives an error at once, from an address that its kernel accepts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::peer::{Hello, introduce};
use crate::rig::{GATEWAY, GATEWAY6, GUEST, GUEST6, Rig};
use crate::wire::{ACK, Seg, icmpv6, ipv4, ipv6, transport_checksum};

const NOWHERE: [&str; 7] =
    ["127.0.0.1", "127.255.255.254", "127.1.2.3", "0.0.0.0", "0.0.0.1", "0.255.3.4", "10.0.2.100"];
const NOWHERE6: [&str; 8] = [
    "::1",
    "::",
    "::127.0.0.1",
    "::198.51.100.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.2.2",
    "::ffff:198.51.100.1",
    "fd00::100",
];
const MANY: [&str; 3] = ["224.0.0.1", "239.255.255.250", "255.255.255.255"];
const MANY6: [&str; 4] = ["ff02::fb", "ff05::2", "ff0e::1", "ff01::1"];

fn v4(ip: &str) -> Ipv4Addr {
    ip.parse().unwrap()
}

fn v6(ip: &str) -> Ipv6Addr {
    ip.parse().unwrap()
}

/// A SYN, a segment of no flow, a datagram, an echo request: each to `to`.
fn packets(to: IpAddr) -> Vec<Vec<u8>> {
    let is_v6 = to.is_ipv6();
    let syn = Hello { v6: is_v6, ..Hello::default() }.syn(40_000, 80);
    let syn = match to {
        IpAddr::V4(to) => Seg { remote: Some(to), ..syn },
        IpAddr::V6(to) => Seg { remote6: Some(to), ..syn },
    };
    let stray = Seg { flags: ACK, ack: 5, data: vec![1; 900], mss: None, ..syn.clone() };
    let mut udp = [0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
    let (udp, echo) = match to {
        IpAddr::V4(to) => {
            let mut echo = [8, 0, 0, 0, 0, 7, 0, 1, 9, 9, 9, 9];
            let sum = !smoltcp::wire::checksum::data(&echo);
            echo[2..4].copy_from_slice(&sum.to_be_bytes());
            (ipv4(17, GUEST, to, &udp), ipv4(1, GUEST, to, &echo))
        }
        IpAddr::V6(to) => {
            transport_checksum(GUEST6.into(), to.into(), 17, &mut udp, 6);
            (ipv6(17, GUEST6, to, &udp), icmpv6(GUEST6, to, 128, 0, &[0, 7, 0, 1, 9, 9]))
        }
    };
    vec![syn.frame(), stray.frame(), udp, echo]
}

/// Passes `frame`; returns the only frame that answers it at once.
fn answer(rig: &mut Rig, frame: &[u8]) -> Vec<u8> {
    rig.frame(frame);
    let mut sent: Vec<Vec<u8>> = rig.wire.frames.drain(..).map(|(_, frame)| frame).collect();
    assert_eq!(sent.len(), 1, "an answer, at once");
    sent.remove(0)
}

#[test]
fn what_is_sent_nowhere_is_unreachable() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let before = rig.stat("DropDestination");
    for nowhere in NOWHERE {
        for frame in packets(v4(nowhere).into()) {
            let answer = answer(&mut rig, &frame);
            // From the gateway: net unreachable, with the header of the rejected packet.
            assert_eq!(answer[26..34], [GATEWAY.octets(), GUEST.octets()].concat(), "{nowhere}");
            assert_eq!((answer[23], answer[34], answer[35]), (1, 3, 0), "{nowhere}");
            assert_eq!(answer[42 + 12..42 + 20], frame[26..34], "{nowhere}");
            assert_eq!(answer[42 + 9], frame[23], "the protocol");
            assert_eq!(answer[62..70], frame[34..42], "ports and sequence number");
        }
    }
    for nowhere in NOWHERE6 {
        for frame in packets(v6(nowhere).into()) {
            let answer = answer(&mut rig, &frame);
            assert_eq!(answer[22..54], [GATEWAY6.octets(), GUEST6.octets()].concat(), "{nowhere}");
            assert_eq!((answer[20], answer[54], answer[55]), (58, 1, 0), "no route to {nowhere}");
            let quoted = &answer[62..];
            let length = quoted.len().min(frame.len() - 14);
            assert_eq!(
                quoted[4..length],
                frame[18..14 + length],
                "as it was sent, from its length on"
            );
            let mut icmp = answer[54..].to_vec();
            let sum = [icmp[2], icmp[3]];
            transport_checksum(GATEWAY6.into(), GUEST6.into(), 58, &mut icmp, 2);
            assert_eq!(sum, [icmp[2], icmp[3]]);
        }
    }
    let sent = 4 * (NOWHERE.len() + NOWHERE6.len()) as u64;
    assert_eq!(rig.stat("DropDestination") - before, sent);
    assert_eq!((rig.host.connects.len(), rig.turn()), (0, vec![]));
    rig.assert_empty();
}

#[test]
fn what_is_sent_to_many_has_no_answer() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let v4 = MANY.iter().flat_map(|to| packets(v4(to).into()));
    let frames: Vec<Vec<u8>> =
        v4.chain(MANY6.iter().flat_map(|to| packets(v6(to).into()))).collect();
    for frame in &frames {
        rig.frame(frame);
    }
    assert_eq!(rig.turn(), []);
    assert_eq!(rig.stat("DropDestination"), frames.len() as u64);
    rig.assert_empty();
}

#[test]
fn errors_and_later_fragments_have_no_answer() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let (nowhere, nowhere6) = (v4("127.0.0.1"), v6("::192.0.2.1"));
    // Time exceeded, an echo reply, and an empty message.
    for icmp in [&[11, 0, 0, 0, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 7, 0, 1], &[]] {
        rig.frame(&ipv4(1, GUEST, nowhere, icmp));
    }
    for kind in [1, 3, 129, 135] {
        rig.frame(&icmpv6(GUEST6, nowhere6, kind, 0, &[0; 24]));
    }
    let mut later = ipv4(6, GUEST, nowhere, &[1; 64]);
    later[21] = 8;
    later[24..26].fill(0);
    let sum = !smoltcp::wire::checksum::data(&later[14..34]);
    later[24..26].copy_from_slice(&sum.to_be_bytes());
    rig.frame(&later);
    let fragment = |offset: u16| {
        let [high, low] = (offset | 1).to_be_bytes();
        [&[6, 0, high, low, 0, 0, 0, 9][..], &[1; 64]].concat()
    };
    rig.frame(&ipv6(44, GUEST6, nowhere6, &fragment(64)));
    assert_eq!((rig.turn(), rig.stat("DropDestination")), (vec![], 9));
    // The first fragment has an answer, and is not kept.
    assert_eq!(answer(&mut rig, &ipv6(44, GUEST6, nowhere6, &fragment(0)))[54], 1);
    rig.assert_empty();
}

#[test]
fn answers_have_a_limit() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let (v4, v6) = (packets(v4("127.0.0.1").into()), packets(v6("::1.2.3.4").into()));
    for i in 0..5000 {
        rig.frame(if i % 2 == 0 { &v4[0] } else { &v6[0] });
    }
    assert!(rig.wire.frames.len() <= 1000, "{}", rig.wire.frames.len());
    assert_eq!(rig.stat("DropDestination"), 5000);
    assert_eq!(rig.stat("IcmpRateLimited"), 5000 - rig.turn().len() as u64);
    rig.assert_empty();
}
