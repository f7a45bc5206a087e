//! Judges records: derives the fairness numbers, decides the gates, compares and merges results. Pure functions.
//!
//! ```text
//!  ArmResult ──▶ analyse ──▶ gate ──▶ verdict
//!                   └──────▶ metrics ──▶ compare (with stats)
//! ```

pub(crate) mod analyse;
pub(crate) mod compare;
pub mod gate;
pub(crate) mod merge;
pub(crate) mod metrics;
pub(crate) mod stats;
