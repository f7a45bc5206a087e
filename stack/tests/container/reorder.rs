//! Reordered segments are not lost (RFC 8985 section 6.2).

use crate::peer::{Hello, Peer, bytes, end};
use crate::rig::{Rig, one};
use crate::wire::Seg;

const RTT: u64 = 40;
const MSS: u32 = 1460;

/// A guest 40 ms away, with ten segments that were sent 40 ms ago.
fn ten_out() -> (Rig, Peer, Vec<Seg>) {
    let mut rig = Rig::new();
    let peer = Peer::open_far(&mut rig, &Hello::default(), RTT);
    let said = rig.host_sends(peer.flow, &bytes(14_600));
    assert_eq!(said.len(), 10);
    assert_eq!(rig.pass_segs(RTT), []);
    (rig, peer, said)
}

/// Ten more segments, after all earlier ones were acknowledged.
fn ten_more(rig: &mut Rig, peer: &mut Peer, said: &[Seg]) -> Vec<Seg> {
    peer.ack = said[said.len() - 1].seq + MSS;
    rig.send(peer.pure_ack());
    let more = rig.host_sends(peer.flow, &bytes(14_600));
    assert_eq!(rig.pass_segs(RTT), []);
    more
}

#[test]
fn one_segment_behind_a_hole_is_given_a_quarter_of_a_round_trip() {
    let (mut rig, peer, said) = ten_out();
    assert_eq!(rig.send(peer.holes(&said, &[(1, 2)])), []);
    let later = rig.pass_segs(30);
    assert_eq!((later[0].0, later[0].1.seq), (RTT / 4, said[0].seq));
    assert_eq!(later.len(), 1, "only what was sent before it: {later:?}");
    end(rig, &peer);
}

#[test]
fn a_segment_that_was_overtaken_is_not_sent_again() {
    let (mut rig, mut peer, said) = ten_out();
    assert_eq!(rig.send(peer.holes(&said, &[(1, 3)])), []);
    rig.pass(5);
    peer.ack = said[3].seq;
    assert_eq!(rig.send(peer.pure_ack()), []);
    peer.ack = said[9].seq + MSS;
    rig.send(peer.pure_ack());
    assert_eq!(rig.pass_segs(5000), []);
    assert_eq!(rig.stat("RetransSegs"), 0);
    end(rig, &peer);
}

#[test]
fn a_path_that_reorders_is_waited_for_however_many_came_before() {
    let (mut rig, mut peer, said) = ten_out();
    rig.send(peer.holes(&said, &[(1, 3)]));
    let more = ten_more(&mut rig, &mut peer, &said);
    // Nine of ten segments are behind the hole: on a path that never reordered, this is a loss at once.
    assert_eq!(rig.send(peer.holes(&more, &[(1, 10)])), []);
    let later = rig.pass_segs(30);
    assert_eq!((later[0].0, later[0].1.seq), (RTT / 4, more[0].seq));
    end(rig, &peer);
}

#[test]
fn what_was_sent_again_for_nothing_makes_the_wait_longer() {
    let (mut rig, mut peer, said) = ten_out();
    rig.send(peer.holes(&said, &[(1, 2)]));
    assert_eq!(rig.pass_segs(11).len(), 1);
    // The original did arrive: the guest reports a duplicate, and its delay shows that the path reorders.
    peer.ack = said[2].seq;
    let twice = (said[0].seq, said[1].seq);
    rig.send(Seg { sack: vec![twice], ..peer.pure_ack() });
    let more = ten_more(&mut rig, &mut peer, &said);
    assert_eq!(rig.send(peer.holes(&more, &[(1, 2)])), []);
    let later = rig.pass_segs(60);
    assert_eq!((later[0].0, later[0].1.seq), (RTT / 2, more[0].seq), "two quarters");
    end(rig, &peer);
}

#[test]
fn acks_that_overtake_each_other_change_nothing() {
    let (mut rig, mut peer, said) = ten_out();
    let old = peer.pure_ack();
    peer.ack = said[6].seq;
    rig.send(peer.pure_ack());
    let flow = rig.flow(peer.flow).unwrap();
    for _ in 0..5 {
        assert_eq!(rig.send(old.clone()), []);
        assert_eq!(rig.send(Seg { sack: vec![(said[1].seq, said[3].seq)], ..old.clone() }), []);
    }
    let after = rig.flow(peer.flow).unwrap();
    assert_eq!((after.cwnd, after.ssthresh), (flow.cwnd, flow.ssthresh));
    assert_eq!(rig.stat("RetransSegs"), 0);
    end(rig, &peer);
}

#[test]
fn data_of_the_guest_that_was_overtaken_reaches_the_host_in_order() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let data = bytes(5000);
    for i in [4, 1, 3, 0, 2] {
        let at = 1000 * i;
        one(rig.send(peer.data_at(at, &data[at as usize..at as usize + 1000])));
    }
    assert_eq!(rig.sock(peer.flow).received, data);
    peer.seq += 5000;
    end(rig, &peer);
}

#[test]
fn data_received_twice_is_reported_in_a_dsack() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let base = peer.seq;
    let at = |from: u32, to: u32| (base + from, base + to);
    rig.send(peer.data(&bytes(1000)));
    // RFC 2883 section 4.1: a duplicate entirely below RCV.NXT, reported once.
    assert_eq!(one(rig.send(peer.data_at(-1000, &bytes(400)))).sack, [at(0, 400)]);
    rig.send(peer.data_at(500, b"behind"));
    // A duplicate behind a hole: the first block is the duplicate, the second the range around it (section 4.2).
    let ack = one(rig.send(peer.data_at(500, b"behind")));
    assert_eq!(ack.sack, [at(1500, 1506), at(1500, 1506)]);
    // Partly new: the old part (section 4.3).
    let ack = one(rig.send(peer.data_at(-100, &bytes(200))));
    assert_eq!((ack.ack, ack.sack), (base + 1100, vec![at(900, 1000), at(1500, 1506)]));
    peer.seq = base + 1100;
    rig.send(peer.rst());
    rig.assert_empty();
}
