//! The main job end to end, as users see it: transfers between the kernel's TCP in a container and servers on the
//! host's loopback. Prints the numbers: `cargo test -p skbudget --release --test e2e_transfer -- --ignored
//! --test-threads=1 --nocapture`.
//!
//! The default lengths suit CI. These variables change them: `SKBUDGET_E2E_SECONDS` (one iperf3 run, 3),
//! `SKBUDGET_E2E_REPEAT` (transfers of the file in each combination, 3), `SKBUDGET_E2E_HOLD` (seconds without a read,
//! 5), `SKBUDGET_E2E_LONG_MIB` (length of the long transfers, 4608).

#[path = "../e2e/support.rs"]
#[allow(dead_code, reason = "shared with the other end-to-end tests, which use the rest of it")]
mod support;

mod bulk;
mod edge_cases;
mod guest;
mod hard;
mod iperf;
mod many;
mod memory;

/// Every combination of MTU and offload.
const LINKS: [[&str; 4]; 4] = [
    ["--mtu", "65520", "--offload", "on"],
    ["--mtu", "1500", "--offload", "on"],
    ["--mtu", "65520", "--offload", "off"],
    ["--mtu", "1500", "--offload", "off"],
];

/// A length of the tests, from the environment.
fn length(name: &str, default: u64) -> u64 {
    let given = std::env::var(format!("SKBUDGET_E2E_{name}")).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// True, with a message, when a program that the test needs is missing.
fn lacks(test: &str, program: &str) -> bool {
    let found = std::process::Command::new(program)
        .arg("--version")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    if let Err(e) = &found {
        println!("{test}: skipped=\"{program}: {e}\"");
    }
    found.is_err()
}
