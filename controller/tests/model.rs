//! Random sequences of operations, compared with naive models that recompute every number.
//!
//! `SKBUDGET_SEED=n` replays one sequence; a failure prints its seed and operation.
//! `SKBUDGET_SEEDS=n` sets the number of sequences.

#[path = "model/linux.rs"]
mod linux;
#[path = "model/naive.rs"]
mod naive;
#[path = "model/rng.rs"]
mod rng;
#[path = "model/strict.rs"]
mod strict;
#[path = "model/strict_ops.rs"]
mod strict_ops;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `sequence` for every seed, or for the one named in the environment.
fn for_each_seed(count: u64, sequence: impl Fn(u64)) {
    if let Ok(seed) = std::env::var("SKBUDGET_SEED") {
        sequence(seed.parse().expect("a number"));
        return;
    }
    let count = std::env::var("SKBUDGET_SEEDS").map_or(count, |n| n.parse().expect("a number"));
    for seed in 1..=count {
        // Caught to print the seed before the test fails.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| sequence(seed))) {
            println!("replay with SKBUDGET_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

#[test]
fn strict_answers_as_the_model_says() {
    for_each_seed(1500, |seed| {
        strict::World::new(seed).run(150);
    });
}

#[test]
fn strict_is_deterministic() {
    for_each_seed(40, |seed| {
        let first = strict::World::new(seed).run(150);
        let second = strict::World::new(seed).run(150);
        assert_eq!(first, second, "same operations, same answers and events");
        // A log of nothing would be equal too.
        assert!(first.len() > 50);
    });
}

#[test]
fn linux_answers_as_the_model_says() {
    for_each_seed(1500, |seed| {
        linux::World::new(seed).run(150);
    });
}

#[test]
fn linux_is_deterministic() {
    for_each_seed(40, |seed| {
        assert_eq!(linux::World::new(seed).run(150), linux::World::new(seed).run(150));
    });
}
