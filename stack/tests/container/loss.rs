//! Data lost on the way to the guest is retransmitted.

use skbudget_stack::HostError;

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{Rig, Setup, one};
use crate::wire::{ACK, RST, Seg};

/// A guest without SACK.
const NO_SACK: Hello = Hello {
    seq: 1000,
    wnd: 64_000,
    mss: Some(1460),
    wscale: Some(7),
    sack_ok: false,
    ts: None,
    v6: false,
};

/// Sends ten segments, which stay outstanding.
fn ten_out(rig: &mut Rig, peer: &Peer) -> Vec<Seg> {
    let said = rig.host_sends(peer.flow, &bytes(14_600));
    assert_eq!(said.len(), 10, "the initial window");
    said
}

#[test]
fn silence_is_answered_by_the_first_segment_with_backoff() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let said = ten_out(&mut rig, &peer);
    let mut again = rig.pass_segs(8000);
    // First a tail loss probe (RFC 8985 section 7), which is no timeout.
    let (at, probe) = again.remove(0);
    assert_eq!((at, probe.seq, &probe.data), (10, said[9].seq, &said[9].data));
    assert!(again.len() >= 4);
    assert!(again.iter().all(|(_, s)| s.seq == said[0].seq && s.data == said[0].data));
    let times: Vec<u64> = again.iter().map(|(at, _)| *at).collect();
    // RFC 6298 section 5.5: the timeout doubles.
    let gaps: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps.windows(2).all(|w| w[1] == 2 * w[0]), "doubling: {gaps:?}");
    assert!(times[0] >= 200, "{times:?}");
    assert_eq!(rig.stat("TCPTimeouts"), again.len() as u64);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn after_a_timeout_everything_missing_is_retransmitted() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    ten_out(&mut rig, &peer);
    let again = rig.pass_segs(300);
    let first = &again.last().expect("the timeout").1;
    let mut heard = peer.receive(std::slice::from_ref(first));
    for _ in 0..20 {
        let out = rig.send(peer.pure_ack());
        heard.extend(peer.receive(&out));
    }
    assert_eq!(heard, bytes(14_600));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn an_ack_of_all_after_a_timeout_stops_retransmission() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let said = ten_out(&mut rig, &peer);
    rig.pass(1500);
    // Only the ACKs were lost.
    assert_eq!(peer.receive(&said), bytes(14_600));
    assert_eq!(rig.send(peer.pure_ack()), []);
    assert_eq!(rig.pass_segs(60_000), []);
    let more = rig.host_sends(peer.flow, b"more");
    assert_eq!(peer.receive(&more), b"more");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    ten_out(&mut rig, &peer);
    let all = rig.pass_segs(40 * 60 * 1000);
    let (last, rst) = all.last().unwrap();
    assert!(rst.flags & RST != 0);
    assert!(*last > 10 * 60 * 1000, "after a quarter of an hour or so: {last} ms");
    assert_eq!(rig.state(peer.flow), "GONE");
    rig.assert_empty();
}

#[test]
fn without_sack_the_third_repeated_ack_brings_the_first_segment_at_once() {
    let mut rig = Rig::new();
    let mut peer = Peer::open_with(&mut rig, 40_000, &NO_SACK);
    let said = ten_out(&mut rig, &peer);
    let dup = peer.pure_ack();
    assert_eq!(rig.send(dup.clone()), []);
    assert_eq!(rig.send(dup.clone()), []);
    let again = one(rig.send(dup.clone()));
    assert_eq!((again.seq, &again.data), (said[0].seq, &said[0].data));
    assert_eq!(rig.stat("TCPFastRetrans"), 1);
    // Only once.
    for _ in 0..4 {
        let more = rig.send(dup.clone());
        assert!(more.iter().all(|s| s.seq != said[0].seq), "{more:?}");
    }
    // A partial ACK names the next hole: the sixth segment (RFC 6582).
    peer.ack = said[5].seq;
    let hole = one(rig.send(peer.pure_ack()));
    assert_eq!(hole.seq, said[5].seq);
    peer.ack = said[9].seq.wrapping_add(1460);
    assert_eq!(rig.send(peer.pure_ack()), []);
    assert_eq!(rig.pass_segs(60_000), [], "nothing is outstanding");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_fast_retransmission_beside_sack_blocks_fits_the_mtu() {
    // `Rig::taken` checks the size of every frame.
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let said = ten_out(&mut rig, &peer);
    rig.send(peer.data_at(100, b"behind a hole"));
    // The SACK blocks take room: one segment becomes two.
    let again = rig.send(peer.holes(&said, &[(1, 4)]));
    assert_eq!(again.iter().map(|s| s.data.len()).sum::<usize>(), 1460);
    assert_eq!((again.len(), again[0].seq), (2, said[0].seq));
    assert!(again.iter().all(|s| !s.sack.is_empty()));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn lost_data_is_retransmitted_into_a_small_window() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    // A twentieth of the largest window so far: used after a while, and the segment is lost.
    peer.wnd = 5;
    rig.send(peer.pure_ack());
    assert_eq!(rig.host_sends(peer.flow, &bytes(2000)), []);
    let first = rig.pass_segs(1100);
    assert_eq!(first[0].1.data.len(), 640);
    let again = rig.pass_segs(10_000);
    assert!(again.len() >= 2, "{again:?}");
    assert!(again.iter().all(|(_, s)| s.seq == first[0].1.seq && s.data.len() == 640));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_retransmission_that_finds_the_device_full_is_not_forgotten() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let said = ten_out(&mut rig, &peer);
    rig.wire.room = 0;
    for n in 2..5 {
        assert_eq!(rig.send(peer.holes(&said, &[(1, n)])), []);
    }
    rig.wire.room = usize::MAX;
    let again = rig.pass_segs(10);
    assert_eq!(again[0].1.seq, said[0].seq);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn acks_with_data_or_another_window_are_no_repeated_acks() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let said = ten_out(&mut rig, &peer);
    for i in 0..6 {
        let seg = if i % 2 == 0 {
            peer.data(b"x")
        } else {
            peer.wnd += 1;
            peer.pure_ack()
        };
        assert!(rig.send(seg).iter().all(|s| s.data.is_empty() || s.seq != said[0].seq));
    }
    assert_eq!(rig.stat("TCPFastRetrans"), 0);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_lost_super_frame_is_retransmitted_whole() {
    let mut rig = Rig::with(Setup { offload: true, ..Setup::default() });
    let hello = Hello { ts: Some(5), ..Hello::default() };
    let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
    let data = bytes(14_000);
    let said = one(rig.host_sends(peer.flow, &data));
    assert_eq!((said.data.len(), said.gso), (14_000, 1448));
    let mut heard = Vec::new();
    let mut out: Vec<Seg> = rig.pass_segs(1500).into_iter().map(|(_, s)| s).collect();
    for _ in 0..20 {
        heard.extend(peer.receive(&out));
        out = rig.send(peer.pure_ack());
    }
    assert_eq!(heard, data);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_reset_after_a_timeout_has_the_guests_next_sequence_number() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let said = ten_out(&mut rig, &peer);
    // Everything arrived, the ACKs did not, and the timer expired: the stack went back to the first byte.
    assert_eq!(peer.receive(&said).len(), 14_600);
    rig.pass(1500);
    let out = rig.host_breaks(peer.flow, HostError::Reset);
    assert_eq!(out, [], "not before the guest has acknowledged what came before");
    let rst = one(rig.send(peer.pure_ack()));
    assert!(rst.is(RST | ACK));
    assert_eq!(rst.seq, peer.ack, "RFC 5961: another number would be challenged, not obeyed");
    rig.assert_empty();
}
