//! Path MTU discovery towards the guest.

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{GATEWAY6, GUEST6, Rig};
use crate::wire::icmpv6;

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
        let first = rig.host_sends(peer.flow, &bytes(4000));
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
            heard.extend(peer.receive(&said));
            said = rig.send(peer.pure_ack());
        }
        assert!(heard == bytes(4000));
        // An error with the same MTU changes nothing the second time.
        rig.host_sends(peer.flow, &bytes(100));
        rig.frame(&too_big(&peer, mtu, peer.ack));
        assert_eq!(rig.stat("PathMtuLowered"), 1);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}
