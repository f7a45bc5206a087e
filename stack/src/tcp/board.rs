//! What is outstanding: the sender's scoreboard (RFC 2018 section 5, RFC 6675 section 4, RFC 8985 section 5.1).
//!
//! ```text
//!        una                                            nxt
//!         │ lost │ sacked │ flying (t1) │ sacked │ flying (t2)│
//! ```
//!
//! One record stands for a run of bytes that left at the same instant and share one fate, not for a segment: a
//! super-frame is one, and so is the burst of frames of a turn. Where the guest has holes, runs are split at their
//! edges. The front of the list goes with each ACK, so an ACK in order costs what it covers and no more.
//!
//! The list is bounded by what the send queue is charged for: 16 bytes a record, two records a chunk, within the 64
//! bytes by which a chunk's charge exceeds its payload; a few more come with the flow object. At the bound a new run
//! joins the last one, which then tells no round trip: one that looks shorter than it was would make the next ones look
//! like a queue that fills. A SACK that would split is ignored: it is advice (RFC 2018 section 8), and is repeated.

use std::collections::VecDeque;

use skbudget_controller::Instant;

use crate::seq::Seq;

/// Records a flow may have beyond those its chunks pay for.
const RUNS_MIN: usize = 8;

/// What became of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// On its way, as far as we know.
    Flying,
    /// The guest has it behind a hole.
    Sacked,
    /// To be sent again.
    Lost,
}

/// Bytes up to `end`, from where the run before ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// When it was last sent.
    pub(crate) at: Instant,
    pub(crate) end: Seq,
    pub(crate) fate: Fate,
    /// Sent more than once: its round trip is ambiguous (Karn).
    pub(crate) again: bool,
    /// Some of it left before `at`: its round trip is longer than it looks.
    pub(crate) mixed: bool,
}

const _: () = assert!(size_of::<Run>() == 16, "what the head of this file reckons with");

#[derive(Debug)]
pub(crate) struct Board {
    runs: VecDeque<Run>,
    una: Seq,
    nxt: Seq,
    /// Bytes the guest has behind holes; without SACK, those that its repeated ACKs stand for.
    sacked: u32,
    /// Bytes to be sent again.
    lost: u32,
}

/// A range of sequence numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: Seq,
    pub(crate) end: Seq,
}

impl Range {
    pub(crate) fn len(self) -> u32 {
        self.end.diff(self.start).max(0).cast_unsigned()
    }
}

impl Board {
    pub(crate) fn new(iss: Seq) -> Self {
        Self { runs: VecDeque::new(), una: iss, nxt: iss, sacked: 0, lost: 0 }
    }

    /// SND.UNA
    pub(crate) fn una(&self) -> Seq {
        self.una
    }

    /// SND.NXT
    pub(crate) fn nxt(&self) -> Seq {
        self.nxt
    }

    /// Sequence space sent and not acknowledged (RFC 5681's FlightSize).
    pub(crate) fn outstanding(&self) -> u32 {
        self.nxt.diff(self.una).max(0).cast_unsigned()
    }

    /// Bytes on their way, as far as we know (RFC 6675's pipe).
    pub(crate) fn pipe(&self) -> u32 {
        self.outstanding().saturating_sub(self.sacked).saturating_sub(self.lost)
    }

    pub(crate) fn sacked(&self) -> u32 {
        self.sacked
    }

    /// Nothing is known but that everything is on its way, once.
    pub(crate) fn in_order(&self) -> bool {
        self.sacked == 0 && self.lost == 0 && self.runs.back().is_none_or(|run| !run.again)
    }

    /// `len` bytes of sequence space left at SND.NXT, out of a queue of `chunks` chunks.
    pub(crate) fn sent(&mut self, len: u32, now: Instant, chunks: usize) {
        self.nxt = self.nxt + len;
        let full = self.runs.len() >= RUNS_MIN + chunks;
        if let Some(last) = self.runs.back_mut()
            && last.fate == Fate::Flying
            && !last.again
            && (last.at == now || full)
        {
            last.end = self.nxt;
            last.mixed |= last.at != now;
            last.at = now;
            return;
        }
        self.grow();
        let (end, fate) = (self.nxt, Fate::Flying);
        self.runs.push_back(Run { at: now, end, fate, again: false, mixed: false });
    }

    /// Everything before `ack` arrived. Calls `arrived` for what was not known to; returns its bytes.
    pub(crate) fn acked(&mut self, ack: Seq, mut arrived: impl FnMut(Run)) -> u32 {
        let mut bytes = 0;
        while let Some(run) = self.runs.front().copied()
            && self.una.lt(ack)
        {
            let whole = run.end.le(ack);
            let end = if whole { run.end } else { ack };
            let len = end.diff(self.una).cast_unsigned();
            match run.fate {
                Fate::Flying => {}
                Fate::Sacked => self.sacked -= len,
                Fate::Lost => self.lost -= len,
            }
            if run.fate != Fate::Sacked {
                bytes += len;
                arrived(Run { end, ..run });
            }
            self.una = end;
            if whole {
                self.runs.pop_front();
            }
        }
        self.una = self.una.max(ack);
        self.nxt = self.nxt.max(ack);
        if self.runs.is_empty() && self.runs.capacity() > RUNS_MIN {
            self.runs.shrink_to(RUNS_MIN);
        }
        bytes
    }

    /// The guest has `range` behind a hole. Calls `arrived` for what was not known to; returns its bytes.
    pub(crate) fn sack(
        &mut self,
        range: Range,
        chunks: usize,
        mut arrived: impl FnMut(Run),
    ) -> u32 {
        let start = self.una.max(range.start);
        let end = if range.end.gt(self.nxt) { self.nxt } else { range.end };
        if start.ge(end) {
            return 0;
        }
        let most = Self::most(chunks);
        let (Some(from), Some(_)) = (self.split(start, most), self.split(end, most)) else {
            return 0;
        };
        let mut bytes = 0;
        let mut at = start;
        let mut i = from;
        while i < self.runs.len() && at.lt(end) {
            let run = &mut self.runs[i];
            let len = run.end.diff(at).cast_unsigned();
            at = run.end;
            if run.fate != Fate::Sacked {
                if run.fate == Fate::Lost {
                    self.lost -= len;
                }
                arrived(*run);
                run.fate = Fate::Sacked;
                self.sacked += len;
                bytes += len;
            }
            i += 1;
        }
        if bytes > 0 {
            self.join();
        }
        bytes
    }

    /// Marks those flying runs lost for which `lost` says so; their bytes.
    pub(crate) fn lose(&mut self, mut lost: impl FnMut(Run) -> bool) -> u32 {
        let mut bytes = 0;
        let mut start = self.una;
        for run in &mut self.runs {
            if run.fate == Fate::Flying && lost(*run) {
                run.fate = Fate::Lost;
                bytes += run.end.diff(start).cast_unsigned();
            }
            start = run.end;
        }
        if bytes > 0 {
            self.lost += bytes;
            self.join();
        }
        bytes
    }

    /// The first `len` bytes outstanding are lost unless they are on their way again (RFC 6582).
    pub(crate) fn lose_head(&mut self, len: u32, chunks: usize) -> u32 {
        let end = self.una + len.min(self.outstanding());
        let fresh = self.runs.front().is_some_and(|run| run.fate == Fate::Flying && !run.again);
        if !fresh || self.split(end, Self::most(chunks)).is_none() {
            return 0;
        }
        self.lose(|run| run.end.le(end))
    }

    /// What was given up as lost may be on its way after all.
    pub(crate) fn find_all(&mut self) {
        for run in &mut self.runs {
            if run.fate == Fate::Lost {
                run.fate = Fate::Flying;
            }
        }
        self.lost = 0;
    }

    /// The guest said it has what it has not (RFC 2018 section 8): nothing it said of holes is believed.
    pub(crate) fn forget_sacks(&mut self) {
        for run in &mut self.runs {
            if run.fate == Fate::Sacked {
                run.fate = Fate::Flying;
            }
        }
        self.sacked = 0;
    }

    /// The guest has the run at SND.UNA, it says, and yet does not acknowledge it.
    pub(crate) fn head_is_sacked(&self) -> bool {
        self.runs.front().is_some_and(|run| run.fate == Fate::Sacked)
    }

    /// Without SACK: a repeated ACK says that a segment of `len` bytes left the network.
    pub(crate) fn one_left(&mut self, len: u32) {
        let most = self.outstanding().saturating_sub(self.lost).saturating_sub(len);
        self.sacked = (self.sacked + len).min(most);
    }

    /// Without SACK: `len` bytes more are acknowledged, those that repeated ACKs stood for among them.
    pub(crate) fn fewer_left(&mut self, len: u32) {
        self.sacked = self.sacked.saturating_sub(len);
    }

    /// The first run to be sent again.
    pub(crate) fn first_lost(&self) -> Option<Range> {
        if self.lost == 0 {
            return None;
        }
        let i = self.runs.iter().position(|run| run.fate == Fate::Lost)?;
        Some(Range { start: self.start_of(i), end: self.runs[i].end })
    }

    /// The last `len` bytes that the guest is not known to have: what a tail loss probe sends again.
    pub(crate) fn tail(&self, len: u32) -> Option<Range> {
        let i = self.runs.iter().rposition(|run| run.fate == Fate::Flying)?;
        let (start, end) = (self.start_of(i), self.runs[i].end);
        Some(Range { start: start.max(end - len), end })
    }

    /// `range`, within one run, was sent again.
    pub(crate) fn sent_again(&mut self, range: Range, now: Instant, chunks: usize) {
        let full = self.runs.len() >= Self::most(chunks);
        // Bounded also without a bound here: what follows the first piece of a lost run joins it when the list is full.
        let (Some(from), Some(_)) =
            (self.split(range.start, usize::MAX), self.split(range.end, usize::MAX))
        else {
            return;
        };
        let Some(run) = self.runs.get_mut(from) else { return };
        if run.fate == Fate::Lost {
            self.lost -= range.len();
        }
        *run = Run { at: now, end: range.end, fate: Fate::Flying, again: true, mixed: false };
        if from > 0 {
            let before = self.runs[from - 1];
            if before.fate == Fate::Flying && before.again && (before.at == now || full) {
                self.runs.remove(from - 1);
            }
        }
    }

    /// Records a queue of `chunks` chunks pays for.
    fn most(chunks: usize) -> usize {
        2 * (RUNS_MIN + chunks)
    }

    fn start_of(&self, i: usize) -> Seq {
        if i == 0 { self.una } else { self.runs[i - 1].end }
    }

    /// Makes `at` an edge between runs; the index of the run that begins there. `None`: that needs a record more than
    /// `most`, or nothing is outstanding there.
    fn split(&mut self, at: Seq, most: usize) -> Option<usize> {
        let i = self.runs.partition_point(|run| run.end.le(at));
        if i == self.runs.len() {
            return (at == self.nxt).then_some(i);
        }
        if self.start_of(i) == at {
            return Some(i);
        }
        if self.runs.len() >= most {
            return None;
        }
        self.grow();
        let front = Run { end: at, ..self.runs[i] };
        self.runs.insert(i, front);
        Some(i + 1)
    }

    /// Neighbours of one fate become one where nothing is lost by it.
    fn join(&mut self) {
        let mut kept = 0;
        for i in 1..self.runs.len() {
            let (a, b) = (self.runs[kept], self.runs[i]);
            let same = a.fate == b.fate
                && (a.fate != Fate::Flying || (a.at == b.at && a.again == b.again));
            if same {
                let (again, mixed) = (a.again || b.again, a.mixed || b.mixed);
                self.runs[kept] = Run { again, mixed, ..b };
            } else {
                kept += 1;
                self.runs[kept] = b;
            }
        }
        self.runs.truncate(kept + 1);
    }

    /// Room for one more without doubling what is held.
    fn grow(&mut self) {
        if self.runs.len() == self.runs.capacity() {
            self.runs.reserve_exact(4 + self.runs.len() / 4);
        }
    }

    #[cfg(test)]
    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().copied()
    }
}

#[cfg(test)]
mod tests;
