//! Oracles of the measurement through the whole virtual world: a server with known behaviour, and the percentiles that
//! must result.

use skbudget_controller::Instant;
use skbudget_loadgen::command::selftest::probe;
use skbudget_sim::Server;

const SECOND: u64 = 1_000_000_000;

/// Frozen for F = 1 s of T = 20 s: the q quantile of the response is F - (1 - q) T; a service time would not show it.
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

/// Never answered: nothing is delivered, and the median is at least half of the phase.
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

/// Refused repeatedly: every request fails or waits, none is lost from the record.
#[test]
fn a_refusing_server_fails_requests_and_loses_none() {
    let p = probe(Server::fails(skbudget_stack::HostError::Refused), 1);
    assert_eq!((p.intended, p.completed), (1000, 0));
    assert_eq!(p.intended, p.outstanding + p.shed + p.failed);
    assert!(p.failed > 900, "{p:?}");
    assert!(p.p50.unwrap().at_least);
}
