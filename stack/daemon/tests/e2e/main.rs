//! The built binary, end to end. Tests that need root and a tun device are ignored by default: `cargo test -p skbudget
//! --test e2e -- --include-ignored`.

mod alive;
mod descriptors;
mod endings;
mod ipv6;
mod lifecycle;
mod output;
mod privileges;
mod relay;
mod ring;
mod rootless;
mod signals;
mod stderr;
mod support;
mod terminal;
mod traffic;
mod usage;

/// Every combination of MTU and offload.
const LINKS: [[&str; 4]; 4] = [
    ["--mtu", "65520", "--offload", "on"],
    ["--mtu", "1500", "--offload", "on"],
    ["--mtu", "65520", "--offload", "off"],
    ["--mtu", "1500", "--offload", "off"],
];

/// Length of a long stream, bytes.
const BULK: usize = 32 << 20;
