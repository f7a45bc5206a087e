//! One direction ends at once, the other continues without a time limit.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use skbudget_sim::{LinkConfig, NodeConfig, PeerStack, Server, SimHost, Tally, World};
use skbudget_stack::ContainerConfig;
use skbudget_stack::controller::Instant;

use crate::autotune::budget;

/// Bytes that must arrive after the end, and all bytes.
const AFTER: u64 = 100_000_000;
const BYTES: u64 = 110_000_000;

/// One side of the connection ends as soon as it is established; the other sends.
fn carry(up: bool) {
    let mut config = ContainerConfig::new(1500, true, Some(256 << 20), [5, 6]);
    config.ipv6 = None;
    let tally = Tally::shared();
    let watch: Rc<RefCell<Tally>> = tally.clone();
    let ends = Server::pusher(Some(0)).watched(watch);
    let sends = Server::pusher(Some(BYTES));
    let (near, far) = if up { (ends, sends) } else { (sends, ends) };
    let mut host = SimHost::new();
    host.serve(80..=80, near);
    let mut peer = PeerStack::new(&config, budget(), SimHost::new());
    peer.open(Instant::default(), 80, far.at_guest());
    let mut world = World::new(2);
    let budget = world.add_budget(budget());
    let (container, guest, link) = (config, Box::new(peer), LinkConfig::default());
    let node = world
        .add_container(NodeConfig { container, budget, up: link, down: link, guest, host })
        .expect("room for the device queue");
    // By now the handshake and the early end are over.
    world.run_until(Instant::from_millis(5));
    let state = world.container(node).flows()[0].state;
    assert_eq!(state, if up { "FIN-WAIT-2" } else { "CLOSE-WAIT" });
    assert!(BYTES - tally.borrow().bytes >= AFTER, "{:?}", tally.borrow());
    while world.container(node).stats().flows > 0 {
        assert!(world.now() < Instant::from_millis(60_000), "{:?}", world.container(node).flows());
        world.run_until(world.now() + Duration::from_millis(10));
    }
    assert_eq!((tally.borrow().bytes, tally.borrow().corrupt), (BYTES, 0));
    let resets = world.host(node).port(80).resets;
    let peers_resets = world.with_guest(node, |peer: &mut PeerStack| peer.host().port(80).resets);
    assert_eq!((resets, peers_resets, world.live_chunks()), (0, 0, 0));
}

#[test]
fn a_hundred_megabytes_go_up_after_the_host_ended() {
    carry(true);
}

#[test]
fn a_hundred_megabytes_come_down_after_the_guest_ended() {
    carry(false);
}
