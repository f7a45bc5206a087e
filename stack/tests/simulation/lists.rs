//! The container's lists do not grow with time.

use std::time::Duration;

use skbudget_sim::{
    Buffers, GuestConfig, LinkConfig, NodeConfig, Open, Probe, ProbePlan, Server, SimHost,
    SmolGuest, Tally, World,
};
use skbudget_stack::controller::{Budget, BudgetConfig, Instant, Limits, Rules, SockLimits};
use skbudget_stack::{ContainerConfig, ContainerStats};

/// Runs a world with one guest that sends a request every `every` on one connection; returns the container's counters.
fn chatting(every: Duration, until: Instant) -> ContainerStats {
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
    world.run_until(until);
    world.container(node.unwrap()).stats()
}

#[test]
fn timer_entries_follow_the_number_of_flows() {
    let stats = chatting(Duration::from_millis(10), Instant::from_millis(60_000));
    assert_eq!(stats.flows, 1);
    assert!(stats.list_entries <= 100, "{} entries for one flow", stats.list_entries);
}

#[test]
fn a_flow_is_on_the_idle_list_once() {
    let stats = chatting(Duration::from_millis(3000), Instant::from_millis(1_000_000));
    assert_eq!(stats.flows, 1);
    assert!(stats.list_entries <= 100, "{} entries for one flow", stats.list_entries);
}
