//! The container's lists do not grow with time.

use std::time::Duration;

use skbudget_controller::{Budget, BudgetConfig, Limits, Rules, SockLimits};

use super::*;
use crate::sim::{
    Buffers, GuestConfig, LinkConfig, NodeConfig, NodeId, Open, Probe, ProbePlan, Server, SimHost,
    SmolGuest, Tally, World,
};

/// A world with one guest that sends a request every `every` on one connection.
fn chatting(every: Duration, until: Instant) -> (World, NodeId) {
    let mut world = World::new(1);
    let budget = Budget::new(
        BudgetConfig {
            rules: Rules::Strict,
            limits: Limits::from_bytes(16 << 20, None, None).unwrap(),
            sock: SockLimits::default(),
            min_bytes: 0,
            weight: 100,
        },
        None,
    )
    .unwrap();
    let budget = world.add_budget(budget);
    let mut host = SimHost::new();
    host.serve(80..=80, Server::responder(100, 100).with_delay(Duration::from_micros(500)));
    let mut guest = SmolGuest::new(&GuestConfig::new(1500, false, 1));
    let plan = ProbePlan {
        start: Instant::default(),
        every,
        until,
        request: 100,
        response: 100,
        outstanding_max: 1,
    };
    let to = Open::Connect("10.0.2.2:80".parse().unwrap());
    let app = Probe::new(plan, Tally::shared());
    guest.open(Instant::default(), to, Buffers::default(), Box::new(app));
    let node = world.add_container(NodeConfig {
        container: ContainerConfig::new(1500, false, Some(16 << 20), [1, 2]),
        budget,
        up: LinkConfig::default(),
        down: LinkConfig::default(),
        guest: Box::new(guest),
        host,
    });
    (world, node.unwrap())
}

#[test]
fn timer_entries_follow_the_number_of_flows() {
    let until = Instant::from_millis(60_000);
    let (mut world, node) = chatting(Duration::from_millis(10), until);
    world.run_until(until);
    let container = world.container(node);
    assert_eq!(container.flows.len(), 1);
    assert!(container.timers.len() <= 100, "{} entries for one flow", container.timers.len());
}

/// A flow that waits for memory may be idle itself. It is out of the table while it is served, and stays on the list.
#[test]
fn a_search_for_idle_credit_keeps_the_entry_of_the_served_flow() {
    let until = Instant::from_millis(2_500);
    let (mut world, node) = chatting(Duration::from_millis(10_000), until);
    world.run_until(until);
    world.with_container(node, |container, cx| {
        let entries = container.idle.clone();
        assert_eq!((entries.len(), container.flows.len()), (1, 1));
        let flow = container.flows.take(entries[0].1.index).unwrap();
        let credit = flow.ledger.credit();
        assert!(!container.demote(cx, u64::MAX, Budget::headroom, Some(&flow)));
        assert_eq!(container.idle, entries);
        container.flows.put(flow);
        // For another one its credit is released.
        container.demote(cx, u64::MAX, Budget::headroom, None);
        assert!(container.idle.is_empty());
        let flow = container.flows.take(entries[0].1.index).unwrap();
        assert!(flow.ledger.credit() < credit);
        container.flows.put(flow);
    });
}

#[test]
fn a_flow_stands_on_the_idle_list_once() {
    let until = Instant::from_millis(1_000_000);
    let (mut world, node) = chatting(Duration::from_millis(3000), until);
    world.run_until(until);
    let container = world.container(node);
    assert_eq!(container.flows.len(), 1);
    assert!(container.idle.len() <= 100, "{} entries for one flow", container.idle.len());
}
