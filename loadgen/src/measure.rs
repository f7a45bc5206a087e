//! The counters of all targets: goodput meters and recorders of probes. Times are nanoseconds since the start of the run.

mod blocks;
pub mod hdr;
mod histogram;
mod meter;
mod phase_latency;
mod probe_recorder;
pub mod result;

pub use histogram::Digits;
pub use meter::{Meter, PhaseBytes};
pub use phase_latency::PhaseLatency;
pub use probe_recorder::ProbeRecorder;
