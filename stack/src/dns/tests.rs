//! The table by itself: identifiers, servers, sockets, charges.

use std::collections::BTreeSet;

use skbudget_controller::{Budget, MemberId};
use skbudget_seed::{Rng, each_seed};

use super::*;
use crate::test_budget::Setting;

/// A question for a name of one label.
fn question(id: u16, label: &[u8]) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8]);
    message.extend(label);
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The answer to a message.
fn answer(message: &[u8]) -> Vec<u8> {
    let mut answer = message.to_vec();
    answer[2] |= 0x80;
    answer
}

struct Bench {
    forwarder: Forwarder,
    budget: Budget,
    member: MemberId,
    now: Instant,
    open: BTreeSet<DatagramId>,
    opened: usize,
    no_sockets: bool,
}

impl Bench {
    fn new(servers: &[&str]) -> Self {
        let mut budget = Setting::Plenty.budget();
        let member = budget.add_member(0).unwrap();
        let mut forwarder = Forwarder::new([3, 5]);
        let servers: Vec<SocketAddr> = servers.iter().map(|s| s.parse().unwrap()).collect();
        forwarder.set_servers(&servers);
        let (open, now) = (BTreeSet::new(), Instant::from_millis(1000));
        Self { forwarder, budget, member, now, open, opened: 0, no_sockets: false }
    }

    fn with<R>(
        &mut self,
        f: impl FnOnce(&mut Forwarder, &mut MemberCtx<'_>, &mut dyn FnMut(Change) -> bool) -> R,
    ) -> R {
        let Self { forwarder, budget, member, now, open, opened, no_sockets } = self;
        let mut mem = MemberCtx { now: *now, budget, member: *member };
        f(forwarder, &mut mem, &mut |change| match change {
            Change::Open(id, _) if !*no_sockets => {
                *opened += 1;
                open.insert(id)
            }
            Change::Open(..) => false,
            Change::Close(id) => open.remove(&id),
        })
    }

    fn accept(&mut self, port: u16, message: &[u8]) -> Result<usize, Refused> {
        let guest = SocketAddr::from(([10, 0, 2, 100], port));
        let tuple = Tuple::new(guest, SocketAddr::from(([10, 0, 2, 3], 53)));
        self.with(|f, mem, _| f.accept(tuple, message, mem))
    }

    /// Sends the next query of a question: socket, server, message.
    fn query(&mut self, index: usize) -> Option<(DatagramId, SocketAddr, Vec<u8>)> {
        self.with(|f, mem, change| {
            f.query(index, mem, change).map(|(id, to, message)| (id, to, message.to_vec()))
        })
    }

    fn end(&mut self, index: usize) {
        self.with(|f, mem, change| f.end(index, mem, change));
    }

    fn assert_empty(&self) {
        assert!(self.open.is_empty() && self.forwarder.len() == 0);
        assert_eq!(self.forwarder.deadline(), None);
        assert_eq!(self.budget.member_stats(self.member).udp, 0);
    }
}

#[test]
fn only_the_server_that_was_queried_answers_and_only_the_question() {
    let mut bench = Bench::new(&["192.0.2.1:53", "192.0.2.2:53"]);
    let index = bench.accept(5000, &question(7, b"name")).unwrap();
    let (id, to, message) = bench.query(index).unwrap();
    assert_eq!(to.to_string(), "192.0.2.1:53");
    let good = answer(&message);
    let other = DatagramId { generation: id.generation + 1, ..id };
    let from = |text: &str| text.parse().unwrap();
    let mut wrong_id = good.clone();
    wrong_id[1] ^= 1;
    let lies = [
        (id, "192.0.2.2:53", good.clone(), "a server that was not queried"),
        (id, "192.0.2.1:54", good.clone(), "another port"),
        (other, "192.0.2.1:53", good.clone(), "another socket"),
        (id, "192.0.2.1:53", wrong_id, "another identifier"),
        (id, "192.0.2.1:53", message, "no answer"),
        (
            id,
            "192.0.2.1:53",
            answer(&question(u16::from_be_bytes([good[0], good[1]]), b"nama")),
            "another question",
        ),
        (id, "192.0.2.1:53", good[..11].to_vec(), "cut short"),
        (id, "192.0.2.1:53", vec![], "nothing"),
    ];
    for (id, server, message, lie) in lies {
        assert_eq!(bench.forwarder.answered(id, from(server), &message), None, "{lie}");
    }
    assert_eq!(bench.forwarder.answered(id, from("192.0.2.1:53"), &good), Some((index, 7)));
    bench.end(index);
    assert_eq!(bench.forwarder.answered(id, from("192.0.2.1:53"), &good), None, "once");
    bench.assert_empty();
}

#[test]
fn what_is_no_question_is_refused() {
    let mut bench = Bench::new(&["192.0.2.1:53"]);
    let good = question(7, b"name");
    let mut two = good.clone();
    two[5] = 2;
    let mut long = good.clone();
    long.resize(5000, 0);
    for bad in [&good[..11], &good[..20], &answer(&good), &two, &long, &[]] {
        assert_eq!(bench.accept(5000, bad), Err(Refused::Malformed));
    }
    let index = bench.accept(5000, &good).unwrap();
    bench.query(index).unwrap();
    assert_eq!(bench.accept(5000, &good), Err(Refused::Repeated));
    let again = bench.accept(5001, &good).unwrap();
    bench.end(index);
    bench.end(again);
    bench.assert_empty();
    let mut bench = Bench::new(&[]);
    assert_eq!(bench.accept(5000, &good), Err(Refused::NoServer));
}

#[test]
fn servers_follow_each_other_every_two_seconds_and_late_answers_count() {
    let mut bench = Bench::new(&["192.0.2.1:53", "192.0.2.2:53", "[2001:db8::1]:53"]);
    let index = bench.accept(5000, &question(7, b"name")).unwrap();
    let (first, _, message) = bench.query(index).unwrap();
    let mut asked = Vec::new();
    loop {
        let now = bench.now;
        assert_eq!(bench.forwarder.overdue(now), None);
        bench.now = bench.now + ANSWER_TIME;
        let now = bench.now;
        assert_eq!(bench.forwarder.overdue(now), Some(index));
        if !bench.forwarder.next_server(index) {
            break;
        }
        let (id, to, _) = bench.query(index).unwrap();
        if asked.is_empty() {
            assert_eq!(id, first, "of the same family");
            // The first server, late.
            let from = "192.0.2.1:53".parse().unwrap();
            assert_eq!(bench.forwarder.answered(id, from, &answer(&message)), Some((index, 7)));
        }
        asked.push(to.to_string());
    }
    assert_eq!(asked, ["192.0.2.2:53", "[2001:db8::1]:53", "192.0.2.1:53", "192.0.2.2:53"]);
    assert_eq!(bench.now, Instant::from_millis(11_000));
    let failure = bench.forwarder.get(index).unwrap().failure();
    assert_eq!((&failure[..2], failure[2] & 0x80, failure[3] & 15), (&[0, 7][..], 0x80, 2));
    bench.end(index);
    bench.assert_empty();
}

#[test]
fn questions_have_sockets_of_their_own_as_long_as_there_are_enough() {
    let mut bench = Bench::new(&["192.0.2.1:53"]);
    let all: Vec<usize> = (0..QUESTIONS_MAX as u16)
        .map(|port| {
            let index = bench.accept(5000 + port, &question(port, b"name")).unwrap();
            bench.query(index).unwrap();
            index
        })
        .collect();
    assert_eq!((bench.open.len(), bench.opened), (SOCKETS_MAX, SOCKETS_MAX));
    assert_eq!(bench.accept(1, &question(1, b"name")), Err(Refused::NoRoom));
    let mut ids: Vec<u16> = bench.forwarder.questions().map(|(_, q)| q.id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), QUESTIONS_MAX, "each has an identifier of its own");
    all.into_iter().for_each(|index| bench.end(index));
    bench.assert_empty();
    // Without a socket there is no query, and no charge is left.
    bench.no_sockets = true;
    let index = bench.accept(5000, &question(7, b"name")).unwrap();
    assert_eq!(bench.query(index), None);
    bench.end(index);
    bench.assert_empty();
}

#[test]
fn whatever_happens_charges_and_sockets_are_those_of_the_questions() {
    each_seed!(0..60, |seed| {
        let mut rng = Rng::new(seed);
        let mut bench = Bench::new(&["192.0.2.1:53", "[2001:db8::1]:53"]);
        let mut open: Vec<usize> = Vec::new();
        for _ in 0..400 {
            match rng.below(8) {
                0..=2 => {
                    let message = question(rng.next_u64() as u16, b"abc");
                    if let Ok(index) = bench.accept(rng.below(50) as u16 + 1, &message) {
                        bench.no_sockets = rng.below(9) == 0;
                        match bench.query(index) {
                            Some(_) => open.push(index),
                            None => bench.end(index),
                        }
                        bench.no_sockets = false;
                    }
                }
                3 if !open.is_empty() => {
                    let index = open.swap_remove(rng.below(open.len() as u64) as usize);
                    bench.end(index);
                }
                4 => {
                    bench.now = bench.now + Duration::from_millis(rng.below(1500));
                    let now = bench.now;
                    while let Some(index) = bench.forwarder.overdue(now) {
                        if !bench.forwarder.next_server(index) || bench.query(index).is_none() {
                            bench.end(index);
                            open.retain(|other| *other != index);
                        }
                    }
                }
                5 if rng.below(20) == 0 => {
                    bench.forwarder.set_servers(&["192.0.2.3:53".parse().unwrap()]);
                }
                _ => {}
            }
            let sockets = bench.forwarder.sockets.iter().flatten();
            let used: usize = sockets.clone().map(|s| usize::from(s.questions)).sum();
            assert_eq!((used, sockets.clone().count()), (open.len(), bench.open.len()));
            assert_eq!(bench.forwarder.len(), open.len());
            let messages = 21 * open.len() as u64;
            let charge = SOCKET_BYTES * bench.open.len() as u64
                + QUESTION_BYTES * open.len() as u64
                + messages;
            assert_eq!(bench.budget.member_stats(bench.member).udp, charge);
        }
        open.into_iter().for_each(|index| bench.end(index));
        bench.assert_empty();
    });
}

#[test]
fn the_list_of_times_does_not_grow_with_the_answers_of_a_fast_server() {
    let mut bench = Bench::new(&["192.0.2.1:53"]);
    // One question without an answer keeps the lists alive.
    let silent = bench.accept(1, &question(1, b"silent")).unwrap();
    bench.query(silent).unwrap();
    for number in 0..10_000 {
        let index = bench.accept(5000, &question(number, b"name")).unwrap();
        bench.query(index).unwrap();
        bench.end(index);
        assert!(bench.forwarder.times.len() <= 4, "{}", bench.forwarder.times.len());
    }
    // Its time is kept.
    let due = bench.now + ANSWER_TIME;
    assert_eq!(bench.forwarder.deadline(), Some(due));
    assert_eq!(bench.forwarder.overdue(due), Some(silent));
    assert_eq!(bench.forwarder.overdue(due), None);
    bench.end(silent);
    bench.assert_empty();
}
