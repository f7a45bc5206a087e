//! How much of what the host says goes out at once.

use crate::peer::{Hello, Peer, bytes};
use crate::rig::Rig;
use crate::wire::Seg;

/// Round trip of the guests here, milliseconds.
const RTT: u64 = 40;

/// What is outstanding is acknowledged, two segments an ACK, all in one turn; what goes out then.
fn acknowledge(rig: &mut Rig, peer: &mut Peer, out: &[Seg]) -> Vec<Seg> {
    rig.pass(RTT);
    let acks: Vec<Seg> = out
        .chunks(2)
        .map(|two| {
            peer.hear(two);
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
    let mut out = rig.host_says(peer.flow, &bytes(1_000_000));
    for doubled in [10, 20, 40, 80, 160] {
        assert_eq!(out.len(), doubled);
        out = acknowledge(&mut rig, &mut peer, &out);
    }
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn after_idle_the_window_is_halved_each_timeout_down_to_the_initial_one() {
    for (idle, expected) in [(100, 40), (300, 20), (1000, 10), (60_000, 10)] {
        let mut rig = Rig::new();
        let mut peer = Peer::open_far(&mut rig, &Hello::default(), RTT);
        peer.wnd = u16::MAX;
        let mut out = rig.host_says(peer.flow, &bytes(30 * 1460));
        while !out.is_empty() {
            out = acknowledge(&mut rig, &mut peer, &out);
        }
        // 30 segments were acknowledged: the window is 40. A timeout is 240 ms.
        rig.pass(idle);
        let out = rig.host_says(peer.flow, &bytes(100 * 1460));
        assert_eq!(out.len(), expected, "after {idle} ms");
        rig.send(peer.rst());
        rig.assert_empty();
    }
}
