//! Flows that lost their guest: what it sent is delivered, and the flow stays charged until then (K11).

use skbudget_stack::controller::Counter;
use skbudget_stack::{Close, Container, HostError};

use crate::ending::each_way;
use crate::peer::{Hello, Peer, bytes};
use crate::rig::{Rig, Setup, one};
use crate::wire::Seg;

#[test]
fn the_guests_last_words_before_its_reset_are_delivered() {
    for (mut rig, mut peer) in each_way() {
        rig.sock(peer.flow).room = 0;
        let data = bytes(5000);
        for part in data.chunks(1000) {
            let out = rig.send(peer.data(part));
            peer.receive(&out);
        }
        rig.host_sends(peer.flow, b"the guest reads nothing more");
        peer.receive(&[]);
        // The guest resets while its own data still waits for the host.
        rig.send(Seg { ack: peer.ack, ..peer.rst() });
        assert_eq!(rig.state(peer.flow), "ORPHAN");
        assert_eq!(rig.flow(peer.flow).unwrap().wmem, 0, "nothing is kept for the guest");
        rig.sock(peer.flow).unacked = 2000;
        rig.sock(peer.flow).room = usize::MAX;
        rig.ready(peer.flow, false, true);
        assert!(rig.sock(peer.flow).received == data);
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
    assert!(sock.received == b"all of it" && sock.shut);
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
        peer.receive(&out);
    }
    let sock = rig.sock(peer.flow);
    (sock.unacked, sock.kept) = (70_001, 90_000);
    let charged = rig.flow(peer.flow).unwrap().host_bytes;
    let fin = rig.host_ends(peer.flow);
    peer.receive(&fin);
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
    rig.sock(peer.flow).kept = 5000;
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
    peer.receive(&fin);
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
    rig.host_sends(peer.flow, &bytes(500));
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
    assert_eq!(rig.sock(peer.flow).received, b"acknowledged");
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
            peer.receive(&out);
        }
        let fin = rig.host_ends(flow);
        peer.receive(&fin);
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
fn undelivered_data_is_reported() {
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
    rig.sock(broken.flow).incoming.extend(b"for the guest");
    rig.host_breaks(broken.flow, HostError::Reset);
    assert_eq!(told(&mut rig), (0, 0), "nothing can be delivered there");
    rig.with_cx(Container::abort_all);
}
