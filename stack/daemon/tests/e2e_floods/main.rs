//! Floods from a container and many honest connections, against the daemon, the kernel's devices and real time: what
//! the containers hold, what remains, and whether a neighbour's bytes arrive meanwhile. Nothing here depends on speed,
//! which is measured by `cargo bench -p skbudget-benches --bench floods`.
//! `cargo test -p skbudget --test e2e_floods -- --ignored --test-threads=1 --nocapture`.
//!
//! `SKBUDGET_E2E_FLOOD` is the number of hostile segments in each flood, at 50,000 a second (default 100,000; the long
//! form is 1,000,000).

mod hostile;
mod many_clients;

/// Open descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A length of the tests, from the environment.
fn length(name: &str, default: u64) -> u64 {
    let given = std::env::var(format!("SKBUDGET_E2E_{name}")).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// Polls until the condition holds. More than a minute is a hang.
#[track_caller]
fn until(mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed().as_secs() < 60, "the condition did not hold within a minute");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
