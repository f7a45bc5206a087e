//! One side ends or breaks: data acknowledged to the other side is delivered first.

use skbudget_stack::controller::Counter;
use skbudget_stack::{Close, Container, FlowId, HostError};

use crate::peer::{Hello, Peer, bytes, introduce};
use crate::rig::{GATEWAY, Rig, Setup, one, segs};
use crate::wire::{ACK, FIN, RST, SYN, Seg};

/// A guest that acknowledges everything until nothing more arrives; returns the bytes and the FIN and RST segments.
fn hear_all(rig: &mut Rig, peer: &mut Peer, mut out: Vec<Seg>) -> (Vec<u8>, Vec<Seg>) {
    let (mut heard, mut ends) = (Vec::new(), Vec::new());
    while !out.is_empty() {
        heard.extend(peer.hear(&out));
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
fn each_way() -> Vec<(Rig, Peer)> {
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
fn an_answer_before_a_reset_is_heard_whole_and_then_the_reset() {
    // Nothing, one segment, and more than one window of data before the reset.
    for answer in [0, 7, 60_000] {
        for (mut rig, mut peer) in each_way() {
            rig.sock(peer.flow).says.extend(bytes(answer));
            let out = rig.host_breaks(peer.flow, HostError::Reset);
            let resets = out.iter().filter(|s| s.flags & RST != 0).count();
            assert_eq!(resets, usize::from(answer == 0), "not before all is acknowledged");
            let (heard, ends) = hear_all(&mut rig, &mut peer, out);
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
        sock.says.extend(bytes(20_000));
        sock.broken = Some(HostError::Reset);
        // The poll has not reported the error yet. From now on reads return 0.
        let out = rig.send(peer.data(b"more of the request"));
        assert!(rig.sock(peer.flow).told && rig.sock(peer.flow).writes == 1);
        let (heard, ends) = hear_all(&mut rig, &mut peer, out);
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
            sock.says.extend(bytes(said));
            sock.ends = true;
            let mut out = Vec::new();
            if written_to {
                sock.broken = Some(HostError::ResetAfterEnd);
                out = rig.send(peer.data(b"x"));
            } else {
                out.extend(rig.host_breaks(peer.flow, HostError::ResetAfterEnd));
            }
            let (heard, ends) = hear_all(&mut rig, &mut peer, out);
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
    peer.hear(&fin);
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
    rig.sock(peer.flow).says.extend(bytes(9000));
    rig.send(peer.data(&bytes(1000)));
    rig.host_breaks(peer.flow, HostError::Reset);
    let mut sent = 0;
    while sent < 400_000 {
        let n = peer.window().min(1460);
        assert!(n > 0, "stuck after {sent} bytes");
        let out = rig.send(peer.data(&vec![1; n]));
        peer.hear(&out);
        sent += n;
    }
    assert_eq!(rig.sock(peer.flow).heard.len(), 0);
    peer.wnd = 512;
    let out = rig.send(peer.pure_ack());
    let (heard, ends) = hear_all(&mut rig, &mut peer, out);
    assert!(heard == bytes(9000));
    assert!(one(ends).is(RST | ACK));
    rig.assert_empty();
}

#[test]
fn a_host_that_times_out_resets_the_guest_after_what_it_said() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).says.extend(b"last words");
    let out = rig.host_breaks(peer.flow, HostError::TimedOut);
    let (heard, ends) = hear_all(&mut rig, &mut peer, out);
    assert_eq!(heard, b"last words");
    assert!(one(ends).is(RST | ACK));
    rig.assert_empty();
}

#[test]
fn a_server_that_answers_and_resets_before_we_look_was_connected_to() {
    for (error, fins) in [(HostError::Reset, 0), (HostError::ResetAfterEnd, 1)] {
        let mut rig = Rig::new();
        rig.host.outcome = Some(Err(error));
        let syn = Hello::default().syn(40_000, 80);
        rig.send(syn.clone());
        let flow = *rig.host.connects.last().unwrap();
        let sock = rig.sock(flow);
        sock.says.extend(b"too many connections");
        // The outcome of connect(2) returned the error, so no later call returns it again.
        (sock.broken, sock.told, sock.ends) = (Some(error), true, fins == 1);
        let syn_ack = one(rig.ready(flow, true, true));
        assert!(syn_ack.is(SYN | ACK), "{syn_ack:?}");
        let mut peer = Peer::answering(flow, &syn, &syn_ack);
        let out = rig.send(peer.pure_ack());
        let (heard, ends) = hear_all(&mut rig, &mut peer, out);
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
    assert_eq!(rig.sock(peer.flow).heard, b"as before");
    rig.send(peer.rst());
    rig.assert_empty();
}

// ---- published ports: reset before accept ----

fn knock(rig: &mut Rig, said: &[u8]) -> (FlowId, Seg) {
    introduce(rig);
    let flow = rig.accept(8080, (GATEWAY, 5555).into());
    rig.sock(flow).says.extend(said);
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
fn a_client_that_was_gone_before_accept_leaves_nothing_where_nobody_listens_or_answers() {
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

// ---- the guest is gone ----

#[test]
fn the_guests_last_words_before_its_reset_are_delivered() {
    for (mut rig, mut peer) in each_way() {
        rig.sock(peer.flow).room = 0;
        let data = bytes(5000);
        for part in data.chunks(1000) {
            let out = rig.send(peer.data(part));
            peer.hear(&out);
        }
        rig.host_says(peer.flow, b"the guest reads nothing more");
        peer.hear(&[]);
        // The guest resets while its own data still waits for the host.
        rig.send(Seg { ack: peer.ack, ..peer.rst() });
        assert_eq!(rig.state(peer.flow), "ORPHAN");
        assert_eq!(rig.flow(peer.flow).unwrap().wmem, 0, "nothing is kept for the guest");
        rig.sock(peer.flow).unacked = 2000;
        rig.sock(peer.flow).room = usize::MAX;
        rig.ready(peer.flow, false, true);
        assert!(rig.sock(peer.flow).heard == data);
        assert_eq!(rig.sock(peer.flow).closed, None, "a reset now would discard 2000 bytes");
        rig.pass(100);
        rig.sock(peer.flow).unacked = 0;
        rig.pass(200);
        assert_eq!(rig.sock(peer.flow).closed, Some(Close::Reset));
        assert!(!rig.sock(peer.flow).shut, "its stream did not end");
        assert_eq!(rig.stat("OrphansGivenUp"), 0);
        rig.assert_empty();
    }
}

#[test]
fn a_guest_that_ended_and_then_reset_does_both_to_the_host() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).room = 0;
    rig.send(peer.data(b"all of it"));
    rig.send(peer.fin());
    rig.send(peer.rst());
    rig.sock(peer.flow).room = usize::MAX;
    rig.ready(peer.flow, false, true);
    let sock = rig.sock(peer.flow);
    assert!(sock.heard == b"all of it" && sock.shut);
    assert_eq!(sock.closed, Some(Close::Reset));
    rig.assert_empty();
}

#[test]
fn after_a_reset_a_host_that_takes_nothing_is_waited_for_a_second() {
    for (kept_here, unacked) in [(400, 0), (0, 400), (200, 200)] {
        let mut rig = Rig::new();
        let mut peer = Peer::open(&mut rig);
        if kept_here > 0 {
            rig.sock(peer.flow).room = 0;
            rig.send(peer.data(&bytes(kept_here)));
        }
        rig.sock(peer.flow).unacked = unacked;
        rig.send(peer.rst());
        rig.pass(500);
        if unacked > 0 {
            // One more byte is acknowledged: the second starts again.
            rig.sock(peer.flow).unacked -= 1;
            rig.pass(600);
        }
        assert_eq!(rig.state(peer.flow), "ORPHAN");
        rig.pass(900);
        assert_eq!(rig.state(peer.flow), "GONE");
        assert_eq!(rig.sock(peer.flow).closed, Some(Close::Reset));
        // One byte was acknowledged meanwhile.
        let lost = kept_here as u64 + unacked.saturating_sub(1);
        assert_eq!((rig.stat("OrphansGivenUp"), rig.stat("OrphanBytesLost")), (1, lost));
        rig.assert_empty();
    }
}

#[test]
fn what_the_kernel_holds_of_a_closed_flow_is_charged_until_it_is_acknowledged() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    for _ in 0..60 {
        let out = rig.send(peer.data(&[1; 1400]));
        peer.hear(&out);
    }
    let sock = rig.sock(peer.flow);
    (sock.unacked, sock.keeps) = (70_001, 90_000);
    let charged = rig.flow(peer.flow).unwrap().host_bytes;
    let fin = rig.host_ends(peer.flow);
    peer.hear(&fin);
    rig.send(peer.fin());
    assert_eq!(rig.state(peer.flow), "ORPHAN");
    assert!(rig.sock(peer.flow).shut);
    let held = rig.flow(peer.flow).unwrap().host_bytes;
    assert!((1..=charged).contains(&held), "{held} of {charged}");
    // The orphan stays as long as it makes progress, however slowly: one byte in 59 seconds.
    for n in 0..5 {
        rig.pass(59_000);
        assert_eq!(rig.state(peer.flow), "ORPHAN");
        rig.sock(peer.flow).unacked = 70_000 - n;
    }
    // Memory that the kernel has released is uncharged (K11).
    rig.sock(peer.flow).keeps = 5000;
    rig.pass(500);
    assert!(rig.flow(peer.flow).unwrap().host_bytes < held.min(30_000));
    assert!(rig.usage() > rig.empty);
    rig.sock(peer.flow).unacked = 0;
    rig.pass(500);
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Graceful));
    assert_eq!(rig.stat("OrphansGivenUp"), 0);
    rig.assert_empty();
}

#[test]
fn a_closed_flow_without_progress_is_reset_after_a_minute() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let fin = rig.host_ends(peer.flow);
    peer.hear(&fin);
    rig.sock(peer.flow).unacked = 1001;
    rig.send(peer.fin());
    rig.pass(59_000);
    assert_eq!(rig.sock(peer.flow).closed, None);
    rig.pass(2_000);
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Reset));
    assert_eq!((rig.stat("OrphansGivenUp"), rig.stat("OrphanBytesLost")), (1, 1000));
    rig.assert_empty();
}

#[test]
fn a_guest_that_falls_silent_is_given_up_and_what_it_sent_is_delivered() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).room = 0;
    rig.send(peer.data(b"acknowledged"));
    rig.host_says(peer.flow, &bytes(500));
    // No ACK arrives: after a quarter of an hour the guest is reset, and its bytes wait a second for the host.
    for _ in 0..2000 {
        rig.pass(1000);
        if rig.state(peer.flow) == "ORPHAN" {
            break;
        }
    }
    assert_eq!(rig.state(peer.flow), "ORPHAN");
    rig.sock(peer.flow).room = usize::MAX;
    rig.ready(peer.flow, false, true);
    assert_eq!(rig.sock(peer.flow).heard, b"acknowledged");
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Reset));
    rig.assert_empty();
}

#[test]
fn an_orphan_whose_host_breaks_is_over() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).unacked = 5;
    rig.send(peer.data(b"x"));
    rig.send(peer.rst());
    assert_eq!(rig.state(peer.flow), "ORPHAN");
    assert_eq!(rig.host_breaks(peer.flow, HostError::Reset), []);
    assert_eq!(rig.state(peer.flow), "GONE");
    rig.assert_empty();
}

// ---- memory ----

/// Closed uploads that the host takes slowly fill the budget, and then new connections need room.
#[test]
fn an_upload_that_makes_progress_is_not_dropped_for_those_who_want_its_room() {
    let mut rig = Rig::with(Setup { hard: 1 << 20, ..Setup::default() });
    let mut peers = Vec::new();
    for i in 0..100 {
        assert_eq!(rig.send(Hello::default().syn(40_000 + i, 80)), []);
        let Some(&flow) = rig.host.connects.get(usize::from(i)) else { break };
        let syn_ack = one(rig.ready(flow, false, true));
        let mut peer = Peer::answering(flow, &Hello::default().syn(40_000 + i, 80), &syn_ack);
        rig.send(peer.pure_ack());
        rig.sock(flow).room = 0;
        for _ in 0..20 {
            let n = peer.window().min(1460);
            if n == 0 {
                break;
            }
            let out = rig.send(peer.data(&vec![1; n]));
            peer.hear(&out);
        }
        let fin = rig.host_ends(flow);
        peer.hear(&fin);
        rig.send(peer.fin());
        peers.push(peer);
    }
    assert!(peers.len() > 3, "{}", peers.len());
    // Waiting connections are admitted as time passes, as orphans make room.
    for _ in 0..8 {
        rig.pass(1000);
        for peer in &peers {
            if rig.sock(peer.flow).closed.is_none() {
                rig.sock(peer.flow).room = 100;
                rig.ready(peer.flow, false, true);
            }
        }
    }
    assert!(rig.counter(Counter::AdmissionDelayed) > 0, "somebody waited");
    let fates = peers.iter().map(|peer| rig.sock(peer.flow).closed);
    let fates: Vec<Option<Close>> = fates.collect();
    assert!(fates.iter().all(|fate| *fate != Some(Close::Reset)), "{fates:?}");
    assert_eq!(rig.stat("OrphansGivenUp"), 0);
    rig.with_cx(Container::abort_all);
}

// ---- what is not delivered yet ----

#[test]
fn what_would_be_lost_is_told() {
    let mut rig = Rig::new();
    let told = |rig: &mut Rig| {
        let now = rig.with_cx(|stack, cx| stack.undelivered(cx.host));
        (now.flows, now.bytes)
    };
    assert_eq!(told(&mut rig), (0, 0));
    // Not established yet: nothing is undelivered.
    rig.host.outcome = None;
    rig.send(Hello::default().syn(41_000, 81));
    assert_eq!(told(&mut rig), (0, 0));
    rig.host.outcome = Some(Ok(()));
    let mut peer = Peer::open(&mut rig);
    assert_eq!(told(&mut rig), (1, 0), "its stream has not ended");
    rig.sock(peer.flow).room = 0;
    rig.send(peer.data(&bytes(300)));
    rig.sock(peer.flow).unacked = 50;
    assert_eq!(told(&mut rig), (1, 350));
    rig.send(peer.fin());
    assert_eq!(told(&mut rig), (1, 350));
    rig.sock(peer.flow).room = usize::MAX;
    rig.sock(peer.flow).unacked = 121;
    rig.ready(peer.flow, false, true);
    assert_eq!(told(&mut rig), (1, 120), "one is for the end of the stream");
    rig.sock(peer.flow).unacked = 0;
    assert_eq!(told(&mut rig), (0, 0), "the host may go on sending");
    let broken = Peer::open_with(&mut rig, 40_001, &Hello::default());
    rig.sock(broken.flow).says.extend(b"for the guest");
    rig.host_breaks(broken.flow, HostError::Reset);
    assert_eq!(told(&mut rig), (0, 0), "nothing can be delivered there");
    rig.with_cx(Container::abort_all);
}
