//! Which resets are accepted, and which segments are answered with one.

use skbudget_stack::FlowId;

use crate::peer::{Hello, Peer, introduce};
use crate::rig::{GATEWAY, Rig, one, segs};
use crate::wire::{ACK, FIN, RST, SYN, Seg};

#[test]
fn at_every_edge_of_the_window() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let window = peer.window() as u32;
    // RFC 5961 section 3.2: the last number of the window is challenged, the first beyond it is ignored.
    for (offset, answers) in
        [(1, 1), (window - 1, 1), (window + 128, 0), (u32::MAX, 0), (1 << 31, 0)]
    {
        rig.pass(150);
        let out = rig.send(Seg { seq: peer.seq.wrapping_add(offset), ..peer.rst() });
        assert_eq!(out.len(), answers, "at {offset}");
        assert!(out.iter().all(|s| s.is(ACK)));
        assert_eq!(rig.state(peer.flow), "ESTAB");
    }
    rig.send(peer.rst());
    assert_eq!(rig.state(peer.flow), "GONE");
    rig.assert_empty();
}

#[test]
fn with_the_ack_bit_it_is_one_too() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    rig.send(Seg { flags: RST | ACK, ack: peer.ack, ..peer.rst() });
    assert_eq!(rig.state(peer.flow), "GONE");
    rig.assert_empty();
}

#[test]
fn a_challenge_is_answered_by_the_guest_that_means_it() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).room = 0;
    // The guest crashed with bytes in flight: its reset is ahead of the data that arrived.
    peer.data(&[0; 500]);
    let challenge = one(rig.send(peer.rst()));
    rig.send(Seg { seq: challenge.ack, ..peer.rst() });
    assert_eq!(rig.state(peer.flow), "GONE");
    rig.assert_empty();
}

type Enter = fn(&mut Rig, &mut Peer);

#[test]
fn in_every_state_that_has_a_window() {
    let states: [(&str, Enter); 5] = [
        ("FIN-WAIT-1", |rig, peer| {
            rig.host_ends(peer.flow);
        }),
        ("FIN-WAIT-2", |rig, peer| {
            let fin = rig.host_ends(peer.flow);
            peer.receive(&fin);
            rig.send(peer.pure_ack());
        }),
        ("CLOSE-WAIT", |rig, peer| {
            rig.send(peer.fin());
        }),
        ("CLOSING", |rig, peer| {
            rig.host_ends(peer.flow);
            rig.send(peer.fin());
        }),
        ("LAST-ACK", |rig, peer| {
            rig.send(peer.fin());
            rig.host_ends(peer.flow);
        }),
    ];
    for (state, enter) in states {
        let mut rig = Rig::new();
        let mut peer = Peer::open(&mut rig);
        enter(&mut rig, &mut peer);
        assert_eq!(rig.state(peer.flow), state);
        assert_eq!(rig.send(peer.rst()), []);
        assert_eq!(rig.state(peer.flow), "GONE", "in {state}");
        rig.assert_empty();
    }
}

/// A client connected: the flow, and the stack's SYN.
fn accepted(rig: &mut Rig) -> (FlowId, Seg) {
    introduce(rig);
    let flow = rig.accept(8080, (GATEWAY, 5555).into());
    (flow, one(segs(rig.turn())))
}

#[test]
fn a_refusal_of_our_syn_must_acknowledge_it() {
    let mut rig = Rig::new();
    let (flow, syn) = accepted(&mut rig);
    let base = Seg { guest_port: 8080, remote_port: syn.remote_port, ..Seg::default() };
    // RFC 9293 section 3.10.7.3: a RST without an ACK, or with another ACK, is ignored.
    rig.send(Seg { flags: RST, seq: 0, ..base.clone() });
    rig.send(Seg { flags: RST | ACK, ack: syn.seq, ..base.clone() });
    rig.send(Seg { flags: RST | ACK, ack: syn.seq.wrapping_add(2), ..base.clone() });
    assert_eq!(rig.state(flow), "SYN-SENT");
    rig.send(Seg { flags: RST | ACK, ack: syn.seq.wrapping_add(1), ..base });
    assert_eq!(rig.state(flow), "GONE");
    rig.assert_empty();
}

#[test]
fn a_syn_ack_of_another_connection_is_reset() {
    let mut rig = Rig::new();
    let (flow, syn) = accepted(&mut rig);
    let old = Seg { flags: SYN | ACK, ack: 12_345, ..Hello::default().syn(8080, syn.remote_port) };
    let rst = one(rig.send(old));
    assert!(rst.is(RST) && rst.seq == 12_345);
    assert_eq!(rig.state(flow), "SYN-SENT");
    rig.with_cx(skbudget_stack::Container::abort_all);
}

#[test]
fn a_fin_without_flow_is_reset_with_the_number_it_would_acknowledge() {
    let mut rig = Rig::new();
    let stray = Seg { flags: FIN, seq: 500, ..Hello::default().syn(9, 9) };
    let rst = one(rig.send(Seg { data: b"four".to_vec(), ..stray }));
    assert!(rst.is(RST | ACK));
    assert_eq!((rst.seq, rst.ack), (0, 505), "RFC 9293 section 3.10.7.1");
    rig.assert_empty();
}
