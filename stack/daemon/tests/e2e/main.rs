//! The built binary, end to end. What needs root and a tun device is ignored unless asked for:
//! `cargo test -p skbudget --test e2e -- --include-ignored`.

mod ipv6;
mod lifecycle;
mod rootless;
mod support;
mod traffic;
mod usage;
