//! Seeded random numbers, and the harness that runs a test with many seeds.
//!
//! A leaf without dependencies, so that the unit tests of every crate can use it, `controller`'s too.
#![warn(missing_docs)]

mod harness;
mod rng;

pub use harness::Test;
pub use rng::Rng;
