//! A budgeted userspace TCP stack for one container, sans-io.
#![deny(unsafe_code)]

pub mod chunk;
pub mod container;
pub mod io;
#[cfg(feature = "sim")]
pub mod sim;
pub mod vnet;

pub use skbudget_controller as controller;

pub use chunk::ChunkPool;
pub use container::{Container, ContainerConfig, ContainerStats, FlowInfo, WakeKey};
pub use io::{Close, Ctx, Device, FlowId, Host, HostCaps, HostError, Ready};
pub use vnet::VnetHdr;
