//! The built binary, end to end. What needs root and a tun device is ignored unless asked for:
//! `cargo test -p skbudget --test e2e -- --include-ignored`.

mod alive;
mod descriptors;
mod endings;
mod ipv6;
mod lifecycle;
mod output;
mod privileges;
mod pty;
mod relay;
mod ring;
mod rootless;
mod signals;
mod stderr;
mod support;
mod terminal;
mod traffic;
mod usage;

/// Every combination that frames may come in.
const LINKS: [[&str; 4]; 4] = [
    ["--mtu", "65520", "--offload", "on"],
    ["--mtu", "1500", "--offload", "on"],
    ["--mtu", "65520", "--offload", "off"],
    ["--mtu", "1500", "--offload", "off"],
];

/// Bytes of a long stream.
const BULK: usize = 32 << 20;
