//! Oracles of the measurement through the whole virtual world: a server that does something known, and the percentiles
//! that must come of it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use skbudget_controller::{Budget, BudgetConfig, Instant, Limits, Rules, SockLimits};
use skbudget_loadgen::measure::ProbeLog;
use skbudget_loadgen::plan::Phase;
use skbudget_loadgen::result::ProbePhase;
use skbudget_stack::ContainerConfig;
use skbudget_stack::sim::{
    Buffers, GuestConfig, LinkConfig, NodeConfig, Open, Probe, ProbePlan, Server, SimHost,
    SmolGuest, World,
};

const SECOND: u64 = 1_000_000_000;

/// One probe a millisecond for `seconds`, against `server`.
fn probe(server: Server, seconds: u64) -> ProbePhase {
    let mut world = World::new(5);
    let hard = 16 << 20;
    let config = BudgetConfig {
        rules: Rules::Strict,
        limits: Limits::from_bytes(hard, None, None).unwrap(),
        sock: SockLimits::default(),
        min_bytes: 0,
        weight: 1,
    };
    let budget = world.add_budget(Budget::new(config, None).unwrap());
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
    let node = world.add_container(node).unwrap();

    let (start, end) = (SECOND, SECOND * (1 + seconds));
    let phase = Phase { name: "all".to_owned(), start_ns: start, end_ns: end };
    let log = Rc::new(RefCell::new(ProbeLog::new(&[phase], 60 * SECOND)));
    let plan = ProbePlan {
        start: Instant(start),
        every: Duration::from_millis(1),
        until: Instant(end),
        request: 64,
        response: 512,
        outstanding_max: 1 << 20,
    };
    let to: SocketAddr = "10.0.2.2:80".parse().unwrap();
    let app = Probe::new(plan, log.clone());
    world.with_guest(node, |guest: &mut SmolGuest| {
        guest.open(Instant(0), Open::Connect(to), Buffers::default(), Box::new(app));
    });
    world.run_until(Instant(end));
    log.borrow_mut().close(0, end);
    let log = log.borrow();
    assert_eq!(log.corrupt(), 0);
    log.books()[0].summary()
}

/// Frozen for F = 1 s of T = 20 s: the response quantile q is F - (1 - q) T, and a service time would show nothing.
#[test]
fn a_freeze_costs_every_request_due_in_it_its_wait() {
    let freeze = (Instant(8 * SECOND), Instant(9 * SECOND));
    let p = probe(Server { frozen: vec![freeze], ..Server::responder(64, 512) }, 20);
    assert_eq!((p.intended, p.completed, p.outstanding), (20_000, 20_000, 0));
    let near = |ns: u64, want_ms: u64| {
        let want = want_ms * 1_000_000;
        assert!(ns.abs_diff(want) <= want / 500 + 1_000_000, "{ns} is not {want_ms} ms");
    };
    near(p.p99.unwrap().ns, 800);
    near(p.p999.unwrap().ns, 980);
    near(p.max.unwrap().ns, 1000);
    assert!(p.p50.unwrap().ns < 200_000, "{:?}", p.p50);
    assert!(!p.p99.unwrap().at_least);
}

/// Never answered: nothing delivered, and the median is at least half of the phase.
#[test]
fn a_server_that_never_answers_gives_no_good_percentile() {
    let forever = (Instant(0), Instant(u64::MAX - 1));
    for server in [
        Server { frozen: vec![forever], ..Server::responder(64, 512) },
        Server::silent(),
        Server::never_reads(),
    ] {
        let p = probe(server, 3);
        assert_eq!((p.intended, p.completed), (3000, 0));
        assert_eq!(p.intended, p.completed + p.outstanding + p.shed + p.failed);
        assert_eq!(p.delivered_ppm, Some(0));
        let p50 = p.p50.unwrap();
        assert!(p50.at_least && p50.ns >= 3 * SECOND / 2 - 5_000_000, "{p50:?}");
    }
}

/// Refused again and again: every request fails or waits, none is forgotten.
#[test]
fn a_refusing_server_fails_requests_and_loses_none() {
    let p = probe(Server::fails(skbudget_stack::HostError::Refused), 1);
    assert_eq!((p.intended, p.completed), (1000, 0));
    assert_eq!(p.intended, p.outstanding + p.shed + p.failed);
    assert!(p.failed > 900, "{p:?}");
    assert!(p.p50.unwrap().at_least);
}
