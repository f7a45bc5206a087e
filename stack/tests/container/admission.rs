//! Flows under a budget: which are admitted, which wait, what is guaranteed.

use skbudget_stack::controller::{Counter, Limits, Rules, SockLimits};
use skbudget_stack::{ContainerConfig, FlowId};

use crate::peer::{Hello, Peer, bytes};
use crate::rig::{Rig, Setup, one};
use crate::wire::{ACK, RST, SYN, Seg};

/// Room for `n` flows at their floor, and a few pages more, too few for another flow.
fn room_for(n: u64) -> Rig {
    let least = ContainerConfig::least_hard_bytes(1500, false);
    // What each further flow is guaranteed.
    let one = ContainerConfig::new(1500, false, Some(least), [7, 11]).sizes.total();
    let hard = least + (n - 1) * one;
    // Windows beyond the reserve would take the next flow's room: soft is low, so they stay small.
    Rig::with(Setup { hard, soft: Some(hard / 2), ..Setup::default() })
}

#[test]
fn a_syn_queue_that_is_not_charged_holds_nothing() {
    // The device queue takes 128 KiB, and the queue of SYNs would take 32 KiB.
    let mut rig = Rig::with(Setup { hard: 144 << 10, ..Setup::default() });
    let before = rig.usage();
    assert_eq!(rig.send(Hello::default().syn(40_000, 80)), []);
    assert_eq!(rig.counter(Counter::AdmissionDenied), 1);
    assert_eq!((rig.usage(), rig.host.connects.len()), (before, 0));
    rig.budget.set_limits(Limits::from_bytes(64 << 20, None, None).unwrap(), rig.now);
    Peer::open_with(&mut rig, 40_000, &Hello::default());
}

/// Opens flows, on ports from 40000 on, until one waits although idle windows were demoted for it.
fn fill(rig: &mut Rig) -> Vec<Peer> {
    let mut peers = Vec::new();
    loop {
        let port = 40_000 + peers.len() as u16;
        let before = rig.host.connects.len();
        // No SYN-ACK yet, neither for an admitted SYN nor for a waiting one: the host connects first.
        assert_eq!(rig.send(Hello::default().syn(port, 80)), []);
        // A second makes the flows idle: their credit is demoted for the waiting SYN (H3).
        rig.pass(if rig.host.connects.len() == before { 1100 } else { 0 });
        if rig.host.connects.len() == before {
            return peers;
        }
        let flow = *rig.host.connects.last().unwrap();
        let syn = Hello::default().syn(port, 80);
        let syn_ack = one(rig.ready(flow, false, true));
        let peer = Peer::answering(flow, &syn, &syn_ack);
        rig.send(peer.pure_ack());
        peers.push(peer);
    }
}

#[test]
fn the_least_hard_limit_holds_one_flow_and_it_works() {
    for (mtu, offload) in [(1500, false), (1500, true), (65_521, true), (65_521, false)] {
        let hard = ContainerConfig::least_hard_bytes(mtu, offload);
        let mut rig = Rig::with(Setup { hard, mtu, offload, ..Setup::default() });
        let mut peer = Peer::open(&mut rig);
        let data = bytes(100_000);
        let mut at = 0;
        while at < data.len() {
            let n = peer.window().min(1460).min(data.len() - at);
            assert!(n > 0, "the reserve is a window");
            let out = rig.send(peer.data(&data[at..at + n]));
            peer.receive(&out);
            at += n;
        }
        assert!(rig.sock(peer.flow).received == data);
        // The send reserve must carry the other direction alike.
        let mut out = rig.host_sends(peer.flow, &data);
        let mut heard = Vec::new();
        while !out.is_empty() {
            heard.extend(peer.receive(&out));
            out = rig.send(peer.pure_ack());
        }
        assert!(heard == data);
        assert_eq!(rig.counter(Counter::AdmissionDenied), 0);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_syn_without_room_waits_and_is_answered_when_a_flow_closes() {
    let mut rig = room_for(3);
    let peers = fill(&mut rig);
    assert!(peers.len() >= 2, "{}", peers.len());
    assert_eq!(rig.stack.stats().syn_backlog, 1);
    // Earlier SYNs may have waited too, until idle windows were demoted.
    let delayed = rig.counter(Counter::AdmissionDelayed);
    assert!(delayed >= 1);
    // A retransmitted SYN keeps its place.
    let waiting = 40_000 + peers.len() as u16;
    rig.pass(1000);
    rig.send(Hello::default().syn(waiting, 80));
    assert_eq!(rig.stack.stats().syn_backlog, 1);
    // A waiting SYN is counted once, not for each retransmission.
    assert_eq!(rig.counter(Counter::AdmissionDelayed), delayed);
    let before = rig.host.connects.len();
    rig.send(peers[0].rst());
    assert_eq!(rig.host.connects.len(), before + 1, "in the turn in which the room came back");
    let flow = *rig.host.connects.last().unwrap();
    let syn_ack = one(rig.ready(flow, false, true));
    assert!(syn_ack.is(SYN | ACK) && syn_ack.guest_port == waiting);
    assert_eq!(rig.counter(Counter::AdmissionDenied), 0);
    end(&mut rig);
}

#[test]
fn syns_are_admitted_in_the_order_in_which_they_came() {
    let mut rig = room_for(3);
    let peers = fill(&mut rig);
    let first = 40_000 + peers.len() as u16;
    for port in first + 1..first + 6 {
        assert_eq!(rig.send(Hello::default().syn(port, 80)), []);
    }
    assert_eq!(rig.stack.stats().syn_backlog, 6);
    let admitted = |rig: &Rig, flow: FlowId| rig.flow(flow).map(|f| f.guest.port());
    let mut order = Vec::new();
    let mut open: Vec<(FlowId, Seg)> = peers.iter().map(|p| (p.flow, p.rst())).collect();
    for i in 0..6 {
        let before = rig.host.connects.len();
        // New SYNs in the same batch as the reset that makes room do not overtake the waiting ones.
        for j in 0..12 {
            rig.frame(&Hello::default().syn(50_000 + 12 * i + j, 80).frame());
        }
        let (_, rst) = open.remove(0);
        rig.send(rst);
        assert_eq!(rig.host.connects.len(), before + 1, "one goes, one comes");
        let flow = *rig.host.connects.last().unwrap();
        order.push(admitted(&rig, flow).unwrap());
        let port = *order.last().unwrap();
        open.push((flow, Seg { flags: RST, seq: 1001, ..Hello::default().syn(port, 80) }));
    }
    assert_eq!(order, (first..first + 6).collect::<Vec<u16>>());
    end(&mut rig);
}

#[test]
fn a_syn_that_is_not_renewed_is_forgotten_and_a_reset_takes_it_off_the_list() {
    let mut rig = room_for(2);
    let peers = fill(&mut rig);
    let waiting = 40_000 + peers.len() as u16;
    rig.send(Hello::default().syn(waiting + 1, 80));
    assert_eq!(rig.stack.stats().syn_backlog, 2);
    // The SEQ after the SYN: the RST of a guest that gives its connect up.
    let rst = Seg { flags: RST, seq: 1001, ..Hello::default().syn(waiting + 1, 80) };
    rig.send(rst);
    assert_eq!(rig.stack.stats().syn_backlog, 1);
    // A waiting SYN is forgotten after 20 s without a retransmission (H1).
    rig.pass(25_000);
    assert_eq!(rig.stack.stats().syn_backlog, 0);
    assert_eq!(rig.counter(Counter::AdmissionDenied), 1);
    assert_eq!(rig.stat("SynExpired"), 1);
    end(&mut rig);
}

#[test]
fn every_flow_keeps_its_reserve_whatever_the_others_do() {
    let mut rig = Rig::with(Setup { hard: 2 << 20, ..Setup::default() });
    let mut peers = Vec::new();
    for i in 0..20 {
        peers.push(Peer::open_with(&mut rig, 40_000 + i, &Hello::default()));
    }
    // No application reads, on either side: everything fills up.
    for peer in &mut peers {
        rig.sock(peer.flow).room = 0;
        let out = rig.host_sends(peer.flow, &bytes(200_000));
        let _ = out;
    }
    // The first flow stays out: it shows the guarantee afterwards.
    for peer in &mut peers[1..] {
        for _ in 0..100 {
            let n = peer.window().min(1460);
            if n == 0 {
                break;
            }
            let out = rig.send(peer.data(&vec![1; n]));
            peer.receive(&out);
        }
    }
    let meter = rig.budget.meter_stats(rig.now);
    assert!(Some(meter.max_usage_bytes) <= meter.hard_bytes, "hard is hard");
    // The flow that has sent nothing yet may still fill its advertised window, and the stack keeps that data.
    let peer = &mut peers[0];
    let window = peer.window();
    assert!(window >= 1460, "{window}");
    let data = bytes(window);
    for part in data.chunks(1460) {
        rig.send(peer.data(part));
    }
    rig.sock(peer.flow).room = usize::MAX;
    rig.ready(peer.flow, false, true);
    assert!(rig.sock(peer.flow).received == data, "nothing acknowledged is lost");
    assert_eq!(rig.counter(Counter::TCPRcvQDrop) + rig.counter(Counter::DemotedTrim), 0);
    end(&mut rig);
}

#[test]
fn under_pressure_a_flow_requests_nothing_beyond_its_reserve() {
    let mut rig = Rig::with(Setup { hard: 2 << 20, soft: Some(700 << 10), ..Setup::default() });
    let mut hogs = Vec::new();
    for i in 0..40 {
        let mut peer = Peer::open_with(&mut rig, 41_000 + i, &Hello::default());
        rig.sock(peer.flow).room = 0;
        while peer.window() > 0 && !rig.budget.under_pressure() {
            let n = peer.window().min(1460);
            let out = rig.send(peer.data(&vec![1; n]));
            peer.receive(&out);
        }
        hogs.push(peer);
    }
    assert!(rig.budget.under_pressure());
    let late = Peer::open_with(&mut rig, 45_000, &Hello::default());
    let info = rig.flow(late.flow).unwrap();
    assert_eq!(info.rmem + info.ofo + info.credit, 4096, "one chunk, which is the reserve");
    end(&mut rig);
}

#[test]
fn a_host_socket_that_holds_more_than_is_charged_for_it_is_counted() {
    // Below and above what the lowered cap is charged.
    for (held, excess) in [(4096, 0), (1 << 20, 1)] {
        let mut rig = Rig::with(Setup::default());
        let mut peer = Peer::open(&mut rig);
        rig.send(peer.data(b"x"));
        let charged = rig.flow(peer.flow).unwrap().host_bytes;
        rig.sock(peer.flow).kept = held;
        // An idle flow's caps are lowered, as far as its socket is empty.
        rig.pass(1500);
        let left = rig.flow(peer.flow).unwrap().host_bytes;
        assert_eq!((left < charged, left > charged), (excess == 0, false), "{charged} {left}");
        assert_eq!(rig.counter(Counter::HostMemExcess), excess);
        end(&mut rig);
    }
}

#[test]
fn under_pressure_a_socket_that_keeps_its_memory_is_not_lowered_at_every_segment() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    // A host that takes much and then nothing: the cap is raised.
    rig.sock(peer.flow).room = 40_000;
    let send = |rig: &mut Rig, peer: &mut Peer, segments: usize| {
        for _ in 0..segments {
            let out = rig.send(peer.data(&[1; 1000]));
            peer.receive(&out);
        }
    };
    send(&mut rig, &mut peer, 45);
    let raised = rig.memory().host;
    rig.sock(peer.flow).kept = 30_000;
    rig.budget.set_limits(Limits::from_bytes(64 << 20, Some(64 << 10), None).unwrap(), rig.now);
    assert!(rig.budget.under_pressure());
    send(&mut rig, &mut peer, 20);
    assert_eq!(rig.sock(peer.flow).lowered, 1);
    let kept = rig.memory().host;
    assert!(kept < raised, "{kept} of {raised}");
    // Later the cap is lowered again, and for the last time once the socket has released everything.
    rig.sock(peer.flow).kept = 0;
    for lowered in [2, 2, 2] {
        rig.pass(10);
        send(&mut rig, &mut peer, 3);
        assert_eq!(rig.sock(peer.flow).lowered, lowered);
    }
    assert!(rig.memory().host < kept);
    end(&mut rig);
}

#[test]
fn credit_of_an_idle_flow_is_written_off_for_one_that_needs_it() {
    let least = ContainerConfig::least_hard_bytes(1500, false);
    let flow = ContainerConfig::new(1500, false, Some(least), [7, 11]).sizes.total();
    // Two flows and one page: the idle flow's credit is needed for the second.
    let hard = least + flow + 4096;
    let mut rig = Rig::with(Setup { hard, soft: Some(hard - 4096), ..Setup::default() });
    let mut idle = Peer::open(&mut rig);
    rig.send(idle.data(b"x"));
    let held = rig.flow(idle.flow).unwrap();
    assert!(held.credit > 4096, "more than the reserve: {held:?}");
    let window = idle.window();
    rig.pass(1500);
    let second = Peer::open_with(&mut rig, 40_001, &Hello::default());
    assert!(rig.counter(Counter::CreditDemoted) > 0);
    assert_eq!(rig.counter(Counter::AdmissionDelayed), 0, "it did not have to wait");
    // Its advertised window stays. What it sends is charged again; what does not fit is dropped unacknowledged.
    rig.sock(idle.flow).room = 0;
    rig.sock(second.flow).room = 0;
    let data = bytes(window);
    let (mut at, mut acked) = (0, idle.seq);
    while at < data.len() {
        let n = (data.len() - at).min(1460);
        let out = rig.send(idle.data_at(at as i32, &data[at..at + n]));
        acked = out.last().map_or(acked, |s| s.ack);
        at += n;
    }
    let taken = acked.wrapping_sub(idle.seq) as usize;
    assert!(taken >= 4031, "the reserve holds: {taken}");
    assert!(taken < window, "and no more than there is");
    assert!(rig.counter(Counter::DemotedTrim) > 0);
    let meter = rig.budget.meter_stats(rig.now);
    assert!(Some(meter.max_usage_bytes) <= meter.hard_bytes);
    // The guest retransmits the dropped bytes once there is room.
    rig.sock(idle.flow).room = usize::MAX;
    rig.ready(idle.flow, false, true);
    while taken_now(&mut rig, &idle) < window + 1 {
        let from = taken_now(&mut rig, &idle) - 1;
        let n = (window - from).min(1460);
        let out = rig.send(idle.data_at(from as i32, &data[from..from + n]));
        assert!(out.last().unwrap().is(ACK));
    }
    assert!(rig.sock(idle.flow).received[1..] == data[..]);
    end(&mut rig);
}

fn taken_now(rig: &mut Rig, peer: &Peer) -> usize {
    rig.sock(peer.flow).received.len()
}

#[test]
fn a_small_tcp_wmem_is_not_exceeded_by_the_caps_of_host_sockets() {
    let sock = SockLimits { wmem: [4096, 8192, 8192], ..SockLimits::default() };
    for rules in [Rules::Strict, Rules::Linux] {
        let mut rig = Rig::with(Setup { rules, sock, ..Setup::default() });
        let mut peer = Peer::open(&mut rig);
        // The flow is fast and its socket is full often: each time the cap might grow.
        for _ in 0..200 {
            rig.sock(peer.flow).room = 1460;
            let out = rig.send(peer.data(&[1; 1460]));
            peer.receive(&out);
            let out = rig.send(peer.data(&[1; 1]));
            peer.receive(&out);
            rig.sock(peer.flow).room = usize::MAX;
            let out = rig.ready(peer.flow, false, true);
            peer.receive(&out);
        }
        let caps = rig.sock(peer.flow).caps.unwrap();
        assert!(caps.sndbuf <= 8192, "{caps:?}");
        end(&mut rig);
    }
}

/// Every host socket resets; a guest that acknowledges nothing is given up after a quarter of an hour of silence.
fn end(rig: &mut Rig) {
    for _ in 0..2000 {
        let flows = rig.stack.flows();
        if flows.is_empty() && rig.stack.stats().syn_backlog == 0 {
            break;
        }
        for flow in flows {
            rig.host_breaks(flow.id, skbudget_stack::HostError::Reset);
        }
        rig.pass(1000);
    }
    rig.assert_empty();
}
