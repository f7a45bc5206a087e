//! Guests that send datagrams to servers that echo, receive only, or are not there, under budgets from plentiful to
//! tiny: nothing arrives that was not sent, and in the end no mapping, socket or byte is left.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use skbudget_sim::packet::{Datagram, GATEWAY, GATEWAY6, GUEST6};
use skbudget_sim::{
    DatagramGuest, DatagramServer, Faults, LinkConfig, NodeConfig, Rng, SimHost, World, each_seed,
};
use skbudget_stack::ContainerConfig;
use skbudget_stack::controller::{
    Budget, BudgetConfig, Instant, Limits, PAGE_SIZE, Rules, SockLimits,
};

use crate::check;

const ECHO: u16 = 7;
const TWICE: u16 = 8;
const SINK: u16 = 9;
const NAMES: u16 = 53;
const CLOSED: u16 = 10;

#[derive(Debug)]
struct Plan {
    seed: u64,
    hard: u64,
    rules: Rules,
    mtu: u16,
    offload: bool,
    faults: Faults,
    /// Ports of the guest.
    ports: u16,
    datagrams: usize,
    /// Mean time between two datagrams.
    every: Duration,
}

/// What each datagram carries: its number, then bytes that follow from it.
fn payload(number: u32, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(u64::from(number) + 1);
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend((4..len.max(4)).map(|_| rng.next_u64() as u8));
    bytes
}

fn datagrams(plan: &Plan, rng: &mut Rng) -> Vec<(Instant, Datagram)> {
    let mut at = Instant::from_millis(10);
    let one = |number: u32| {
        at = at + Duration::from_nanos(rng.below(2 * plan.every.as_nanos() as u64));
        let v6 = rng.below(3) == 0 && ContainerConfig::has_ipv6(plan.mtu);
        let far = rng.below(6) as u16;
        let ip: IpAddr = match (far, v6) {
            (0, false) => GATEWAY.into(),
            (0, true) => GATEWAY6.into(),
            (n, false) => Ipv4Addr::new(192, 0, 2, n as u8).into(),
            (n, true) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into(),
        };
        let servers = [ECHO, ECHO, TWICE, SINK, NAMES, CLOSED];
        let dst = SocketAddr::new(ip, servers[rng.below(6) as usize]);
        let headers = if v6 { 48 } else { 28 };
        let len = rng.below(u64::from(plan.mtu.min(3000) - headers)) as usize;
        let port = 5000 + rng.below(plan.ports.into()) as u16;
        let plain = Datagram::new(port, dst.port(), &payload(number, len));
        let src = if v6 { (GUEST6, port).into() } else { plain.src };
        (at, Datagram { src, dst, ..plain })
    };
    (0..plan.datagrams as u32).map(one).collect()
}

fn run(plan: &Plan) {
    let mut rng = Rng::new(plan.seed);
    let mut world = World::new(plan.seed);
    let config = BudgetConfig {
        rules: plan.rules,
        limits: Limits::from_bytes(plan.hard, None, None).unwrap(),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 100,
    };
    let budget = world.add_budget(Budget::new(config, None).unwrap());
    let mut host = SimHost::new();
    let echo = |ms, copies| DatagramServer::Echo { delay: Duration::from_millis(ms), copies };
    host.serve_datagrams(ECHO, echo(3, 1));
    host.serve_datagrams(TWICE, echo(40, 2));
    host.serve_datagrams(NAMES, echo(1, 1));
    host.serve_datagrams(SINK, DatagramServer::Sink);
    let sent = datagrams(plan, &mut rng);
    let link = LinkConfig { faults: plan.faults, ..LinkConfig::default() };
    let node = world
        .add_container(NodeConfig {
            container: ContainerConfig::new(
                plan.mtu,
                plan.offload,
                Some(plan.hard),
                [plan.seed, 5],
            ),
            budget,
            up: link,
            down: link,
            guest: Box::new(DatagramGuest::new(sent.clone())),
            host,
        })
        .expect("room for the device queue");
    let last = sent.last().expect("a datagram").0;
    world.run_until(last + Duration::from_secs(1));
    let received = world.with_guest(node, |guest: &mut DatagramGuest| {
        assert_eq!(guest.unsent(), 0);
        std::mem::take(&mut guest.received)
    });
    check_answers(plan, &sent, received.into_iter().map(|(_, datagram)| datagram));
    let stats = world.container(node).stats();
    let counter = |name| stats.counters.iter().find(|c| c.0 == name).expect("a counter").1;
    let meter = world.budget(budget).meter_stats(world.now());
    if plan.rules == Rules::Strict {
        assert!(Some(meter.max_usage_bytes) <= meter.hard_bytes);
    }
    assert!(world.host(node).datagram_caps_bytes_max() <= plan.hard / 8, "charged, and bounded");
    let all: u64 = [ECHO, TWICE, NAMES, SINK, CLOSED]
        .map(|p| world.host(node).datagram_port(p).received)
        .iter()
        .sum();
    assert_eq!(all, counter("UdpOutDatagrams"));
    // Long after the last datagram there is nothing.
    world.run_until(last + Duration::from_secs(125));
    let stats = world.container(node).stats();
    assert_eq!((stats.mappings, world.host(node).open_sockets(), world.live_chunks()), (0, 0, 0));
    assert_eq!(world.container(node).next_deadline(), None);
    let member = world.budget(budget).member_stats(world.member(node));
    assert_eq!(member.udp, 0);
    if plan.rules == Rules::Strict {
        let usage = world.budget(budget).meter_stats(world.now()).usage_bytes;
        assert_eq!(usage, (member.dev + member.sock).next_multiple_of(PAGE_SIZE));
    }
    world.stop(node);
}

/// Every answer is a copy of what was sent to its source, from the port it was sent from, and no copy is one too many.
fn check_answers(
    plan: &Plan,
    sent: &[(Instant, Datagram)],
    received: impl Iterator<Item = Datagram>,
) {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    let clean = plan.faults == Faults::default();
    for answer in received {
        let number = u32::from_be_bytes(*answer.data.first_chunk().expect("a number"));
        let Some((_, question)) = sent.get(number as usize).filter(|(_, q)| q.data == answer.data)
        else {
            assert!(plan.faults.corrupt > 0, "not sent: {answer:?}");
            continue;
        };
        assert_eq!((answer.src, answer.dst), (question.dst, question.src));
        *counts.entry(number).or_default() += 1;
    }
    for (number, (_, question)) in sent.iter().enumerate() {
        let got = counts.get(&(number as u32)).copied().unwrap_or(0);
        let most = match question.dst.port() {
            ECHO | NAMES => 1,
            TWICE => 2,
            _ => 0,
        };
        assert!(got <= most || !clean, "{got} answers to {question:?}");
        // With plenty of memory and clean links none is lost.
        let plenty = clean && plan.hard >= 64 << 20 && plan.ports < 40;
        assert!(got == most || !plenty, "{got} of {most} answers to {question:?}");
    }
}

fn any<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

#[test]
fn datagrams_and_their_answers() {
    each_seed!(0..60, |seed| {
        let rng = &mut Rng::new(seed ^ 0xda7a);
        let faults =
            Faults { loss: 20_000, duplicate: 10_000, reorder: 30_000, ..Faults::default() };
        let plan = Plan {
            seed,
            hard: any(rng, &[64 << 20, 64 << 20, 4 << 20, 1 << 20, 512 << 10]),
            rules: any(rng, &[Rules::Strict, Rules::Strict, Rules::Linux]),
            mtu: any(rng, &[1500, 65_520, 1280, 576]),
            offload: rng.below(2) == 0,
            faults: if rng.below(2) == 0 { faults } else { Faults::default() },
            ports: any(rng, &[1, 5, 30, 400]),
            datagrams: 300,
            every: Duration::from_micros(any(rng, &[20, 1000, 100_000])),
        };
        check(&plan, run);
    });
}
