//! Builds the world of a plan, runs it to its end and checks what is left.

use std::net::SocketAddr;

use skbudget_sim::{
    ACCEPTED_CAPS, App, BudgetId, Buffers, BulkRecv, BulkSend, GuestConfig, LinkConfig, Next,
    NodeConfig, NodeId, Open, Pattern, Server, SimHost, SmolGuest, Tally, Watch, WhenFull, World,
    smoltcp,
};
use skbudget_stack::ContainerConfig;
use skbudget_stack::controller::{
    Budget, BudgetConfig, Instant, Limits, PAGE_SIZE, Rules, SockLimits,
};
use smoltcp::socket::tcp;

use crate::plan::{Job, Plan};

/// Virtual time in which every run must end; losses cost round trips, not hours.
const LIMIT: Instant = Instant::from_millis(3_600_000);

/// The result of a run, to compare runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    frames: (u64, u64),
    over: Instant,
    counters: Vec<(&'static str, u64)>,
}

pub(crate) fn port(i: usize) -> u16 {
    80 + i as u16
}

pub(crate) fn budget(rules: Rules, hard: u64) -> Budget {
    let config = BudgetConfig {
        rules,
        limits: Limits::from_bytes(hard, None, None).expect("in order"),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 100,
    };
    Budget::new(config, None).expect("a budget without a level above")
}

fn server(plan: &Plan, job: Job) -> Server {
    let server = match job {
        Job::Up { rate, .. } => Server { read_rate: rate, ..Server::sink() },
        Job::Down { bytes, .. } | Job::Published { bytes } => Server::pusher(Some(bytes)),
        Job::Echo { .. } => Server::echo(),
    };
    server.with_delay(plan.server_delay)
}

fn build(plan: &Plan) -> (World, BudgetId, NodeId, Vec<std::rc::Rc<std::cell::RefCell<Tally>>>) {
    let mut world = World::new(plan.seed);
    let budget = world.add_budget(budget(plan.rules, plan.hard));
    let link = LinkConfig {
        delay: plan.delay,
        bits_per_second: plan.bits_per_second,
        queue_frames: plan.queue_frames,
        when_full: if plan.drop_when_full { WhenFull::Drop } else { WhenFull::Refuse },
        faults: plan.faults,
        ..LinkConfig::default()
    };
    let mut host = SimHost::new();
    let mut guest = SmolGuest::new(&GuestConfig::new(plan.mtu, plan.offload, plan.seed));
    let mut tallies = Vec::new();
    let buffers = Buffers { rx: plan.guest_rx, tx: plan.guest_tx };
    for (i, &job) in plan.jobs.iter().enumerate() {
        let tally = Tally::shared();
        let watch: Watch = tally.clone();
        tallies.push(tally);
        let heard = |s: Server| s.watched(watch.clone());
        host.serve(port(i)..=port(i), heard(server(plan, job)));
        let gateway = if plan.ipv6 { "fd00::2" } else { "10.0.2.2" };
        let to = SocketAddr::new(gateway.parse().unwrap(), port(i));
        let app: Box<dyn App> = match job {
            Job::Up { bytes, .. } => Box::new(BulkSend::new(Some(bytes), Tally::shared())),
            Job::Down { reads_after, .. } => {
                Box::new(BulkRecv::starting(watch, Instant::default() + reads_after))
            }
            Job::Echo { bytes } => Box::new(Both { bytes, sent: 0, heard: 0, watch }),
            Job::Published { .. } => Box::new(BulkRecv::listening(watch, port(i))),
        };
        let open = match job {
            Job::Published { .. } => Open::Listen(port(i)),
            Job::Up { .. } | Job::Down { .. } | Job::Echo { .. } => Open::Connect(to),
        };
        guest.open(Instant::default(), open, buffers, app);
    }
    let node = world.add_container(NodeConfig {
        container: ContainerConfig::new(plan.mtu, plan.offload, Some(plan.hard), [plan.seed, 5]),
        budget,
        // smoltcp loses a fast retransmission that finds its device full, together with its timer.
        up: LinkConfig { queue_frames: 1 << 20, ..link },
        down: link,
        guest: Box::new(guest),
        host,
    });
    (world, budget, node.expect("room for the device queue"), tallies)
}

/// Remote clients connect when there is room.
fn accept_clients(world: &mut World, node: NodeId, plan: &Plan, todo: &mut Vec<usize>) {
    while let Some(&i) = todo.last() {
        if !world.can_accept(node) {
            return;
        }
        let from = if plan.ipv6 { "2001:db8::1" } else { "192.0.2.1" };
        let peer = SocketAddr::new(from.parse().unwrap(), 30_000 + i as u16);
        // A client is a server that connects: it sends and checks in the same way.
        let server = server(plan, plan.jobs[i]);
        if world.accept(node, port(i), peer, server, ACCEPTED_CAPS).is_none() {
            return;
        }
        todo.pop();
    }
}

pub(crate) fn run(plan: &Plan) -> Outcome {
    let (mut world, budget, node, tallies) = build(plan);
    let mut todo: Vec<usize> =
        (0..plan.jobs.len()).filter(|&i| matches!(plan.jobs[i], Job::Published { .. })).collect();
    let expected: Vec<u64> = plan
        .jobs
        .iter()
        .map(|job| match *job {
            Job::Up { bytes, .. } | Job::Down { bytes, .. } | Job::Published { bytes } => bytes,
            // Counted at the server, and again at the guest.
            Job::Echo { bytes } => 2 * bytes,
        })
        .collect();
    loop {
        accept_clients(&mut world, node, plan, &mut todo);
        world.run_until(world.now() + std::time::Duration::from_millis(50));
        let arrived = tallies.iter().zip(&expected).all(|(t, n)| t.borrow().bytes == *n);
        let flows = world.container(node).stats().flows;
        if arrived && flows == 0 && todo.is_empty() {
            break;
        }
        if world.now() > LIMIT {
            let got: Vec<u64> = tallies.iter().map(|t| t.borrow().bytes).collect();
            let flows = world.container(node).flows();
            panic!(
                "not over: {got:?} of {expected:?}, {flows:#?}\n{:?}",
                world.container(node).stats()
            );
        }
    }
    let over = world.now();
    for (i, tally) in tallies.iter().enumerate() {
        let t = *tally.borrow();
        assert_eq!((t.bytes, t.corrupt), (expected[i], 0), "job {i}");
    }
    // The servers check every byte by its position.
    assert_eq!(world.host(node).corrupt(), 0);
    // TIME-WAIT entries and idle timers last seconds, waiting SYNs twenty.
    world.run_until(world.now() + std::time::Duration::from_secs(30));
    assert_rest(&mut world, budget, node, plan);
    let stats = world.container(node).stats();
    let outcome = Outcome {
        frames: (stats.frames_from_guest, stats.frames_to_guest),
        over,
        counters: stats.counters,
    };
    world.stop(node);
    // Without the container, its device queue and its list of SYNs are uncharged too.
    assert_eq!(world.budget(budget).meter_stats(over).usage_bytes, 0);
    outcome
}

/// No memory is held, and nothing waits.
fn assert_rest(world: &mut World, budget: BudgetId, node: NodeId, plan: &Plan) {
    let stats = world.container(node).stats();
    assert_eq!((stats.flows, stats.syn_backlog, stats.time_wait), (0, 0, 0));
    assert_eq!(world.container(node).next_deadline(), None, "a timer of nobody");
    assert_eq!(world.live_chunks(), 0, "chunks nobody holds");
    assert_eq!(world.host(node).open_sockets(), 0);
    let member = world.budget(budget).member_stats(world.member(node));
    assert_eq!((member.rmem, member.ofo, member.credit, member.wmem), (0, 0, 0, 0));
    assert_eq!((member.fwd, member.reserve, member.host, member.flows), (0, 0, 0, 0));
    let meter = world.budget(budget).meter_stats(world.now());
    if plan.rules == Rules::Strict {
        assert_eq!(meter.usage_bytes, (member.dev + member.sock).next_multiple_of(PAGE_SIZE));
        assert!(Some(meter.max_usage_bytes) <= meter.hard_bytes, "hard is hard");
        assert_eq!(world.budget(budget).waiting(), 0);
    } else {
        assert_eq!(meter.usage_bytes, 0);
    }
}

/// Sends and reads at once; the echo must equal the sent bytes.
#[derive(Debug)]
struct Both {
    bytes: u64,
    sent: u64,
    heard: u64,
    watch: Watch,
}

impl App for Both {
    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        let mut busy = false;
        let Some(to) = socket.remote_endpoint() else {
            return Next::Wait { wake: None, busy };
        };
        let pattern = Pattern::from_guest(to.port);
        while socket.can_send() && self.sent < self.bytes {
            let n = socket.send(|buf| {
                let left = usize::try_from(self.bytes - self.sent).unwrap_or(usize::MAX);
                let n = left.min(buf.len());
                pattern.fill(self.sent, &mut buf[..n]);
                (n, n)
            });
            self.sent += n.unwrap_or(0) as u64;
            busy = true;
        }
        if self.sent == self.bytes && socket.may_send() {
            socket.close();
            busy = true;
        }
        while socket.can_recv() {
            let at = self.heard;
            let got = socket.recv(|buf| (buf.len(), (buf.len(), pattern.check(at, buf))));
            let Ok((n, check)) = got else { break };
            self.heard += n as u64;
            let mut watch = self.watch.borrow_mut();
            watch.bytes(now, n as u64);
            if let Err(at) = check {
                watch.corrupt(now, at);
            }
            busy = true;
        }
        Next::Wait { wake: None, busy }
    }
}
