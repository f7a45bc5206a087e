//! Samples of a phase, grouped by the second in which each became known. Interval logs are made from these blocks, and
//! the bootstrap within a run resamples them: neighbouring samples are not independent, neighbouring seconds nearly
//! are.

use std::collections::BTreeMap;

use super::histogram::Digits;
use crate::measure::hdr::{self, Counts};
use crate::measure::result::{BLOCK_NS, IntervalHdr};

/// Only one histogram is open at a time; finished ones are kept as text to save memory.
#[derive(Debug)]
pub(super) struct Blocks {
    digits: Digits,
    now: Option<(u64, Counts)>,
    done: Vec<IntervalHdr>,
}

impl Blocks {
    pub(super) fn new(digits: Digits) -> Self {
        Self { digits, now: None, done: Vec::new() }
    }

    /// Records a sample. Time does not run backwards, but a request that failed or was shed is recorded at the end of
    /// its phase; a sample with an earlier time goes into the open block.
    pub(super) fn record(&mut self, ns: u64, now_ns: u64) {
        // Blocks start at whole seconds of the run, so that those of several containers can be added.
        let start = now_ns - now_ns % BLOCK_NS;
        if self.now.as_ref().is_some_and(|(at, _)| *at < start) {
            self.end();
        }
        let (_, counts) = self.now.get_or_insert_with(|| (start, self.digits.histogram()));
        counts.saturating_record(ns);
    }

    pub(super) fn end(&mut self) {
        self.done.extend(self.now.take().map(|(at, counts)| block(at, &counts)));
    }

    pub(super) fn all(&self) -> Vec<IntervalHdr> {
        let open = self.now.as_ref().map(|(at, counts)| block(*at, counts));
        self.done.iter().cloned().chain(open).collect()
    }

    /// Adds the blocks of another container.
    pub(super) fn absorb(&mut self, more: &[IntervalHdr]) -> Result<(), String> {
        self.end();
        let mut sums: BTreeMap<u64, Counts> = BTreeMap::new();
        for b in self.done.iter().chain(more) {
            let Some(counts) = hdr::decode(&b.hdr)? else { continue };
            let sum = sums.entry(b.start_ns).or_insert_with(|| self.digits.histogram());
            sum.add(&counts).map_err(|e| format!("histogram: {e}"))?;
        }
        self.done = sums.iter().map(|(at, counts)| block(*at, counts)).collect();
        Ok(())
    }
}

fn block(start_ns: u64, counts: &Counts) -> IntervalHdr {
    IntervalHdr { start_ns, length_ns: BLOCK_NS, hdr: hdr::encode(counts) }
}
