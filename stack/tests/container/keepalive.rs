//! Guests that send nothing for a long time.

use crate::peer::{Peer, bytes};
use crate::rig::Rig;
use crate::wire::{ACK, RST};

const HOUR: u64 = 3_600_000;

#[test]
fn any_segment_puts_the_question_off() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    for _ in 0..3 {
        assert_eq!(rig.pass_segs(2 * HOUR - 60_000), []);
        rig.send(peer.data(b"x"));
    }
    assert_eq!(rig.stat("TCPKeepAlive"), 0);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn questions_come_every_75_seconds_and_the_ninth_is_the_last() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let all = rig.pass_segs(3 * HOUR);
    let times: Vec<u64> = all.iter().map(|(at, _)| *at / 1000).collect();
    let expected: Vec<u64> = (0..10).map(|i| 7200 + 75 * i).collect();
    assert_eq!(times, expected);
    assert!(all[..9].iter().all(|(_, s)| s.is(ACK) && s.seq == peer.ack.wrapping_sub(1)));
    assert!(all[9].1.flags & RST != 0);
    assert_eq!((rig.stat("TCPKeepAlive"), rig.stat("TCPAbortOnTimeout")), (9, 1));
    rig.assert_empty();
}

#[test]
fn a_question_is_outside_the_window_so_that_it_is_always_answered() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let out = rig.host_sends(peer.flow, &bytes(3000));
    peer.receive(&out);
    rig.send(peer.pure_ack());
    let probe = rig.pass_segs(2 * HOUR + 1000).remove(0).1;
    assert_eq!((probe.seq, probe.data.len()), (peer.ack.wrapping_sub(1), 0));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn with_data_outstanding_the_timeout_probes_the_peer() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    rig.host_sends(peer.flow, b"are you there");
    rig.pass(HOUR / 2);
    assert_eq!(rig.stat("TCPKeepAlive"), 0);
    assert_eq!(rig.state(peer.flow), "GONE", "the user timeout is a quarter of an hour");
    rig.assert_empty();
}

#[test]
fn the_user_timeout_counts_from_the_last_segment_received() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    // An ACK of a few bytes now and then keeps the flow alive, although later bytes stay unacknowledged.
    rig.host_sends(peer.flow, &bytes(14_600));
    for _ in 0..8 {
        rig.pass(600_000);
        assert_eq!(rig.state(peer.flow), "ESTAB");
        peer.ack += 100;
        rig.send(peer.pure_ack());
    }
    let left = rig.pass_segs(2 * HOUR);
    let (at, rst) = left.last().unwrap();
    assert!(rst.flags & RST != 0 && (900_000..1_200_000).contains(at), "{at} ms");
    rig.assert_empty();
}

#[test]
fn a_guest_that_ended_and_went_away_is_found_out() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.send(peer.fin());
    assert_eq!(rig.state(peer.flow), "CLOSE-WAIT");
    let all = rig.pass_segs(3 * HOUR);
    assert_eq!(all.len(), 10);
    assert_eq!(rig.state(peer.flow), "GONE");
    rig.assert_empty();
}
