//! Tail loss probes: sent before the retransmission timeout (RFC 8985 section 7).

use crate::peer::{Hello, Peer, bytes, end};
use crate::rig::{Rig, one};
use crate::wire::Seg;

const RTT: u64 = 40;
const MSS: u32 = 1460;

fn ten_out(more: usize) -> (Rig, Peer, Vec<Seg>) {
    let mut rig = Rig::new();
    let peer = Peer::open_far(&mut rig, &Hello::default(), RTT);
    let said = rig.host_sends(peer.flow, &bytes(14_600 + more));
    assert_eq!(said.len(), 10);
    (rig, peer, said)
}

#[test]
fn the_last_segment_is_sent_again_after_two_round_trips() {
    let (mut rig, peer, said) = ten_out(0);
    let probe = rig.pass_segs(2 * RTT);
    assert_eq!((probe[0].0, probe[0].1.seq), (2 * RTT, said[9].seq));
    assert_eq!(probe[0].1.data, said[9].data);
    assert_eq!((rig.stat("TCPLossProbes"), rig.stat("TCPTimeouts")), (1, 0));
    // One probe, then the timer.
    let rest = rig.pass_segs(300);
    assert!(rest.iter().all(|(_, s)| s.seq == said[0].seq), "{rest:?}");
    end(rig, &peer);
}

#[test]
fn new_data_is_the_better_probe() {
    let (mut rig, peer, said) = ten_out(3 * 1460);
    let probe = rig.pass_segs(2 * RTT);
    assert_eq!((probe.len(), probe[0].1.seq), (1, said[9].seq + MSS));
    // RFC 8985 section 7.3: new data is preferred over a retransmission.
    assert_eq!(rig.stat("RetransSegs"), 0);
    end(rig, &peer);
}

#[test]
fn the_answer_to_a_probe_fills_the_holes_without_a_timeout() {
    let (mut rig, mut peer, said) = ten_out(0);
    // Seven segments arrived, three were lost.
    rig.pass(RTT);
    peer.ack = said[7].seq;
    rig.send(peer.pure_ack());
    let probe = rig.pass_segs(2 * RTT);
    assert_eq!(probe[0].1.seq, said[9].seq);
    rig.pass(RTT);
    assert_eq!(one(rig.send(peer.holes(&said, &[(9, 10)]))).seq, said[7].seq);
    // The window is small now: one segment is sent for each that arrives.
    peer.ack = said[8].seq;
    assert_eq!(one(rig.send(peer.holes(&said, &[(9, 10)]))).seq, said[8].seq);
    assert_eq!((rig.stat("TCPTimeouts"), rig.stat("TCPSackRecovery")), (0, 1));
    end(rig, &peer);
}

#[test]
fn a_lone_segment_is_left_to_the_timeout() {
    let mut rig = Rig::new();
    let peer = Peer::open_far(&mut rig, &Hello::default(), RTT);
    one(rig.host_sends(peer.flow, b"alone"));
    // The guest may delay its ACK by 200 ms, and the timeout allows for that.
    let later = rig.pass_segs(400);
    assert!(later[0].0 > 200, "{later:?}");
    assert_eq!(rig.stat("TCPLossProbes"), 0);
    end(rig, &peer);
}

#[test]
fn an_ack_puts_the_probe_off() {
    let (mut rig, mut peer, said) = ten_out(0);
    for next in &said[1..] {
        assert_eq!(rig.pass_segs(RTT), []);
        peer.ack = next.seq;
        rig.send(peer.pure_ack());
    }
    peer.ack = said[9].seq + MSS;
    rig.send(peer.pure_ack());
    assert_eq!(rig.pass_segs(5000), []);
    end(rig, &peer);
}

#[test]
fn a_probe_that_repaired_a_loss_costs_as_much_as_a_recovery() {
    let (mut rig, mut peer, said) = ten_out(0);
    rig.pass(2 * RTT + 1);
    // The last segment was lost and arrived as the probe; then all is acknowledged without a DSACK.
    peer.ack = said[9].seq + MSS;
    rig.send(peer.pure_ack());
    let before = rig.flow(peer.flow).unwrap().cwnd;
    peer.receive(&rig.host_sends(peer.flow, b"more"));
    rig.send(peer.pure_ack());
    let flow = rig.flow(peer.flow).unwrap();
    assert!(flow.cwnd < before && flow.ssthresh < before, "{before} to {}", flow.cwnd);
    end(rig, &peer);
}

#[test]
fn a_probe_for_nothing_costs_nothing() {
    for dsack in [true, false] {
        let (mut rig, mut peer, said) = ten_out(0);
        rig.pass(2 * RTT + 1);
        let before = rig.flow(peer.flow).unwrap().cwnd;
        peer.ack = said[9].seq + MSS;
        rig.send(peer.pure_ack());
        // The guest answers the second copy with a DSACK, or with a duplicate ACK.
        let twice = (said[9].seq, said[9].seq + MSS);
        let sack = if dsack { vec![twice] } else { vec![] };
        rig.send(Seg { sack, ..peer.pure_ack() });
        peer.receive(&rig.host_sends(peer.flow, b"more"));
        rig.send(peer.pure_ack());
        assert!(rig.flow(peer.flow).unwrap().cwnd >= before, "dsack: {dsack}");
        end(rig, &peer);
    }
}

#[test]
fn without_sack_there_is_no_probe() {
    let mut rig = Rig::new();
    let hello = Hello { sack_ok: false, ..Hello::default() };
    let peer = Peer::open_far(&mut rig, &hello, RTT);
    let said = rig.host_sends(peer.flow, &bytes(14_600));
    let later = rig.pass_segs(1000);
    assert!(later.iter().all(|(_, s)| s.seq == said[0].seq), "its answer would tell nothing");
    assert_eq!(rig.stat("TCPLossProbes"), 0);
    end(rig, &peer);
}

#[test]
fn a_guest_that_holds_its_acks_back_is_soon_probed_no_more() {
    let mut rig = Rig::new();
    let mut peer = Peer::open_far(&mut rig, &Hello::default(), 1);
    for _ in 0..100 {
        let out = rig.host_sends(peer.flow, &bytes(4 * 1460));
        assert_eq!(out.len(), 4);
        peer.receive(&out);
        // The guest delays its ACKs by 40 ms; a duplicate is acknowledged at once.
        let probe = (0..40).map(|_| rig.pass_segs(1)).find(|sent| !sent.is_empty());
        let twice = probe.map(|sent| (sent[0].1.seq, sent[0].1.seq + MSS));
        rig.send(Seg { sack: twice.into_iter().collect(), ..peer.pure_ack() });
    }
    assert!(rig.stat("TCPLossProbes") < 25, "{} probes", rig.stat("TCPLossProbes"));
    assert_eq!(rig.stat("TCPLossProbes"), rig.stat("TCPDSACKRecv"));
    end(rig, &peer);
}
