//! Containers of one loop that reach each other: every byte arrives unchanged in both directions, both ends end as the
//! other one did, usage of each stays within its hard limit, and the charges are those of the chunks.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use skbudget_sim::{
    App, BudgetId, Buffers, Faults, GuestConfig, LinkConfig, Next, NodeConfig, NodeId, Open,
    Pattern, Rng, SimHost, SmolGuest, World, each_seed, smoltcp,
};
use skbudget_stack::ContainerConfig;
use skbudget_stack::controller::{Budget, Instant, Rules};
use smoltcp::socket::tcp::{self, State};

use crate::check;
use crate::run::budget;

/// Virtual time in which every run must end.
const LIMIT: Instant = Instant::from_millis(600_000);

/// What an application saw.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    received: u64,
    corrupt: bool,
    /// The peer ended its stream.
    ended: bool,
    /// The connection was reset or refused.
    reset: bool,
}

/// Sends a number of bytes, and checks what it receives. Ends its own stream when it has sent all.
#[derive(Debug)]
struct Stream {
    /// Patterns of what it sends and receives.
    patterns: [Pattern; 2],
    bytes: u64,
    sent: u64,
    /// Receives nothing before.
    reads_from: Instant,
    /// Resets the connection after this number of received bytes.
    resets_after: Option<u64>,
    seen: Rc<RefCell<Seen>>,
    opened: bool,
}

impl App for Stream {
    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        self.opened |= socket.may_send();
        let over = matches!(socket.state(), State::Closed | State::TimeWait);
        let mut seen = self.seen.borrow_mut();
        // Both may close at once.
        seen.ended |= socket.state() == State::TimeWait;
        if over && !socket.can_recv() {
            // A close on both sides ends in these states, too, after both streams.
            seen.reset |= !(seen.ended && self.sent == self.bytes);
            return Next::Finished;
        }
        let before = (self.sent, seen.received);
        while self.sent < self.bytes && socket.can_send() {
            let left = usize::try_from(self.bytes - self.sent).unwrap();
            let filled = socket.send(|buf| {
                let n = left.min(buf.len());
                self.patterns[0].fill(self.sent, &mut buf[..n]);
                (n, n as u64)
            });
            self.sent += filled.unwrap();
        }
        if now < self.reads_from {
            let busy = before.0 != self.sent;
            return Next::Wait { wake: Some(self.reads_from), busy };
        }
        while socket.can_recv() {
            let received = seen.received;
            let checked = socket.recv(|buf| {
                (buf.len(), (buf.len() as u64, self.patterns[1].check(received, buf).is_err()))
            });
            let (n, corrupt) = checked.unwrap();
            seen.received += n;
            seen.corrupt |= corrupt;
        }
        if self.resets_after.is_some_and(|after| seen.received >= after) {
            socket.abort();
            return Next::Wait { wake: Some(now), busy: true };
        }
        seen.ended |= self.opened && !socket.may_recv() && !socket.can_recv();
        if self.sent == self.bytes && socket.may_send() {
            socket.close();
            return Next::Wait { wake: None, busy: true };
        }
        Next::Wait { wake: None, busy: before != (self.sent, seen.received) }
    }
}

/// Two containers, or more, each with a guest.
struct Siblings {
    world: World,
    nodes: Vec<(NodeId, BudgetId)>,
}

/// The addresses of a container.
fn address(number: usize, ipv6: bool) -> IpAddr {
    match ipv6 {
        true => Ipv6Addr::new(0xfd00, 0, 0, 0x213, 0, 0, 0, 4 + number as u16).into(),
        false => Ipv4Addr::new(10, 213, 0, 4 + number as u8).into(),
    }
}

impl Siblings {
    fn new(seed: u64, budgets: Vec<Budget>, link: LinkConfig, mtu: u16) -> Self {
        let mut all = Self { world: World::new(seed), nodes: Vec::new() };
        for budget in budgets {
            all.add(seed, budget, link, mtu);
        }
        all
    }

    fn add(&mut self, seed: u64, budget: Budget, link: LinkConfig, mtu: u16) {
        let number = self.nodes.len();
        let hard = budget.meter_stats(Instant(0)).hard_bytes;
        let budget = self.world.add_budget(budget);
        let mut container = ContainerConfig::new(mtu, true, hard, [seed, number as u64]);
        let mut guest = GuestConfig::new(mtu, true, seed + number as u64);
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (address(number, false), address(number, true))
        else {
            unreachable!()
        };
        (container.guest_ip, guest.ip) = (v4, v4);
        let gateway = Ipv4Addr::new(10, 213, 0, 2);
        (container.gateway_ip, container.dns_ip) = (gateway, Ipv4Addr::new(10, 213, 0, 3));
        (container.prefix_len, guest.prefix_len, guest.gateway) = (16, 16, gateway);
        container.siblings = true;
        if let Some(net) = &mut container.ipv6 {
            net.guest = v6;
            net.gateway = Ipv6Addr::new(0xfd00, 0, 0, 0x213, 0, 0, 0, 2);
            guest.ipv6 = Some((v6, 64, net.gateway));
        }
        let up = LinkConfig { queue_frames: 1 << 20, ..link };
        let guest = Box::new(SmolGuest::new(&guest));
        let host = SimHost::new();
        let config = NodeConfig { container, budget, up, down: link, guest, host };
        let node = self.world.add_container(config).expect("room for the device queue");
        self.nodes.push((node, budget));
    }

    /// Opens an application's connection.
    fn open(&mut self, at: usize, open: Open, buffers: Buffers, stream: Stream) {
        let now = self.world.now();
        self.world.with_guest(self.nodes[at].0, |guest: &mut SmolGuest| {
            guest.open(now, open, buffers, Box::new(stream));
        });
    }

    /// Connects container 0 to 1. Each sends its number of bytes.
    fn connect(&mut self, bytes: [u64; 2], ipv6: bool, buffers: Buffers) -> [Rc<RefCell<Seen>>; 2] {
        let [client, server] = streams(bytes);
        let seen = [client.seen.clone(), server.seen.clone()];
        self.open(1, Open::Listen(80), buffers, server);
        let to = SocketAddr::new(address(1, ipv6), 80);
        self.open(0, Open::Connect(to), buffers, client);
        seen
    }

    /// Runs until the applications are done and no flow is left, and checks the limits meanwhile.
    fn run<'a>(&mut self, seen: impl IntoIterator<Item = &'a Rc<RefCell<Seen>>> + Clone) {
        let mut step = 0;
        loop {
            self.world
                .run_until(self.world.now() + Duration::from_micros(500 << (step / 64).min(9)));
            step += 1;
            assert!(self.world.now() < LIMIT, "{:?}", self.flows());
            self.check();
            let done = |seen: &Rc<RefCell<Seen>>| seen.borrow().ended || seen.borrow().reset;
            if seen.clone().into_iter().all(done) && self.flows().iter().all(Vec::is_empty) {
                // A last RST may be on its way to a guest.
                return self.world.run_until(self.world.now() + Duration::from_millis(10));
            }
        }
    }

    fn flows(&self) -> Vec<Vec<skbudget_stack::FlowInfo>> {
        self.nodes.iter().map(|(node, _)| self.world.container(*node).flows()).collect()
    }

    /// Limits hold, and the sum of both queues' charges is that of the chunks in use.
    fn check(&self) {
        let now = self.world.now();
        let mut chunks = 0;
        for (node, budget) in &self.nodes {
            let budget = self.world.budget(*budget);
            let meter = budget.meter_stats(now);
            assert!(
                budget.rules() == Rules::Linux || Some(meter.max_usage_bytes) <= meter.hard_bytes
            );
            let flows = self.world.container(*node).flows();
            chunks += flows.iter().map(|flow| flow.rmem + flow.ofo + flow.wmem).sum::<u64>() / 4096;
        }
        assert_eq!(chunks, self.world.live_chunks() as u64);
    }

    /// Stops all: nothing stays charged.
    fn end(mut self) {
        for (node, _) in self.nodes.clone() {
            self.world.stop(node);
        }
        for (_, budget) in &self.nodes {
            let meter = self.world.budget(*budget).meter_stats(self.world.now());
            assert_eq!(meter.usage_bytes, 0);
        }
        assert_eq!(self.world.live_chunks(), 0);
    }
}

/// A client and a server, which send each other this number of bytes.
fn streams(bytes: [u64; 2]) -> [Stream; 2] {
    let patterns = [Pattern::new(7), Pattern::new(8)];
    let stream = |bytes, patterns| Stream {
        patterns,
        bytes,
        sent: 0,
        reads_from: Instant(0),
        resets_after: None,
        seen: Rc::default(),
        opened: false,
    };
    let reversed = [patterns[1], patterns[0]];
    [stream(bytes[0], patterns), stream(bytes[1], reversed)]
}

/// A random pair of containers and a connection between them.
#[derive(Debug)]
struct Plan {
    seed: u64,
    rules: Rules,
    hard: [u64; 2],
    bytes: [u64; 2],
    ipv6: bool,
    mtu: u16,
    link: LinkConfig,
    buffers: Buffers,
}

impl Plan {
    fn new(seed: u64, faults: bool, short: bool) -> Self {
        let mut rng = Rng::new(seed);
        let hard = [(); 2].map(|()| match short {
            true => (400 << 10) + rng.below(800 << 10),
            false => 64 << 20,
        });
        let loss = if faults { 3_000 } else { 0 };
        Self {
            seed,
            rules: if rng.percent(20) { Rules::Linux } else { Rules::Strict },
            hard,
            bytes: [(); 2].map(|()| if rng.percent(20) { 0 } else { rng.below(600_000) }),
            ipv6: rng.percent(40),
            mtu: if rng.percent(50) { 1500 } else { 65_520 },
            link: LinkConfig {
                delay: Duration::from_micros(1 + rng.below(500)),
                faults: Faults { loss, duplicate: loss / 2, reorder: loss, ..Faults::default() },
                queue_frames: 1000,
                ..LinkConfig::default()
            },
            buffers: Buffers { rx: 4096 << rng.index(5), tx: 4096 << rng.index(5) },
        }
    }
}

fn transfer(plan: &Plan) {
    let budgets = plan.hard.map(|hard| budget(plan.rules, hard)).into();
    let mut all = Siblings::new(plan.seed, budgets, plan.link, plan.mtu);
    let seen = all.connect(plan.bytes, plan.ipv6, plan.buffers);
    all.run(&seen);
    for (seen, bytes) in seen.iter().zip([plan.bytes[1], plan.bytes[0]]) {
        let expected = Seen { received: bytes, corrupt: false, ended: true, reset: false };
        assert_eq!(*seen.borrow(), expected);
    }
    let caps: u64 = all.nodes.iter().map(|(node, _)| all.world.host(*node).caps_bytes_max()).sum();
    assert_eq!(caps, 0, "no host socket was ever open");
    all.end();
}

#[test]
fn every_byte_passes_between_two_containers() {
    each_seed!(0..150, |seed| check(&Plan::new(seed, false, false), transfer));
}

#[test]
fn every_byte_passes_over_faulty_links_and_with_little_memory() {
    each_seed!(1000..1200, |seed| check(&Plan::new(seed, true, true), transfer));
}

fn plenty(n: usize) -> Siblings {
    let budgets = (0..n).map(|_| budget(Rules::Strict, 64 << 20)).collect();
    Siblings::new(5, budgets, LinkConfig { queue_frames: 1000, ..LinkConfig::default() }, 1500)
}

#[test]
fn a_sibling_that_does_not_listen_refuses_and_one_that_does_not_exist_is_unreachable() {
    for (to, stat) in [(1, None), (77, Some("SiblingUnreachable"))] {
        for ipv6 in [false, true] {
            let mut all = plenty(2);
            let [client, _] = streams([1000, 0]);
            let seen = client.seen.clone();
            let to = SocketAddr::new(address(to, ipv6), 80);
            all.open(0, Open::Connect(to), Buffers::default(), client);
            // smoltcp drops its first RST: it does not know the sibling's hardware address yet.
            all.world.run_until(Instant::from_millis(3000));
            let stats = all.world.container(all.nodes[0].0).stats();
            match stat {
                // smoltcp gives a connection up on a RST only: the error of ICMP is not for it.
                Some(stat) => {
                    let counted = |(name, n): &(&str, u64)| *name == stat && *n > 0;
                    assert!(stats.counters.iter().any(counted), "{stats:?}");
                }
                None => assert!(seen.borrow().reset, "{stats:?}"),
            }
            assert!(all.flows().iter().all(Vec::is_empty), "{:?}", all.flows());
            all.end();
        }
    }
}

#[test]
fn a_reset_reaches_the_other_end_after_the_data_before_it() {
    for server_resets in [false, true] {
        let mut all = plenty(2);
        let [mut client, mut server] = streams([3_000_000, 3_000_000]);
        let seen = [client.seen.clone(), server.seen.clone()];
        let resetting = if server_resets { &mut server } else { &mut client };
        resetting.resets_after = Some(100_000);
        // It sends all, and then waits for the other one.
        resetting.bytes = 1000;
        all.open(1, Open::Listen(80), Buffers::default(), server);
        let to = SocketAddr::new(address(1, false), 80);
        all.open(0, Open::Connect(to), Buffers::default(), client);
        all.run(&seen);
        let other = seen[usize::from(!server_resets)].borrow().clone();
        assert!(other.reset && other.received == 1000 && !other.corrupt, "{other:?}");
        all.end();
    }
}

#[test]
fn a_slow_reader_closes_the_senders_window_and_costs_nobody_else() {
    let budgets = vec![budget(Rules::Strict, 2 << 20), budget(Rules::Strict, 600 << 10)];
    let link = LinkConfig { queue_frames: 1000, ..LinkConfig::default() };
    let mut all = Siblings::new(9, budgets, link, 1500);
    let [client, mut server] = streams([4_000_000, 0]);
    let seen = server.seen.clone();
    server.reads_from = Instant::from_millis(3000);
    all.open(1, Open::Listen(80), Buffers::default(), server);
    let to = SocketAddr::new(address(1, false), 80);
    all.open(0, Open::Connect(to), Buffers::default(), client);
    all.world.run_until(Instant::from_millis(2900));
    all.check();
    let held: u64 = all.flows().iter().flatten().map(|flow| flow.rmem + flow.wmem).sum();
    assert!(held > 64 << 10, "the queues of both are in use: {held}");
    all.run([&seen]);
    assert_eq!((seen.borrow().received, seen.borrow().corrupt), (4_000_000, false));
    all.end();
}

#[test]
fn containers_of_another_group_are_unreachable_until_they_move() {
    let mut all = plenty(3);
    all.world.set_group(all.nodes[0].0, "web");
    for (group, received) in [("default", 0), ("web", 5000)] {
        all.world.set_group(all.nodes[1].0, group);
        let seen = all.connect([5000, 0], false, Buffers::default());
        all.world.run_until(all.world.now() + Duration::from_millis(5000));
        assert_eq!(seen[1].borrow().received, received, "{group}");
    }
    all.end();
}

#[test]
fn a_container_that_ends_resets_the_connections_of_its_siblings() {
    for ends in [0, 1] {
        let mut all = plenty(2);
        let seen = all.connect([50_000_000, 50_000_000], false, Buffers::default());
        all.world.run_until(Instant::from_millis(20));
        assert!(seen.iter().all(|seen| seen.borrow().received > 0));
        all.world.stop(all.nodes[ends].0);
        all.world.run_until(Instant::from_millis(500));
        let other = seen[1 - ends].borrow().clone();
        assert!(other.reset && !other.corrupt, "{other:?}");
        assert!(all.world.container(all.nodes[1 - ends].0).flows().is_empty());
        all.end();
    }
}

#[test]
fn connections_wait_for_room_in_the_sibling() {
    // Room for about a dozen flows.
    let budgets = vec![budget(Rules::Strict, 4 << 20), budget(Rules::Strict, 300 << 10)];
    let link = LinkConfig { queue_frames: 1000, ..LinkConfig::default() };
    let mut all = Siblings::new(3, budgets, link, 1500);
    let seen: Vec<_> =
        (0..40).map(|_| all.connect([20_000, 20_000], false, Buffers::default())).collect();
    all.run(seen.iter().flatten());
    for seen in seen.iter().flatten() {
        let expected = Seen { received: 20_000, corrupt: false, ended: true, reset: false };
        assert_eq!(*seen.borrow(), expected);
    }
    all.end();
}
