//! Loss recovery: holes are filled, nothing else is retransmitted, and the window is reduced once.

use skbudget_stack::Algorithm;

use crate::peer::{Hello, Peer, bytes, cwnd, end};
use crate::rig::{Rig, Setup, one};
use crate::wire::Seg;

/// Round-trip time of these guests, milliseconds.
const RTT: u64 = 40;
const MSS: u32 = 1460;

/// A guest 40 ms away with twenty segments outstanding, and those segments. `more` bytes are queued after them.
fn twenty_out(hello: &Hello, more: usize) -> (Rig, Peer, Vec<Seg>) {
    twenty_out_of(Rig::new(), hello, more)
}

fn twenty_out_of(mut rig: Rig, hello: &Hello, more: usize) -> (Rig, Peer, Vec<Seg>) {
    let mut peer = Peer::open_far(&mut rig, hello, RTT);
    let size = if hello.ts.is_some() { 1448 } else { 1460 };
    // Slow start doubles the window once; later data does not fill it, but lets the send queue grow.
    for n in std::iter::once(10).chain([2; 60]) {
        let out = rig.host_sends(peer.flow, &bytes(n * size));
        assert_eq!(out.len(), n);
        peer.receive(&out);
        rig.pass(RTT);
        peer.ts = peer.ts.map(|(val, ecr)| (val + RTT as u32, ecr));
        rig.send(peer.pure_ack());
    }
    let said = rig.host_sends(peer.flow, &bytes(20 * size + more));
    assert_eq!(said.len(), 20);
    assert_eq!(rig.pass_segs(RTT), []);
    (rig, peer, said)
}

fn seqs(segs: &[Seg]) -> Vec<u32> {
    segs.iter().map(|s| s.seq).collect()
}

#[test]
fn three_segments_behind_a_hole_fill_it_at_once() {
    let (mut rig, peer, said) = twenty_out(&Hello::default(), 0);
    let again = one(rig.send(peer.holes(&said, &[(1, 4)])));
    assert_eq!((again.seq, &again.data), (said[0].seq, &said[0].data));
    assert_eq!(rig.stat("TCPSackRecovery"), 1);
    end(rig, &peer);
}

#[test]
fn every_hole_is_filled_and_nothing_else() {
    let (mut rig, mut peer, said) = twenty_out(&Hello::default(), 0);
    // 0, 5 and 9 are lost; the guest reports the others segment by segment.
    let mut again = Vec::new();
    for n in 1..20 {
        let have: Vec<_> = [(10, 20), (6, 9), (1, 5)]
            .into_iter()
            .filter(|r| r.0 <= n)
            .map(|r| (r.0, r.1.min(n + 1)))
            .collect();
        again.extend(rig.send(peer.holes(&said, &have)));
    }
    assert_eq!(seqs(&again), [said[0].seq, said[5].seq, said[9].seq]);
    peer.ack = said[19].seq + MSS;
    assert_eq!(rig.send(peer.pure_ack()), []);
    assert_eq!(rig.pass_segs(60_000), [], "nothing is outstanding");
    assert_eq!((rig.stat("TCPFastRetrans"), rig.stat("TCPTimeouts")), (3, 0));
    end(rig, &peer);
}

#[test]
fn the_window_goes_down_once_for_all_holes_of_a_flight() {
    let (mut rig, mut peer, said) = twenty_out(&Hello::default(), 0);
    let before = cwnd(&rig, &peer);
    rig.send(peer.holes(&said, &[(10, 20), (6, 9), (1, 5)]));
    peer.ack = said[5].seq;
    rig.send(peer.holes(&said, &[(10, 20), (6, 9)]));
    peer.ack = said[19].seq + MSS;
    rig.send(peer.pure_ack());
    let flow = rig.flow(peer.flow).unwrap();
    // Recovery ends at the slow start threshold (RFC 6675 section 5).
    assert_eq!(flow.cwnd, flow.ssthresh);
    assert!(flow.cwnd < before && flow.cwnd >= before / 2, "{before} to {}", flow.cwnd);
    assert_eq!(rig.stat("TCPSackRecovery"), 1);
    end(rig, &peer);
}

#[test]
fn the_algorithm_decides_how_far_the_window_falls() {
    for (congestion, tenths) in [(Algorithm::Cubic, 7), (Algorithm::Reno, 5)] {
        let rig = Rig::with(Setup { congestion, ..Setup::default() });
        let (mut rig, mut peer, said) = twenty_out_of(rig, &Hello::default(), 0);
        let before = cwnd(&rig, &peer);
        rig.send(peer.holes(&said, &[(1, 20)]));
        peer.ack = said[19].seq + MSS;
        rig.send(peer.pure_ack());
        assert_eq!(cwnd(&rig, &peer), before / 10 * tenths, "{congestion:?}");
        end(rig, &peer);
    }
}

#[test]
fn in_recovery_the_send_rate_follows_the_delivery_rate() {
    let (mut rig, peer, said) = twenty_out(&Hello::default(), 40 * 1460);
    // The first of twenty is lost; each ACK reports one more segment. RFC 9937 (PRR): when the last ACK has arrived,
    // the data sent equals the new window, and it was spread over all ACKs.
    let mut sent = Vec::new();
    for n in 2..=20 {
        sent.push(rig.send(peer.holes(&said, &[(1, n)])).len());
    }
    let ssthresh = rig.flow(peer.flow).unwrap().ssthresh;
    let total: usize = sent.iter().sum();
    assert!(sent.iter().all(|n| *n <= 1), "no burst: {sent:?}");
    assert!((total as u32 * MSS).abs_diff(ssthresh) <= 2 * MSS, "{total} segments, {ssthresh}");
    end(rig, &peer);
}

#[test]
fn a_lost_retransmission_is_found_by_what_was_sent_after_it() {
    let (mut rig, mut peer, said) = twenty_out(&Hello::default(), 40 * 1460);
    let again = rig.send(peer.holes(&said, &[(1, 20)]));
    assert_eq!(again[0].seq, said[0].seq);
    let newer = &again[1..];
    assert!(!newer.is_empty(), "new data went out behind it");
    rig.pass(RTT);
    // The new data arrived, the retransmission did not.
    let mut have: Vec<Seg> = said.clone();
    have.extend_from_slice(newer);
    let n = have.len();
    let mut out = rig.send(peer.holes(&have, &[(1, n)]));
    out.extend(rig.pass_segs(RTT / 4 + 1).into_iter().map(|(_, s)| s));
    assert_eq!(out.iter().filter(|s| s.seq == said[0].seq).count(), 1, "without a timeout");
    assert_eq!(rig.stat("TCPTimeouts"), 0);
    peer.ack = have[n - 1].seq + have[n - 1].data.len() as u32;
    rig.send(peer.pure_ack());
    end(rig, &peer);
}

#[test]
fn a_lost_retransmission_is_found_by_another_that_arrived() {
    let hello = Hello { ts: Some(500), ..Hello::default() };
    let (mut rig, mut peer, said) = twenty_out(&hello, 0);
    // 0 and 9 are lost and retransmitted, one for each ACK; the first is lost again. While the hole exists, the guest
    // echoes the timestamp from before it (RFC 7323 section 4.3).
    rig.send(peer.holes(&said, &[(10, 20), (1, 9)]));
    rig.pass(1);
    let mut out = rig.send(peer.holes(&said, &[(10, 20), (1, 9)]));
    out.extend(rig.pass_segs(2 * RTT).into_iter().map(|(_, s)| s));
    peer.ts = peer.ts.map(|(val, ecr)| (val + 2 * RTT as u32, ecr));
    out.extend(rig.send(peer.holes(&said, &[(1, 20)])));
    out.extend(rig.pass_segs(RTT / 4 + 1).into_iter().map(|(_, s)| s));
    let first = out.iter().filter(|s| s.seq == said[0].seq).count();
    assert!(first >= 1, "{:?}", seqs(&out));
    assert_eq!(rig.stat("TCPTimeouts"), 0);
    end(rig, &peer);
}

#[test]
fn after_a_timeout_what_the_guest_has_behind_holes_is_not_sent_again() {
    let (mut rig, mut peer, said) = twenty_out(&Hello::default(), 0);
    // Two segments arrived, too few to infer a loss; after that no ACK arrives, not even for retransmissions.
    rig.send(peer.holes(&said, &[(7, 9)]));
    rig.pass(1000);
    assert!(rig.stat("TCPTimeouts") > 0);
    let mut again = Vec::new();
    peer.ack = said[0].seq + MSS;
    for _ in 0..30 {
        let out = rig.send(peer.pure_ack());
        if let Some(last) = out.last() {
            peer.ack = last.seq + last.data.len() as u32;
        }
        again.extend(seqs(&out));
    }
    assert!(!again.contains(&said[7].seq) && !again.contains(&said[8].seq), "{again:?}");
    assert!(again.contains(&said[9].seq));
    end(rig, &peer);
}

#[test]
fn data_of_a_revoked_sack_is_retransmitted() {
    let (mut rig, mut peer, said) = twenty_out(&Hello::default(), 0);
    rig.send(peer.holes(&said, &[(1, 20)]));
    // The hole is filled, yet RCV.NXT stays behind: the guest dropped the other data (renege, RFC 2018 section 8).
    peer.ack = said[1].seq;
    rig.send(peer.pure_ack());
    let again: Vec<u32> = rig.pass_segs(2000).into_iter().map(|(_, s)| s.seq).collect();
    assert!(again.contains(&said[1].seq), "{again:?}");
    let mut heard = 1;
    for _ in 0..30 {
        let out = rig.send(peer.pure_ack());
        heard += out.len();
        if let Some(last) = out.last() {
            peer.ack = last.seq + MSS;
        } else {
            peer.ack = said[2].seq;
        }
    }
    assert!(heard >= 18, "{heard} segments again");
    end(rig, &peer);
}

#[test]
fn absurd_sack_blocks_have_no_effect() {
    let (mut rig, peer, said) = twenty_out(&Hello::default(), 0);
    let (una, nxt) = (said[0].seq, said[19].seq + MSS);
    // Beyond SND.NXT, below SND.UNA, reversed, empty, and half the sequence space long.
    for (from, to) in [
        (nxt, nxt + 1000),
        (nxt + 1, nxt + 2),
        (una.wrapping_sub(5000), una.wrapping_sub(4000)),
        (una + 3 * MSS, una + MSS),
        (una + MSS, una + MSS),
        (una.wrapping_sub(1 << 31), una),
    ] {
        let out = rig.send(Seg { sack: vec![(from, to)], ..peer.pure_ack() });
        assert_eq!(out, [], "{from}..{to}");
    }
    assert_eq!(rig.stat("TCPFastRetrans"), 0);
    end(rig, &peer);
}

#[test]
fn without_sack_the_first_two_repeated_acks_let_new_data_out() {
    let hello = Hello { sack_ok: false, ..Hello::default() };
    let (mut rig, peer, said) = twenty_out(&hello, 10 * 1460);
    // Limited transmit (RFC 3042).
    for i in 0..2 {
        let new = one(rig.send(peer.pure_ack()));
        assert_eq!(new.seq, said[19].seq + (i + 1) * MSS);
    }
    let again = rig.send(peer.pure_ack());
    assert_eq!(again[0].seq, said[0].seq);
    assert_eq!(rig.stat("TCPRenoRecovery"), 1);
    end(rig, &peer);
}

#[test]
fn without_sack_a_partial_ack_names_the_next_hole() {
    let hello = Hello { sack_ok: false, ..Hello::default() };
    let (mut rig, mut peer, said) = twenty_out(&hello, 0);
    for _ in 0..10 {
        rig.send(peer.pure_ack());
    }
    for hole in [4, 9, 15] {
        peer.ack = said[hole].seq;
        assert_eq!(
            one(rig.send(peer.pure_ack())).seq,
            said[hole].seq,
            "RFC 6582 section 3.2 step 3"
        );
    }
    peer.ack = said[19].seq + MSS;
    assert_eq!(rig.send(peer.pure_ack()), []);
    assert_eq!((rig.stat("TCPRenoRecovery"), rig.stat("TCPTimeouts")), (1, 0));
    end(rig, &peer);
}

#[test]
fn a_timeout_for_nothing_is_taken_back_when_timestamps_show_it() {
    let hello = Hello { ts: Some(500), ..Hello::default() };
    let (mut rig, mut peer, said) = twenty_out(&hello, 0);
    let before = cwnd(&rig, &peer);
    rig.pass(400);
    assert!(rig.stat("TCPTimeouts") > 0);
    assert!(cwnd(&rig, &peer) < before / 4);
    // All ACKs were late: they answer the originals.
    // Eifel detection (RFC 3522): the echoed timestamp is older than the retransmission.
    let stamp = said[0].ts.unwrap().0;
    peer.ack = said[4].seq;
    peer.ts = peer.ts.map(|(val, _)| (val + 400, stamp));
    assert_eq!(rig.send(peer.pure_ack()), [], "nothing more is sent again");
    assert_eq!(rig.stat("TCPTSUndo"), 1);
    assert!(cwnd(&rig, &peer) >= before, "RFC 4015: the window is as before");
    peer.ack = said[19].seq + 1448;
    assert_eq!(rig.send(peer.pure_ack()), []);
    end(rig, &peer);
}

#[test]
fn a_timeout_with_a_reason_is_not_taken_back() {
    let hello = Hello { ts: Some(500), ..Hello::default() };
    let (mut rig, mut peer, said) = twenty_out(&hello, 0);
    let before = cwnd(&rig, &peer);
    let again = rig.pass_segs(400);
    let first = again.iter().find(|(_, s)| s.seq == said[0].seq).expect("the first again");
    peer.ack = said[1].seq;
    peer.ts = peer.ts.map(|(val, _)| (val + 400, first.1.ts.unwrap().0));
    rig.send(peer.pure_ack());
    assert_eq!(rig.stat("TCPTSUndo"), 0);
    assert!(cwnd(&rig, &peer) < before / 2);
    end(rig, &peer);
}

#[test]
fn a_recovery_for_nothing_is_taken_back_when_dsack_shows_it() {
    let (mut rig, mut peer, said) = twenty_out(&Hello::default(), 0);
    let before = cwnd(&rig, &peer);
    let again = one(rig.send(peer.holes(&said, &[(1, 20)])));
    assert_eq!(again.seq, said[0].seq);
    // The original was only late, so the guest has the segment twice now.
    peer.ack = said[19].seq + MSS;
    rig.send(peer.pure_ack());
    assert!(cwnd(&rig, &peer) < before);
    let twice = (said[0].seq, said[0].seq + MSS);
    rig.send(Seg { sack: vec![twice], ..peer.pure_ack() });
    assert_eq!((rig.stat("TCPDSACKUndo"), rig.stat("TCPDSACKRecv")), (1, 1));
    assert!(cwnd(&rig, &peer) >= before);
    end(rig, &peer);
}

/// A guest without timestamps did not answer twenty segments in time: the first is retransmitted. `more` bytes are
/// queued.
fn timed_out(more: usize) -> (Rig, Peer, Vec<Seg>, u32) {
    let (mut rig, peer, said) = twenty_out(&Hello::default(), more);
    let before = cwnd(&rig, &peer);
    let again = rig.pass_segs(600);
    assert!(rig.stat("TCPTimeouts") == 1 && again.iter().any(|(_, s)| s.seq == said[0].seq));
    (rig, peer, said, before)
}

#[test]
fn a_timeout_for_nothing_is_taken_back_when_more_of_what_left_once_is_acknowledged() {
    let (mut rig, mut peer, said, before) = timed_out(10 * 1460);
    let nxt = said[19].seq + MSS;
    // The originals are only late. Their first ACK may be for the retransmission: new data decides (F-RTO, RFC 5682).
    peer.ack = said[1].seq;
    let out = rig.send(peer.pure_ack());
    assert!(!out.is_empty() && out.iter().all(|s| s.seq.wrapping_sub(nxt) < 1 << 20), "{out:?}");
    peer.ack = said[3].seq;
    let out = rig.send(peer.pure_ack());
    assert!(out.iter().all(|s| s.seq.wrapping_sub(nxt) < 1 << 20), "nothing is sent again");
    assert_eq!(rig.stat("TCPSpuriousRTOs"), 1);
    assert!(cwnd(&rig, &peer) >= before);
    end(rig, &peer);
}

#[test]
fn a_timeout_with_a_reason_goes_on_when_only_new_data_arrives() {
    let (mut rig, mut peer, said, before) = timed_out(10 * 1460);
    peer.ack = said[1].seq;
    let new = rig.send(peer.pure_ack());
    let out = rig.send(peer.holes(&new, &[(0, 1)]));
    assert_eq!(out[0].seq, said[1].seq, "what was lost goes on");
    assert_eq!(rig.stat("TCPSpuriousRTOs"), 0);
    assert!(cwnd(&rig, &peer) < before / 2);
    end(rig, &peer);
}

#[test]
fn without_new_data_a_timeout_is_not_tested_for_being_spurious() {
    let (mut rig, mut peer, said, _) = timed_out(0);
    peer.ack = said[1].seq;
    let out = rig.send(peer.pure_ack());
    assert_eq!(out[0].seq, said[1].seq);
    peer.ack = said[3].seq;
    rig.send(peer.pure_ack());
    assert_eq!(rig.stat("TCPSpuriousRTOs"), 0);
    end(rig, &peer);
}

#[test]
fn a_timeout_is_not_tested_with_new_data_beyond_the_window() {
    let (mut rig, mut peer, said, _) = timed_out(10 * 1460);
    // One of the twenty segments and a probe is acknowledged; the window has room for little more than the others.
    peer.ack = said[1].seq;
    peer.wnd = (20 * MSS).div_ceil(128) as u16;
    let out = rig.send(peer.pure_ack());
    assert_eq!(out.first().map(|s| s.seq), Some(said[1].seq), "what was lost waits for nothing");
    peer.ack = said[3].seq;
    rig.send(peer.pure_ack());
    assert_eq!(rig.stat("TCPSpuriousRTOs"), 0);
    end(rig, &peer);
}

#[test]
fn without_sack_a_duplicate_ack_shows_that_a_timeout_was_genuine() {
    let hello = Hello { sack_ok: false, ..Hello::default() };
    let (mut rig, mut peer, said) = twenty_out(&hello, 10 * 1460);
    rig.pass(400);
    assert_eq!(rig.stat("TCPTimeouts"), 1);
    peer.ack = said[1].seq;
    let new = rig.send(peer.pure_ack());
    assert_eq!(new[0].seq, said[19].seq + MSS, "new data asks");
    let again = rig.send(peer.pure_ack());
    assert_eq!(again.first().map(|s| s.seq), Some(said[1].seq), "RFC 5682 section 2.1 step 3a");
    assert_eq!(rig.stat("TCPSpuriousRTOs"), 0);
    end(rig, &peer);
}
