//! Every interleaving of two workers on shared levels.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p skbudget-controller --release --test loom`
#![cfg(loom)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use loom::thread;
use skbudget_controller::{Level, LevelConfig};

fn level(low: u64, soft: u64, hard: u64, parent: Option<&Arc<Level>>) -> Arc<Level> {
    Level::new(LevelConfig { low, soft, hard }, parent.cloned()).unwrap()
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let before = RUNS.load(Relaxed);
    loom::model(move || {
        RUNS.fetch_add(1, Relaxed);
        model();
    });
    println!("{} interleavings", RUNS.load(Relaxed) - before);
}

#[test]
fn usage_never_exceeds_the_maximum_and_one_of_two_fits() {
    explore(|| {
        let host = level(3, 3, 3, None);
        let groups = [level(9, 9, 9, Some(&host)), level(9, 9, 9, Some(&host))];
        let workers: Vec<_> = groups
            .iter()
            .cloned()
            .map(|group| {
                let host = host.clone();
                thread::spawn(move || {
                    // Two requests of 2 pages under a host level of 3: one fits.
                    let ok = group.try_charge(2).is_ok();
                    assert!(host.usage() <= 3);
                    ok
                })
            })
            .collect();
        let fits = workers.into_iter().filter(|_| true).map(|w| w.join().unwrap());
        assert_eq!(fits.filter(|ok| *ok).count(), 1, "a refusal takes no room from the other");
        assert_eq!(host.usage(), 2);
        let below: u64 = groups.iter().map(|group| group.usage()).sum();
        assert_eq!(below, 2, "the refused one is undone below");
    });
}

#[test]
fn a_release_between_refusal_and_sleep_is_noticed() {
    explore(|| {
        let host = level(2, 2, 2, None);
        host.try_charge(2).unwrap();
        let releaser = {
            let host = host.clone();
            thread::spawn(move || {
                // The release may fall between the refused charge and the mark of the other thread.
                host.uncharge(2);
                host.take_wake()
            })
        };
        // H8: register, then test once more before sleeping.
        let mut got = host.try_charge(1).is_ok();
        if !got {
            host.mark_waiting();
            got = host.try_charge(1).is_ok();
        }
        let woken = releaser.join().unwrap();
        assert!(got || woken || host.take_wake(), "asleep with room free");
    });
}

#[test]
fn the_flag_follows_the_last_usage() {
    explore(|| {
        let host = level(2, 2, 9, None);
        let worker = {
            let host = host.clone();
            thread::spawn(move || {
                host.try_charge(2).unwrap();
                host.uncharge(2);
            })
        };
        host.try_charge(2).unwrap();
        worker.join().unwrap();
        assert_eq!(host.usage(), 2);
        assert!(!host.under_pressure());
        // The third page exceeds soft.
        host.try_charge(1).unwrap();
        assert!(host.under_pressure());
    });
}
