//! Records the requests of one probe, phase by phase.

use std::collections::BTreeMap;

use skbudget_controller::Instant;
use skbudget_sim::Observer;

use super::histogram::Digits;
use super::phase_latency::PhaseLatency;
use crate::scenario::plan::Phase;

#[derive(Debug, Clone, Copy)]
struct Request {
    intended_ns: u64,
    phase: usize,
    /// Time at which the socket accepted the first byte.
    sent_ns: Option<u64>,
}

/// All phases of one probe.
#[derive(Debug)]
pub(crate) struct ProbeRecorder {
    phases: Vec<Phase>,
    latencies: Vec<PhaseLatency>,
    /// Requests of phases that are not closed, by id.
    open: BTreeMap<u64, Request>,
    deadline_ns: u64,
    corrupt: u64,
    broken: u64,
}

impl ProbeRecorder {
    pub(crate) fn new(phases: &[Phase], deadline_ns: u64) -> Self {
        Self::with_digits(phases, deadline_ns, Digits::Three)
    }

    pub(crate) fn with_digits(phases: &[Phase], deadline_ns: u64, digits: Digits) -> Self {
        Self {
            phases: phases.to_vec(),
            latencies: phases.iter().map(|_| PhaseLatency::new(digits)).collect(),
            open: BTreeMap::new(),
            deadline_ns,
            corrupt: 0,
            broken: 0,
        }
    }

    /// A request is due at `at_ns`; it belongs to the phase at that time.
    pub(crate) fn intend(&mut self, id: u64, at_ns: u64) {
        let phase = self.phases.iter().position(|p| at_ns >= p.start_ns && at_ns < p.end_ns);
        // Requests between the phases belong to none and are not counted.
        let Some(phase) = phase.filter(|p| !self.latencies[*p].closed) else { return };
        self.latencies[phase].intended += 1;
        self.open.insert(id, Request { intended_ns: at_ns, phase, sent_ns: None });
    }

    /// Records the generator's lag: the delay until it handles a request that is due. A later delay before the send is
    /// not due to the generator.
    pub(crate) fn record_lag(&mut self, id: u64, now_ns: u64) {
        if let Some(r) = self.open.get(&id) {
            self.latencies[r.phase].lag.record(now_ns.saturating_sub(r.intended_ns));
        }
    }

    pub(crate) fn send(&mut self, id: u64, now_ns: u64) {
        if let Some(r) = self.open.get_mut(&id) {
            r.sent_ns.get_or_insert(now_ns);
        }
    }

    /// The last byte of the response arrived.
    pub(crate) fn complete(&mut self, id: u64, now_ns: u64) {
        if let Some(r) = self.open.remove(&id) {
            let latency = &mut self.latencies[r.phase];
            latency.complete(now_ns.saturating_sub(r.intended_ns), self.deadline_ns, now_ns);
            if let Some(sent) = r.sent_ns {
                latency.service.record(now_ns.saturating_sub(sent));
            }
        }
    }

    fn miss(&mut self, id: u64, count: fn(&mut PhaseLatency) -> &mut u64) {
        if let Some(r) = self.open.remove(&id) {
            // Until the end of its phase the request counts as waiting, so the bound matches that of outstanding ones.
            let end = self.phases[r.phase].end_ns;
            *count(&mut self.latencies[r.phase]) += 1;
            self.latencies[r.phase].miss(end.saturating_sub(r.intended_ns), end);
        }
    }

    /// Closes a phase. A request that has not completed is outstanding; its latency is at least the time to now.
    pub(crate) fn close(&mut self, phase: usize, now_ns: u64) {
        self.latencies[phase].closed = true;
        // Collected first, because the loop removes from the map.
        let late: Vec<u64> =
            self.open.iter().filter(|(_, r)| r.phase == phase).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(r) = self.open.remove(&id) {
                self.latencies[phase].outstanding += 1;
                self.latencies[phase].miss(now_ns.saturating_sub(r.intended_ns), now_ns);
            }
        }
        // The phase has no more samples: encode the open block to free its histogram.
        self.latencies[phase].blocks.end();
    }

    pub(crate) fn latencies(&self) -> &[PhaseLatency] {
        &self.latencies
    }
    pub(crate) fn corrupt(&self) -> u64 {
        self.corrupt
    }
    pub(crate) fn broken(&self) -> u64 {
        self.broken
    }
}

impl Observer for ProbeRecorder {
    fn corrupt(&mut self, _now: Instant, _position: u64) {
        self.corrupt += 1;
    }
    fn broken(&mut self, _now: Instant) {
        self.broken += 1;
    }
    fn intended(&mut self, id: u64, at: Instant) {
        self.intend(id, at.0);
    }
    fn looked(&mut self, id: u64, now: Instant) {
        self.record_lag(id, now.0);
    }
    fn sent(&mut self, id: u64, now: Instant) {
        self.send(id, now.0);
    }
    fn completed(&mut self, id: u64, now: Instant) {
        self.complete(id, now.0);
    }
    /// Never sent: counts with the time to the end of its phase, because load that was intended and not sent is lost
    /// service.
    fn shed(&mut self, id: u64) {
        self.miss(id, |b| &mut b.shed);
    }
    fn failed(&mut self, id: u64) {
        self.miss(id, |b| &mut b.failed);
    }
}

#[cfg(test)]
#[path = "probe_recorder_tests.rs"]
mod tests;
