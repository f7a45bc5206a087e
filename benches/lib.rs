//! What the benches stand on: one container's stack between two ends that cost nothing.
//!
//! The benches themselves are `micro/pressure.rs` and `micro/segment.rs` (criterion) and `peers/` (namespaces, real
//! kernels, other programs). How they are to be read is in `README.md`.

pub mod frames;
pub mod rig;

pub use rig::Rig;
