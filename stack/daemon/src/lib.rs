//! The shell around the stack: all that touches the outside world, such as worker loops, clocks, sockets, devices,
//! namespaces and the command line. `controller` makes the decisions, `stack` has the protocols.
#![deny(unsafe_code)]
#![warn(missing_docs)]
// Output goes through `logger`: printing can block, and panics when it fails.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod api;
pub mod attach;
pub mod caps;
pub mod capture;
mod channel;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
mod confine;
pub mod daemon;
mod events;
pub mod exit;
mod flows;
pub mod generate;
mod host;
mod keys;
mod levels;
pub mod listener;
pub mod logger;
mod names;
mod netlink;
mod packets;
mod resolv_conf;
mod roles;
pub mod run;
pub mod scheduling;
pub mod serve;
pub mod settings;
pub mod stats;
mod stdout;
#[allow(
    unsafe_code,
    reason = "system calls that neither std nor nix wraps; no other code is in it"
)]
mod sys;
mod systemd;
mod token;
mod types;
pub mod units;
mod worker;

pub use daemon::{ContainerHandle, Daemon, DaemonConfig};
pub use resolv_conf::HostServers;
pub use types::{
    BudgetId, BudgetRef, ContainerSpec, DaemonError, DaemonEvent, Ended, GroupConfig, HostPorts,
    Publish, PublishSocket,
};
