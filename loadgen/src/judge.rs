//! Judges records: derives the fairness numbers, decides the gates, compares and merges results. Pure functions.
//!
//! ```text
//!  ArmResult ──▶ analyse ──▶ gate ──▶ verdict
//!                   └──────▶ metrics ──▶ compare (with stats)
//! ```

pub mod analyse;
pub mod compare;
pub mod gate;
pub mod merge;
pub mod metrics;
pub mod stats;
