//! A whole world around a real container's stack.

use skbudget_controller::{BudgetConfig, Limits, Rules, SockLimits};
use skbudget_stack::ContainerConfig;

use super::*;
use crate::SimHost;
use crate::app::{BulkRecv, BulkSend};
use crate::guest::{Buffers, GuestConfig, Open, SmolGuest};
use crate::link::{Faults, LinkConfig};
use crate::observer::Tally;

const HARD: u64 = 4 << 20;
const BYTES: u64 = 1_000_000;

fn world(faults: Faults, offload: bool) -> (World, NodeId, BudgetId) {
    let mut world = World::new(11);
    let config = BudgetConfig {
        rules: Rules::Strict,
        limits: Limits::from_bytes(HARD, None, None).unwrap(),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 1,
    };
    let budget = world.add_budget(Budget::new(config, None).unwrap());
    let link = LinkConfig { faults, queue_frames: 1000, ..LinkConfig::default() };
    let mut host = SimHost::new();
    host.serve(80..=80, Server::sink());
    host.serve(81..=81, Server::pusher(Some(BYTES)));
    let node = world.add_container(NodeConfig {
        container: ContainerConfig::new(1500, offload, Some(HARD), [3, 4]),
        budget,
        up: link,
        down: link,
        guest: Box::new(SmolGuest::new(&GuestConfig::new(1500, offload, 9))),
        host,
    });
    (world, node.unwrap(), budget)
}

fn to(port: u16) -> Open {
    Open::Connect(SocketAddr::from((std::net::Ipv4Addr::new(10, 0, 2, 2), port)))
}

/// Sends a megabyte each way at once; returns the world's counters.
fn both_ways(faults: Faults, offload: bool) -> WorldStats {
    let (mut world, node, budget) = world(faults, offload);
    let (up, down) = (Tally::shared(), Tally::shared());
    let (send, recv) = (BulkSend::new(Some(BYTES), up.clone()), BulkRecv::new(down.clone()));
    world.with_guest(node, |guest: &mut SmolGuest| {
        guest.open(Instant(0), to(80), Buffers::default(), Box::new(send));
        guest.open(Instant(0), to(81), Buffers::default(), Box::new(recv));
    });
    world.run_until(Instant::from_millis(300_000));
    let port = world.host(node).port(80);
    assert_eq!((port.consumed, port.corrupt, port.eofs), (BYTES, 0, 1), "{:?}", world.stats());
    assert_eq!((down.borrow().bytes, down.borrow().corrupt), (BYTES, 0));
    assert_eq!(up.borrow().broken + down.borrow().broken, 0);
    assert_eq!(world.container(node).stats().flows, 0);
    let meter = world.budget(budget).meter_stats(world.now());
    assert!(meter.max_usage_bytes <= HARD);
    world.stop(node);
    assert_eq!(world.budget(budget).meter_stats(world.now()).usage_bytes, 0);
    world.stats()
}

#[test]
fn every_byte_arrives_both_ways() {
    for offload in [false, true] {
        both_ways(Faults::default(), offload);
    }
}

#[test]
fn every_byte_arrives_over_a_link_that_loses_doubles_and_swaps() {
    let faults = Faults {
        loss: 5_000,
        duplicate: 5_000,
        corrupt: 2_000,
        reorder: 5_000,
        reorder_by: Duration::from_micros(60),
    };
    both_ways(faults, false);
}

#[test]
fn a_seed_is_a_run() {
    let faults = Faults { loss: 5_000, ..Faults::default() };
    assert_eq!(both_ways(faults, false), both_ways(faults, false));
}
