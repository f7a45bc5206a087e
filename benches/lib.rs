//! The base of the benches: one container's stack between two ends that cost nothing.
//!
//! The benches themselves are `micro/pressure.rs` and `micro/segment.rs` (criterion), `peers/` (namespaces, real
//! kernels, other programs), `impaired/` (a cable with loss and delay), `floods/` (a neighbour beside a flood) and
//! `daemon/` (many containers).
//! `README.md` explains how to read them.
#![warn(missing_docs)]

pub mod frames;
pub mod rig;

pub use rig::Rig;
