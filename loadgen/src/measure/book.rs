//! Latency of an open-loop probe, from the moment each request was meant to start.
//!
//! A probe belongs to the phase in which it was intended, and is never forgotten: at the closing of the phase's book it
//! is completed, outstanding, shed or failed. Those that did not come back rank above all that did, so a percentile
//! whose rank falls among them is known from below only: `at_least`. No other correction for coordinated omission is
//! applied; none is needed when time runs from the intended start, and both together would count twice.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use skbudget_controller::Instant;
use skbudget_stack::sim::Observer;

use crate::plan::Phase;
use crate::result::{ProbePhase, Quantile, SpectrumRow};

/// Up to 60 s in nanoseconds, three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds are in order")
}

/// One phase of one probe.
#[derive(Debug)]
pub struct Book {
    completed: Histogram<u64>,
    /// Lower bounds of those that did not come back.
    missing: Histogram<u64>,
    intended: u64,
    in_deadline: u64,
    outstanding: u64,
    shed: u64,
    failed: u64,
    /// Exact, where the histogram only knows the bucket.
    max_ns: u64,
    saturated: u64,
    closed: bool,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            completed: histogram(),
            missing: histogram(),
            intended: 0,
            in_deadline: 0,
            outstanding: 0,
            shed: 0,
            failed: 0,
            max_ns: 0,
            saturated: 0,
            closed: false,
        }
    }
}

impl Book {
    fn complete(&mut self, ns: u64, deadline_ns: u64) {
        self.saturated += u64::from(ns > self.completed.high());
        self.completed.saturating_record(ns);
        self.max_ns = self.max_ns.max(ns);
        self.in_deadline += u64::from(ns <= deadline_ns);
    }

    fn miss(&mut self, at_least_ns: u64) {
        self.missing.saturating_record(at_least_ns);
        self.max_ns = self.max_ns.max(at_least_ns);
    }

    /// `None` without a single sample.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        let total = self.completed.len() + self.missing.len();
        if total == 0 {
            return None;
        }
        let rank = ((q * total as f64).ceil() as u64).clamp(1, total);
        if rank <= self.completed.len() {
            // Half a rank back: the crate's own ceiling then lands on the rank whatever the rounding.
            let q = (rank as f64 - 0.5) / self.completed.len() as f64;
            let ns = self.completed.value_at_quantile(q).min(self.max_ns);
            return Some(Quantile { ns, at_least: false });
        }
        let mut all = self.completed.clone();
        all.add(&self.missing).expect("same bounds");
        let ns = all.value_at_quantile((rank as f64 - 0.5) / total as f64).min(self.max_ns);
        Some(Quantile { ns, at_least: true })
    }

    pub fn summary(&self) -> ProbePhase {
        let mut all = self.completed.clone();
        all.add(&self.missing).expect("same bounds");
        let max = Quantile { ns: self.max_ns, at_least: !self.missing.is_empty() };
        ProbePhase {
            intended: self.intended,
            completed: self.completed.len(),
            outstanding: self.outstanding,
            shed: self.shed,
            failed: self.failed,
            in_deadline: self.in_deadline,
            saturated: self.saturated,
            delivered_ppm: (self.in_deadline * 1_000_000).checked_div(self.intended),
            p50: self.quantile(0.5),
            p99: self.quantile(0.99),
            p999: self.quantile(0.999),
            max: (!all.is_empty()).then_some(max),
            mean_ns: all.mean() as u64,
            stddev_ns: all.stdev() as u64,
            spectrum: spectrum(&all, self.max_ns),
        }
    }
}

fn spectrum(all: &Histogram<u64>, max_ns: u64) -> Vec<SpectrumRow> {
    if all.is_empty() {
        return Vec::new();
    }
    let mut seen = 0;
    all.iter_quantiles(5)
        .map(|v| {
            seen += v.count_since_last_iteration();
            SpectrumRow {
                quantile_ppb: (v.quantile_iterated_to() * 1e9).round() as u64,
                ns: v.value_iterated_to().min(max_ns),
                count: seen,
            }
        })
        .collect()
}

/// All phases of one probe.
#[derive(Debug)]
pub struct ProbeLog {
    phases: Vec<Phase>,
    books: Vec<Book>,
    /// Requests of open books: id, intended start, phase.
    open: BTreeMap<u64, (u64, usize)>,
    deadline_ns: u64,
    corrupt: u64,
    broken: u64,
}

impl ProbeLog {
    pub fn new(phases: &[Phase], deadline_ns: u64) -> Self {
        Self {
            phases: phases.to_vec(),
            books: phases.iter().map(|_| Book::default()).collect(),
            open: BTreeMap::new(),
            deadline_ns,
            corrupt: 0,
            broken: 0,
        }
    }

    pub fn intend(&mut self, id: u64, at_ns: u64) {
        let phase = self.phases.iter().position(|p| at_ns >= p.start_ns && at_ns < p.end_ns);
        let Some(phase) = phase.filter(|p| !self.books[*p].closed) else { return };
        self.books[phase].intended += 1;
        self.open.insert(id, (at_ns, phase));
    }

    pub fn complete(&mut self, id: u64, now_ns: u64) {
        if let Some((at, phase)) = self.open.remove(&id) {
            self.books[phase].complete(now_ns.saturating_sub(at), self.deadline_ns);
        }
    }

    fn miss(&mut self, id: u64, count: fn(&mut Book) -> &mut u64) {
        if let Some((at, phase)) = self.open.remove(&id) {
            let bound = self.phases[phase].end_ns.saturating_sub(at);
            *count(&mut self.books[phase]) += 1;
            self.books[phase].miss(bound);
        }
    }

    /// Whatever of this phase has not come back by now is outstanding, known to take at least until now.
    pub fn close(&mut self, phase: usize, now_ns: u64) {
        self.books[phase].closed = true;
        let late: Vec<u64> =
            self.open.iter().filter(|(_, (_, p))| *p == phase).map(|(id, _)| *id).collect();
        for id in late {
            if let Some((at, _)) = self.open.remove(&id) {
                self.books[phase].outstanding += 1;
                self.books[phase].miss(now_ns.saturating_sub(at));
            }
        }
    }

    pub fn books(&self) -> &[Book] {
        &self.books
    }
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }
    pub fn broken(&self) -> u64 {
        self.broken
    }
}

impl Observer for ProbeLog {
    fn corrupt(&mut self, _now: Instant, _position: u64) {
        self.corrupt += 1;
    }
    fn broken(&mut self, _now: Instant) {
        self.broken += 1;
    }
    fn intended(&mut self, id: u64, at: Instant) {
        self.intend(id, at.0);
    }
    fn completed(&mut self, id: u64, now: Instant) {
        self.complete(id, now.0);
    }
    /// Never sent: as late as the phase is long. The load was asked for and not carried.
    fn shed(&mut self, id: u64) {
        self.miss(id, |b| &mut b.shed);
    }
    fn failed(&mut self, id: u64) {
        self.miss(id, |b| &mut b.failed);
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
