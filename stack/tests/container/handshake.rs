//! The establishment of connections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use skbudget_stack::{Close, HostError};

use crate::peer::{Hello, Peer};
use crate::rig::{Rig, Setup, one, segs};
use crate::wire::{ACK, RST, SYN, Seg, Sent};

#[test]
fn the_host_connects_before_the_guest_is_answered() {
    let mut rig = Rig::new();
    rig.host.outcome = None;
    assert_eq!(rig.send(Hello::default().syn(40_000, 80)), []);
    let flow = rig.host.connects[0];
    assert_eq!(rig.sock(flow).to, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 80))));
    assert_eq!(rig.state(flow), "CONNECTING");
    // Still in progress: readiness without an outcome, or the guest's SYN again, changes nothing.
    assert_eq!(rig.ready(flow, false, true), []);
    assert_eq!(rig.send(Hello::default().syn(40_000, 80)), []);
    assert_eq!(rig.host.connects.len(), 1);
    assert_eq!(rig.pass_segs(60_000), []);

    rig.sock(flow).outcome = Some(Ok(()));
    let syn_ack = one(rig.ready(flow, false, true));
    assert!(syn_ack.is(SYN | ACK));
    let mut peer = Peer::answering(flow, &Hello::default().syn(40_000, 80), &syn_ack);
    assert_eq!(rig.send(peer.pure_ack()), []);
    assert_eq!(rig.state(flow), "ESTAB");
    assert_eq!(one(rig.send(peer.data(b"hello"))).ack, peer.seq);
    assert_eq!(rig.sock(flow).received, b"hello");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn options_are_used_when_both_sides_offer_them() {
    let bare = Hello { mss: None, wscale: None, sack_ok: false, ts: None, ..Hello::default() };
    let full = Hello { ts: Some(77), ..Hello::default() };
    for (hello, scale, sack, ts) in [(bare, None, false, false), (full, Some(7), true, true)] {
        let mut rig = Rig::new();
        rig.send(hello.syn(40_000, 80));
        let flow = rig.host.connects[0];
        let syn_ack = one(rig.ready(flow, false, true));
        assert_eq!(syn_ack.mss, Some(1460));
        assert_eq!((syn_ack.wscale, syn_ack.sack_ok), (scale, sack));
        assert_eq!(syn_ack.ts.map(|t| t.1), ts.then_some(77));
        assert!(syn_ack.wnd >= 1460, "a window worth sending into");
        let mut peer = Peer::answering(flow, &hello.syn(40_000, 80), &syn_ack);
        rig.send(peer.pure_ack());
        // Segment size: 536 bytes without the option, otherwise the MSS less the timestamps.
        let said = rig.host_sends(flow, &[1; 6000]);
        let expected = if ts { 1448 } else { 536 };
        assert!(said.iter().all(|s| s.data.len() <= expected), "{said:?}");
        assert_eq!(said[0].data.len(), expected);
        assert!(said.iter().all(|s| s.ts.is_some() == ts));
        peer.receive(&said);
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_window_without_scaling_is_never_above_64k() {
    let mut rig = Rig::new();
    let hello = Hello { wscale: None, ..Hello::default() };
    let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
    for _ in 0..400 {
        let n = peer.window().min(1460);
        let out = rig.send(peer.data(&vec![5; n]));
        peer.receive(&out);
    }
    assert!(peer.window() > 60_000 && peer.window() <= 65_535, "{}", peer.window());
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn small_and_absurd_segment_sizes_are_mended() {
    // 48 is the least that the stack uses, whatever the option claims.
    for (mss, used) in [(0, 48), (1, 48), (47, 48), (48, 48), (9000, 1460)] {
        let mut rig = Rig::new();
        let hello = Hello { mss: Some(mss), ..Hello::default() };
        let peer = Peer::open_with(&mut rig, 40_000, &hello);
        let said = rig.host_sends(peer.flow, &[1; 12_000]);
        assert_eq!(said[0].data.len(), used, "guest said {mss}");
        rig.send(peer.rst());
        rig.assert_empty();
    }
}

#[test]
fn a_frame_is_never_larger_than_the_mtu() {
    for offload in [false, true] {
        for mtu in [68, 100, 296, 576, 1500, 9000, 65_521] {
            let mut rig = Rig::with(Setup { mtu, offload, ..Setup::default() });
            let hello = Hello { ts: Some(1), mss: Some(65_000), ..Hello::default() };
            let mut peer = Peer::open_with(&mut rig, 40_000, &hello);
            // A hole, so that segments carry SACK blocks beside their data. `Rig::taken` checks the sizes.
            rig.send(peer.data_at(1, &[1; 1]));
            let said = rig.host_sends(peer.flow, &[1; 20_000]);
            assert!(said.iter().any(|s| !s.data.is_empty() && !s.sack.is_empty()));
            peer.receive(&said);
            rig.send(peer.rst());
            rig.assert_empty();
        }
    }
}

#[test]
fn refused_is_a_reset() {
    let mut rig = Rig::new();
    rig.host.outcome = Some(Err(HostError::Refused));
    rig.send(Hello::default().syn(40_000, 80));
    let flow = rig.host.connects[0];
    let rst = one(rig.ready(flow, true, true));
    assert!(rst.is(RST | ACK));
    assert_eq!(rst.ack, 1001);
    rig.assert_empty();
}

#[test]
fn no_route_is_an_icmp_error() {
    for (error, code) in [(HostError::HostUnreachable, 1), (HostError::NetUnreachable, 0)] {
        for at_once in [false, true] {
            let mut rig = Rig::new();
            rig.host.outcome = Some(Err(error));
            if at_once {
                rig.host.connect = Err(error);
            }
            let syn = Hello::default().syn(40_000, 80);
            rig.frame(&syn.frame());
            let mut sent = rig.turn();
            let flow = rig.host.connects[0];
            if !at_once {
                rig.stack
                    .on_host_ready(flow, skbudget_stack::Ready { readable: true, writable: true });
                sent = rig.turn();
            }
            let [Sent::Icmp(3, got, quoted)] = sent.as_slice() else { panic!("{sent:?}") };
            assert_eq!(*got, code);
            // The quoted header and the first 8 bytes identify the connection.
            assert_eq!(quoted[12..20], syn.frame()[26..34]);
            assert_eq!(quoted[20..28], syn.frame()[34..42]);
            rig.assert_empty();
        }
    }
}

#[test]
fn a_timeout_of_the_host_is_silence() {
    for error in [HostError::TimedOut, HostError::NoResources] {
        let mut rig = Rig::new();
        rig.host.outcome = Some(Err(error));
        rig.send(Hello::default().syn(40_000, 80));
        let flow = rig.host.connects[0];
        rig.stack.on_host_ready(flow, skbudget_stack::Ready { readable: true, writable: true });
        assert_eq!(rig.turn(), []);
        assert_eq!(rig.sock(flow).closed, Some(Close::Reset));
        rig.assert_empty();
    }
}

#[test]
fn unused_addresses_of_the_subnet_are_unreachable() {
    let mut rig = Rig::new();
    let to = |remote| Seg { remote: Some(remote), ..Hello::default().syn(40_000, 80) };
    rig.frame(&to(Ipv4Addr::new(10, 0, 2, 77)).frame());
    assert!(matches!(rig.turn()[..], [Sent::Icmp(3, 1, _)]));
    rig.frame(&to(Ipv4Addr::new(10, 0, 2, 3)).frame());
    assert!(segs(rig.turn())[0].is(RST | ACK));
    assert_eq!(rig.host.connects, []);
    rig.frame(&to(Ipv4Addr::new(93, 184, 216, 34)).frame());
    rig.turn();
    let flow = rig.host.connects[0];
    assert_eq!(rig.sock(flow).to.unwrap().ip(), IpAddr::from([93, 184, 216, 34]));
}

#[test]
fn a_syn_ack_is_retransmitted_and_then_given_up() {
    let mut rig = Rig::new();
    rig.send(Hello::default().syn(40_000, 80));
    let flow = rig.host.connects[0];
    let first = one(rig.ready(flow, false, true));
    // The guest's SYN again: answered at once.
    let again = one(rig.send(Hello::default().syn(40_000, 80)));
    assert!(again.is(SYN | ACK) && again.seq == first.seq && again.ack == first.ack);
    // Silence: retransmitted after 1, 2, 4... seconds.
    let later = rig.pass_segs(70_000);
    let times: Vec<u64> = later.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [1000, 3000, 7000, 15_000, 31_000, 63_000]);
    assert!(later[..5].iter().all(|(_, s)| s.is(SYN | ACK) && s.seq == first.seq));
    // The last retransmission is replaced by a reset.
    assert!(later[5].1.is(RST | ACK));
    assert_eq!(rig.sock(flow).closed, Some(Close::Reset));
    rig.assert_empty();
}

#[test]
fn a_guest_that_gives_up_ends_the_flow() {
    let mut rig = Rig::new();
    rig.host.outcome = None;
    let syn = Hello::default().syn(40_000, 80);
    rig.send(syn.clone());
    let flow = rig.host.connects[0];
    rig.send(Seg { flags: RST, seq: syn.seq + 1, ..syn });
    assert_eq!(rig.sock(flow).closed, Some(Close::Reset));
    rig.assert_empty();
}

#[test]
fn a_wrong_ack_of_our_syn_ack_is_reset_and_the_flow_stays() {
    let mut rig = Rig::new();
    let syn = Hello::default().syn(40_000, 80);
    rig.send(syn.clone());
    let flow = rig.host.connects[0];
    let syn_ack = one(rig.ready(flow, false, true));
    let peer = Peer::answering(flow, &syn, &syn_ack);
    let rst = one(rig.send(Seg { ack: peer.ack.wrapping_add(9), ..peer.pure_ack() }));
    assert!(rst.is(RST) && rst.seq == peer.ack.wrapping_add(9));
    rig.send(peer.pure_ack());
    assert_eq!(rig.state(flow), "ESTAB");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_segment_for_no_flow_is_reset() {
    let mut rig = Rig::new();
    let stray = Seg { flags: ACK, ack: 777, ..Hello::default().syn(1, 2) };
    let rst = one(rig.send(stray.clone()));
    assert!(rst.is(RST) && rst.seq == 777);
    assert_eq!(rig.send(Seg { flags: RST, ..stray }), []);
    rig.assert_empty();
}

#[test]
fn data_and_the_end_come_with_the_last_ack_of_the_handshake() {
    let mut rig = Rig::new();
    let syn = Hello::default().syn(40_000, 80);
    rig.send(syn.clone());
    let flow = rig.host.connects[0];
    let syn_ack = one(rig.ready(flow, false, true));
    let mut peer = Peer::answering(flow, &syn, &syn_ack);
    let (data, fin) = (peer.data(b"bye"), peer.fin());
    let out = rig.send_all(&[Seg { flags: fin.flags, ..data }]);
    assert_eq!(one(out).ack, peer.seq);
    assert_eq!(rig.state(flow), "CLOSE-WAIT");
    assert_eq!(rig.sock(flow).received, b"bye");
    assert!(rig.sock(flow).shut);
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn data_in_a_syn_is_left_to_its_retransmission() {
    let mut rig = Rig::new();
    let syn = Seg { data: b"early".to_vec(), ..Hello::default().syn(40_000, 80) };
    rig.send(syn.clone());
    let flow = rig.host.connects[0];
    let syn_ack = one(rig.ready(flow, false, true));
    assert_eq!(syn_ack.ack, syn.seq + 1, "the SYN alone");
    let mut peer = Peer::answering(flow, &syn, &syn_ack);
    rig.send(peer.pure_ack());
    rig.send(peer.data(b"early"));
    assert_eq!(rig.sock(flow).received, b"early");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_retransmitted_syn_ack_carries_no_sack_blocks() {
    let mut rig = Rig::new();
    let syn = Hello { ts: Some(5), ..Hello::default() }.syn(40_000, 80);
    rig.send(syn.clone());
    let flow = rig.host.connects[0];
    let syn_ack = one(rig.ready(flow, false, true));
    let peer = Peer::answering(flow, &syn, &syn_ack);
    // Data with an ACK below the SYN-ACK, old and behind a hole.
    rig.send(Seg { ack: peer.ack.wrapping_sub(1), ..peer.data_at(-1, b"ab") });
    rig.send(Seg { ack: peer.ack.wrapping_sub(1), ..peer.data_at(10, b"ab") });
    let again = rig.pass_segs(1500);
    assert!(again.iter().all(|(_, s)| s.is(SYN | ACK) && s.sack.is_empty()), "{again:?}");
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn initial_sequence_numbers_follow_a_clock_and_reveal_nothing_of_each_other() {
    let iss = |rig: &mut Rig, port: u16| {
        rig.send(Hello::default().syn(port, 80));
        let flow = *rig.host.connects.last().unwrap();
        let syn_ack = one(rig.ready(flow, false, true));
        let rst = Seg { seq: 1001, flags: RST, mss: None, ..Hello::default().syn(port, 80) };
        rig.send(Seg { wscale: None, sack_ok: false, ..rst });
        assert_eq!(rig.state(flow), "GONE");
        syn_ack.seq
    };
    let mut rig = Rig::new();
    // RFC 6528: one tuple's numbers advance by one every 4 microseconds, so that old segments fit no new connection.
    let first = iss(&mut rig, 40_000);
    rig.pass(8);
    assert_eq!(iss(&mut rig, 40_000).wrapping_sub(first), 2000);
    // The next port's number is far away, and with another secret every number is.
    let far = |a: u32, b: u32| a.wrapping_sub(b) > 100_000 && b.wrapping_sub(a) > 100_000;
    assert!(far(iss(&mut rig, 40_001), first));
    let mut other = Rig::with(Setup { secret: [8, 12], ..Setup::default() });
    assert!(far(iss(&mut other, 40_000), first));
}

#[test]
fn a_guest_without_timestamps_is_not_given_any() {
    let mut rig = Rig::new();
    let mut peer = Peer::open(&mut rig);
    // Sent later all the same, timestamps are ignored.
    let data = peer.data(b"x");
    let ack = one(rig.send(Seg { ts: Some((77, 0)), ..data }));
    assert_eq!((ack.ts, ack.ack), (None, peer.seq));
    rig.send(peer.rst());
    rig.assert_empty();
}

#[test]
fn a_connection_to_port_zero_is_refused_at_once() {
    for v6 in [false, true] {
        let mut rig = Rig::new();
        let syn = Hello { v6, ..Hello::default() }.syn(40_000, 0);
        let rst = one(rig.send(syn.clone()));
        assert!(rst.is(RST | ACK), "{rst:?}");
        assert_eq!((rst.remote_port, rst.ack), (0, syn.seq + 1));
        // A segment without flow, as to any other port; a RST causes no answer.
        assert!(one(rig.send(Seg { flags: ACK, ack: 7, ..syn.clone() })).is(RST));
        assert_eq!(rig.send(Seg { flags: RST, ..syn.clone() }), []);
        assert_eq!((rig.host.connects.len(), rig.stat("DropTcpHeader")), (0, 0));
        // No endpoint of the guest has port 0.
        assert_eq!(rig.send(Seg { guest_port: 0, remote_port: 80, ..syn }), []);
        assert_eq!(rig.stat("DropTcpHeader"), 1);
        rig.assert_empty();
    }
}
