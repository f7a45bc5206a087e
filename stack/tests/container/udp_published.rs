//! Published UDP ports: clients send first, and the guest answers to the address that it sees.

use std::net::{IpAddr, SocketAddr};

use skbudget_stack::controller::Rules;
use skbudget_stack::datagram::{DatagramKind, DatagramSocket};
use skbudget_stack::{Container, DatagramHost, DatagramId};
use smoltcp::wire::ArpOperation;

use crate::peer::introduce;
use crate::rig::{GATEWAY, GATEWAY6, GUEST, Rig, Setup};
use crate::udp::{FAR, FAR6, FIELDS, deliver, out, received, send, socket};
use crate::wire::Sent;

/// Publishes a port of the guest, as the daemon does.
fn publish(rig: &mut Rig, ipv6: bool, port: u16) -> Option<DatagramId> {
    let published = rig.with_cx(|stack, cx| stack.publish_datagrams(cx, ipv6, port));
    let (id, caps) = published?;
    let spec = DatagramSocket { kind: DatagramKind::Udp, ipv6, port, caps };
    rig.host.open_datagram(id, &spec).unwrap();
    Some(id)
}

/// Address and port of a client as the guest sees them.
fn seen(rig: &mut Rig, id: DatagramId, client: SocketAddr) -> SocketAddr {
    let datagrams = received(deliver(rig, id, client, b"question"));
    assert_eq!(datagrams[0].dst.port(), 53);
    datagrams[0].src
}

#[test]
fn clients_are_answered_from_the_published_socket() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    for (ipv6, clients) in [
        (false, ["192.0.2.9:4000", "192.0.2.10:4000", "198.51.100.1:53"]),
        (true, ["[2001:db8::9]:4000", "[2001:db8::a]:4000", "[2001:db8::9]:4001"]),
    ] {
        let id = publish(&mut rig, ipv6, 53).unwrap();
        for client in clients {
            let client: SocketAddr = client.parse().unwrap();
            assert_eq!(seen(&mut rig, id, client), client, "their own address, without a filter");
            send(&mut rig, &[out(53, client, b"answer")]);
            let (to, _, payload) = socket(&mut rig, id).sent.pop().unwrap();
            assert_eq!((to, &payload[..]), (client, &b"answer"[..]));
        }
    }
    // What the guest sends from that port by itself has the published port, too.
    send(&mut rig, &[out(53, (FAR, 7), b"notify"), out(53, (FAR6, 7), b"notify")]);
    assert_eq!(rig.host.datagrams.len(), 2);
    assert!(rig.host.datagrams.values().all(|socket| socket.sent.len() == 1));
    // It stays.
    rig.pass(1_000_000);
    assert_eq!(rig.stack.stats().mappings, 2);
    rig.with_cx(Container::abort_all);
    assert_eq!((rig.memory().udp, rig.stack.next_deadline()), (0, None));
    assert!(rig.host.datagrams.values().all(|socket| socket.closed));
}

/// While the container runs: a port from which the guest sends already, and ports that are closed again.
#[test]
fn ports_are_published_and_closed_at_any_time() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    for ipv6 in [false, true] {
        let far: SocketAddr = if ipv6 { (FAR6, 7).into() } else { (FAR, 7).into() };
        rig.frame(&out(53, far, b"before").frame());
        let before = crate::udp::only(&rig);
        let id = publish(&mut rig, ipv6, 53).unwrap();
        // What the guest sent before left from its own socket.
        assert_eq!(socket(&mut rig, before).sent.len(), 1);
        assert!(socket(&mut rig, before).closed && rig.stack.stats().mappings == 1);
        assert!(publish(&mut rig, ipv6, 53).is_none(), "published twice");
        let client = SocketAddr::new(far.ip(), 4000);
        assert_eq!(seen(&mut rig, id, client), client);
        rig.frame(&out(53, client, b"answer").frame());
        rig.with_cx(|stack, cx| stack.unpublish_datagrams(cx, id));
        assert_eq!(socket(&mut rig, id).sent.len(), 1, "the answer was under way");
        assert!(socket(&mut rig, id).closed);
        assert_eq!((rig.stack.stats().mappings, rig.memory().udp), (0, 0));
        // The port is the guest's own again, and may be published again.
        send(&mut rig, &[out(53, far, b"after")]);
        assert_ne!(crate::udp::only(&rig), id);
        let id = publish(&mut rig, ipv6, 53).unwrap();
        rig.with_cx(|stack, cx| stack.unpublish_datagrams(cx, id));
        // A late call for a port that is closed has no effect.
        rig.with_cx(|stack, cx| stack.unpublish_datagrams(cx, id));
    }
    rig.assert_empty();
}

/// Its answers are for the client, not for the host's loopback.
#[test]
fn a_client_with_the_gateways_own_address_is_answered() {
    for (ipv6, gateway) in [(false, IpAddr::from(GATEWAY)), (true, IpAddr::from(GATEWAY6))] {
        let mut rig = Rig::new();
        introduce(&mut rig);
        let id = publish(&mut rig, ipv6, 53).unwrap();
        let client = SocketAddr::new(gateway, 4000);
        assert_eq!(seen(&mut rig, id, client), client);
        send(&mut rig, &[out(53, client, b"answer")]);
        assert_eq!(socket(&mut rig, id).sent.pop().unwrap().0, client);
    }
}

#[test]
fn clients_that_the_guest_cannot_answer_appear_as_the_gateway() {
    for host_loopback in [true, false] {
        let mut rig = Rig::with(Setup { host_loopback, ..Setup::default() });
        introduce(&mut rig);
        let id = publish(&mut rig, false, 53).unwrap();
        let clients: Vec<SocketAddr> =
            ["127.0.0.1:4000", "127.0.0.2:4000", "10.0.2.77:4000", "169.254.1.1:9", "10.0.2.100:9"]
                .map(|client| client.parse().unwrap())
                .to_vec();
        let ports: Vec<u16> = clients
            .iter()
            .map(|client| {
                let seen = seen(&mut rig, id, *client);
                assert_eq!(seen.ip(), IpAddr::from(GATEWAY));
                seen.port()
            })
            .collect();
        assert_eq!(ports, [4000, 4001, 4002, 9, 10], "told apart by the port");
        for (client, port) in clients.iter().zip(ports) {
            send(&mut rig, &[out(53, (GATEWAY, port), b"answer")]);
            assert_eq!(socket(&mut rig, id).sent.pop().unwrap().0, *client);
        }
        // Other ports of the gateway are those of the host's loopback, or shut.
        let answers = send(&mut rig, &[out(53, (GATEWAY, 8000), b"x")]);
        assert_eq!(answers.is_empty(), host_loopback);
        let sent = socket(&mut rig, id).sent.len();
        assert_eq!(sent, usize::from(host_loopback));
        let id = publish(&mut rig, true, 53).unwrap();
        assert_eq!(seen(&mut rig, id, "[::1]:5".parse().unwrap()), (GATEWAY6, 5).into());
        assert_eq!(seen(&mut rig, id, "[fe80::1]:5".parse().unwrap()), (GATEWAY6, 6).into());
    }
}

#[test]
fn a_port_is_published_once_for_each_family_and_only_with_room() {
    let mut rig = Rig::with(Setup { hard: 4 << 20, ..Setup::default() });
    assert!(publish(&mut rig, false, 53).is_some() && publish(&mut rig, false, 53).is_none());
    assert!(publish(&mut rig, true, 53).is_some());
    let ports = (54..99).filter(|port| publish(&mut rig, false, *port).is_some()).count();
    assert_eq!(ports, 2, "an eighth of 4 MiB");
    // Published ports are not evicted for others.
    introduce(&mut rig);
    send(&mut rig, &[out(5000, (FAR, 7), b"x")]);
    assert_eq!((rig.stat("UdpMappingsRefused"), rig.stack.stats().mappings), (1, 4));
    assert_eq!(rig.stat("UdpMappingsEvicted"), 0);
    // Without IPv6.
    let mut rig = Rig::with(Setup { mtu: 1279, rules: Rules::Linux, ..Setup::default() });
    assert!(publish(&mut rig, true, 53).is_none() && publish(&mut rig, false, 53).is_some());
}

#[test]
fn datagrams_wait_for_the_guests_hardware_address() {
    let mut rig = Rig::new();
    let id = publish(&mut rig, false, 53).unwrap();
    let sent = deliver(&mut rig, id, (FAR, 4000), b"early");
    let asks = |sent: &Sent| {
        matches!(
            sent,
            Sent::Arp { operation: ArpOperation::Request, source: GATEWAY, target: GUEST }
        )
    };
    assert!(sent.len() == 1 && asks(&sent[0]), "{sent:?}");
    // Any frame of the guest reveals it.
    let datagrams = received(send(&mut rig, &[out(53, (FAR, 4000), b"first")]));
    assert_eq!(datagrams[0].data, b"early");
}

#[test]
fn a_client_without_a_port_is_not_passed_on() {
    let mut rig = Rig::new();
    introduce(&mut rig);
    let id = publish(&mut rig, false, 53).unwrap();
    assert_eq!(deliver(&mut rig, id, (FAR, 0), b"x"), []);
    // An IPv6 client of an IPv4 socket is not possible; the families are never mixed all the same.
    socket(&mut rig, id).incoming.push_back(((FAR6, 7).into(), FIELDS, b"x".to_vec()));
    rig.stack.on_datagram_ready(id);
    assert_eq!(rig.turn(), []);
    assert_eq!((rig.stat("UdpFiltered"), rig.host.datagrams.len()), (2, 1));
}
