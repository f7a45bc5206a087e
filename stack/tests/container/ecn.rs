//! Explicit congestion notification (RFC 3168): granted on request, echoed until the guest has reacted, answered once a
//! window.

use skbudget_stack::VnetHdr;

use crate::peer::{Hello, Peer, bytes, end, introduce};
use crate::rig::{Rig, Setup, one};
use crate::wire::{ACK, CWR, ECE, SYN, Seg};

const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Opens a connection with a SYN that has these flags and this ECN field in its packet; returns the SYN-ACK too.
pub(crate) fn open(rig: &mut Rig, hello: &Hello, bits: u8, ecn: u8) -> (Peer, Seg) {
    let syn = Seg { flags: SYN | bits, ecn, ..hello.syn(40_000, 80) };
    assert_eq!(rig.send(syn.clone()), []);
    let flow = *rig.host.connects.last().expect("a connect");
    let syn_ack = one(rig.ready(flow, false, true));
    let peer = Peer::answering(flow, &syn, &syn_ack);
    assert_eq!(rig.send(peer.pure_ack()), []);
    (peer, syn_ack)
}

pub(crate) fn capable(rig: &mut Rig) -> Peer {
    let (peer, syn_ack) = open(rig, &Hello::default(), ECE | CWR, 0);
    assert_eq!(syn_ack.flags, SYN | ACK | ECE);
    peer
}

#[test]
fn an_ecn_syn_is_accepted_and_data_may_be_marked() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let (mut peer, syn_ack) = open(&mut rig, &Hello { v6, ..Hello::default() }, ECE | CWR, 0);
        assert_eq!((syn_ack.flags, syn_ack.ecn), (SYN | ACK | ECE, 0));
        let said = rig.host_sends(peer.flow, &bytes(5000));
        assert!(said.iter().all(|s| s.ecn == ECT_0 && s.flags & (ECE | CWR) == 0), "{said:?}");
        let ack = one(rig.send(peer.data(b"x")));
        assert_eq!((ack.flags, ack.ecn), (ACK, 0), "an ACK alone is not capable");
        end(rig, &peer);
    }
}

#[test]
fn a_syn_that_does_not_ask_properly_is_granted_nothing() {
    // RFC 3168 section 6.1.1: both bits, in a packet that is not itself capable.
    for (bits, ecn) in [(0, 0), (ECE, 0), (CWR, 0), (ECE | CWR, ECT_0), (ECE | CWR, CE)] {
        let mut rig = Rig::new();
        let (mut peer, syn_ack) = open(&mut rig, &Hello::default(), bits, ecn);
        assert_eq!(syn_ack.flags, SYN | ACK, "{bits:#x} {ecn}");
        assert_eq!(one(rig.host_sends(peer.flow, b"data")).ecn, 0);
        let data = peer.data(b"x");
        // Without ECN a CE mark has no meaning.
        let marked = Seg { ecn: CE, flags: data.flags | ECE | CWR, ..data };
        assert_eq!(one(rig.send(marked)).flags, ACK, "marks mean nothing");
        assert_eq!((rig.stat("InCEPkts"), rig.stat("TCPECNReduced")), (0, 0));
        end(rig, &peer);
    }
}

#[test]
fn a_published_port_does_not_ask() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let peer = Peer::accept(&mut rig, 8080);
    assert_eq!(one(rig.host_sends(peer.flow, b"data")).ecn, 0);
    end(rig, &peer);
}

#[test]
fn a_mark_is_echoed_until_the_guest_sends_cwr() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let (mut peer, _) = open(&mut rig, &Hello { v6, ..Hello::default() }, ECE | CWR, 0);
        let mut send = |rig: &mut Rig, bits, ecn| {
            let data = peer.data(b"x");
            one(rig.send(Seg { ecn, flags: data.flags | bits, ..data })).flags
        };
        assert_eq!(send(&mut rig, 0, ECT_0), ACK);
        assert_eq!(send(&mut rig, 0, CE), ACK | ECE);
        assert_eq!(send(&mut rig, 0, ECT_0), ACK | ECE);
        assert_eq!(send(&mut rig, CWR, ECT_0), ACK);
        // The segment with CWR may itself be marked.
        assert_eq!(send(&mut rig, 0, CE), ACK | ECE);
        assert_eq!(send(&mut rig, CWR, CE), ACK | ECE);
        assert_eq!(send(&mut rig, CWR, ECT_0), ACK);
        assert_eq!(rig.stat("InCEPkts"), 3);
        end(rig, &peer);
    }
}

#[test]
fn an_echo_costs_one_window_however_often_it_is_repeated() {
    let mut rig = Rig::new();
    let mut peer = capable(&mut rig);
    peer.wnd = u16::MAX;
    let said = rig.host_sends(peer.flow, &bytes(1_000_000));
    let cwnd = |rig: &Rig, peer: &Peer| rig.flow(peer.flow).expect("the flow").cwnd / 1460;
    assert_eq!(cwnd(&rig, &peer), 10);
    peer.receive(&said[..2]);
    let out = rig.send(Seg { flags: ACK | ECE, ..peer.pure_ack() });
    assert_eq!((cwnd(&rig, &peer), &out[..]), (7, &[][..]), "RFC 9438 section 4.6");
    // The next new segment carries CWR, and no other does.
    peer.receive(&said[2..6]);
    let mut next = rig.send(Seg { flags: ACK | ECE, ..peer.pure_ack() });
    peer.receive(&said[6..]);
    next.extend(rig.send(Seg { flags: ACK | ECE, ..peer.pure_ack() }));
    assert_eq!(cwnd(&rig, &peer), 7);
    let says: Vec<bool> = next.iter().map(|s| s.flags & CWR != 0).collect();
    assert!(says[0] && says[1..].iter().all(|says| !says), "{says:?}");
    assert!(next.iter().all(|s| s.ecn == ECT_0));
    assert_eq!(rig.stat("TCPECNReduced"), 1);
    // A window later, an echo reduces again.
    peer.receive(&next);
    rig.send(peer.pure_ack());
    assert_eq!(cwnd(&rig, &peer), 7);
    rig.send(Seg { flags: ACK | ECE, ack: peer.ack + 1460, ..peer.pure_ack() });
    assert_eq!((cwnd(&rig, &peer), rig.stat("TCPECNReduced")), (4, 2));
    end(rig, &peer);
}

#[test]
fn retransmissions_are_not_ect_and_a_loss_sets_cwr() {
    let mut rig = Rig::new();
    let mut peer = capable(&mut rig);
    let said = rig.host_sends(peer.flow, &bytes(20 * 1460));
    let mut out = rig.send(peer.holes(&said, &[(1, 6)]));
    assert_eq!((out[0].seq, out[0].ecn, out[0].flags & CWR), (said[0].seq, 0, 0));
    peer.receive(&said);
    out.extend(rig.send(peer.pure_ack()));
    let (first, rest) = out[1..].split_first().expect("new data");
    assert_eq!((first.ecn, first.flags & CWR), (ECT_0, CWR), "RFC 3168 section 6.1.2");
    assert!(rest.iter().all(|s| s.ecn == ECT_0 && s.flags & CWR == 0));
    assert_eq!(rig.stat("TCPECNReduced"), 0);
    end(rig, &peer);
}

/// Ten segments, the last one sent again as a probe, and a guest that was silent until then.
fn probed(rig: &mut Rig) -> (Peer, Vec<Seg>) {
    let mut peer = capable(rig);
    peer.wnd = u16::MAX;
    let said = rig.host_sends(peer.flow, &bytes(10 * 1460));
    let probe = rig.pass_segs(20);
    assert_eq!((probe.len(), probe[0].1.seq), (1, said[9].seq));
    (peer, said)
}

#[test]
fn a_loss_repaired_by_a_probe_sets_cwr_and_costs_one_window() {
    let mut rig = Rig::new();
    let (mut peer, said) = probed(&mut rig);
    peer.receive(&said);
    rig.send(peer.pure_ack());
    let before = rig.flow(peer.flow).unwrap().cwnd;
    // An ACK beyond the probe without a DSACK shows that the last segment was lost; a mark reduces no further.
    peer.receive(&rig.host_sends(peer.flow, &bytes(1460)));
    rig.send(Seg { flags: ACK | ECE, ..peer.pure_ack() });
    let after = rig.flow(peer.flow).unwrap().cwnd;
    assert_eq!((after, rig.stat("TCPECNReduced")), (before * 7 / 10, 0), "RFC 9438 section 4.6");
    let next = one(rig.host_sends(peer.flow, &bytes(1460)));
    assert_eq!((next.flags & CWR, next.ecn), (CWR, ECT_0), "RFC 3168 section 6.1.2");
    end(rig, &peer);
}

#[test]
fn a_probe_that_repaired_a_loss_in_a_window_with_marks_costs_no_other() {
    let mut rig = Rig::new();
    let (mut peer, said) = probed(&mut rig);
    peer.receive(&said[..5]);
    rig.send(Seg { flags: ACK | ECE, ..peer.pure_ack() });
    assert_eq!(rig.stat("TCPECNReduced"), 1);
    peer.receive(&said[5..]);
    rig.send(peer.pure_ack());
    let before = rig.flow(peer.flow).unwrap().cwnd;
    let next = one(rig.host_sends(peer.flow, &bytes(1460)));
    assert_eq!(next.flags & CWR, CWR);
    peer.receive(&[next]);
    rig.send(peer.pure_ack());
    assert!(rig.flow(peer.flow).unwrap().cwnd >= before);
    end(rig, &peer);
}

#[test]
fn super_frames_go_both_ways_with_cwr_in_their_first_segment() {
    let mut rig = Rig::with(Setup { offload: true, ..Setup::default() });
    let mut peer = capable(&mut rig);
    let said = rig.host_sends(peer.flow, &bytes(100_000));
    peer.receive(&said);
    // The vnet header of sent frames is checked wherever frames are read.
    let next = rig.send(Seg { flags: ACK | ECE, ..peer.pure_ack() });
    assert!(next[0].flags & CWR != 0 && next[0].gso == 1460, "{:?}", next[0].gso);
    let up = Seg { ecn: ECT_0, ..peer.data(&bytes(5840)) };
    let frame = Seg { flags: up.flags | CWR, ..up }.frame();
    let vnet = VnetHdr { flags: 2, gso_type: 0x81, gso_size: 1460, ..VnetHdr::default() };
    rig.with_cx(|stack, cx| stack.on_frame(cx, &vnet, &frame));
    rig.turn();
    assert_eq!(rig.sock(peer.flow).received, bytes(5840));
    end(rig, &peer);
}
