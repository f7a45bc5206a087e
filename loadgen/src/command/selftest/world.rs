//! One container in virtual time, with one probe and a server with known behaviour.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use skbudget_controller::{Budget, BudgetConfig, Instant, Limits, Rules, SockLimits};
use skbudget_sim::{
    Buffers, GuestConfig, LinkConfig, NodeConfig, Open, Probe, ProbePlan, Server, SimHost,
    SmolGuest, World,
};
use skbudget_stack::ContainerConfig;

use super::SECOND;
use crate::measure::ProbeRecorder;
use crate::measure::result::ProbePhase;
use crate::scenario::plan::Phase;

/// Runs one probe with a request per millisecond for `seconds` against `server`.
///
/// # Panics
/// If the world cannot be built: a fault of this crate.
pub fn probe(server: Server, seconds: u64) -> ProbePhase {
    let mut world = World::new(5);
    let hard = 16 << 20;
    let config = BudgetConfig {
        rules: Rules::Strict,
        limits: Limits::from_bytes(hard, None, None).expect("a world of one container"),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 1,
    };
    let budget = world.add_budget(Budget::new(config, None).expect("a world of one container"));
    let mut host = SimHost::new();
    host.serve(80..=80, server);
    let container = ContainerConfig::new(1500, false, Some(hard), [1, 2]);
    let node = NodeConfig {
        container,
        budget,
        up: LinkConfig::default(),
        down: LinkConfig::default(),
        guest: Box::new(SmolGuest::new(&GuestConfig::new(1500, false, 1))),
        host,
    };
    let node = world.add_container(node).expect("a world of one container");

    let (start, end) = (SECOND, SECOND * (1 + seconds));
    // The connection opens in the first second, before the phase.
    let phase = Phase { name: "all".to_owned(), start_ns: start, end_ns: end };
    let log = Rc::new(RefCell::new(ProbeRecorder::new(&[phase], 60 * SECOND)));
    let plan = ProbePlan {
        start: Instant(start),
        every: Duration::from_millis(1),
        until: Instant(end),
        request: 64,
        response: 512,
        outstanding_max: 1 << 20,
    };
    let to: SocketAddr = "10.0.2.2:80".parse().expect("a world of one container");
    let app = Probe::new(plan, log.clone());
    world.with_guest(node, |guest: &mut SmolGuest| {
        guest.open(Instant(0), Open::Connect(to), Buffers::default(), Box::new(app));
    });
    world.run_until(Instant(end));
    log.borrow_mut().close(0, end);
    let log = log.borrow();
    assert_eq!(log.corrupt(), 0);
    log.latencies()[0].summary()
}
