//! Random sequences of operations, compared with naive models that recompute every number.
//!
//! A failure prints the operation, and the command that replays its sequence. `SKBUDGET_SEEDS=n` sets the number of
//! sequences.

#[path = "model/linux.rs"]
mod linux;
#[path = "model/naive.rs"]
mod naive;
#[path = "model/strict.rs"]
mod strict;
#[path = "model/strict_ops.rs"]
mod strict_ops;
#[path = "model/strict_plan.rs"]
mod strict_plan;

use skbudget_seed::each_seed;

#[test]
fn strict_answers_as_the_model() {
    each_seed!(1..1501, |seed| {
        strict::World::new(seed).run(150);
    });
}

#[test]
fn strict_is_deterministic() {
    each_seed!(1..41, |seed| {
        let first = strict::World::new(seed).run(150);
        let second = strict::World::new(seed).run(150);
        assert_eq!(first, second, "same operations, same answers and events");
        // A log of nothing would be equal too.
        assert!(first.len() > 50);
    });
}

#[test]
fn linux_answers_as_the_model() {
    each_seed!(1..1501, |seed| {
        linux::World::new(seed).run(150);
    });
}

#[test]
fn linux_is_deterministic() {
    each_seed!(1..41, |seed| {
        assert_eq!(linux::World::new(seed).run(150), linux::World::new(seed).run(150));
    });
}
