//! Rules of where the guest may connect to: what is refused, how, and what no rule refuses.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use skbudget_sim::packet::Datagram;
use skbudget_stack::ReachRule;
use skbudget_stack::datagram::{DatagramKind, DatagramSocket};
use skbudget_stack::{ContainerConfig, DatagramHost};

use crate::echo::request;
use crate::peer::{Hello, introduce};
use crate::rig::{GATEWAY, Rig};
use crate::udp::{FAR, FAR6, deliver, open, out, received, send, socket};
use crate::wire::{RST, Seg, Sent};

const OTHER: [u8; 4] = [192, 0, 2, 77];

fn rule(allow: bool, net: &str, port: Option<u16>) -> ReachRule {
    let (first, prefix_len) = net.split_once('/').unwrap();
    ReachRule {
        allow,
        first: first.parse().unwrap(),
        prefix_len: prefix_len.parse().unwrap(),
        port,
    }
}

/// A rig with these rules.
fn rig(rules: &[ReachRule]) -> Rig {
    let rules = rules.to_vec();
    Rig::configured(move |config: &mut ContainerConfig| config.reach = rules)
}

/// Nothing but port 443 of one network.
fn strict() -> Vec<ReachRule> {
    vec![
        rule(true, "192.0.2.9/32", Some(443)),
        rule(true, "2001:db8::/64", Some(443)),
        rule(false, "0.0.0.0/0", None),
        rule(false, "::/0", None),
    ]
}

/// A SYN of the guest to any host.
fn syn(rig: &mut Rig, to: impl Into<SocketAddr>) -> Vec<Seg> {
    let to = to.into();
    let mut seg = Hello::default().syn(4000, to.port());
    match to.ip() {
        IpAddr::V4(ip) => seg.remote = Some(ip),
        IpAddr::V6(ip) => (seg.v6, seg.remote6) = (true, Some(ip)),
    }
    rig.send(seg)
}

#[test]
fn a_connection_is_reset_at_once() {
    let mut rig = rig(&strict());
    let refused: [SocketAddr; 5] = [
        (FAR, 80).into(),
        (OTHER, 443).into(),
        (FAR6, 80).into(),
        (Ipv6Addr::new(0x2001, 0xdb9, 0, 0, 0, 0, 0, 1), 443).into(),
        (GATEWAY, 443).into(),
    ];
    for (n, to) in refused.into_iter().enumerate() {
        let answers = syn(&mut rig, to);
        assert!(matches!(&answers[..], [seg] if seg.flags & RST != 0), "{to}: {answers:?}");
        assert_eq!(rig.stat("ReachDenied"), n as u64 + 1);
    }
    assert!(rig.host.socks.is_empty(), "no connect");
    for to in [SocketAddr::from((FAR, 443)), (FAR6, 443).into()] {
        assert_eq!(syn(&mut rig, to), [], "connect(2) is under way");
        assert!(rig.host.socks.values().any(|sock| sock.to == Some(to)), "{to}");
    }
    assert_eq!(rig.stat("ReachDenied"), 5);
}

#[test]
fn a_datagram_is_unreachable_and_an_echo_request_prohibited() {
    let mut rig = rig(&strict());
    for to in [SocketAddr::from((FAR, 80)), (FAR6, 80).into()] {
        match &send(&mut rig, &[out(5000, to, b"x")])[..] {
            [Sent::Icmp(3, 3, _) | Sent::Icmp6 { kind: 1, code: 4, .. }] => {}
            other => panic!("{to}: {other:?}"),
        }
    }
    assert_eq!(open(&rig), [], "no mapping");
    rig.frame(&request(false, 7, 1, 64, b"ping"));
    assert!(matches!(rig.turn()[..], [Sent::Icmp(3, 13, _)]));
    rig.frame(&request(true, 7, 1, 64, b"ping"));
    assert!(matches!(rig.turn()[..], [Sent::Icmp6 { kind: 1, code: 1, .. }]));
    assert_eq!(rig.stat("ReachDenied"), 4);
    assert_eq!(send(&mut rig, &[out(5000, (FAR, 443), b"x"), out(5000, (FAR6, 443), b"x")]), []);
    assert_eq!(open(&rig).len(), 2);
}

/// The gateway counts as the loopback of the host.
#[test]
fn the_hosts_loopback_is_refused_by_its_own_address() {
    let rules = [rule(true, "127.0.0.1/32", Some(8080)), rule(false, "127.0.0.0/8", None)];
    let mut rig = rig(&rules);
    assert_eq!(syn(&mut rig, (GATEWAY, 8080)), []);
    assert!(matches!(&syn(&mut rig, (GATEWAY, 8081))[..], [seg] if seg.flags & RST != 0));
    // Addresses of the guest's own network are none of the host's.
    let mut other = self::rig(&[rule(false, "10.0.0.0/8", None)]);
    assert_eq!(syn(&mut other, (GATEWAY, 80)), []);
    assert_eq!(other.stat("ReachDenied"), 0);
}

#[test]
fn names_are_resolved_whatever_the_rules_are() {
    let mut rig = rig(&strict());
    rig.host.name_servers = vec!["192.0.2.53:53".parse().unwrap()];
    let mut question = vec![0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
    question[1] = 7;
    send(&mut rig, &[out(5000, ([10, 0, 2, 3], 53), &question)]);
    assert_eq!(rig.stat("DnsQueries"), 1);
    assert_eq!(syn(&mut rig, ([10, 0, 2, 3], 53)), [], "over TCP as well");
    assert_eq!(rig.stat("ReachDenied"), 0);
}

/// As a firewall that lets answers pass.
#[test]
fn clients_of_published_ports_are_answered() {
    let mut rig = rig(&strict());
    introduce(&mut rig);
    let (id, caps) = rig.with_cx(|stack, cx| stack.publish_datagrams(cx, false, 53)).expect("room");
    let spec = DatagramSocket { kind: DatagramKind::Udp, ipv6: false, port: 53, caps };
    rig.host.open_datagram(id, &spec).unwrap();
    let to = |n: u8| SocketAddr::from(([198, 51, 100, n], 4000));
    // A hundred at once, before the guest answers the first.
    for n in 1..=100 {
        let from = received(deliver(&mut rig, id, to(n), b"question"));
        assert_eq!(from[0].src, to(n));
    }
    let answers: Vec<Datagram> = (1..=100).map(|n| out(53, to(n), b"answer")).collect();
    assert_eq!(send(&mut rig, &answers), []);
    assert_eq!(socket(&mut rig, id).sent.len(), 100);
    // It may not send to others from there, nor to a client from another port.
    let refused = [out(53, to(200), b"x"), out(54, to(1), b"x")];
    assert_eq!(send(&mut rig, &refused).len(), 2);
    assert_eq!(rig.stat("ReachDenied"), 2);
    // A client over TCP, and the guest's answers to it.
    rig.accept(80, to(1));
    rig.turn();
    assert_eq!(rig.stat("ReachDenied"), 2);
    rig.with_cx(skbudget_stack::Container::abort_all);
    assert_eq!(rig.memory().udp, 0);
}
