//! Seeded worlds: an independent guest (smoltcp) behind links that lose, reorder, duplicate, delay and corrupt, in
//! front of slow hosts, under budgets from plentiful to tiny. In all of them every byte arrives unchanged, usage never
//! exceeds hard, and nothing is left at the end. Also our stack with itself, where the link's losses explain every
//! pause as well.
//!
//! `SKBUDGET_SEED=n cargo test -p skbudget-stack --test simulation` replays one seed.

mod autotune;
mod endings;
mod halfclose;
mod lists;
mod peer_stack;
mod plan;
mod run;
mod vanish;

use plan::Plan;
use run::run;

/// Runs the seeds of one test against the smoltcp guest.
fn each(kind: fn(u64) -> Plan, seeds: std::ops::Range<u64>) {
    each_plan(kind, |plan| drop(run(plan)), seeds);
}

/// Runs the plan of each seed.
fn each_plan<P: std::fmt::Debug + std::panic::RefUnwindSafe>(
    kind: fn(u64) -> P,
    run: fn(&P),
    seeds: std::ops::Range<u64>,
) {
    let only = std::env::var("SKBUDGET_SEED").ok().map(|s| s.parse().expect("a number"));
    for seed in only.map_or(seeds, |s| s..s + 1) {
        let plan = kind(seed);
        // Caught to print the seed and its plan.
        let outcome = std::panic::catch_unwind(|| run(&plan));
        if let Err(cause) = outcome {
            eprintln!(
                "seed {seed} failed: SKBUDGET_SEED={seed} cargo test -p skbudget-stack --test simulation\n{plan:#?}"
            );
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn clean_links_and_plenty() {
    each(Plan::clean, 0..150);
}

#[test]
fn faulty_links() {
    each(|seed| Plan::clean(seed).with_faults(), 1000..1500);
}

#[test]
fn little_memory() {
    each(Plan::short, 2000..2300);
}

#[test]
fn little_memory_and_faulty_links() {
    each(|seed| Plan::short(seed).with_faults(), 3000..3500);
}

#[test]
fn the_stack_with_itself() {
    each_plan(peer_stack::Plan::rich, peer_stack::run, 4000..5000);
}

#[test]
fn the_stack_with_itself_and_little_memory() {
    each_plan(peer_stack::Plan::short, peer_stack::run, 5000..5400);
}

#[test]
fn many_seeds_are_over_ipv6() {
    let over_ipv6 = |seeds: std::ops::Range<u64>| seeds.filter(|s| Plan::clean(*s).ipv6).count();
    let (clean, faulty) = (over_ipv6(0..150), over_ipv6(1000..1500));
    assert!(clean > 30 && faulty > 100, "{clean} and {faulty}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 150, 350] {
        let plan = Plan::short(seed).with_faults();
        assert_eq!(run(&plan), run(&plan));
    }
}
