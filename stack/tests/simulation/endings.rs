//! Servers that reset, answer and reset, or stop reading, beside an independent guest (smoltcp), in virtual time.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use skbudget_sim::smoltcp::socket::tcp::{RecvError, Socket, State};
use skbudget_sim::{
    App, Buffers, End, GuestConfig, LinkConfig, Next, NodeConfig, NodeId, Open, Pattern, PortStats,
    Server, SimHost, SmolGuest, World,
};
use skbudget_stack::ContainerConfig;
use skbudget_stack::controller::Instant;

use crate::autotune::budget;

const PORT: u16 = 80;

/// The client's view of its connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    bytes: u64,
    /// The server's FIN arrived.
    end: bool,
    over: bool,
}

/// Sends `send` bytes without reading, reads to the end, and closes or resets.
#[derive(Debug)]
struct Client {
    send: u64,
    sent: u64,
    /// Resets once all sent bytes are acknowledged.
    resets: bool,
    seen: Rc<RefCell<Seen>>,
}

impl App for Client {
    fn poll(&mut self, _: Instant, socket: &mut Socket<'static>) -> Next {
        while self.sent < self.send && socket.can_send() {
            let mut bytes = vec![0; (self.send - self.sent).min(1000) as usize];
            // Bytes that depend on their position, so that a lost or repeated one is found.
            Pattern::from_guest(PORT).fill(self.sent, &mut bytes);
            match socket.send_slice(&bytes) {
                Ok(n) if n > 0 => self.sent += n as u64,
                _ => break,
            }
        }
        let mut seen = self.seen.borrow_mut();
        let mut buffer = [0; 4096];
        loop {
            match socket.recv_slice(&mut buffer) {
                Ok(n) if n > 0 => {
                    let wrong = Pattern::from_host(PORT).check(seen.bytes, &buffer[..n]);
                    assert_eq!(wrong, Ok(()));
                    seen.bytes += n as u64;
                }
                Err(RecvError::Finished) => {
                    seen.end = true;
                    socket.close();
                    break;
                }
                Ok(_) | Err(RecvError::InvalidState) => break,
            }
        }
        if self.resets && self.sent == self.send && socket.send_queue() == 0 {
            // Sends a RST.
            socket.abort();
            self.resets = false;
            seen.over = true;
            return Next::Wait { wake: None, busy: true };
        }
        if self.sent == self.send && socket.state() == State::Closed {
            seen.over = true;
            return Next::Finished;
        }
        Next::Wait { wake: None, busy: false }
    }
}

fn world(server: Server, send: u64, resets: bool) -> (World, NodeId, Rc<RefCell<Seen>>) {
    let mut config = ContainerConfig::new(1500, true, Some(256 << 20), [5, 6]);
    config.ipv6 = None;
    let mut host = SimHost::new();
    host.serve(PORT..=PORT, server);
    let seen = Rc::new(RefCell::new(Seen::default()));
    let mut guest = SmolGuest::new(&GuestConfig::new(1500, true, 1));
    let client = Client { send, sent: 0, resets, seen: Rc::clone(&seen) };
    let to = (config.gateway_ip, PORT).into();
    guest.open(Instant::default(), Open::Connect(to), Buffers::default(), Box::new(client));
    let mut world = World::new(2);
    let budget = world.add_budget(budget());
    let (container, guest, link) = (config, Box::new(guest), LinkConfig::default());
    let node = world
        .add_container(NodeConfig { container, budget, up: link, down: link, guest, host })
        .expect("room for the device queue");
    (world, node, seen)
}

/// Runs until no flow is left.
fn finish(world: &mut World, node: NodeId) -> Instant {
    world.run_until(world.now() + Duration::from_millis(2));
    while world.container(node).stats().flows > 0 {
        assert!(world.now() < Instant::from_millis(200_000), "{:?}", world.container(node).flows());
        world.run_until(world.now() + Duration::from_millis(5));
    }
    assert_eq!(world.live_chunks(), 0);
    world.now()
}

fn port(world: &World, node: NodeId) -> PortStats {
    world.host(node).port(PORT)
}

#[test]
fn an_answer_and_a_reset_arrive_whole_and_in_this_order() {
    for (end, fin) in [(End::Reset, false), (End::FinThenReset, true), (End::Fin, true)] {
        for size in [1, 50_000, 3_000_000] {
            let (mut world, node, seen) = world(Server::pusher_that_resets(size, end), 0, false);
            finish(&mut world, node);
            let expected = Seen { bytes: size, end: fin, over: true };
            assert_eq!(*seen.borrow(), expected, "{end:?}");
        }
    }
}

#[test]
fn an_answer_in_the_middle_of_a_request_arrives_though_the_rest_of_it_is_lost() {
    let server = Server { resets_after: Some(10_000), ..Server::responder(10_000, 40_000) };
    let (mut world, node, seen) = world(server, 2_000_000, false);
    finish(&mut world, node);
    assert!(seen.borrow().bytes >= 40_000 && !seen.borrow().end, "{:?}", seen.borrow());
    assert!(port(&world, node).consumed >= 10_000);
}

#[test]
fn a_request_and_a_reset_arrive_whole() {
    let slow = Server { read_rate: Some(1 << 20), ..Server::sink() };
    let (mut world, node, _) = world(slow, 200_000, true);
    finish(&mut world, node);
    let port = port(&world, node);
    assert_eq!((port.written, port.resets, port.corrupt), (200_000, 1, 0));
}
