//! `skbudget serve` and the commands that control it: `cargo test -p skbudget --test e2e_daemon -- --ignored`.

mod addresses;
mod capture;
mod config;
mod cycles;
mod flows;
mod groups;
mod lifecycle;
mod live;
mod refusals;
mod relay;
mod reload;
mod restart;
mod rootless;
mod siblings;
mod support;
mod systemd;
mod top;
