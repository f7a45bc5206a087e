//! Scoreboard of the sender: the state of all outstanding data (RFC 2018 section 5, RFC 6675 section 4, RFC 8985
//! section 5.1).
//!
//! ```text
//!        una                                            nxt
//!         │ lost │ sacked │ flying (t1) │ sacked │ flying (t2)│
//! ```
//!
//! One record covers a run of bytes that left at the same instant and share a state, not one segment: a super-frame is
//! one run, and so is the burst of frames of a turn. SACK blocks split runs at their edges. Each ACK removes runs from
//! the front of the list, so an ACK in order costs time only for the runs it covers.
//!
//! The charge of the send queue bounds the list: 16 bytes per record and two records per chunk fit into the 64 bytes by
//! which a chunk's charge exceeds its payload; a few more are part of the flow object. At the bound a new run is merged
//! into the last one, which then gives no RTT sample: its age is too low, and a round trip that is too short would make
//! the next ones appear to be a growing queue. At the bound a SACK block that would split a run is ignored: SACK is
//! advisory (RFC 2018 section 8), and the guest repeats the block.

use std::collections::VecDeque;

use skbudget_controller::Instant;

use crate::wire::seq::Seq;

/// Records of a flow beyond those that the charge of its chunks covers.
const RUNS_MIN: usize = 8;

/// State of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegState {
    /// In flight, as far as this side knows.
    Flying,
    /// SACKed: the guest holds it beyond a hole.
    Sacked,
    /// Lost: to be retransmitted.
    Lost,
}

/// Bytes from the end of the run before up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// When it was last sent.
    pub(crate) at: Instant,
    pub(crate) end: Seq,
    pub(crate) state: SegState,
    /// Retransmitted: its round trip is ambiguous (Karn's algorithm).
    pub(crate) again: bool,
    /// Part of it left before `at`: its round trip is longer than the difference.
    pub(crate) mixed: bool,
}

const _: () = assert!(size_of::<Run>() == 16, "what the head of this file reckons with");

/// Runs between SND.UNA and SND.NXT.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    /// Ascending, without gaps: the first starts at `una`, the last ends at `nxt`.
    runs: VecDeque<Run>,
    una: Seq,
    nxt: Seq,
    /// SACKed bytes; without SACK, the bytes that duplicate ACKs represent.
    sacked: u32,
    /// Bytes to be retransmitted.
    lost: u32,
}

/// A range of sequence numbers, `end` excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: Seq,
    pub(crate) end: Seq,
}

impl Range {
    /// Length in bytes; 0 if `end` is before `start`.
    pub(crate) fn len(self) -> u32 {
        self.end.diff(self.start).max(0).cast_unsigned()
    }
}

impl Scoreboard {
    /// Nothing is outstanding.
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

    /// Sequence space sent but not acknowledged (RFC 5681's FlightSize).
    pub(crate) fn outstanding(&self) -> u32 {
        self.nxt.diff(self.una).max(0).cast_unsigned()
    }

    /// Bytes in flight, as far as this side knows (RFC 6675's pipe).
    pub(crate) fn pipe(&self) -> u32 {
        self.outstanding().saturating_sub(self.sacked).saturating_sub(self.lost)
    }

    /// Bytes that the guest holds beyond holes.
    pub(crate) fn sacked(&self) -> u32 {
        self.sacked
    }

    /// No byte is SACKed or lost, and the last run was sent only once.
    pub(crate) fn in_order(&self) -> bool {
        self.sacked == 0 && self.lost == 0 && self.runs.back().is_none_or(|run| !run.again)
    }

    /// `len` numbers of sequence space were sent at SND.NXT, from a queue of `chunks` chunks.
    pub(crate) fn sent(&mut self, len: u32, now: Instant, chunks: usize) {
        self.nxt = self.nxt + len;
        let full = self.runs.len() >= RUNS_MIN + chunks;
        if let Some(last) = self.runs.back_mut()
            && last.state == SegState::Flying
            && !last.again
            && (last.at == now || full)
        {
            // Extends the last run: sent at the same instant, or the list is at its bound.
            last.end = self.nxt;
            last.mixed |= last.at != now;
            last.at = now;
            return;
        }
        self.grow();
        let (end, state) = (self.nxt, SegState::Flying);
        self.runs.push_back(Run { at: now, end, state, again: false, mixed: false });
    }

    /// SEG.ACK advanced to `ack`. Calls `arrived` for each run not known to have arrived; returns the bytes of these
    /// runs.
    pub(crate) fn acked(&mut self, ack: Seq, mut arrived: impl FnMut(Run)) -> u32 {
        let mut bytes = 0;
        // The last run may be covered in part: it keeps its record, and its start moves with `una`.
        while let Some(run) = self.runs.front().copied()
            && self.una.lt(ack)
        {
            let whole = run.end.le(ack);
            let end = if whole { run.end } else { ack };
            let len = end.diff(self.una).cast_unsigned();
            match run.state {
                SegState::Flying => {}
                SegState::Sacked => self.sacked -= len,
                SegState::Lost => self.lost -= len,
            }
            // The caller was informed of SACKed runs when they were SACKed.
            if run.state != SegState::Sacked {
                bytes += len;
                arrived(Run { end, ..run });
            }
            self.una = end;
            if whole {
                self.runs.pop_front();
            }
        }
        // SEG.ACK =< SND.NXT was checked; without runs (an idle flow) both follow it.
        self.una = self.una.max(ack);
        self.nxt = self.nxt.max(ack);
        // An idle flow must not keep the memory of its largest window.
        if self.runs.is_empty() && self.runs.capacity() > RUNS_MIN {
            self.runs.shrink_to(RUNS_MIN);
        }
        bytes
    }

    /// The guest SACKs `range`. Calls `arrived` for each run not known to have arrived; returns the bytes of these
    /// runs.
    pub(crate) fn sack(
        &mut self,
        range: Range,
        chunks: usize,
        mut arrived: impl FnMut(Run),
    ) -> u32 {
        // Clamped to what is outstanding: the guest chooses the numbers.
        let start = self.una.max(range.start);
        let end = if range.end.gt(self.nxt) { self.nxt } else { range.end };
        if start.ge(end) {
            return 0;
        }
        // The edges of the block become edges of runs. At the bound of the list the block is ignored.
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
            if run.state != SegState::Sacked {
                // A lost run arrived after all: it needs no retransmission.
                if run.state == SegState::Lost {
                    self.lost -= len;
                }
                arrived(*run);
                run.state = SegState::Sacked;
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

    /// Marks each flying run lost for which `lost` returns true; returns their bytes.
    pub(crate) fn mark_lost(&mut self, mut lost: impl FnMut(Run) -> bool) -> u32 {
        let mut bytes = 0;
        let mut start = self.una;
        for run in &mut self.runs {
            if run.state == SegState::Flying && lost(*run) {
                run.state = SegState::Lost;
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

    /// The first `len` outstanding bytes are lost, unless they were retransmitted already (RFC 6582). Returns the bytes
    /// newly marked.
    pub(crate) fn mark_head_lost(&mut self, len: u32, chunks: usize) -> u32 {
        let end = self.una + len.min(self.outstanding());
        let sent_once =
            self.runs.front().is_some_and(|run| run.state == SegState::Flying && !run.again);
        if !sent_once || self.split(end, Self::most(chunks)).is_none() {
            return 0;
        }
        self.mark_lost(|run| run.end.le(end))
    }

    /// Undo: runs marked lost count as in flight again.
    pub(crate) fn unmark_all_lost(&mut self) {
        for run in &mut self.runs {
            if run.state == SegState::Lost {
                run.state = SegState::Flying;
            }
        }
        self.lost = 0;
    }

    /// The guest reneged on its SACKs (RFC 2018 section 8): SACKed runs count as in flight again.
    pub(crate) fn forget_sacks(&mut self) {
        for run in &mut self.runs {
            if run.state == SegState::Sacked {
                run.state = SegState::Flying;
            }
        }
        self.sacked = 0;
    }

    /// The guest SACKed the run at SND.UNA but does not acknowledge it: it reneged.
    pub(crate) fn head_is_sacked(&self) -> bool {
        self.runs.front().is_some_and(|run| run.state == SegState::Sacked)
    }

    /// Without SACK: a duplicate ACK shows that a segment of `len` bytes left the network.
    pub(crate) fn add_dup_ack(&mut self, len: u32) {
        // RFC 5681: never more than is outstanding, or a guest could inflate the window with duplicate ACKs.
        let most = self.outstanding().saturating_sub(self.lost).saturating_sub(len);
        self.sacked = (self.sacked + len).min(most);
    }

    /// Without SACK: `len` more bytes are acknowledged, among them those that duplicate ACKs represented.
    pub(crate) fn sub_dup_acks(&mut self, len: u32) {
        self.sacked = self.sacked.saturating_sub(len);
    }

    /// First lost run.
    pub(crate) fn first_lost(&self) -> Option<Range> {
        if self.lost == 0 {
            return None;
        }
        let i = self.runs.iter().position(|run| run.state == SegState::Lost)?;
        Some(Range { start: self.start_of(i), end: self.runs[i].end })
    }

    /// The last `len` bytes in flight: what a tail loss probe retransmits.
    pub(crate) fn tail(&self, len: u32) -> Option<Range> {
        let i = self.runs.iter().rposition(|run| run.state == SegState::Flying)?;
        let (start, end) = (self.start_of(i), self.runs[i].end);
        Some(Range { start: start.max(end - len), end })
    }

    /// `range`, within one run, was retransmitted.
    pub(crate) fn retransmitted(&mut self, range: Range, now: Instant, chunks: usize) {
        let full = self.runs.len() >= Self::most(chunks);
        // Not refused at the bound: the retransmission has left. The list stays bounded, because at the bound the piece
        // is merged into the retransmitted run before it (below).
        let (Some(from), Some(_)) =
            (self.split(range.start, usize::MAX), self.split(range.end, usize::MAX))
        else {
            return;
        };
        let Some(run) = self.runs.get_mut(from) else { return };
        if run.state == SegState::Lost {
            self.lost -= range.len();
        }
        *run = Run { at: now, end: range.end, state: SegState::Flying, again: true, mixed: false };
        // A lost run is retransmitted in pieces: consecutive pieces become one run again.
        if from > 0 {
            let before = self.runs[from - 1];
            if before.state == SegState::Flying && before.again && (before.at == now || full) {
                self.runs.remove(from - 1);
            }
        }
    }

    /// Records that the charge of `chunks` chunks covers.
    fn most(chunks: usize) -> usize {
        2 * (RUNS_MIN + chunks)
    }

    /// Sequence number of the first byte of run `i`.
    fn start_of(&self, i: usize) -> Seq {
        if i == 0 { self.una } else { self.runs[i - 1].end }
    }

    /// Makes `at` an edge between runs; returns the index of the run that starts there. `None`: the list holds `most`
    /// records already, or nothing is outstanding at `at`.
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

    /// Merges neighbours with the same state, if no time that matters is lost.
    fn join(&mut self) {
        let mut kept = 0;
        for i in 1..self.runs.len() {
            let (a, b) = (self.runs[kept], self.runs[i]);
            // The send time matters only in flight: a lost or SACKed run gives no more RTT samples.
            let same = a.state == b.state
                && (a.state != SegState::Flying || (a.at == b.at && a.again == b.again));
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

    /// Reserves room for one more record by a quarter instead of doubling, since the capacity is memory that is
    /// charged.
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
