//! One side ends or breaks: data acknowledged to the other side is delivered first.

use skbudget_stack::{Close, FlowId, HostError};

use crate::peer::{Hello, Peer, bytes, introduce};
use crate::rig::{GATEWAY, Rig, one, segs};
use crate::wire::{ACK, FIN, RST, SYN, Seg};

/// A guest that acknowledges everything until nothing more arrives; returns the bytes and the FIN and RST segments.
fn receive_all(rig: &mut Rig, peer: &mut Peer, mut out: Vec<Seg>) -> (Vec<u8>, Vec<Seg>) {
    let (mut heard, mut ends) = (Vec::new(), Vec::new());
    while !out.is_empty() {
        heard.extend(peer.receive(&out));
        ends.extend(out.iter().filter(|s| s.flags & (FIN | RST) != 0).cloned());
        // After a reset the guest's kernel sends no ACK.
        if ends.iter().any(|s| s.flags & RST != 0) {
            break;
        }
        out = rig.send(peer.pure_ack());
    }
    (heard, ends)
}

/// Opens a connection in each possible way.
pub(crate) fn each_way() -> Vec<(Rig, Peer)> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let peer = Peer::open_with(&mut rig, 40_000, &Hello { v6, ..Hello::default() });
        all.push((rig, peer));
    }
    let mut rig = Rig::new();
    introduce(&mut rig);
    let peer = Peer::accept(&mut rig, 8080);
    all.push((rig, peer));
    all
}

// ---- the host breaks ----

#[test]
fn an_answer_before_a_reset_is_delivered_whole_and_then_the_reset() {
    // Nothing, one segment, and more than one window of data before the reset.
    for answer in [0, 7, 60_000] {
        for (mut rig, mut peer) in each_way() {
            rig.sock(peer.flow).incoming.extend(bytes(answer));
            let out = rig.host_breaks(peer.flow, HostError::Reset);
            let resets = out.iter().filter(|s| s.flags & RST != 0).count();
            assert_eq!(resets, usize::from(answer == 0), "not before all is acknowledged");
            let (heard, ends) = receive_all(&mut rig, &mut peer, out);
            assert!(heard == bytes(answer), "{} of {answer} bytes", heard.len());
            let rst = one(ends);
            assert!(rst.is(RST | ACK), "no FIN: the host's stream did not end");
            assert_eq!((rst.seq, rst.ack), (peer.ack, peer.seq));
            assert_eq!(rig.sock(peer.flow).closed, Some(Close::Reset));
            rig.assert_empty();
        }
    }
}

#[test]
fn a_write_that_meets_the_error_first_does_not_make_an_orderly_end_of_it() {
    for (mut rig, mut peer) in each_way() {
        let sock = rig.sock(peer.flow);
        sock.incoming.extend(bytes(20_000));
        sock.broken = Some(HostError::Reset);
        // The poll has not reported the error yet. From now on reads return 0.
        let out = rig.send(peer.data(b"more of the request"));
        assert!(rig.sock(peer.flow).error_returned && rig.sock(peer.flow).writes == 1);
        let (heard, ends) = receive_all(&mut rig, &mut peer, out);
        assert!(heard == bytes(20_000), "{} bytes", heard.len());
        assert!(one(ends).is(RST | ACK));
        rig.assert_empty();
    }
}

#[test]
fn a_host_that_ended_and_then_reset_is_a_fin_and_then_a_reset() {
    for said in [0, 20_000] {
        for written_to in [false, true] {
            let mut rig = Rig::new();
            let mut peer = Peer::open(&mut rig);
            let sock = rig.sock(peer.flow);
            sock.incoming.extend(bytes(said));
            sock.ends = true;
            let mut out = Vec::new();
            if written_to {
                sock.broken = Some(HostError::ResetAfterEnd);
                out = rig.send(peer.data(b"x"));
            } else {
                out.extend(rig.host_breaks(peer.flow, HostError::ResetAfterEnd));
            }
            let (heard, ends) = receive_all(&mut rig, &mut peer, out);
            assert!(heard == bytes(said));
            assert_eq!(ends.len(), 2, "{ends:?}");
            assert!(ends[0].flags & FIN != 0 && ends[1].is(RST | ACK), "{ends:?}");
            rig.assert_empty();
        }
    }
}

#[test]
fn a_reset_after_an_end_that_the_guest_has_seen_reaches_it_at_once() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let fin = rig.host_ends(peer.flow);
    peer.receive(&fin);
    rig.send(peer.pure_ack());
    assert_eq!(rig.state(peer.flow), "FIN-WAIT-2");
    assert!(one(rig.host_breaks(peer.flow, HostError::ResetAfterEnd)).is(RST | ACK));
    rig.assert_empty();
}

#[test]
fn a_guest_that_sends_all_before_it_reads_gets_to_the_answer() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    // The guest's application reads nothing yet: its window is closed.
    peer.wnd = 0;
    rig.send(peer.pure_ack());
    // The host reads nothing either: only the guest's window may open again.
    rig.sock(peer.flow).room = 0;
    rig.sock(peer.flow).incoming.extend(bytes(9000));
    rig.send(peer.data(&bytes(1000)));
    rig.host_breaks(peer.flow, HostError::Reset);
    let mut sent = 0;
    while sent < 400_000 {
        let n = peer.window().min(1460);
        assert!(n > 0, "stuck after {sent} bytes");
        let out = rig.send(peer.data(&vec![1; n]));
        peer.receive(&out);
        sent += n;
    }
    assert_eq!(rig.sock(peer.flow).received.len(), 0);
    peer.wnd = 512;
    let out = rig.send(peer.pure_ack());
    let (heard, ends) = receive_all(&mut rig, &mut peer, out);
    assert!(heard == bytes(9000));
    assert!(one(ends).is(RST | ACK));
    rig.assert_empty();
}

#[test]
fn a_host_that_times_out_resets_the_guest_after_its_data() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).incoming.extend(b"last words");
    let out = rig.host_breaks(peer.flow, HostError::TimedOut);
    let (heard, ends) = receive_all(&mut rig, &mut peer, out);
    assert_eq!(heard, b"last words");
    assert!(one(ends).is(RST | ACK));
    rig.assert_empty();
}

#[test]
fn a_server_that_answers_and_resets_at_once_was_connected_to() {
    for (error, fins) in [(HostError::Reset, 0), (HostError::ResetAfterEnd, 1)] {
        let mut rig = Rig::new();
        rig.host.outcome = Some(Err(error));
        let syn = Hello::default().syn(40_000, 80);
        rig.send(syn.clone());
        let flow = *rig.host.connects.last().unwrap();
        let sock = rig.sock(flow);
        sock.incoming.extend(b"too many connections");
        // The outcome of connect(2) returned the error, so no later call returns it again.
        (sock.broken, sock.error_returned, sock.ends) = (Some(error), true, fins == 1);
        let syn_ack = one(rig.ready(flow, true, true));
        assert!(syn_ack.is(SYN | ACK), "{syn_ack:?}");
        let mut peer = Peer::answering(flow, &syn, &syn_ack);
        let out = rig.send(peer.pure_ack());
        let (heard, ends) = receive_all(&mut rig, &mut peer, out);
        assert_eq!(heard, b"too many connections");
        assert_eq!(ends.iter().filter(|s| s.flags & FIN != 0).count(), fins);
        assert!(ends.last().unwrap().is(RST | ACK));
        rig.assert_empty();
    }
}

#[test]
fn an_error_that_the_reads_do_not_find_is_none() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.stack.on_host_broken(peer.flow);
    rig.turn();
    rig.send(peer.data(b"as before"));
    assert_eq!(rig.sock(peer.flow).received, b"as before");
    rig.send(peer.rst());
    rig.assert_empty();
}

// ---- published ports: reset before accept ----

fn knock(rig: &mut Rig, said: &[u8]) -> (FlowId, Seg) {
    introduce(rig);
    let flow = rig.accept(8080, (GATEWAY, 5555).into());
    rig.sock(flow).incoming.extend(said);
    let mut out = rig.host_breaks(flow, HostError::Reset);
    out.extend(segs(rig.turn()));
    (flow, one(out))
}

#[test]
fn a_client_that_was_gone_before_accept_is_a_connection_that_is_reset() {
    for said in [&b""[..], b"GET / HTTP/1.0\r\n\r\n"] {
        let mut rig = Rig::new();
        let (flow, syn) = knock(&mut rig, said);
        assert!(syn.is(SYN));
        let hello = Hello::default();
        let answer = Seg {
            ack: syn.seq.wrapping_add(1),
            flags: SYN | ACK,
            ..hello.syn(8080, syn.remote_port)
        };
        let mut out = rig.send(answer.clone());
        let mut heard = Vec::new();
        let mut ack = answer.ack;
        for _ in 0..3 {
            if out.iter().any(|s| s.flags & RST != 0) {
                break;
            }
            for seg in &out {
                heard.extend_from_slice(&seg.data);
                ack = ack.max(seg.seq.wrapping_add(seg.data.len() as u32));
            }
            let seq = answer.seq.wrapping_add(1);
            let blank = Seg { mss: None, wscale: None, sack_ok: false, ..answer.clone() };
            out = rig.send(Seg { seq, ack, flags: ACK, ..blank });
        }
        assert_eq!(heard, said);
        assert!(out.iter().any(|s| s.flags & RST != 0), "{out:?}");
        assert_eq!(rig.state(flow), "GONE");
        rig.assert_empty();
    }
}

#[test]
fn a_client_gone_before_accept_leaves_nothing_at_a_closed_or_silent_port() {
    let mut rig = Rig::new();
    let (flow, syn) = knock(&mut rig, b"");
    let base = Hello::default().syn(8080, syn.remote_port);
    rig.send(Seg { flags: RST | ACK, ack: syn.seq.wrapping_add(1), ..base });
    assert_eq!(rig.state(flow), "GONE");
    rig.assert_empty();

    let mut rig = Rig::new();
    let (flow, _) = knock(&mut rig, b"");
    rig.pass(120_000);
    assert_eq!(rig.state(flow), "GONE", "our SYN is given up");
    rig.assert_empty();
}

#[test]
fn an_accepted_connection_whose_socket_could_not_be_kept_leaves_no_flow() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let empty = rig.usage();
    for port in 0..100 {
        let from = (GATEWAY, 5555 + port).into();
        let accepted = rig.with_cx(|stack, cx| stack.on_accept(cx, 8080, from, 0));
        let (flow, _) = accepted.unwrap();
        assert!(rig.usage() > empty);
        rig.with_cx(|stack, cx| stack.accept_failed(cx, flow));
        assert_eq!((rig.usage(), rig.state(flow)), (empty, "GONE"));
        rig.with_cx(|stack, cx| stack.accept_failed(cx, flow));
    }
    assert_eq!(rig.turn(), [], "the guest hears nothing of it");
    rig.assert_empty();
}
