//! Seeded worlds: an independent guest (smoltcp) behind links that lose, reorder, duplicate, delay and corrupt, in
//! front of slow hosts, under budgets from plentiful to tiny. In all of them every byte arrives unchanged, usage never
//! exceeds hard, and nothing is left at the end. Also our stack with itself, where the link's losses explain every
//! pause as well.
//! A failure prints the plan, and the command that replays its seed.

mod autotune;
mod datagrams;
mod endings;
mod halfclose;
mod lists;
mod peer_stack;
mod plan;
mod run;
mod siblings;
mod vanish;

use std::fmt::Debug;

use skbudget_sim::each_seed;

use plan::Plan;
use run::run;

/// Prints the plan of a run that panics.
struct OnPanic<'a, P: Debug>(&'a P);

impl<P: Debug> Drop for OnPanic<'_, P> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:#?}", self.0);
        }
    }
}

fn check<P: Debug, T>(plan: &P, run: impl Fn(&P) -> T) {
    let _print = OnPanic(plan);
    run(plan);
}

#[test]
fn clean_links_and_plenty() {
    each_seed!(0..150, |seed| check(&Plan::clean(seed), run));
}

#[test]
fn faulty_links() {
    each_seed!(1000..1500, |seed| check(&Plan::clean(seed).with_faults(), run));
}

#[test]
fn little_memory() {
    each_seed!(2000..2300, |seed| check(&Plan::short(seed), run));
}

#[test]
fn little_memory_and_faulty_links() {
    each_seed!(3000..3500, |seed| check(&Plan::short(seed).with_faults(), run));
}

#[test]
fn the_stack_with_itself() {
    each_seed!(4000..5000, |seed| check(&peer_stack::Plan::rich(seed), peer_stack::run));
}

#[test]
fn the_stack_with_itself_and_little_memory() {
    each_seed!(5000..5400, |seed| check(&peer_stack::Plan::short(seed), peer_stack::run));
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
