//! The congestion window: how much of the host's data is sent at once.

use crate::peer::{Hello, Peer, bytes};
use crate::rig::Rig;
use crate::wire::Seg;

/// Round-trip time of these guests, milliseconds.
const RTT: u64 = 40;

/// Acknowledges all outstanding segments, two an ACK, in one turn; returns what is sent then.
fn acknowledge(rig: &mut Rig, peer: &mut Peer, out: &[Seg]) -> Vec<Seg> {
    rig.pass(RTT);
    let acks: Vec<Seg> = out
        .chunks(2)
        .map(|two| {
            peer.receive(two);
            peer.pure_ack()
        })
        .collect();
    rig.send_all(&acks)
}

#[test]
fn acks_of_one_turn_open_the_window_as_if_they_came_one_by_one() {
    let mut rig = Rig::new();
    let mut peer = Peer::open_far(&mut rig, &Hello::default(), RTT);
    peer.wnd = u16::MAX;
    let mut out = rig.host_sends(peer.flow, &bytes(1_000_000));
    // Slow start from the initial window of ten segments (RFC 6928).
    for doubled in [10, 20, 40, 80, 160] {
        assert_eq!(out.len(), doubled);
        out = acknowledge(&mut rig, &mut peer, &out);
    }
    rig.send(peer.rst());
    rig.assert_empty();
}

/// A guest that acknowledged the 30 segments it received: the congestion window is 40 segments.
fn forty() -> (Rig, Peer) {
    let mut rig = Rig::new();
    let mut peer = Peer::open_far(&mut rig, &Hello::default(), RTT);
    peer.wnd = u16::MAX;
    let mut out = rig.host_sends(peer.flow, &bytes(30 * 1460));
    while !out.is_empty() {
        out = acknowledge(&mut rig, &mut peer, &out);
    }
    (rig, peer)
}

#[test]
fn after_idle_the_window_is_halved_each_timeout_down_to_the_initial_one() {
    for (idle, expected) in [(100, 40), (300, 20), (1000, 10), (60_000, 10)] {
        let (mut rig, peer) = forty();
        // The retransmission timeout is 240 ms.
        rig.pass(idle);
        let out = rig.host_sends(peer.flow, &bytes(100 * 1460));
        assert_eq!(out.len(), expected, "after {idle} ms");
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn idle_counts_once_however_often_a_closed_window_is_probed() {
    let (mut rig, mut peer) = forty();
    let wide = std::mem::replace(&mut peer.wnd, 0);
    rig.send(peer.pure_ack());
    assert_eq!(rig.host_sends(peer.flow, &bytes(100 * 1460)), []);
    // Meanwhile the window is probed and the guest answers. The timeout is 240 ms: one has passed.
    for _ in 0..6 {
        assert!(rig.pass_segs(50).iter().all(|(_, s)| s.data.is_empty()));
        rig.send(peer.pure_ack());
    }
    peer.wnd = wide;
    assert_eq!(rig.send(peer.pure_ack()).len(), 20);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn idle_counts_once_though_the_device_takes_nothing() {
    let (mut rig, peer) = forty();
    rig.pass(300);
    rig.wire.room = 0;
    let mut out = rig.host_sends(peer.flow, &bytes(100 * 1460));
    for _ in 0..3 {
        out.extend(rig.send(peer.pure_ack()));
    }
    assert_eq!(out, []);
    rig.wire.room = usize::MAX;
    assert_eq!(rig.pass_segs(10).len(), 20);
    rig.send(peer.rst());
    rig.assert_empty();
}
