//! Servers that vanish silently, with an independent guest (smoltcp) that uses keep-alive.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use skbudget_sim::smoltcp::socket::tcp::{Socket, State};
use skbudget_sim::smoltcp::time::Duration as SmolDuration;
use skbudget_sim::{
    App, Buffers, GuestConfig, LinkConfig, Next, NodeConfig, NodeId, Open, Server, SimHost,
    SmolGuest, World,
};
use skbudget_stack::ContainerConfig;
use skbudget_stack::controller::Instant;

use crate::autotune::budget;

const GONE_FROM: Instant = Instant::from_millis(60_000);
const NEVER: Instant = Instant(u64::MAX);

/// Sends a little once, then nothing; records when its connection is over.
#[derive(Debug)]
struct Quiet {
    keep_alive: Option<Duration>,
    timeout: Option<Duration>,
    sent: bool,
    /// Sends once more at this time.
    again_at: Option<Instant>,
    over: Rc<RefCell<Option<Instant>>>,
}

impl App for Quiet {
    fn configure(&mut self, socket: &mut Socket<'static>) {
        let smol = |d: Duration| SmolDuration::from_millis(d.as_millis() as u64);
        socket.set_ack_delay(None);
        socket.set_keep_alive(self.keep_alive.map(smol));
        socket.set_timeout(self.timeout.map(smol));
    }

    fn poll(&mut self, now: Instant, socket: &mut Socket<'static>) -> Next {
        let due = self.again_at.is_some_and(|at| at <= now);
        if socket.may_send() && (!self.sent || due) {
            (self.sent, self.again_at) = (true, self.again_at.filter(|_| !due));
            let pattern = skbudget_sim::Pattern::from_guest(80);
            let mut bytes = [0; 100];
            pattern.fill(if due { 100 } else { 0 }, &mut bytes);
            assert_eq!(socket.send_slice(&bytes), Ok(100));
        }
        if self.sent && socket.state() == State::Closed {
            self.over.borrow_mut().get_or_insert(now);
            return Next::Finished;
        }
        Next::Wait { wake: self.again_at, busy: false }
    }
}

/// A world with one such connection, and the time at which it is over.
fn world(app: Quiet, server: Server) -> (World, NodeId, Rc<RefCell<Option<Instant>>>) {
    let over = app.over.clone();
    let mut config = ContainerConfig::new(1500, true, Some(256 << 20), [5, 6]);
    config.ipv6 = None;
    let mut guest = SmolGuest::new(&GuestConfig::new(1500, true, 1));
    let to = SocketAddr::from((config.gateway_ip, 80));
    guest.open(Instant::default(), Open::Connect(to), Buffers::default(), Box::new(app));
    let mut host = SimHost::new();
    host.serve(80..=80, server);
    let mut world = World::new(3);
    let budget = world.add_budget(budget());
    let (container, guest, link) = (config, Box::new(guest), LinkConfig::default());
    let node = world
        .add_container(NodeConfig { container, budget, up: link, down: link, guest, host })
        .expect("room for the device queue");
    (world, node, over)
}

fn quiet(keep_alive: Option<u64>, timeout: Option<u64>) -> Quiet {
    Quiet {
        keep_alive: keep_alive.map(Duration::from_secs),
        timeout: timeout.map(Duration::from_secs),
        sent: false,
        again_at: None,
        over: Rc::default(),
    }
}

#[test]
fn a_guest_with_keep_alive_learns_that_its_server_is_gone_and_only_then() {
    for (every, timeout) in [(2, 7), (5, 12), (30, 100)] {
        for delay_ms in [0, 40, 300] {
            let server = Server::sink().with_delay(Duration::from_millis(delay_ms));
            let server = Server { gone_from: GONE_FROM, ..server };
            let (mut world, node, over) = world(quiet(Some(every), Some(timeout)), server);
            // While the server answers, keep-alive must not end the connection.
            world.run_until(GONE_FROM);
            assert_eq!(*over.borrow(), None, "every {every} s, {delay_ms} ms away");
            world.run_until(GONE_FROM + Duration::from_secs(600));
            let after = over.borrow().expect("it learns it").since(GONE_FROM).as_secs();
            // The answer to the last probe, then the guest's own timeout without an answer.
            assert!((timeout - every..=timeout + 2 * every + 1).contains(&after), "{after} s");
            assert_eq!(world.container(node).stats().flows, 0);
        }
    }
}

#[test]
fn a_server_that_is_well_and_idle_is_kept_for_a_day() {
    let (mut world, node, over) = world(quiet(Some(2), Some(7)), Server::sink());
    world.run_until(Instant::default() + Duration::from_secs(86_400));
    assert_eq!((*over.borrow(), world.container(node).stats().flows), (None, 1));
}

#[test]
fn data_for_a_vanished_server_times_out_and_resets_the_guest() {
    let again_at = Some(GONE_FROM + Duration::from_secs(1));
    for keep_alive in [None, Some(2)] {
        let app = Quiet { again_at, ..quiet(keep_alive, keep_alive.map(|_| 7)) };
        let server = Server { gone_from: GONE_FROM, ..Server::sink() };
        let (mut world, node, over) = world(app, server);
        world.run_until(GONE_FROM + Duration::from_secs(3600));
        let after = over.borrow().expect("a reset").since(GONE_FROM).as_secs();
        assert_eq!(after, 925, "the kernel's retransmissions decide");
        assert_eq!((world.host(node).port(80).resets, world.host(node).open_sockets()), (1, 0));
    }
}

#[test]
fn without_keep_alive_a_silent_server_is_left_alone() {
    for gone_from in [GONE_FROM, NEVER] {
        let server = Server { gone_from, ..Server::sink() };
        let (mut world, node, over) = world(quiet(None, None), server);
        world.run_until(GONE_FROM + Duration::from_secs(3600));
        assert_eq!((*over.borrow(), world.container(node).stats().flows), (None, 1));
    }
}
