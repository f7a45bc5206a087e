//! Old segments, recognised by their timestamps (RFC 7323 section 5).

use crate::peer::{Hello, Peer};
use crate::rig::{Rig, one};
use crate::wire::{RST, Seg};

const DAY: u64 = 86_400_000;

fn open(ts: u32) -> (Rig, Peer) {
    let mut rig = Rig::new();
    let peer = Peer::open_with(&mut rig, 40_000, &Hello { ts: Some(ts), ..Hello::default() });
    (rig, peer)
}

fn at(peer: &Peer, val: u32, seg: Seg) -> Seg {
    Seg { ts: peer.ts.map(|(_, ecr)| (val, ecr)), ..seg }
}

#[test]
fn an_older_one_is_answered_and_not_taken() {
    let (mut rig, mut peer) = open(5000);
    let old = at(&peer, 4999, peer.data_at(0, b"old"));
    assert_eq!(one(rig.send(old)).ack, peer.seq);
    assert_eq!((rig.sock(peer.flow).received.len(), rig.stat("PAWSEstab")), (0, 1));
    let data = peer.data(b"same");
    rig.send(at(&peer, 5000, data));
    assert_eq!(rig.sock(peer.flow).received, b"same");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn the_clock_may_come_round() {
    let (mut rig, mut peer) = open(u32::MAX - 1);
    for (val, data) in [(u32::MAX, b"a"), (0, b"b"), (7, b"c")] {
        let seg = peer.data(data);
        rig.send(at(&peer, val, seg));
    }
    assert_eq!(rig.sock(peer.flow).received, b"abc");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn after_24_days_of_silence_any_is_new() {
    let (mut rig, mut peer) = open(5000);
    let ago = |days: u32| 5000u32.wrapping_sub(days);
    rig.now = skbudget_stack::controller::Instant(rig.now.0 + 23 * DAY * 1_000_000);
    let old = at(&peer, ago(1), peer.data_at(0, b"old"));
    rig.send(old);
    assert_eq!(rig.sock(peer.flow).received, []);
    rig.now = skbudget_stack::controller::Instant(rig.now.0 + 2 * DAY * 1_000_000);
    let seg = peer.data(b"new");
    rig.send(at(&peer, ago(1), seg));
    assert_eq!(rig.sock(peer.flow).received, b"new", "section 5.5");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_reset_is_obeyed_however_old() {
    let (mut rig, peer) = open(5000);
    let rst = at(&peer, 1, Seg { flags: RST, ..peer.rst() });
    rig.send(rst);
    assert_eq!(rig.state(peer.flow), "GONE", "section 5.2");
    rig.assert_empty();
}

#[test]
fn the_echo_is_of_the_segment_that_moved_the_edge() {
    let (mut rig, mut peer) = open(100);
    // Behind a hole: not echoed (section 4.3, case B).
    let behind = at(&peer, 120, peer.data_at(3, b"def"));
    assert_eq!(one(rig.send(behind)).ts.unwrap().1, 100);
    // The segment that fills the hole is echoed, although it was sent earlier (case C).
    let fills = at(&peer, 110, peer.data_at(0, b"abc"));
    let ack = one(rig.send(fills));
    assert_eq!((ack.ts.unwrap().1, ack.ack), (110, peer.seq + 6));
    peer.seq += 6;
    rig.send(Seg { ts: None, ..peer.rst() });
    rig.assert_empty();
}
