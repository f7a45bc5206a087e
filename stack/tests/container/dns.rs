//! The DNS forwarder: questions of the guest, servers of the host that answer, lie, refuse or keep silent.

use std::net::{IpAddr, SocketAddr};

use skbudget_sim::packet::Datagram;
use skbudget_stack::datagram::{RECEIVE_BATCH, Undeliverable};
use skbudget_stack::{Container, DatagramId, HostError};

use crate::peer::{Hello, introduce};
use crate::rig::{GUEST, GUEST6, Rig, Setup, one};
use crate::udp::{FIELDS, error_of, only, open, received, send, socket};
use crate::wire::{ACK, RST, Seg};

const FIRST: &str = "192.0.2.53:53";
const SECOND: &str = "127.0.0.53:53";
const THIRD: &str = "[2001:db8::53]:53";

fn rig(servers: &[&str]) -> Rig {
    let mut rig = Rig::new();
    rig.host.name_servers = servers.iter().map(|server| server.parse().unwrap()).collect();
    introduce(&mut rig);
    rig
}

/// A question with EDNS and the DNSSEC OK bit, for a name of one label.
fn message(id: u16, label: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1, label.len() as u8]);
    message.extend(label.as_bytes());
    message.extend([0, 0, 1, 0, 1]);
    message.extend([0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0]);
    message
}

fn question(port: u16, id: u16, label: &str) -> Datagram {
    let forwarder = SocketAddr::from(([10, 0, 2, 3], 53));
    Datagram {
        src: (GUEST, port).into(),
        dst: forwarder,
        ..Datagram::new(0, 0, &message(id, label))
    }
}

/// The answer to a query as a server sends it.
fn answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77]);
    answer[7] = 1;
    answer
}

/// The latest query of a socket: server and message.
fn query(rig: &mut Rig, id: DatagramId) -> (SocketAddr, Vec<u8>) {
    let (to, _, message) = socket(rig, id).sent.pop().expect("a query");
    (to, message)
}

/// A server answers; what the guest receives.
fn answered(rig: &mut Rig, id: DatagramId, from: SocketAddr, message: Vec<u8>) -> Vec<Datagram> {
    socket(rig, id).incoming.push_back((from, FIELDS, message));
    rig.stack.on_datagram_ready(id);
    received(rig.turn())
}

#[test]
fn a_question_is_forwarded_as_it_is_and_so_is_the_answer() {
    let mut rig = rig(&[FIRST]);
    send(&mut rig, &[question(5000, 7, "name")]);
    let id = only(&rig);
    let (to, sent) = query(&mut rig, id);
    assert_eq!((to.to_string().as_str(), &sent[2..]), (FIRST, &message(7, "name")[2..]));
    let reply = answer(&sent);
    let got = answered(&mut rig, id, to, reply.clone());
    assert_eq!((got[0].src, got[0].dst), (([10, 0, 2, 3], 53).into(), (GUEST, 5000).into()));
    assert_eq!((&got[0].data[..2], &got[0].data[2..]), (&[0, 7][..], &reply[2..]));
    // The socket is closed, and the next question has another one.
    assert_eq!(open(&rig), []);
    assert_eq!((rig.stat("DnsQuestions"), rig.stat("DnsAnswers")), (1, 1));
    assert_eq!(rig.stack.stats().mappings, 0);
    rig.assert_empty();
}

#[test]
fn questions_over_ipv6_are_answered_over_ipv6() {
    let mut rig = rig(&[SECOND]);
    let to: IpAddr = "fd00::3".parse().unwrap();
    let asked =
        Datagram { src: (GUEST6, 5000).into(), dst: (to, 53).into(), ..question(0, 7, "name") };
    send(&mut rig, &[asked]);
    let id = only(&rig);
    let (server, sent) = query(&mut rig, id);
    let got = answered(&mut rig, id, server, answer(&sent));
    assert_eq!((got[0].src, got[0].dst), ((to, 53).into(), (GUEST6, 5000).into()));
    rig.assert_empty();
}

#[test]
fn a_silent_server_is_followed_by_the_next_and_a_refusing_one_at_once() {
    let mut rig = rig(&[FIRST, SECOND, THIRD]);
    send(&mut rig, &[question(5000, 7, "name")]);
    let id = only(&rig);
    query(&mut rig, id);
    rig.pass(1999);
    assert!(socket(&mut rig, id).sent.is_empty());
    rig.pass(2);
    let (second, _) = query(&mut rig, id);
    assert_eq!(second.to_string(), SECOND);
    socket(&mut rig, id).errors.push_back((second, None, Undeliverable::Port, vec![]));
    rig.stack.on_datagram_ready(id);
    rig.turn();
    // Another family: another socket.
    let last = only(&rig);
    assert!(last != id && socket(&mut rig, last).spec.ipv6);
    let (third, sent) = query(&mut rig, last);
    assert_eq!(third.to_string(), THIRD);
    assert_eq!(answered(&mut rig, last, third, answer(&sent)).len(), 1);
    // The server that answered is queried first from now on.
    send(&mut rig, &[question(5000, 8, "name")]);
    let id = only(&rig);
    let (server, sent) = query(&mut rig, id);
    assert_eq!(server.to_string(), THIRD);
    answered(&mut rig, id, server, answer(&sent));
    rig.assert_empty();
}

#[test]
fn without_an_answer_the_guest_gets_a_failure_after_ten_seconds() {
    let mut rig = rig(&[FIRST]);
    send(&mut rig, &[question(5000, 7, "name")]);
    let id = only(&rig);
    let (server, sent) = query(&mut rig, id);
    rig.pass(9990);
    // A late answer counts.
    assert_eq!(socket(&mut rig, id).sent.len(), 4, "once every two seconds");
    assert_eq!(answered(&mut rig, id, server, answer(&sent)).len(), 1);
    send(&mut rig, &[question(5000, 8, "name")]);
    let out = rig.pass(10_001);
    let got = received(out.into_iter().map(|(_, sent)| sent).collect());
    assert_eq!((got.len(), &got[0].data[..2], got[0].data[3] & 15), (1, &[0, 8][..], 2));
    assert_eq!(rig.stat("DnsFailed"), 1);
    rig.assert_empty();
}

#[test]
fn lies_are_not_passed_on() {
    let mut rig = rig(&[FIRST, SECOND]);
    send(&mut rig, &[question(5000, 7, "name")]);
    let id = only(&rig);
    let (server, sent) = query(&mut rig, id);
    let good = answer(&sent);
    let mut wrong_id = good.clone();
    wrong_id[0] ^= 0x40;
    let mut other_name = good.clone();
    other_name[13] ^= 1;
    let stranger: SocketAddr = "192.0.2.66:53".parse().unwrap();
    let unasked: SocketAddr = SECOND.parse().unwrap();
    for (from, message) in [
        (server, wrong_id),
        (server, other_name),
        (server, sent),
        (stranger, good.clone()),
        (unasked, good.clone()),
        (server, vec![0; 5]),
    ] {
        assert_eq!(answered(&mut rig, id, from, message), []);
    }
    assert_eq!(rig.stat("DnsUnmatched"), 6);
    // And the truth only once.
    socket(&mut rig, id).incoming.push_back((server, FIELDS, good.clone()));
    assert_eq!(answered(&mut rig, id, server, good).len(), 1);
    assert_eq!(rig.stat("DnsUnmatched"), 7);
    rig.assert_empty();
}

#[test]
fn without_a_server_or_a_socket_the_guest_gets_a_failure_at_once() {
    let mut without = rig(&[]);
    let got = received(send(&mut without, &[question(5000, 7, "name")]));
    assert_eq!(
        (&got[0].data[..2], got[0].data[2] & 0x80, got[0].data[3] & 15),
        (&[0, 7][..], 0x80, 2)
    );
    assert_eq!(without.stat("DnsRefused"), 1);
    without.assert_empty();
    let mut without = rig(&[FIRST, THIRD]);
    without.host.datagrams_open = Err(HostError::NoResources);
    let got = received(send(&mut without, &[question(5000, 7, "name")]));
    assert_eq!((got[0].data[3] & 15, without.stat("DnsFailed")), (2, 1));
    without.assert_empty();
    // Servers that the host has no route to.
    let mut without = rig(&[FIRST, SECOND]);
    send(&mut without, &[question(5000, 7, "name")]);
    let id = only(&without);
    let fails = [FIRST, SECOND].map(|s| (s.parse().unwrap(), Some(Undeliverable::Net)));
    socket(&mut without, id).fails = fails.to_vec();
    let out = without.pass(2001);
    let got = received(out.into_iter().map(|(_, sent)| sent).collect());
    assert_eq!(got[0].data[3] & 15, 2);
    without.assert_empty();
}

#[test]
fn what_is_no_question_is_dropped() {
    let mut rig = rig(&[FIRST]);
    let plain = question(5000, 7, "name");
    for bad in [vec![], vec![0; 11], answer(&message(7, "x")), vec![0; 12], vec![9; 400]] {
        assert_eq!(send(&mut rig, &[Datagram { data: bad, ..plain.clone() }]), []);
    }
    assert_eq!((rig.stat("DnsMalformed"), rig.host.datagrams.len()), (5, 0));
    // Other ports of the forwarder's address are closed.
    let other = Datagram { dst: ([10, 0, 2, 3], 54).into(), ..plain };
    let (_, kind, code, _, _) = error_of(&mut rig, &other.frame());
    assert_eq!((kind, code), (3, 3));
    rig.assert_empty();
}

#[test]
fn a_flood_of_questions_is_bounded_and_leaves_nothing() {
    for hard in [64 << 20, 4 << 20, 1 << 20] {
        let mut rig = Rig::with(Setup { hard, ..Setup::default() });
        rig.host.name_servers = vec![FIRST.parse().unwrap()];
        introduce(&mut rig);
        for n in 0..2000u16 {
            rig.frame(&question(5000 + n, n, "name").frame());
            assert!(rig.memory().udp <= hard / 8);
        }
        rig.turn();
        assert!(open(&rig).len() <= 16);
        assert!(rig.stat("DnsQuestions") <= 256 && rig.stat("DnsRefused") >= 1744);
        rig.pass(11_000);
        assert_eq!(rig.stat("DnsFailed"), rig.stat("DnsQuestions"));
        rig.assert_empty();
    }
}

#[test]
fn connections_are_relayed_to_the_server_and_the_next_one_if_it_refuses() {
    let mut rig = rig(&[FIRST, SECOND]);
    let syn = Seg { remote: Some([10, 0, 2, 3].into()), ..Hello::default().syn(40_000, 53) };
    rig.send(syn.clone());
    let flow = rig.host.connects[0];
    assert_eq!(rig.sock(flow).to, Some(FIRST.parse().unwrap()));
    rig.sock(flow).outcome = Some(Err(HostError::Refused));
    assert!(one(rig.ready(flow, false, true)).is(RST | ACK));
    rig.send(Seg { guest_port: 40_001, ..syn });
    let flow = rig.host.connects[1];
    assert_eq!(rig.sock(flow).to, Some(SECOND.parse().unwrap()), "loopback servers, too");
    rig.sock(flow).outcome = Some(Err(HostError::Refused));
    rig.ready(flow, false, true);
    // Another port of that address is refused at once.
    let other = Seg { remote: Some([10, 0, 2, 3].into()), ..Hello::default().syn(40_002, 54) };
    assert!(one(rig.send(other)).is(RST | ACK));
    assert_eq!(rig.host.connects.len(), 2);
    rig.assert_empty();
}

#[test]
fn servers_that_change_are_used_from_the_next_question_on() {
    let mut rig = rig(&[FIRST]);
    send(&mut rig, &[question(5000, 7, "name")]);
    rig.host.name_servers = vec![SECOND.parse().unwrap()];
    send(&mut rig, &[question(5001, 8, "name")]);
    let ids = open(&rig);
    assert_eq!(query(&mut rig, ids[1]).0.to_string(), SECOND);
    // The first one's next try, too.
    query(&mut rig, ids[0]);
    rig.pass(2001);
    assert_eq!(query(&mut rig, ids[0]).0.to_string(), SECOND);
    rig.pass(11_000);
    rig.assert_empty();
}

/// Otherwise a server, or a host that floods the socket, would hold the worker within one turn.
#[test]
fn a_turn_reads_a_bounded_number_of_answers() {
    let mut rig = rig(&[FIRST]);
    send(&mut rig, &[question(5000, 7, "name")]);
    let id = only(&rig);
    let (to, sent) = query(&mut rig, id);
    let flood = 16 * RECEIVE_BATCH;
    let stranger = SocketAddr::from(([192, 0, 2, 99], 53));
    let incoming = &mut socket(&mut rig, id).incoming;
    incoming.extend((0..flood).map(|_| (stranger, FIELDS, vec![0; 12])));
    // Behind the flood.
    let good = (to, FIELDS, answer(&sent));
    incoming.push_back(good);
    rig.stack.on_datagram_ready(id);
    assert!(rig.with_cx(Container::turn), "work is left");
    assert_eq!(socket(&mut rig, id).incoming.len(), 1);
    assert_eq!(received(rig.turn()).len(), 1, "without another event");
    rig.assert_empty();
}
