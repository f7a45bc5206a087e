//! The ends of connections.

use skbudget_stack::{Close, HostError};

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{Rig, one, segs};
use crate::wire::{ACK, FIN, RST, SYN, Seg};

#[test]
fn the_guest_closes_first_and_still_receives_everything() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let ack = one(rig.send(peer.fin()));
    assert!(ack.is(ACK) && ack.ack == peer.seq);
    assert!(rig.sock(peer.flow).shut, "end of stream for the host");
    assert_eq!(rig.state(peer.flow), "CLOSE-WAIT");
    let mut out = rig.host_sends(peer.flow, &bytes(50_000));
    let mut heard = Vec::new();
    while !out.is_empty() {
        heard.extend(peer.receive(&out));
        out = rig.send(peer.pure_ack());
    }
    assert_eq!(heard, bytes(50_000));
    let fin = one(rig.host_ends(peer.flow));
    assert!(fin.is(FIN | ACK));
    peer.receive(&[fin]);
    assert_eq!(rig.send(peer.pure_ack()), []);
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Graceful));
    assert_eq!(rig.stack.stats().time_wait, 0, "the guest keeps TIME-WAIT");
    rig.assert_empty();
}

#[test]
fn the_host_closes_first_and_still_receives_everything() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).incoming.extend(b"last words");
    let out = rig.host_ends(peer.flow);
    assert_eq!(peer.receive(&out), b"last words");
    assert_eq!(out.iter().filter(|s| s.flags & FIN != 0).count(), 1);
    rig.send(peer.pure_ack());
    assert_eq!(rig.state(peer.flow), "FIN-WAIT-2");
    let data = bytes(30_000);
    for part in data.chunks(1000) {
        let out = rig.send(peer.data(part));
        assert_eq!(one(out).ack, peer.seq);
    }
    assert_eq!(rig.sock(peer.flow).received, data);
    let last = one(rig.send(peer.fin()));
    assert!(last.is(ACK) && last.ack == peer.seq);
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Graceful));
    assert_eq!(rig.stack.stats().time_wait, 1);
    rig.assert_empty();
}

#[test]
fn fins_that_cross() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let fin = one(rig.host_ends(peer.flow));
    // The guest's FIN left before ours arrived.
    let ack = one(rig.send(peer.fin()));
    assert_eq!(ack.ack, peer.seq);
    assert_eq!(rig.state(peer.flow), "CLOSING");
    peer.receive(&[fin]);
    rig.send(peer.pure_ack());
    assert_eq!(rig.stack.stats().time_wait, 1);
    rig.assert_empty();
}

#[test]
fn fin_and_ack_of_ours_in_one() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let fin = one(rig.host_ends(peer.flow));
    peer.receive(&[fin]);
    let ack = one(rig.send(peer.fin()));
    assert_eq!(ack.ack, peer.seq);
    assert_eq!(rig.stack.stats().time_wait, 1);
    rig.assert_empty();
}

#[test]
fn a_fin_with_data_and_one_that_came_too_early() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let data = bytes(300);
    let with_fin = Seg { flags: ACK | FIN, ..peer.data_at(100, &data[100..]) };
    let ack = one(rig.send(with_fin.clone()));
    assert_eq!((ack.ack, rig.state(peer.flow)), (peer.seq, "ESTAB"));
    assert_eq!(ack.sack, [(peer.seq + 100, peer.seq + 300)]);
    let ack = one(rig.send(peer.data_at(0, &data[..100])));
    assert_eq!(ack.ack, peer.seq + 301, "the FIN was remembered");
    assert_eq!(rig.sock(peer.flow).received, data);
    assert!(rig.sock(peer.flow).shut);
    assert_eq!(rig.state(peer.flow), "CLOSE-WAIT");
    // A retransmission: acknowledged, and nothing changes.
    assert_eq!(one(rig.send(with_fin)).ack, peer.seq + 301);
    peer.seq += 301;
    // Data beyond a FIN is ignored.
    rig.send(peer.data_at(0, b"ghost"));
    assert_eq!(rig.sock(peer.flow).received.len(), 300);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_fin_is_retransmitted_until_it_is_acknowledged() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let fin = one(rig.host_ends(peer.flow));
    // Retransmissions by the timer, with back-off.
    let again = rig.pass_segs(4000);
    assert!(again.len() >= 2);
    assert!(again.iter().all(|(_, s)| s.is(FIN | ACK) && s.seq == fin.seq), "{again:?}");
    peer.receive(&[fin]);
    rig.send(peer.pure_ack());
    assert_eq!(rig.state(peer.flow), "FIN-WAIT-2");
    assert_eq!(rig.pass_segs(60_000), []);
    rig.send(peer.fin());
    rig.assert_empty();
}

#[test]
fn what_the_guest_sent_before_it_ended_is_still_owed_to_the_host() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).room = 0;
    rig.send(peer.data(b"owed"));
    rig.send(peer.fin());
    assert!(!rig.sock(peer.flow).shut);
    let fin = one(rig.host_ends(peer.flow));
    peer.receive(&[fin]);
    rig.send(peer.pure_ack());
    // TCP with the guest is over. The guest may reuse the ports while the host still reads.
    assert_eq!(rig.sock(peer.flow).closed, None);
    let second = Peer::open_with(&mut rig, 40_000, &Hello { seq: 90_000, ..Hello::default() });
    rig.pass(10_000);
    rig.sock(peer.flow).room = usize::MAX;
    rig.ready(peer.flow, false, true);
    assert_eq!(rig.sock(peer.flow).received, b"owed");
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Graceful));
    assert_eq!(rig.state(second.flow), "ESTAB");
    rig.send(second.rst());
    rig.assert_empty();
}

#[test]
fn resets_become_resets() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    assert_eq!(rig.send(peer.rst()), []);
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Reset));
    assert_eq!(rig.stat("EstabResets"), 1);
    for ready in [(true, false), (false, true)] {
        let mut peer = Peer::open_with(&mut rig, 40_001, &Hello::default());
        rig.sock(peer.flow).broken = Some(HostError::Reset);
        rig.frame(&peer.data(b"x").frame());
        let out = rig.ready(peer.flow, ready.0, ready.1);
        let rst = out.last().unwrap();
        assert!(rst.flags & RST != 0);
        assert_eq!((rst.seq, rst.ack), (peer.ack, peer.seq));
        assert_eq!(rig.sock(peer.flow).closed, Some(Close::Reset));
        // The guest's later segments are answered with a reset too.
        assert!(one(rig.send(peer.pure_ack())).is(RST));
    }
    rig.assert_empty();
}

#[test]
fn a_reset_must_be_exact() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    // In the window but not exact: RFC 5961 section 3.2 answers with a challenge ACK.
    let inside = Seg { seq: peer.seq.wrapping_add(100), ..peer.rst() };
    let challenge = one(rig.send(inside.clone()));
    assert!(challenge.is(ACK) && challenge.ack == peer.seq);
    assert_eq!(rig.stat("TCPChallengeACK"), 1);
    // Challenge ACKs are limited per flow.
    assert_eq!(rig.send(inside), []);
    let outside = Seg { seq: peer.seq.wrapping_sub(1), ..peer.rst() };
    assert_eq!(rig.send(outside), []);
    let beyond = Seg { seq: peer.seq.wrapping_add(1 << 20), ..peer.rst() };
    assert_eq!(rig.send(beyond), []);
    assert_eq!(rig.state(peer.flow), "ESTAB");
    rig.send(peer.rst());
    assert_eq!(rig.state(peer.flow), "GONE");
    rig.assert_empty();
}

#[test]
fn a_syn_in_a_connection_is_challenged() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    // A guest that crashed and reconnects: it answers the challenge with a reset, then its SYN is accepted.
    let hello = Hello { seq: peer.seq.wrapping_add(5000), ..Hello::default() };
    let challenge = one(rig.send(hello.syn(40_000, 80)));
    assert!(challenge.is(ACK) && challenge.ack == peer.seq && challenge.seq == peer.ack);
    let answer = Seg { seq: challenge.ack, flags: RST, ..hello.syn(40_000, 80) };
    rig.send(Seg { mss: None, wscale: None, sack_ok: false, ..answer });
    assert_eq!(rig.state(peer.flow), "GONE");
    let again = Peer::open_with(&mut rig, 40_000, &hello);
    rig.send(again.rst());
    rig.assert_empty();
}

/// A connection that the host ended first: the stack is in TIME-WAIT.
fn in_time_wait(rig: &mut Rig, hello: &Hello) -> Peer {
    let mut peer = Peer::open_with(rig, 40_000, hello);
    let fin = one(rig.host_ends(peer.flow));
    peer.receive(&[fin]);
    one(rig.send(peer.fin()));
    assert_eq!(rig.stack.stats().time_wait, 1);
    peer
}

#[test]
fn time_wait_answers_a_retransmitted_fin_and_expires_after_a_second() {
    let mut rig = Rig::new();
    let mut peer = in_time_wait(&mut rig, &Hello::default());
    assert!(rig.usage() >= rig.empty);
    rig.pass(500);
    peer.seq = peer.seq.wrapping_sub(1);
    let ack = one(rig.send(peer.fin()));
    assert_eq!((ack.seq, ack.ack), (peer.ack, peer.seq));
    // Bare ACKs and resets get no answer.
    assert_eq!(rig.send(peer.pure_ack()), []);
    assert_eq!(rig.send(peer.rst()), []);
    assert_eq!(rig.stack.stats().time_wait, 1);
    rig.pass(500);
    assert_eq!(rig.stack.stats().time_wait, 0);
    peer.seq = peer.seq.wrapping_sub(1);
    // After TIME-WAIT the connection is unknown.
    assert!(one(rig.send(peer.fin())).is(RST), "nobody remembers");
    rig.assert_empty();
}

#[test]
fn a_tuple_in_time_wait_is_used_again_by_a_newer_syn() {
    for ts in [None, Some(1000)] {
        let mut rig = Rig::new();
        let old = in_time_wait(&mut rig, &Hello { ts, ..Hello::default() });
        // Neither a newer sequence number nor a newer timestamp: answered with an ACK of the old connection.
        // RFC 6191: only a SYN that is provably newer may take the connection over.
        let stale = Hello { seq: old.seq.wrapping_sub(500), ts, ..Hello::default() };
        let ack = one(rig.send(stale.syn(40_000, 80)));
        assert!(ack.is(ACK) && ack.ack == old.seq);
        let newer = match ts {
            None => Hello { seq: old.seq.wrapping_add(1), ..Hello::default() },
            Some(ts) => Hello { ts: Some(ts + 1), ..stale },
        };
        let peer = Peer::open_with(&mut rig, 40_000, &newer);
        assert_eq!(rig.stack.stats().time_wait, 0);
        // Longer than the TIME-WAIT entry would have lasted.
        rig.pass(2000);
        assert_eq!(rig.state(peer.flow), "ESTAB", "the old entry's end is not the new flow's");
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_container_that_dies_resets_both_ends_of_every_flow() {
    let mut rig = Rig::new();
    let mut orphan = Peer::open_with(&mut rig, 40_002, &Hello::default());
    rig.sock(orphan.flow).room = 0;
    rig.send(orphan.data(&bytes(10)));
    rig.send(orphan.rst());
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).room = 0;
    rig.send(peer.data(&bytes(1000)));
    let last = rig.host_sends(peer.flow, &bytes(20_000)).pop().expect("data for the guest");
    rig.host.outcome = None;
    rig.send(Hello::default().syn(40_001, 81));
    assert!(rig.pool.live() > 0);
    rig.taken();
    // As when the container is removed in the middle of traffic.
    rig.with_cx(skbudget_stack::Container::abort_all);
    // The peer's 1000 bytes and the orphan's 10; the flow without an answer of its host has none.
    assert_eq!((rig.stat("OrphansGivenUp"), rig.stat("OrphanBytesLost")), (2, 1010));
    let resets = segs(rig.taken());
    // The orphan gets no reset: its guest side is gone already.
    assert!(resets.iter().all(|seg| seg.flags & RST != 0), "{resets:?}");
    let mut ports: Vec<u16> = resets.iter().map(|seg| seg.guest_port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [40_000, 40_001], "none for the one that the guest has reset itself");
    let expected = last.seq.wrapping_add(last.data.len() as u32);
    let established = resets.iter().find(|seg| seg.guest_port == 40_000);
    assert_eq!(established.map(|seg| seg.seq), Some(expected), "the guest's RCV.NXT (RFC 5961)");
    assert!(rig.host.socks.values().all(|s| s.closed == Some(Close::Reset)));
    assert_eq!(rig.pool.live(), 0);
    let member = rig.stack.member();
    let dev = rig.stack.config().dev_queue_bytes;
    let left = rig.memory();
    assert_eq!((left.dev, left.sock, left.host, left.rmem + left.wmem), (dev, 0, 0, 0));
    rig.budget.remove_member(member, rig.now);
    assert_eq!(rig.usage(), 0);
    assert_eq!(rig.stack.next_deadline(), None);
}

#[test]
fn a_host_that_has_the_whole_stream_sees_no_reset_when_the_container_dies() {
    let mut rig = Rig::new();
    let mut peers: Vec<Peer> =
        (0..3).map(|i| Peer::open_with(&mut rig, 40_000 + i, &Hello::default())).collect();
    for peer in &mut peers {
        rig.send(peer.data(&bytes(100)));
        rig.send(peer.fin());
    }
    rig.sock(peers[1].flow).unacked = 1;
    rig.send(peers[2].rst());
    rig.sock(peers[2].flow).unacked = 1;
    rig.with_cx(skbudget_stack::Container::abort_all);
    let closed: Vec<_> = peers.iter().map(|peer| rig.sock(peer.flow).closed).collect();
    // One FIN is not acknowledged: a flow without lost bytes.
    assert_eq!((rig.stat("OrphansGivenUp"), rig.stat("OrphanBytesLost")), (1, 0));
    assert_eq!(closed[0], Some(Close::Graceful), "complete, and acknowledged");
    assert_eq!(closed[1], Some(Close::Reset), "its queue would outlive the container");
    assert_eq!(closed[2], Some(Close::Reset), "as the guest did");
}

#[test]
fn a_guest_that_has_forgotten_a_half_closed_socket_is_found_within_minutes() {
    let mut rig = Rig::new();
    let mut forgotten = Peer::open_with(&mut rig, 40_000, &Hello::default());
    let mut waiting = Peer::open_with(&mut rig, 40_001, &Hello::default());
    rig.send(forgotten.fin());
    rig.send(waiting.fin());
    assert_eq!(rig.pass_segs(60_000), [], "as long as Linux keeps FIN-WAIT-2");
    for minute in 0..10 {
        let probes: Vec<Seg> = rig.pass_segs(62_000).into_iter().map(|(_, seg)| seg).collect();
        for probe in probes {
            assert!(probe.is(ACK) && probe.data.is_empty(), "{probe:?}");
            if probe.guest_port == waiting.pure_ack().guest_port {
                assert_eq!(rig.send(waiting.pure_ack()), []);
            } else {
                assert_eq!(minute, 0, "it is asked once");
                // A kernel's answer for a socket that it does not have.
                rig.send(Seg { flags: RST, seq: probe.ack, ..forgotten.pure_ack() });
            }
        }
    }
    assert_eq!(rig.state(forgotten.flow), "GONE");
    assert_eq!(rig.state(waiting.flow), "CLOSE-WAIT", "it still waits for an answer");
    assert!(!one(rig.host_sends(waiting.flow, b"here")).data.is_empty());
    rig.send(waiting.rst());
    rig.assert_empty();
}

#[test]
fn a_syn_ack_in_a_connection_is_challenged() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let odd = Seg { flags: SYN | ACK, ..peer.pure_ack() };
    assert!(one(rig.send(odd)).is(ACK));
    assert_eq!(rig.state(peer.flow), "ESTAB");
    rig.send(peer.rst());
    rig.assert_empty();
}
