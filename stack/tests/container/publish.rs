//! Published ports: the stack opens connections to the guest.

use std::net::{IpAddr, SocketAddr};

use skbudget_stack::controller::{Counter, Limits};
use skbudget_stack::{Close, Container, ContainerConfig, FlowId, HostCaps, NotAccepted, Ready};
use smoltcp::wire::ArpOperation;

use crate::peer::{Hello, Peer, introduce};
use crate::rig::{GATEWAY, GATEWAY6, GUEST, Rig, Setup, Sock, one, segs};
use crate::wire::{ACK, RST, SYN, Seg, Sent};

/// A client on the host's loopback, which appears as the gateway.
fn from(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A client connected; the stack has run a turn.
fn accepted(rig: &mut Rig, port: u16) -> (FlowId, Vec<Sent>) {
    let flow = rig.accept(8080, from(port));
    rig.stack.on_host_ready(flow, Ready { readable: false, writable: true });
    (flow, rig.turn())
}

#[test]
fn both_ways_through_a_published_port() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let mut peer = Peer::accept(&mut rig, 8080);
    assert_eq!(peer.remote_port, 5555, "the client's own port");
    one(rig.send(peer.data(b"banner")));
    assert_eq!(rig.sock(peer.flow).received, b"banner");
    let said = rig.host_sends(peer.flow, b"hello");
    assert_eq!(peer.receive(&said), b"hello");
    rig.send(peer.fin());
    let fin = rig.host_ends(peer.flow);
    peer.receive(&fin);
    rig.send(peer.pure_ack());
    assert_eq!(rig.sock(peer.flow).closed, Some(Close::Graceful));
    rig.assert_empty();
}

#[test]
fn the_syn_offers_everything() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let (flow, out) = accepted(&mut rig, 7000);
    let syn = one(segs(out));
    assert!(syn.is(SYN));
    assert_eq!((syn.mss, syn.wscale, syn.sack_ok), (Some(1460), Some(7), true));
    assert!(syn.ts.is_some());
    assert_eq!((syn.remote, syn.remote_port, syn.guest_port), (Some(GATEWAY), 7000, 8080));
    let rst = Seg { flags: RST | ACK, ack: syn.seq + 1, ..Hello::default().syn(8080, 7000) };
    rig.send(rst);
    assert_eq!(rig.sock(flow).closed, Some(Close::Reset));
    rig.assert_empty();
}

#[test]
fn a_guest_that_refuses_resets_the_client() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let (flow, out) = accepted(&mut rig, 7000);
    let syn = one(segs(out));
    let blank = Hello::default().syn(8080, 7000);
    // A reset that acknowledges something different, or nothing, does not concern this SYN.
    assert_eq!(rig.send(Seg { flags: RST, ..blank.clone() }), []);
    assert_eq!(rig.send(Seg { flags: RST | ACK, ack: syn.seq, ..blank.clone() }), []);
    assert_eq!(rig.state(flow), "SYN-SENT");
    rig.send(Seg { flags: RST | ACK, ack: syn.seq + 1, ..blank });
    assert_eq!(rig.sock(flow).closed, Some(Close::Reset));
    rig.assert_empty();
}

#[test]
fn a_silent_guest_is_probed_again_and_given_up() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let (flow, out) = accepted(&mut rig, 7000);
    let syn = one(segs(out));
    let later = rig.pass_segs(70_000);
    let times: Vec<u64> = later.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [1000, 3000, 7000, 15_000, 31_000, 63_000]);
    assert!(later[..5].iter().all(|(_, s)| s.is(SYN) && s.seq == syn.seq && s.mss.is_some()));
    assert_eq!(rig.sock(flow).closed, Some(Close::Reset));
    rig.assert_empty();
}

#[test]
fn an_unknown_hardware_address_is_requested() {
    let mut rig = Rig::new();
    let (flow, out) = accepted(&mut rig, 7000);
    let ask = |s: &Sent| {
        matches!(s, Sent::Arp { operation: ArpOperation::Request, source: GATEWAY, target: GUEST })
    };
    assert!(out.len() == 1 && ask(&out[0]), "{out:?}");
    // A second client causes no further request at once; requests are repeated after a while.
    let (second, out) = accepted(&mut rig, 7001);
    assert_eq!(out, []);
    let again = rig.pass(350);
    assert!(again.len() == 3 && again.iter().all(|(_, s)| ask(s)), "{again:?}");
    introduce_by_arp(&mut rig);
    let syns = segs(rig.turn());
    assert_eq!(syns.len(), 2, "both SYNs in the turn in which it is known");
    assert!(syns.iter().all(|s| s.is(SYN)));
    for syn in syns {
        let blank = Hello::default().syn(8080, syn.remote_port);
        rig.send(Seg { flags: RST | ACK, ack: syn.seq + 1, ..blank });
    }
    assert!(rig.flow(flow).is_none() && rig.flow(second).is_none());
    rig.assert_empty();
}

/// A client that sent `queued` bytes before it was accepted.
fn accepted_with(rig: &mut Rig, queued: u32) -> Result<(FlowId, HostCaps), NotAccepted> {
    let accepted = rig.with_cx(|stack, cx| stack.on_accept(cx, 8080, from(7000), queued));
    if let Ok((flow, _)) = accepted {
        rig.host.socks.insert(flow, Sock::default());
    }
    accepted
}

#[test]
fn what_a_client_sent_before_it_was_accepted_is_charged() {
    for pressed in [false, true] {
        let mut rig = Rig::with(Setup { hard: 1 << 20, ..Setup::default() });
        introduce(&mut rig);
        let mut other = Peer::open(&mut rig);
        if pressed {
            rig.sock(other.flow).room = 0;
            for _ in 0..8 {
                let out = rig.send(other.data(&[7; 1400]));
                other.receive(&out);
            }
            rig.budget.set_limits(Limits::from_bytes(1 << 20, Some(4096), None).unwrap(), rig.now);
            assert!(rig.budget.under_pressure());
        }
        let before = rig.memory();
        let (_, caps) = accepted_with(&mut rig, 100_000).expect("room");
        assert_eq!(caps.rcvbuf, 100_000);
        let charged = rig.memory().host - before.host;
        assert_eq!(charged, u64::from(caps.sndbuf + caps.rcvbuf), "pressed: {pressed}");
        assert!(rig.usage() <= 1 << 20);
        rig.with_cx(Container::abort_all);
        assert_eq!(rig.memory().host, 0);
    }
}

#[test]
fn a_client_that_sent_more_than_there_is_room_for_waits() {
    let mut rig = Rig::with(Setup { hard: 512 << 10, ..Setup::default() });
    introduce(&mut rig);
    let before = (rig.usage(), rig.memory().flows);
    assert!(rig.with_cx(Container::can_accept));
    assert_eq!(accepted_with(&mut rig, 600_000), Err(NotAccepted::NoRoom));
    assert_eq!((rig.usage(), rig.memory().flows), before, "nothing of it is charged here");
    assert!(accepted_with(&mut rig, 60_000).is_ok());
}

/// The guest's ARP reply.
fn introduce_by_arp(rig: &mut Rig) {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2];
    arp.extend(crate::wire::GUEST_MAC);
    arp.extend(GUEST.octets());
    arp.extend(crate::wire::OUR_MAC);
    arp.extend(GATEWAY.octets());
    rig.frame(&crate::wire::ethernet(0x0806, &arp));
}

#[test]
fn syns_that_cross_make_one_connection() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let (flow, out) = accepted(&mut rig, 7000);
    let ours = one(segs(out));
    let theirs = Hello::default().syn(8080, 7000);
    let syn_ack = one(rig.send(theirs.clone()));
    assert!(syn_ack.is(SYN | ACK) && syn_ack.seq == ours.seq && syn_ack.ack == theirs.seq + 1);
    let mut peer = Peer::answering(flow, &theirs, &syn_ack);
    rig.send(Seg { flags: SYN | ACK, ack: peer.ack, ..theirs });
    rig.send(peer.pure_ack());
    assert_eq!(rig.state(flow), "ESTAB");
    rig.send(peer.data(b"crossed"));
    assert_eq!(rig.sock(flow).received, b"crossed");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn two_clients_with_one_port_have_different_tuples() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let (first, a) = accepted(&mut rig, 7000);
    let (second, b) = accepted(&mut rig, 7000);
    let (a, b) = (one(segs(a)), one(segs(b)));
    assert!(first != second && a.remote_port == 7000 && b.remote_port != 7000);
    for syn in [a, b] {
        let blank = Hello::default().syn(8080, syn.remote_port);
        rig.send(Seg { flags: RST | ACK, ack: syn.seq + 1, ..blank });
    }
    rig.assert_empty();
}

#[test]
fn clients_that_all_have_one_port_do_not_use_up_the_gateways_ports() {
    // Reservations of 64,000 flows, and no turn: the guest receives nothing.
    let mut rig = Rig::with(Setup { hard: 4 << 30, ..Setup::default() });
    let mut accept = |port| {
        let accepted = rig.with_cx(|stack, cx| stack.on_accept(cx, 8080, from(port), 0));
        accepted.map(|(flow, _)| rig.host.socks.insert(flow, Sock::default())).err()
    };
    let served = (0..70_000).take_while(|_| accept(7000).is_none()).count();
    // 64 draws of a full port space fail before the last port is found.
    assert!(served > 50_000, "{served}");
    assert_eq!(accept(80), None, "other clients are not affected");
    assert_eq!(rig.stat("AcceptsNoPort"), 1);
    assert_eq!(rig.stack.stats().flows, served as u32 + 1);
    rig.with_cx(Container::abort_all);
    assert_eq!((rig.memory().host, rig.budget.waiting()), (0, 0));
}

/// A rig without room for another client. The guest has sent data on each flow.
fn full() -> (Rig, Vec<Peer>) {
    let least = ContainerConfig::least_hard_bytes(1500, false);
    let flow = ContainerConfig::new(1500, false, Some(least), [7, 11]).sizes.total();
    let mut rig = Rig::with(Setup { hard: least + 3 * flow, ..Setup::default() });
    introduce(&mut rig);
    let mut peers = Vec::new();
    while rig.with_cx(Container::can_accept) {
        let mut peer = Peer::accept_from(&mut rig, 8080, from(7000 + peers.len() as u16));
        for _ in 0..20 {
            let out = rig.send(peer.data(&[7; 1000]));
            peer.receive(&out);
        }
        peers.push(peer);
    }
    (rig, peers)
}

#[test]
fn a_client_takes_the_room_that_idle_flows_hold_beyond_their_reserve() {
    let (mut rig, peers) = full();
    let demoted = rig.counter(Counter::CreditDemoted);
    assert!(!rig.with_cx(Container::can_accept), "every flow is active");
    rig.pass(1500);
    assert!(rig.with_cx(Container::can_accept), "{} flows", peers.len());
    assert!(rig.counter(Counter::CreditDemoted) > demoted);
    let late = Peer::accept_from(&mut rig, 8080, from(9000));
    assert_eq!(rig.state(late.flow), "ESTAB");
    rig.with_cx(Container::abort_all);
    assert_eq!((rig.memory().host, rig.budget.waiting()), (0, 0));
}

#[test]
fn a_client_that_waits_is_woken_when_room_returns() {
    let (mut rig, peers) = full();
    rig.stack.wait_to_accept(&mut rig.budget);
    rig.stack.wait_to_accept(&mut rig.budget);
    assert_eq!((rig.budget.waiting(), rig.stat("AcceptsDelayed")), (1, 1));
    rig.turn();
    assert_eq!(rig.budget.waiting(), 1, "not woken without room");
    // The rig polls the budget's waiters after each turn, as the worker does.
    rig.send(peers[0].rst());
    assert_eq!(rig.budget.waiting(), 0);
    assert!(rig.with_cx(Container::can_accept));
    // A client that is served otherwise, or a container that ends, leaves no entry.
    let (mut rig, _) = full();
    rig.stack.wait_to_accept(&mut rig.budget);
    rig.budget.set_limits(Limits::from_bytes(16 << 20, None, None).unwrap(), rig.now);
    assert!(rig.with_cx(Container::can_accept));
    assert_eq!(rig.budget.waiting(), 0);
    let (mut rig, _) = full();
    rig.stack.wait_to_accept(&mut rig.budget);
    rig.with_cx(Container::abort_all);
    assert_eq!(rig.budget.waiting(), 0);
}

#[test]
fn a_syn_answered_before_its_retransmission_is_not_retransmitted() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let (flow, out) = accepted(&mut rig, 7000);
    let syn = one(segs(out));
    rig.wire.room = 0;
    assert_eq!(rig.pass(1100), [], "the device is full");
    let answer = Seg { flags: SYN | ACK, ack: syn.seq + 1, ..Hello::default().syn(8080, 7000) };
    rig.frame(&answer.frame());
    rig.wire.room = usize::MAX;
    rig.turn();
    let out = segs(rig.pass(500).into_iter().map(|(_, sent)| sent).collect());
    assert!(out.iter().all(|seg| seg.is(ACK)), "{out:?}");
    assert_eq!(rig.state(flow), "ESTAB");
    // No byte counts as in flight that the queue does not hold.
    assert_eq!(rig.pass(5000), []);
    rig.send(Seg { flags: RST, seq: 1001, ..Hello::default().syn(8080, 7000) });
    rig.assert_empty();
}

/// Address and port of the remote in the SYN for a client; the connection is refused then.
fn seen_of(rig: &mut Rig, client: SocketAddr) -> SocketAddr {
    rig.accept(8080, client);
    let syn = one(segs(rig.turn()));
    assert!(syn.is(SYN) && syn.guest_port == 8080);
    let seen: IpAddr = match syn.v6 {
        true => syn.remote6.unwrap().into(),
        false => syn.remote.unwrap().into(),
    };
    let hello = Hello { v6: syn.v6, ..Hello::default() };
    let answer = hello.syn(8080, syn.remote_port);
    let (remote, remote6) = (syn.remote, syn.remote6);
    rig.send(Seg { flags: RST | ACK, ack: syn.seq + 1, remote, remote6, ..answer });
    SocketAddr::new(seen, syn.remote_port)
}

#[test]
fn the_guest_sees_the_clients_own_address() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    for client in ["192.0.2.9:7000", "10.0.3.1:7000", "172.17.0.1:80", "[2001:db8::7]:7000"] {
        let client = client.parse().unwrap();
        assert_eq!(seen_of(&mut rig, client), client);
    }
    rig.assert_empty();
}

#[test]
fn clients_that_the_guest_cannot_answer_appear_as_the_gateway() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    for client in
        ["127.0.0.1", "127.8.8.8", "10.0.2.100", "10.0.2.2", "10.0.2.3", "10.0.2.77", "169.254.1.1"]
    {
        let client = SocketAddr::new(client.parse().unwrap(), 7000);
        assert_eq!(seen_of(&mut rig, client), (GATEWAY, 7000).into(), "{client}");
    }
    for client in
        ["::1", "fe80::7", "fd00::100", "fd00::2", "fd00::3", "fd00::77", "::ffff:192.0.2.1"]
    {
        let client = SocketAddr::new(client.parse().unwrap(), 7000);
        assert_eq!(seen_of(&mut rig, client), (GATEWAY6, 7000).into(), "{client}");
    }
    rig.assert_empty();
    // A guest without IPv6.
    let mut rig = Rig::with(Setup { mtu: 1279, ..Setup::default() });
    introduce(&mut rig);
    assert_eq!(seen_of(&mut rig, "[2001:db8::7]:7000".parse().unwrap()), (GATEWAY, 7000).into());
    rig.assert_empty();
}

/// Two published ports lead to one port of the guest, and a client uses one port of its own for both.
#[test]
fn connections_of_one_client_to_two_published_ports_are_told_apart() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let client: SocketAddr = "192.0.2.9:7000".parse().unwrap();
    let flows = [rig.accept(8080, client), rig.accept(8080, client)];
    let syns = segs(rig.turn());
    assert_eq!(
        syns.iter().map(|syn| syn.remote).collect::<Vec<_>>(),
        [Some([192, 0, 2, 9].into()); 2]
    );
    assert!(syns[0].remote_port == 7000 && syns[1].remote_port != 7000);
    for syn in syns {
        let answer = Hello::default().syn(8080, syn.remote_port);
        rig.send(Seg { flags: RST | ACK, ack: syn.seq + 1, remote: syn.remote, ..answer });
    }
    assert!(flows.iter().all(|flow| rig.flow(*flow).is_none()));
    rig.assert_empty();
}
