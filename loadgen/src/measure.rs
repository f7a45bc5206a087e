//! The counters of all targets: goodput meters and recorders of probes. Times are nanoseconds since the start of the
//! run.

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
