//! Workers on their own threads under shared levels: no meter ever exceeds its maximum.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use skbudget_controller::{
    Budget, BudgetConfig, FlowSizes, Instant, Level, LevelConfig, Limits, Rules, RxKind, SockLimits,
};
use skbudget_seed::Rng;

const SIZES: FlowSizes = FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 0 };
const ROUNDS: u64 = 20_000;

fn level(hard: u64, parent: Option<&Arc<Level>>) -> Arc<Level> {
    let config = LevelConfig { low: hard / 2, soft: 2 * hard / 3, hard };
    Level::new(config, parent.cloned()).unwrap()
}

/// Created before the workers start: a `min` may be refused once other workers have filled the
/// host.
fn budget(parent: Arc<Level>, min_bytes: u64) -> Budget {
    let config = BudgetConfig {
        rules: Rules::Strict,
        limits: Limits { low: 100, soft: 150, hard: 200 },
        sock: SockLimits::default(),
        min_bytes,
        weight: 1,
    };
    Budget::new(config, Some(parent)).unwrap()
}

/// One worker: a container, with a flow that is opened, grows and is closed in each round.
fn work(mut budget: Budget, seed: u64) -> u64 {
    let member = budget.add_member(0).unwrap();
    let mut moved = 0;
    let mut rng = Rng::new(seed);
    for round in 0..ROUNDS {
        let now = Instant(round);
        let Ok(mut flow) = budget.admit(member, &SIZES, now) else { continue };
        if budget.establish(&mut flow, now).is_ok() {
            for _ in 0..4 {
                let n = 1 + rng.below(16) as u32;
                let opened = budget.rx_open(&mut flow, n, now);
                assert_eq!(budget.rx_fill(&mut flow, opened, RxKind::InOrder, now), opened);
                moved += u64::from(opened + budget.tx_grant(&mut flow, n, now));
                let used = budget.meter_stats(now).usage_bytes / 4096;
                assert!(used <= 200);
            }
        }
        budget.release(flow, now);
    }
    assert_eq!(budget.meter_stats(Instant(ROUNDS)).usage_bytes, 0);
    moved
}

/// Notifies the watcher that a worker ended, by panic too.
struct Done<'a>(&'a AtomicU32);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn shared_levels_never_exceed_their_maximum() {
    let host = level(60, None);
    let groups = [level(40, Some(&host)), level(45, Some(&host))];
    let done = AtomicU32::new(0);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peaks = [0; 3];
            while done.load(Ordering::Relaxed) < 4 {
                for (peak, level) in peaks.iter_mut().zip([&host, &groups[0], &groups[1]]) {
                    *peak = level.usage().max(*peak);
                }
                thread::yield_now();
            }
            peaks
        });
        let workers: Vec<_> = (0..4)
            .map(|at| {
                // Two budgets under each group; one of the four has no `min`.
                let budget = budget(groups[at % 2].clone(), at as u64 * 8192);
                (budget, at as u64 + 1)
            })
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(budget, seed)| {
                // Moved into the thread, so that a panic counts it too.
                let done = Done(&done);
                scope.spawn(move || {
                    let _done = done;
                    work(budget, seed)
                })
            })
            .collect();
        let moved: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        let peaks = watcher.join().unwrap();
        assert!(moved > ROUNDS, "something was granted: {moved}");
        // The watcher's samples, and below the watermarks of every charge.
        assert!(peaks[0] <= 60 && peaks[1] <= 40 && peaks[2] <= 45, "{peaks:?}");
    });
    for level in [&host, &groups[0], &groups[1]] {
        let stats = level.stats();
        assert!(stats.watermark <= stats.limits.hard, "{stats:?}");
        assert_eq!((stats.usage, stats.fixed, stats.idle), (0, 0, 0));
        assert!(!stats.pressure);
    }
}
