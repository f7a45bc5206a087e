//! Latency of an open-loop probe, counted from the intended start of each request.
//!
//! A request belongs to the phase of its intended start, and is never dropped from the record: when the phase is
//! closed, the request is completed, outstanding, shed or failed. No other correction for coordinated omission is
//! applied; none is needed when time runs from the intended start, and both together would count twice.
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

use super::blocks::Blocks;
use super::hdr::{self, Counts};
use super::histogram::{Digits, Histogram};
use super::result::{ProbePhase, Quantile, SpectrumRow};

/// One phase of one probe.
#[derive(Debug)]
pub(crate) struct PhaseLatency {
    pub(super) completed: Histogram,
    /// Waiting times of requests that did not complete: lower bounds of their latency.
    pub(super) missing: Histogram,
    pub(super) service: Histogram,
    pub(super) lag: Histogram,
    pub(super) blocks: Blocks,
    pub(super) intended: u64,
    in_deadline: u64,
    pub(super) outstanding: u64,
    pub(super) shed: u64,
    pub(super) failed: u64,
    saturated: u64,
    pub(super) closed: bool,
}

const HIGHEST_NS: u64 = 60_000_000_000;

/// Percentiles of the summary; each has its own row in the spectrum.
const NAMED: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

impl Default for PhaseLatency {
    fn default() -> Self {
        Self::new(Digits::Three)
    }
}

impl PhaseLatency {
    pub(super) fn new(digits: Digits) -> Self {
        let histogram = || Histogram::new(digits);
        Self {
            completed: histogram(),
            missing: histogram(),
            service: histogram(),
            lag: histogram(),
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

    pub(super) fn complete(&mut self, ns: u64, deadline_ns: u64, now_ns: u64) {
        // The histogram clamps values above its range; count them.
        self.saturated += u64::from(ns > HIGHEST_NS);
        self.completed.record(ns);
        self.blocks.record(ns, now_ns);
        self.in_deadline += u64::from(ns <= deadline_ns);
    }

    pub(super) fn miss(&mut self, at_least_ns: u64, now_ns: u64) {
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
    pub(crate) fn quantile(&self, q: f64) -> Option<Quantile> {
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

    /// The record of this phase for the result.
    pub(crate) fn summary(&self) -> ProbePhase {
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
    pub(crate) fn merged<'a>(
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
