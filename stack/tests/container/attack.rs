//! Segments that no honest sender sends, from off the path or from a guest that lies.

use crate::peer::{Hello, Peer, bytes, end};
use crate::rig::{Rig, one};
use crate::wire::{ACK, FIN, PSH, RST, SYN, Seg};

const URG: u8 = 32;

#[test]
fn challenges_are_limited_for_all_flows_together() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let syn = Seg { flags: SYN, ..peer.pure_ack() };
    let answered: usize = (0..3000).map(|_| rig.send(syn.clone()).len()).sum();
    // RFC 5961 section 7. The exact limit is random, so that an attacker cannot count it.
    assert!((500..1500).contains(&answered), "{answered}");
    assert_eq!(rig.stat("TCPChallengeACK"), answered as u64);
    assert_eq!(rig.stat("TCPACKSkippedChallenge"), 3000 - answered as u64);
    rig.pass(1000);
    assert_eq!(rig.send(syn).len(), 1, "another second");
    end(rig, &peer);
}

#[test]
fn the_challenge_quota_of_a_second_does_not_follow_from_the_last() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let syn = Seg { flags: SYN, ..peer.pure_ack() };
    let mut seconds = Vec::new();
    for _ in 0..3 {
        seconds.push((0..1600).map(|_| rig.send(syn.clone()).len()).sum::<usize>());
        rig.pass(1000);
    }
    assert!(seconds[0] != seconds[1] && seconds[1] != seconds[2], "{seconds:?}");
    end(rig, &peer);
}

#[test]
fn an_ack_too_old_to_be_honest_is_challenged_and_its_data_not_taken() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let before = peer.ack;
    for _ in 0..8 {
        let out = rig.host_sends(peer.flow, &bytes(14_000));
        peer.receive(&out);
        rig.send(peer.pure_ack());
    }
    // RFC 5961 section 5.2: older than the largest window so far.
    let old = before.wrapping_sub(1);
    let forged = Seg { ack: old, ..peer.data_at(0, b"injected") };
    assert!(peer.ack.wrapping_sub(old) > 65_536);
    let challenge = one(rig.send(forged));
    assert!(challenge.is(ACK) && challenge.ack == peer.seq);
    assert_eq!(rig.sock(peer.flow).received, []);
    // A slightly old ACK belongs to a segment that was overtaken.
    let late = Seg { ack: peer.ack.wrapping_sub(1000), ..peer.data_at(0, b"late") };
    rig.send(late);
    assert_eq!(rig.sock(peer.flow).received, b"late");
    peer.seq += 4;
    end(rig, &peer);
}

#[test]
fn data_with_an_ack_of_the_future_is_not_taken() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    // Acknowledges a byte that was never sent: RFC 9293 section 3.10.7.4 answers and drops.
    let forged = Seg { ack: peer.ack + 1, ..peer.data_at(0, b"injected") };
    let answer = one(rig.send(forged));
    assert_eq!((answer.seq, answer.ack), (peer.ack, peer.seq));
    assert_eq!((rig.sock(peer.flow).received.len(), rig.stat("AckUnsent")), (0, 1));
    end(rig, &peer);
}

#[test]
fn acks_of_single_bytes_open_the_window_by_single_bytes() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let said = rig.host_sends(peer.flow, &bytes(14_600));
    let before = rig.flow(peer.flow).unwrap().cwnd;
    // RFC 3465 section 2: a thousand ACKs of one byte each open the window by a thousand bytes.
    for _ in 0..1000 {
        peer.ack += 1;
        rig.send(peer.pure_ack());
    }
    assert_eq!(rig.flow(peer.flow).unwrap().cwnd, before + 1000);
    peer.ack = said[9].seq + 1460;
    rig.send(peer.pure_ack());
    end(rig, &peer);
}

#[test]
fn a_storm_of_sack_blocks_costs_a_bounded_list() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let said = rig.host_sends(peer.flow, &bytes(14_600));
    let base = said[0].seq;
    for i in 0..3000u32 {
        let at = base + 2 * (i * 7 % 7000);
        rig.send(Seg { sack: vec![(at + 1, at + 2), (at + 5, at + 6)], ..peer.pure_ack() });
    }
    // The charge stays that of the queue's chunks: they hold the list of SACK ranges too.
    assert_eq!(rig.memory().wmem, 4 * 4096);
    peer.ack = base + 14_600;
    rig.send(peer.pure_ack());
    assert_eq!(rig.memory().wmem, 0);
    end(rig, &peer);
}

#[test]
fn odd_flags_change_nothing() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    for flags in [0, FIN, PSH, URG, FIN | PSH | URG, FIN | URG] {
        let odd = Seg { flags, data: b"odd".to_vec(), ..peer.pure_ack() };
        rig.send(odd);
        assert_eq!(rig.state(peer.flow), "ESTAB", "flags {flags:#x}");
    }
    for flags in [SYN | FIN, SYN | FIN | ACK, SYN | PSH | ACK | URG] {
        let answers = rig.send(Seg { flags, ..peer.pure_ack() });
        assert!(one(answers).is(ACK), "a SYN in the window is challenged: {flags:#x}");
    }
    assert_eq!(rig.sock(peer.flow).received, [], "nothing without ACK is taken");
    rig.send(peer.data(b"even"));
    assert_eq!(rig.sock(peer.flow).received, b"even");
    end(rig, &peer);
}

#[test]
fn flags_that_open_nothing_are_reset_and_leave_nothing() {
    for (flags, reset) in
        [(0, true), (FIN, true), (PSH | ACK, true), (RST, false), (SYN | ACK, true)]
    {
        let mut rig = Rig::new();
        let out = rig.send(Seg { flags, ..Hello::default().syn(40_000, 80) });
        assert_eq!(
            out.iter().filter(|s| s.flags & RST != 0).count(),
            usize::from(reset),
            "{flags:#x}"
        );
        assert_eq!(rig.host.connects, []);
        rig.assert_empty();
    }
}

#[test]
fn urgent_data_is_data() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let urgent = peer.data(b"urgent");
    // RFC 6093 section 6: urgent data is delivered in band.
    rig.send(Seg { flags: ACK | PSH | URG, ..urgent });
    assert_eq!(rig.sock(peer.flow).received, b"urgent");
    end(rig, &peer);
}

#[test]
fn what_overlaps_and_differs_is_what_came_first_before_a_byte_reaches_the_host() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.send(peer.data(b"AAAA"));
    // Old bytes with other contents are not taken again; bytes that were delivered stay as they are.
    rig.send(peer.data_at(-4, b"BBBBcccc"));
    assert_eq!(rig.sock(peer.flow).received, b"AAAAcccc");
    peer.seq += 4;
    end(rig, &peer);
}

#[test]
fn a_timestamp_of_the_future_outside_the_window_poisons_nothing() {
    let mut rig = Rig::new();
    let hello = Hello { ts: Some(1000), ..Hello::default() };
    let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
    let future = peer.ts.map(|(val, ecr)| (val + (1 << 30), ecr));
    let far = Seg { ts: future, ..peer.data_at(1 << 25, b"x") };
    rig.send(far);
    // Inside the window but behind a hole: accepted, and not the timestamp to echo (RFC 7323 section 4.3).
    rig.send(Seg { ts: future, ..peer.data_at(10, b"y") });
    rig.send(peer.data(b"0123456789"));
    assert_eq!(rig.sock(peer.flow).received, b"0123456789y");
    peer.seq += 1;
    end(rig, &peer);
}

#[test]
fn one_byte_segments_are_all_taken_and_cost_no_more_than_their_bytes() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    rig.sock(peer.flow).room = 0;
    for i in 0..3000u32 {
        rig.send(peer.data(&[i as u8]));
    }
    assert_eq!(rig.flow(peer.flow).unwrap().rmem, 4096, "3000 bytes are one chunk");
    rig.sock(peer.flow).room = usize::MAX;
    rig.ready(peer.flow, false, true);
    assert_eq!(rig.sock(peer.flow).received.len(), 3000);
    end(rig, &peer);
}

#[test]
fn holes_beyond_what_is_kept_are_dropped_and_counted() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let n = peer.window().min(14_000) as i32;
    // Every other byte: each one starts a new range.
    for at in (1..n).step_by(2) {
        rig.send(peer.data_at(at, b"x"));
    }
    let dropped = rig.counter(skbudget_stack::controller::Counter::TCPOFODrop);
    assert_eq!(dropped, (n as u64) / 2 - 64, "64 ranges are kept");
    // The holes are filled from the front: everything arrives all the same.
    let data = vec![b'x'; n as usize];
    for part in data.chunks(1000) {
        let out = rig.send(peer.data(part));
        peer.receive(&out);
    }
    assert_eq!(rig.sock(peer.flow).received, data);
    end(rig, &peer);
}
