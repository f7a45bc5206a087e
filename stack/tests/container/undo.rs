//! A spurious reduction is undone; a justified one stays, whatever later reports concern earlier ones.

use crate::ecn::capable;
use crate::peer::{Peer, bytes, cwnd, end};
use crate::rig::{Rig, one};
use crate::wire::{ACK, ECE, Seg};

const MSS: u32 = 1460;

/// A guest with ECN that acknowledged ten segments, the first of them retransmitted; and those segments.
fn recovered(ece: u8) -> (Rig, Peer, Vec<Seg>) {
    let mut rig = Rig::new();
    let mut peer = capable(&mut rig);
    peer.wnd = u16::MAX;
    peer.receive(&rig.host_sends(peer.flow, &bytes(1460)));
    rig.send(peer.pure_ack());
    let said = rig.host_sends(peer.flow, &bytes(10 * 1460));
    let again = one(rig.send(peer.holes(&said, &[(1, 10)])));
    assert_eq!((again.seq, rig.stat("TCPSackRecovery")), (said[0].seq, 1));
    peer.receive(&said);
    rig.send(Seg { flags: ACK | ece, ..peer.pure_ack() });
    (rig, peer, said)
}

/// The guest reports with a DSACK that it had this segment already.
fn twice(rig: &mut Rig, peer: &Peer, seg: &Seg) {
    let sack = vec![(seg.seq, seg.seq + MSS)];
    rig.send(Seg { sack, ..peer.pure_ack() });
}

#[test]
fn a_copy_that_is_reported_late_takes_the_recovery_back() {
    let (mut rig, mut peer, said) = recovered(0);
    let reduced = cwnd(&rig, &peer);
    // As in `tcp_try_undo_dsack`, which the kernel calls in its Open and Disorder states.
    peer.receive(&rig.host_sends(peer.flow, &bytes(2 * 1460)));
    // A DSACK for the one retransmission shows that it was spurious.
    twice(&mut rig, &peer, &said[0]);
    assert!(rig.stat("TCPDSACKUndo") == 1 && cwnd(&rig, &peer) > reduced);
    end(rig, &peer);
}

#[test]
fn a_reduction_for_marks_outlives_the_undo_of_an_earlier_recovery() {
    let (mut rig, mut peer, said) = recovered(0);
    let next = rig.host_sends(peer.flow, &bytes(4 * 1460));
    peer.receive(&next[..2]);
    rig.send(Seg { flags: ACK | ECE, ..peer.pure_ack() });
    let reduced = cwnd(&rig, &peer);
    assert_eq!(rig.stat("TCPECNReduced"), 1);
    twice(&mut rig, &peer, &said[0]);
    assert_eq!((rig.stat("TCPDSACKUndo"), cwnd(&rig, &peer)), (0, reduced));
    end(rig, &peer);
}

#[test]
fn a_recovery_with_an_ece_is_not_undone() {
    let (mut rig, peer, said) = recovered(ECE);
    let reduced = cwnd(&rig, &peer);
    twice(&mut rig, &peer, &said[0]);
    assert_eq!((rig.stat("TCPDSACKUndo"), cwnd(&rig, &peer)), (0, reduced));
    end(rig, &peer);
}

#[test]
fn the_copy_of_a_probe_is_not_that_of_the_recovery_before_it() {
    let (mut rig, mut peer, _) = recovered(0);
    let next = rig.host_sends(peer.flow, &bytes(4 * 1460));
    let probe = rig.pass_segs(20);
    assert_eq!((probe.len(), probe[0].1.seq), (1, next[3].seq));
    peer.receive(&next);
    rig.send(peer.pure_ack());
    twice(&mut rig, &peer, &next[3]);
    assert_eq!(rig.stat("TCPDSACKUndo"), 0);
    end(rig, &peer);
}

#[test]
fn a_copy_acknowledged_before_a_recovery_does_not_undo_it() {
    let (mut rig, peer, said) = recovered(0);
    let older = Seg { seq: said[0].seq - MSS, ..said[0].clone() };
    twice(&mut rig, &peer, &older);
    assert_eq!((rig.stat("TCPDSACKUndo"), rig.stat("TCPDSACKRecv")), (0, 1));
    end(rig, &peer);
}
