//! Agent and servers over plain loopback, without namespace or stack.

use super::*;

const MS: u64 = 1_000_000;

fn phases() -> Vec<Phase> {
    let phase = |name: &str, s: u64, e: u64| Phase {
        name: name.to_owned(),
        start_ns: s * MS,
        end_ns: e * MS,
    };
    vec![phase("solo", 200, 700), phase("contended", 700, 1200)]
}

fn here(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_victim_moves_its_rate_both_ways_and_its_probe_is_answered() {
    let epoch_ns = skbudget::clock::now().as_nanos();
    let shared = Shared::new(epoch_ns);
    let mut servers = serve::Servers::new(Arc::clone(&shared));
    let up = Arc::new(Mutex::new(Meter::new(10 * MS, 10 * MS, 1300 * MS)));
    let rate = 80_000_000;
    let spec = ProbeSpec {
        every_ns: MS,
        offset_ns: 0,
        request_bytes: 64,
        response_bytes: 1024,
        outstanding_max: 1000,
        deadline_ns: 500 * MS,
        fresh: false,
    };
    let agent = AgentSpec {
        netns: None,
        epoch_ns,
        window_ns: 10 * MS,
        step_ns: 10 * MS,
        grace_ns: 50 * MS,
        phases: phases(),
        from_ns: 0,
        until_ns: u64::MAX,
        loads: vec![
            AssignedLoad::Up { to: here(servers.sink(rate, Arc::clone(&up)).unwrap()) },
            AssignedLoad::Down { to: here(servers.pusher(rate).unwrap()) },
            AssignedLoad::Probe { to: here(servers.responder(64, 1024).unwrap()), spec },
        ],
    };
    let report = thread::scope(|scope| {
        let keeper = scope.spawn(|| keep_time(&shared, &phases(), 0, &[Arc::clone(&up)], None));
        let report = run_agent(&agent, &Shared::new(epoch_ns)).unwrap();
        keeper.join().unwrap();
        report
    });
    drop(servers);
    assert_eq!((report.corrupt, report.connected), (0, 3));
    let up = MeterReport::from(&*locked(&up));
    // 5 MB in half a second; a loaded machine may be slower, but none is faster.
    for (bytes, stall_ns) in up.phases.iter().chain(&report.down.phases) {
        assert!((2_000_000..6_000_000).contains(bytes), "{bytes}");
        assert!(*stall_ns < 400 * MS, "{stall_ns}");
    }
    assert_eq!(report.down.windows.iter().map(|w| u64::from(*w)).sum::<u64>(), report.down.total);
    for p in report.probe.unwrap() {
        assert_eq!(p.intended, 500);
        assert_eq!(p.intended, p.completed + p.outstanding + p.shed + p.failed);
        assert!(p.completed > 450, "{p:?}");
    }
}

#[test]
fn a_hog_fills_unread_connections_and_leaves_at_its_end() {
    let epoch_ns = skbudget::clock::now().as_nanos();
    let shared = Shared::new(epoch_ns);
    let mut servers = serve::Servers::new(Arc::clone(&shared));
    let fill =
        Fill { connections: 20, reads_bits_per_second: None, bytes: None, buffer_bytes: None };
    let agent = AgentSpec {
        netns: None,
        epoch_ns,
        window_ns: 10 * MS,
        step_ns: 10 * MS,
        grace_ns: 0,
        phases: phases(),
        from_ns: 50 * MS,
        until_ns: 600 * MS,
        loads: vec![
            AssignedLoad::Stuff { to: here(servers.never_reads().unwrap()), fill },
            AssignedLoad::Hoard { to: here(servers.pushers(None).unwrap()), fill },
        ],
    };
    let report = run_agent(&agent, &Shared::new(epoch_ns)).unwrap();
    let took = skbudget::clock::now().as_nanos() - epoch_ns;
    assert_eq!(report.connected, 40);
    assert!((600 * MS..5000 * MS).contains(&took), "{took}");
}

/// The phases contain the requests that were due before the stop, and none after it.
#[test]
fn a_stopped_agent_reports_its_measurements() {
    let epoch_ns = skbudget::clock::now().as_nanos();
    let (shared, own) = (Shared::new(epoch_ns), Shared::new(epoch_ns));
    let mut servers = serve::Servers::new(Arc::clone(&shared));
    let spec = ProbeSpec {
        every_ns: MS,
        offset_ns: 0,
        request_bytes: 64,
        response_bytes: 64,
        outstanding_max: 1000,
        deadline_ns: 500 * MS,
        fresh: false,
    };
    let long = |p: Phase| Phase { end_ns: p.end_ns * 100, start_ns: p.start_ns, ..p };
    let agent = AgentSpec {
        netns: None,
        epoch_ns,
        window_ns: 10 * MS,
        step_ns: 10 * MS,
        grace_ns: 50 * MS,
        phases: phases().into_iter().take(1).map(long).collect(),
        from_ns: 0,
        until_ns: u64::MAX,
        loads: vec![
            AssignedLoad::Down { to: here(servers.pusher(80_000_000).unwrap()) },
            AssignedLoad::Probe { to: here(servers.responder(64, 64).unwrap()), spec },
        ],
    };
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(600));
            own.end();
        });
        run_agent(&agent, &own).unwrap()
    });
    let ended = skbudget::clock::now().as_nanos() - epoch_ns;
    assert!((600 * MS..3000 * MS).contains(&ended), "{ended}");
    let (bytes, _) = report.down.phases[0];
    assert!(bytes > 0 && report.down.windows.len() as u64 <= ended / (10 * MS) + 1);
    assert_eq!(report.down.windows.iter().map(|w| u64::from(*w)).sum::<u64>(), report.down.total);
    let probe = &report.probe.unwrap()[0];
    assert!((300..=ended / MS - 199).contains(&probe.intended), "{} in {ended}", probe.intended);
    assert_eq!(probe.intended, probe.completed + probe.outstanding + probe.shed + probe.failed);
}
