//! Datagrams of real programs in a container: UDP and ping with the built binary, end to end.
//! `cargo test -p skbudget --test e2e_datagrams -- --ignored --test-threads=1`.

mod configure;
mod loopback;
mod names;
mod network;
mod ping;
mod programs;
mod published;
mod reach;
#[path = "../e2e/support.rs"]
#[allow(dead_code, reason = "other test targets use the rest of it")]
mod support;
mod udp;

/// Every combination of MTU and offload.
const LINKS: [[&str; 4]; 4] = [
    ["--mtu", "65520", "--offload", "on"],
    ["--mtu", "1500", "--offload", "on"],
    ["--mtu", "65520", "--offload", "off"],
    ["--mtu", "1500", "--offload", "off"],
];

/// True, with a message, when a program that the test needs is missing.
fn lacks(program: &str) -> bool {
    let found = std::process::Command::new("which").arg(program).output();
    let missing = !found.is_ok_and(|output| output.status.success());
    if missing {
        println!("skipped: {program} is missing");
    }
    missing
}
