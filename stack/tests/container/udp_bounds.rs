//! Bounds of UDP: full buffers, a full device, a full table, no memory, and the end of all.

use skbudget_sim::packet::Datagram;
use skbudget_stack::{Container, HostError};

use crate::peer::{Peer, bytes};
use crate::rig::{Rig, Setup};
use crate::udp::{FAR, FIELDS, only, open, out, received, rest, send, socket};

#[test]
fn a_full_socket_loses_datagrams_and_a_fast_one_gets_a_larger_buffer() {
    let mut rig = Rig::new();
    send(&mut rig, &[out(5000, (FAR, 7), b"x")]);
    let id = only(&rig);
    let before = socket(&mut rig, id).caps;
    socket(&mut rig, id).room = 0;
    let burst: Vec<Datagram> = (0..20).map(|_| out(5000, (FAR, 7), b"y")).collect();
    send(&mut rig, &burst);
    let after = socket(&mut rig, id).caps;
    assert_eq!((after.sndbuf, after.rcvbuf), (256 << 10, before.rcvbuf));
    assert_eq!((rig.stat("UdpSndbufErrors"), rig.stat("UdpOutDatagrams")), (20, 1));
    let udp = rig.memory().udp;
    // Charged until it was silent for a while.
    socket(&mut rig, id).room = usize::MAX;
    rig.pass(5000);
    assert_eq!(socket(&mut rig, id).caps, before);
    assert_eq!(rig.memory().udp, udp - u64::from(after.sndbuf - before.sndbuf));
    rest(&mut rig);
}

#[test]
fn a_burst_for_the_guest_raises_the_receive_buffer() {
    let mut rig = Rig::new();
    send(&mut rig, &[out(5000, (FAR, 7), b"x")]);
    let id = only(&rig);
    let sock = socket(&mut rig, id);
    let before = sock.caps.rcvbuf;
    (0..100).for_each(|_| sock.incoming.push_back(((FAR, 7).into(), FIELDS, bytes(1200))));
    sock.drops = 7;
    rig.stack.on_datagram_ready(id);
    assert_eq!(received(rig.turn()).len(), 100);
    assert!(socket(&mut rig, id).caps.rcvbuf >= 4 * before);
    assert_eq!((rig.stat("UdpInDatagrams"), rig.stat("UdpRcvbufErrors")), (100, 7));
    rest(&mut rig);
}

#[test]
fn a_full_device_loses_datagrams_and_counts_them() {
    let mut rig = Rig::new();
    send(&mut rig, &[out(5000, (FAR, 7), b"x")]);
    let id = only(&rig);
    rig.wire.room = 3;
    (0..10).for_each(|_| {
        socket(&mut rig, id).incoming.push_back(((FAR, 7).into(), FIELDS, b"y".to_vec()));
    });
    rig.stack.on_datagram_ready(id);
    assert_eq!(received(rig.turn()).len(), 3);
    assert_eq!((rig.stat("UdpInDatagrams"), rig.stat("UdpRcvbufErrors")), (3, 7));
    rig.wire.room = usize::MAX;
    rest(&mut rig);
}

#[test]
fn a_full_table_evicts_the_mapping_that_was_silent_longest() {
    let mut rig = Rig::with(Setup { hard: 4 << 20, ..Setup::default() });
    for port in 1..=6 {
        send(&mut rig, &[out(port, (FAR, 7), b"x")]);
        rig.pass(10);
    }
    let full = open(&rig);
    assert_eq!(full.len(), 5, "an eighth of 4 MiB, 101 KiB each");
    assert_eq!(rig.stat("UdpMappingsEvicted"), 1);
    // The first one is in use again, so the next one is the oldest.
    let ports =
        |rig: &Rig| open(rig).iter().map(|id| rig.host.datagrams[id].spec.port).collect::<Vec<_>>();
    send(&mut rig, &[out(2, (FAR, 7), b"x")]);
    send(&mut rig, &[out(9, (FAR, 7), b"x")]);
    let mut now = ports(&rig);
    now.sort_unstable();
    assert_eq!(now, [2, 4, 5, 6, 9]);
    assert!(rig.memory().udp <= (4 << 20) / 8);
    rest(&mut rig);
}

#[test]
fn a_full_table_leaves_room_for_flows() {
    let hard = 4 << 20;
    let mut rig = Rig::with(Setup { hard, ..Setup::default() });
    for port in 0..5000 {
        rig.frame(&out(1 + port, (FAR, 7), b"x").frame());
        assert!(rig.memory().udp <= hard / 8);
    }
    let mut peer = Peer::open(&mut rig);
    rig.send(peer.data(b"through"));
    assert_eq!(rig.sock(peer.flow).received, b"through");
    assert!(rig.budget.meter_stats(rig.now).max_usage_bytes <= hard);
    rig.send(peer.rst());
    rest(&mut rig);
}

#[test]
fn without_memory_or_a_socket_a_datagram_is_dropped_and_counted() {
    let mut rig = Rig::with(Setup { hard: 256 << 10, ..Setup::default() });
    send(&mut rig, &[out(5000, (FAR, 7), b"x")]);
    assert_eq!((rig.stat("UdpMappingsRefused"), rig.host.datagrams.len()), (1, 0));
    rig.assert_empty();
    let mut rig = Rig::new();
    rig.host.datagrams_open = Err(HostError::NoResources);
    send(&mut rig, &[out(5000, (FAR, 7), b"x")]);
    assert_eq!((rig.stat("UdpMappingsRefused"), rig.memory().udp), (1, 0));
    rig.host.datagrams_open = Ok(());
    send(&mut rig, &[out(5000, (FAR, 7), b"x")]);
    let id = only(&rig);
    assert_eq!(socket(&mut rig, id).sent.len(), 1);
    rest(&mut rig);
}

#[test]
fn events_of_a_mapping_that_ended_have_no_effect() {
    let mut rig = Rig::new();
    send(&mut rig, &[out(5000, (FAR, 7), b"x")]);
    let old = only(&rig);
    rig.pass(121_000);
    send(&mut rig, &[out(5001, (FAR, 7), b"x")]);
    let new = only(&rig);
    assert_eq!((new.index, new.generation), (old.index, old.generation + 1));
    rig.stack.on_datagram_ready(old);
    assert_eq!(rig.turn(), []);
    rest(&mut rig);
}

#[test]
fn an_ended_container_has_no_mapping() {
    let mut rig = Rig::new();
    for port in 5000..5020 {
        rig.frame(&out(port, (FAR, 7), b"x").frame());
    }
    // Before the turn that would send them.
    rig.with_cx(Container::abort_all);
    assert_eq!((rig.memory().udp, rig.pool.live(), rig.stack.next_deadline()), (0, 0, None));
    assert!(rig.host.datagrams.values().all(|socket| socket.closed));
}
