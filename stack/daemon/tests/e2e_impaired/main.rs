//! The kernel's TCP in a container, behind a cable that drops, reorders and duplicates, against our stack. Every byte
//! arrives in both directions, with each congestion control of the kernel, with and without SACK and timestamps.
//! Nothing here depends on speed; goodput is measured by `cargo bench -p skbudget-benches --bench impaired`.
//! `cargo test -p skbudget --test e2e_impaired -- --ignored --test-threads=1 --nocapture`.

#[path = "../wire/bench.rs"]
#[allow(dead_code, reason = "shared with the benches, which use the rest of it")]
mod bench;
#[path = "../wire/relay.rs"]
#[allow(dead_code, reason = "shared with the benches, which use the rest of it")]
mod relay;
#[path = "../e2e_main_job/streams.rs"]
#[allow(dead_code, reason = "shared with the main job, which uses the rest of it")]
mod streams;
#[path = "../e2e/support.rs"]
#[allow(dead_code, reason = "shared with the other end-to-end tests, which use the rest of it")]
mod support;
#[path = "../wire/world.rs"]
#[allow(dead_code, reason = "shared with the floods, which use the rest of it")]
mod world;

mod narrow;
mod transfers;
