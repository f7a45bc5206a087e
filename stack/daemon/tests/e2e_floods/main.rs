//! Floods from a container and crowds of connections, against the daemon, the kernel's devices and the clock on the
//! wall: what is held, what is left, and that a neighbour's bytes arrive meanwhile. How fast they do is measured
//! elsewhere (`cargo bench -p skbudget-benches --bench floods`); here nothing depends on speed.
//! `cargo test -p skbudget --test e2e_floods -- --ignored --test-threads=1 --nocapture`.
//!
//! `SKBUDGET_E2E_FLOOD` is the number of hostile segments of each flood, at 50,000 a second (100,000; the long form is
//! 1,000,000).

#[path = "../../../tests/floods/attack.rs"]
mod attack;
#[path = "../wire/hostile.rs"]
mod hostile;
#[path = "../wire/neighbour.rs"]
#[allow(dead_code, reason = "shared with the benches, which use the rest of it")]
mod neighbour;
#[path = "../../../tests/floods/raw.rs"]
#[allow(dead_code, reason = "shared with the stack's tests, which use the rest of it")]
mod raw;
#[path = "../wire/siege.rs"]
mod siege;
#[path = "../wire/world.rs"]
mod world;

mod attacks;
mod crowds;

/// Open descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A length of the tests, from the environment.
fn length(name: &str, default: u64) -> u64 {
    let given = std::env::var(format!("SKBUDGET_E2E_{name}")).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// Polls until it holds; more than a minute is a hang.
#[track_caller]
fn until(mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed().as_secs() < 60, "it does not come to hold");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
