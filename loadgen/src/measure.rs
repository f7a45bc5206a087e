//! The meters of all targets, and the records that they fill. Times are nanoseconds since the start of the run.
//!
//! ```text
//!  bytes ─────▶ Meter ──────────────────────────▶┐
//!  requests ──▶ ProbeRecorder ──▶ PhaseLatency ──▶ result::ArmResult ──▶ result::RunResult
//! ```

mod blocks;
pub(crate) mod hdr;
mod histogram;
mod meter;
mod phase_latency;
mod probe_recorder;
pub mod result;

pub(crate) use histogram::Digits;
pub(crate) use meter::{Meter, PhaseBytes};
pub(crate) use phase_latency::PhaseLatency;
pub(crate) use probe_recorder::ProbeRecorder;
