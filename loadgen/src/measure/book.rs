//! Latency of an open-loop probe, counted from the intended start of each request.
//!
//! A request belongs to the phase of its intended start, and is never dropped from the record: when the book of the
//! phase is closed, the request is completed, outstanding, shed or failed. No other correction for coordinated omission
//! is applied; none is needed when time runs from the intended start, and both together would count twice.
//!
//! All files use one estimator. A request that did not complete counts with its waiting time. Its latency is larger, so
//! a percentile of all requests, read from one histogram, is a lower bound:
//!
//! ```text
//!  all requests by time       1 2 2 3 (4) 5 5 (6) 7 8 (9)      in brackets: waiting time, request did not complete
//!  completed requests         1 2 2 3 5 5 7 8  -  -  -         as if all others took forever
//!  p50 of 11, the 6th          at least 5, at most 5: exact
//!  p60, the 7th                at least 5, at most 7
//!  p90, the 10th               at least 8, without an upper bound
//! ```
//! Percentiles, interval logs and percentile files are read from the same histogram, so they rise with their rank and
//! agree with each other. Histograms of several containers or seconds can be added, which no other estimator allows.

use std::collections::BTreeMap;

use skbudget_controller::Instant;
use skbudget_sim::Observer;

use super::blocks::Blocks;
use crate::measure::hdr::{self, Counts};
use crate::measure::result::{Latency, ProbePhase, Quantile, SpectrumRow};
use crate::scenario::plan::Phase;

/// Resolution of the histograms. Runs with many containers use coarse ones to limit memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digits {
    /// 108 KiB per histogram.
    Three,
    /// 10.5 KiB per histogram; values start at 1 us.
    Two,
}

impl Digits {
    /// A new histogram with values up to 60 s in nanoseconds.
    pub(super) fn histogram(self) -> Counts {
        let (low, digits) = match self {
            // Lowest value in nanoseconds, and significant digits.
            Self::Three => (1, 3),
            Self::Two => (1000, 2),
        };
        Counts::new_with_bounds(low, 60_000_000_000, digits).expect("bounds are in order")
    }
}

/// A histogram that allocates its memory with the first sample, and keeps the exact maximum.
#[derive(Debug, Clone)]
struct Tally {
    digits: Digits,
    counts: Option<Counts>,
    max_ns: u64,
}

impl Tally {
    fn new(digits: Digits) -> Self {
        Self { digits, counts: None, max_ns: 0 }
    }
    fn record(&mut self, ns: u64) {
        let counts = self.counts.get_or_insert_with(|| self.digits.histogram());
        counts.saturating_record(ns);
        self.max_ns = self.max_ns.max(ns);
    }
    fn len(&self) -> u64 {
        self.counts.as_ref().map_or(0, Counts::len)
    }
    /// Adds an encoded histogram, which may be coarser than this one.
    fn absorb(&mut self, encoded: &str) -> Result<(), String> {
        let Some(counts) = hdr::decode(encoded)? else { return Ok(()) };
        let sum = self.counts.get_or_insert_with(|| self.digits.histogram());
        sum.add(&counts).map_err(|e| format!("histogram: {e}"))
    }
    fn latency(&self) -> Latency {
        // The value of a bucket is its upper end, which may exceed the largest sample.
        let at = |q| self.counts.as_ref().map(|c| c.value_at_quantile(q).min(self.max_ns));
        Latency {
            count: self.len(),
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: self.counts.as_ref().map(|_| self.max_ns),
        }
    }
}

/// One phase of one probe.
#[derive(Debug)]
pub struct Book {
    completed: Tally,
    /// Waiting times of requests that did not complete: lower bounds of their latency.
    missing: Tally,
    service: Tally,
    lag: Tally,
    blocks: Blocks,
    intended: u64,
    in_deadline: u64,
    outstanding: u64,
    shed: u64,
    failed: u64,
    saturated: u64,
    closed: bool,
}

const HIGHEST_NS: u64 = 60_000_000_000;

/// Percentiles of the summary; each has its own row in the spectrum.
const NAMED: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

impl Default for Book {
    fn default() -> Self {
        Self::new(Digits::Three)
    }
}

impl Book {
    fn new(digits: Digits) -> Self {
        let tally = || Tally::new(digits);
        Self {
            completed: tally(),
            missing: tally(),
            service: tally(),
            lag: tally(),
            blocks: Blocks::new(digits),
            intended: 0,
            in_deadline: 0,
            outstanding: 0,
            shed: 0,
            failed: 0,
            saturated: 0,
            closed: false,
        }
    }

    fn complete(&mut self, ns: u64, deadline_ns: u64, now_ns: u64) {
        // The histogram clamps values above its range; count them.
        self.saturated += u64::from(ns > HIGHEST_NS);
        self.completed.record(ns);
        self.blocks.record(ns, now_ns);
        self.in_deadline += u64::from(ns <= deadline_ns);
    }

    fn miss(&mut self, at_least_ns: u64, now_ns: u64) {
        self.missing.record(at_least_ns);
        self.blocks.record(at_least_ns, now_ns);
    }

    /// Exact, whereas the histogram knows only the bucket.
    fn max_ns(&self) -> u64 {
        self.completed.max_ns.max(self.missing.max_ns)
    }

    /// All requests: completed ones, and missing ones with their lower bounds.
    fn all(&self) -> Option<Counts> {
        match (&self.completed.counts, &self.missing.counts) {
            (Some(a), Some(b)) => {
                let mut all = a.clone();
                all.add(b).expect("same bounds");
                Some(all)
            }
            (one, other) => one.clone().or_else(|| other.clone()),
        }
    }

    /// The `q` quantile of all requests; `None` without a sample.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        Some(self.read(&self.all()?, q))
    }

    /// `all`: the histogram of `all()`.
    fn read(&self, all: &Counts, q: f64) -> Quantile {
        let (done, total) = (self.completed.len(), self.completed.len() + self.missing.len());
        let rank = ((q * total as f64).ceil() as u64).clamp(1, total);
        // Subtract half a rank: the crate rounds up, and so lands on this rank despite rounding errors.
        let at = |counts: &Counts, of: u64| {
            counts.value_at_quantile((rank as f64 - 0.5) / of as f64).min(self.max_ns())
        };
        // Lower bound: missing requests count with their waiting time.
        let ns = at(all, total);
        // Upper bound: if every missing request took forever, the rank falls among the completed ones.
        let at_most_ns =
            self.completed.counts.as_ref().filter(|_| rank <= done).map(|c| at(c, done));
        match at_most_ns {
            // The bounds differ by at most 1 %: exact for any reader.
            Some(most) if most <= ns + ns / 100 => Quantile::exact(ns),
            at_most_ns => Quantile { ns, at_least: true, at_most_ns },
        }
    }

    /// Latency by percentile, including the percentiles of the summary.
    fn spectrum(&self, all: &Counts) -> Vec<SpectrumRow> {
        let total = all.len();
        let row = |q: f64| {
            let Quantile { ns, at_least, .. } = self.read(all, q);
            // Cumulative, as the percentile file requires it.
            let count = all.count_between(0, ns);
            SpectrumRow { quantile_ppb: (q * 1e9).round() as u64, ns, count, at_least }
        };
        // A named percentile with less than one sample beyond it would only repeat the maximum.
        let named = NAMED.into_iter().filter(|q| (1.0 - q) * total as f64 >= 1.0);
        let levels = all.iter_quantiles(5).map(|v| v.quantile_iterated_to());
        let mut rows: Vec<SpectrumRow> = levels.chain(named).map(row).collect();
        rows.sort_by_key(|r| r.quantile_ppb);
        // A named percentile may coincide with a step of the iteration.
        rows.dedup_by_key(|r| r.quantile_ppb);
        rows
    }

    /// The record of this book for the result.
    pub fn summary(&self) -> ProbePhase {
        let all = self.all();
        // One missing request suffices to make the maximum a lower bound.
        let max =
            Quantile { ns: self.max_ns(), at_least: self.missing.len() > 0, at_most_ns: None };
        let at = |q| all.as_ref().map(|a| self.read(a, q));
        ProbePhase {
            intended: self.intended,
            completed: self.completed.len(),
            outstanding: self.outstanding,
            shed: self.shed,
            failed: self.failed,
            in_deadline: self.in_deadline,
            saturated: self.saturated,
            delivered_ppm: (self.in_deadline * 1_000_000).checked_div(self.intended),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: all.is_some().then_some(max),
            mean_ns: all.as_ref().map_or(0, |a| a.mean() as u64),
            stddev_ns: all.as_ref().map_or(0, |a| a.stdev() as u64),
            spectrum: all.as_ref().map(|a| self.spectrum(a)).unwrap_or_default(),
            service: self.service.latency(),
            lag: self.lag.latency(),
            hdr: self.completed.counts.as_ref().map(hdr::encode).unwrap_or_default(),
            hdr_missing: self.missing.counts.as_ref().map(hdr::encode).unwrap_or_default(),
            intervals: self.blocks.all(),
        }
    }

    /// Merges the probes of several containers into one. Service time and lag are missing in the sum, because summaries
    /// do not contain their histograms.
    ///
    /// # Errors
    /// A histogram that cannot be decoded.
    pub fn merged<'a>(
        parts: impl IntoIterator<Item = &'a ProbePhase>,
    ) -> Result<ProbePhase, String> {
        let mut sum = Self::new(Digits::Three);
        for p in parts {
            sum.completed.absorb(&p.hdr)?;
            sum.missing.absorb(&p.hdr_missing)?;
            // Exact, whereas the histogram knows only the bucket.
            let max = p.max.map_or(0, |q| q.ns);
            sum.completed.max_ns = sum.completed.max_ns.max(max);
            sum.intended += p.intended;
            sum.in_deadline += p.in_deadline;
            sum.outstanding += p.outstanding;
            sum.shed += p.shed;
            sum.failed += p.failed;
            sum.saturated += p.saturated;
            sum.blocks.absorb(&p.intervals)?;
        }
        Ok(sum.summary())
    }
}

#[derive(Debug, Clone, Copy)]
struct Request {
    intended_ns: u64,
    phase: usize,
    /// Time at which the socket accepted the first byte.
    sent_ns: Option<u64>,
}

/// All phases of one probe.
#[derive(Debug)]
pub struct ProbeLog {
    phases: Vec<Phase>,
    books: Vec<Book>,
    /// Requests of books that are not closed, by id.
    open: BTreeMap<u64, Request>,
    deadline_ns: u64,
    corrupt: u64,
    broken: u64,
}

impl ProbeLog {
    pub fn new(phases: &[Phase], deadline_ns: u64) -> Self {
        Self::with_digits(phases, deadline_ns, Digits::Three)
    }

    pub fn with_digits(phases: &[Phase], deadline_ns: u64, digits: Digits) -> Self {
        Self {
            phases: phases.to_vec(),
            books: phases.iter().map(|_| Book::new(digits)).collect(),
            open: BTreeMap::new(),
            deadline_ns,
            corrupt: 0,
            broken: 0,
        }
    }

    /// A request is due at `at_ns`; it belongs to the phase at that time.
    pub fn intend(&mut self, id: u64, at_ns: u64) {
        let phase = self.phases.iter().position(|p| at_ns >= p.start_ns && at_ns < p.end_ns);
        // Requests between the phases belong to none and are not counted.
        let Some(phase) = phase.filter(|p| !self.books[*p].closed) else { return };
        self.books[phase].intended += 1;
        self.open.insert(id, Request { intended_ns: at_ns, phase, sent_ns: None });
    }

    /// Records the generator's lag: the delay until it handles a request that is due. A later delay before the send is
    /// not due to the generator.
    pub fn look(&mut self, id: u64, now_ns: u64) {
        if let Some(r) = self.open.get(&id) {
            self.books[r.phase].lag.record(now_ns.saturating_sub(r.intended_ns));
        }
    }

    pub fn send(&mut self, id: u64, now_ns: u64) {
        if let Some(r) = self.open.get_mut(&id) {
            r.sent_ns.get_or_insert(now_ns);
        }
    }

    /// The last byte of the response arrived.
    pub fn complete(&mut self, id: u64, now_ns: u64) {
        if let Some(r) = self.open.remove(&id) {
            let book = &mut self.books[r.phase];
            book.complete(now_ns.saturating_sub(r.intended_ns), self.deadline_ns, now_ns);
            if let Some(sent) = r.sent_ns {
                book.service.record(now_ns.saturating_sub(sent));
            }
        }
    }

    fn miss(&mut self, id: u64, count: fn(&mut Book) -> &mut u64) {
        if let Some(r) = self.open.remove(&id) {
            // Until the end of its phase the request counts as waiting, so the bound matches that of outstanding ones.
            let end = self.phases[r.phase].end_ns;
            *count(&mut self.books[r.phase]) += 1;
            self.books[r.phase].miss(end.saturating_sub(r.intended_ns), end);
        }
    }

    /// Closes the book of a phase. A request that has not completed is outstanding; its latency is at least the time to
    /// now.
    pub fn close(&mut self, phase: usize, now_ns: u64) {
        self.books[phase].closed = true;
        // Collected first, because the loop removes from the map.
        let late: Vec<u64> =
            self.open.iter().filter(|(_, r)| r.phase == phase).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(r) = self.open.remove(&id) {
                self.books[phase].outstanding += 1;
                self.books[phase].miss(now_ns.saturating_sub(r.intended_ns), now_ns);
            }
        }
        // The phase has no more samples: encode the open block to free its histogram.
        self.books[phase].blocks.end();
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
    fn looked(&mut self, id: u64, now: Instant) {
        self.look(id, now.0);
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
#[path = "book_tests.rs"]
mod tests;
