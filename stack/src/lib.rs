//! A budgeted userspace TCP stack for one container, sans-io: time, frames and host-socket events go in, frames and
//! host-socket commands come out.
//!
//! # The way of a frame
//!
//! ```text
//! guest to host   ingress (wire → Segment) → demux (Tuple → Flow) → tcp/input → rxq ═charge═ → relay → host socket
//! host to guest   host socket → relay → txq ═charge═ → tcp/output → egress (headers, offload) → device
//! ```
//!
//! Each module calls only the next one and results come back as values; `container` alone knows the order. Memory is
//! charged in `rxq` (receive), `txq` (send), `container/admission` (the reservation), `relay` (caps of host
//! sockets), `parked` and `timewait` (small fixed entries), `reassembly` (fragments) and nowhere else. Time, randomness
//! and memory are arguments: the same code runs behind a TAP and in virtual time.
#![deny(unsafe_code)]

mod arp;
pub mod chunk;
mod config;
pub mod container;
mod counters;
mod demux;
mod egress;
mod flow;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod icmp;
mod ingress;
pub mod io;
mod ipv6;
mod ndp;
mod parked;
mod persecond;
#[cfg(test)]
mod queue_tests;
mod ranges;
mod reassembly;
mod relay;
mod rxq;
#[cfg(test)]
mod seeded;
mod segment;
mod seq;
#[cfg(feature = "sim")]
pub mod sim;
pub mod tap;
mod tcp;
mod timewait;
mod txq;
pub mod vnet;

pub use skbudget_controller as controller;

pub use chunk::ChunkPool;
pub use config::{ContainerConfig, Ipv6Net};
pub use container::{Container, ContainerStats, FlowInfo, WakeKey};
pub use io::{Close, Ctx, Device, FlowId, Host, HostCaps, HostError, Ready};
pub use tap::Tap;
pub use tcp::congestion::Algorithm;
pub use vnet::VnetHdr;
