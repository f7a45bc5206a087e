//! Windows that close and open again, on both sides.

use skbudget_stack::controller::Counter;

use crate::peer::{Peer, bytes};
use crate::rig::{Rig, Setup, one};
use crate::wire::{ACK, Seg};

/// Fills the stack until its window is closed; returns the sent bytes.
fn fill(rig: &mut Rig, peer: &mut Peer) -> Vec<u8> {
    rig.sock(peer.flow).room = 0;
    let mut sent = Vec::new();
    while peer.window() > 0 {
        let data = vec![sent.len() as u8; peer.window().min(1460)];
        sent.extend(&data);
        let out = rig.send(peer.data(&data));
        peer.receive(&out);
    }
    sent
}

#[test]
fn a_host_that_does_not_read_closes_the_window() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let sent = fill(&mut rig, &mut peer);
    assert!(sent.len() >= 10 * 1460 && sent.len() < 64 << 10, "{}", sent.len());
    assert_eq!(rig.counter(Counter::TCPToZeroWindowAdv), 1);
    // The field is rounded down; bytes up to the true edge are accepted, less than one unit of the scale.
    let edge = one(rig.send(peer.data_at(0, &[0; 200]))).ack;
    assert!(edge.wrapping_sub(peer.seq) < 128);
    peer.seq = edge;
    // One byte into the closed window: answered, not stored.
    let ack = one(rig.send(peer.data_at(0, b"x")));
    assert_eq!((ack.ack, ack.wnd), (peer.seq, 0));
    assert_eq!(rig.counter(Counter::TCPZeroWindowDrop), 1);
    assert_eq!(rig.counter(Counter::TCPToZeroWindowAdv), 1);
    // A window probe as Linux sends it, one below RCV.NXT.
    let probe = Seg { seq: peer.seq.wrapping_sub(1), ..peer.pure_ack() };
    let ack = one(rig.send(probe.clone()));
    assert_eq!((ack.ack, ack.wnd), (peer.seq, 0));
    // The next one right away is rate-limited; 200 ms later it is answered again.
    assert_eq!(rig.send(probe.clone()), []);
    rig.pass(200);
    one(rig.send(probe));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn the_window_opens_in_the_turn_in_which_the_host_becomes_writable() {
    for hard in [64 << 20, 1 << 20] {
        let mut rig = Rig::with(Setup { hard, ..Setup::default() });
        let mut peer = Peer::open(&mut rig);
        let sent = fill(&mut rig, &mut peer);
        rig.pass(5000);
        rig.sock(peer.flow).room = usize::MAX;
        let update = one(rig.ready(peer.flow, false, true));
        assert!(rig.sock(peer.flow).received == sent, "the first byte moved in this turn");
        assert!(update.is(ACK) && update.ack == peer.seq);
        assert!(update.wnd > 0, "and the guest was told in the same one");
        peer.receive(&[update]);
        let ack = one(rig.send(peer.data(b"more")));
        assert_eq!(ack.ack, peer.seq);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_host_that_takes_little_opens_the_window_in_steps_worth_sending_into() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    fill(&mut rig, &mut peer);
    let mut updates = 0;
    for _ in 0..100 {
        rig.sock(peer.flow).room = 100;
        for seg in rig.ready(peer.flow, false, true) {
            // One MSS, rounded down to the unit of the window scale.
            assert!(u32::from(seg.wnd) << peer.scale >= 1408, "a silly window: {seg:?}");
            updates += 1;
        }
    }
    assert!((1..=7).contains(&updates), "{updates}");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_closed_window_of_the_guest_is_probed_with_backoff_for_ever() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    peer.wnd = 0;
    rig.send(peer.pure_ack());
    assert_eq!(rig.host_sends(peer.flow, &bytes(5000)), []);
    let start = rig.now;
    let mut times = Vec::new();
    // An hour: more probes than the maximum number of retransmissions.
    while rig.now.since(start).as_secs() < 3600 {
        let at = rig.stack.next_deadline().expect("a probe to come");
        rig.now = at;
        for seg in crate::rig::segs(rig.turn()) {
            assert!(seg.is(ACK) && seg.data.is_empty(), "{seg:?}");
            assert_eq!(seg.seq, peer.ack.wrapping_sub(1), "one below: always answered");
            times.push(rig.now.since(start).as_millis());
            rig.send(peer.pure_ack());
        }
    }
    let gaps: Vec<u128> = times.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(times[0] <= 1100 && gaps[0] >= 200, "{times:?}");
    assert!(gaps.iter().all(|g| *g <= 120_000), "{gaps:?}");
    assert!(gaps[5] >= 8 * gaps[0], "backed off: {gaps:?}");
    assert_eq!(rig.state(peer.flow), "ESTAB");
    // The window opens: the data is sent in that turn.
    peer.wnd = 512;
    let out = rig.send(peer.pure_ack());
    assert_eq!(peer.receive(&out), bytes(5000));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_guest_that_does_not_answer_probes_is_given_up() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    peer.wnd = 0;
    rig.send(peer.pure_ack());
    rig.host_sends(peer.flow, b"data");
    rig.pass(40 * 60 * 1000);
    assert_eq!(rig.state(peer.flow), "GONE");
    assert_eq!(rig.stat("TCPAbortOnTimeout"), 1);
    rig.assert_empty();
}

#[test]
fn a_window_that_stays_small_is_used_after_a_while() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    peer.wnd = 1;
    rig.send(peer.pure_ack());
    assert_eq!(rig.host_sends(peer.flow, &bytes(300)), [], "not at once: it may grow");
    let first = rig.pass_segs(2000);
    assert!(!first.is_empty() && first[0].1.data.len() == 128, "{first:?}");
    let mut heard = peer.receive(&[first[0].1.clone()]);
    for _ in 0..10 {
        let out = rig.send(peer.pure_ack());
        heard.extend(peer.receive(&out));
        let out: Vec<Seg> = rig.pass_segs(2000).into_iter().map(|(_, s)| s).collect();
        heard.extend(peer.receive(&out));
    }
    assert_eq!(heard, bytes(300));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_window_closed_over_data_in_flight_is_probed_too() {
    // A guest without memory drops the data and advertises zero; it need not send anything afterwards.
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    let said = rig.host_sends(peer.flow, &bytes(5000));
    assert!(!said.is_empty());
    let closed = Seg { wnd: 0, ..peer.pure_ack() };
    rig.send(closed.clone());
    // The guest lives and answers every probe.
    let start = rig.now;
    let mut asked = 0;
    while rig.now.since(start).as_secs() < 3600 {
        rig.now = rig.stack.next_deadline().expect("a timer");
        for _ in crate::rig::segs(rig.turn()) {
            asked += 1;
            rig.send(closed.clone());
        }
    }
    assert!(asked > 20, "asked {asked} times in an hour");
    assert_eq!(rig.state(peer.flow), "ESTAB", "a guest that answers is not given up");
    let mut out = rig.send(peer.pure_ack());
    let mut heard = Vec::new();
    for _ in 0..20 {
        heard.extend(peer.receive(&out));
        out = rig.send(peer.pure_ack());
    }
    assert_eq!(heard, bytes(5000));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_silent_guest_is_probed() {
    let mut rig = Rig::new();
    let peer = Peer::open(&mut rig);
    let hours = rig.pass_segs(7_100_000);
    assert_eq!(hours, []);
    let probe = rig.pass_segs(200_000);
    assert_eq!(probe[0].1.seq, peer.ack.wrapping_sub(1));
    let seen = probe[0].0;
    assert!((99_000..=101_000).contains(&seen), "after two hours: {seen}");
    // The guest answers: silence again. Without an answer: nine more probes, then the reset.
    rig.send(peer.pure_ack());
    assert_eq!(rig.pass_segs(7_000_000), []);
    let probes = rig.pass_segs(2_000_000);
    assert_eq!(rig.state(peer.flow), "GONE");
    assert_eq!(probes.len(), 10, "{probes:?}");
    assert!(probes[..9].iter().all(|(_, s)| s.is(ACK)));
    rig.assert_empty();
}
