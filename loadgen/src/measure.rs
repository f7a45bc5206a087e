//! The counters of all targets: goodput meters and probe books. Times are nanoseconds since the start of the run.

mod blocks;
mod book;
pub mod hdr;
mod meter;
pub mod result;

pub use book::{Book, Digits, ProbeLog};
pub use meter::{Meter, PhaseBytes};
