//! TIME-WAIT: 128 bytes per connection, one second, a bounded table (H2).
//!
//! The link is a device queue on this machine, so no segment is in the network for longer than a second. The entry
//! serves to acknowledge a FIN that the guest retransmits because our ACK was lost.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use skbudget_controller::{Counter, Instant};

use crate::flow::table::Keyed;
use crate::queue::MemberCtx;
use crate::tcp::TimeWaitEntry;
use crate::wire::addresses::Tuple;
use crate::wire::segment::{Flags, Options, Outgoing, Segment};
use crate::wire::seq::Seq;

/// Charge of an entry, bytes: its place in the map and in the queue.
const ENTRY_BYTES: u64 = 128;
const _: () = assert!(
    size_of::<(Tuple, (TimeWaitEntry, Instant))>() + size_of::<(Instant, Tuple)>()
        <= ENTRY_BYTES as usize,
    "an entry must fit what is charged for it"
);
/// Largest number of entries of a container; beyond it the oldest is removed.
const ENTRIES_MAX: usize = 4096;
/// Time that an entry is kept.
const HOLD: Duration = Duration::from_secs(1);

/// What a segment for a TIME-WAIT tuple requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Acknowledge again.
    Ack(Outgoing),
    /// The SYN of a new connection; the entry is removed.
    Fresh,
    /// Drop the segment.
    Nothing,
}

/// TIME-WAIT entries of a container.
#[derive(Debug)]
pub(crate) struct TimeWait {
    entries: HashMap<Tuple, (TimeWaitEntry, Instant), Keyed>,
    /// Oldest first. An entry that was reused stays here until its time, and so does its charge.
    order: VecDeque<(Instant, Tuple)>,
}

impl TimeWait {
    pub(crate) fn new(secret: [u64; 2]) -> Self {
        Self { entries: HashMap::with_hasher(Keyed(secret)), order: VecDeque::new() }
    }

    /// Returns true if an entry was made. If the budget refuses, a retransmitted FIN is answered by RST.
    pub(crate) fn insert(
        &mut self,
        tuple: Tuple,
        entry: TimeWaitEntry,
        mem: &mut MemberCtx<'_>,
    ) -> bool {
        while self.order.len() >= ENTRIES_MAX {
            mem.budget.count(mem.member, Counter::TWRecycled, 1);
            self.pop(mem);
        }
        if !mem.budget.charge_compact(mem.member, ENTRY_BYTES, mem.now) {
            return false;
        }
        let until = mem.now + HOLD;
        self.order.push_back((until, tuple));
        self.entries.insert(tuple, (entry, until));
        true
    }

    /// Removes the oldest entry and uncharges it.
    fn pop(&mut self, mem: &mut MemberCtx<'_>) {
        if let Some((until, tuple)) = self.order.pop_front() {
            mem.budget.uncharge_compact(mem.member, ENTRY_BYTES, mem.now);
            // The tuple may have been reused, and be in TIME-WAIT a second time.
            if self.entries.get(&tuple).is_some_and(|e| e.1 == until) {
                self.entries.remove(&tuple);
            }
        }
    }

    /// Removes the entries that have timed out.
    pub(crate) fn expire(&mut self, mem: &mut MemberCtx<'_>) {
        while self.order.front().is_some_and(|e| e.0 <= mem.now) {
            self.pop(mem);
        }
    }

    /// Removes every entry.
    pub(crate) fn clear(&mut self, mem: &mut MemberCtx<'_>) {
        while !self.order.is_empty() {
            self.pop(mem);
        }
    }

    /// When the oldest entry times out.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.order.front().map(|e| e.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// RFC 9293 section 3.10.7.4 for TIME-WAIT, RFC 6191 for reuse, RFC 1337 for resets (ignored). `None`: no entry.
    pub(crate) fn on_segment(
        &mut self,
        tuple: &Tuple,
        seg: &Segment<'_>,
        now: Instant,
    ) -> Option<Verdict> {
        let (entry, _) = *self.entries.get(tuple)?;
        if seg.flags.rst {
            return Some(Verdict::Nothing);
        }
        // RFC 6191: a newer timestamp or sequence number shows a new connection, not an old duplicate.
        if seg.flags.syn && !seg.flags.ack {
            let newer_ts = match (entry.ts, seg.options.ts) {
                (Some((_, recent)), Some((tsval, _))) => Seq(tsval).gt(Seq(recent)),
                _ => false,
            };
            if newer_ts || seg.seq.gt(entry.rcv_nxt) {
                self.entries.remove(tuple);
                return Some(Verdict::Fresh);
            }
        }
        // Answering a bare ACK with an ACK could go on for ever.
        if !seg.flags.fin && !seg.flags.syn && seg.payload.is_empty() {
            return Some(Verdict::Nothing);
        }
        let ms = (now.0 / 1_000_000) as u32;
        let ts = entry.ts.map(|(offset, recent)| (ms.wrapping_add(offset), recent));
        Some(Verdict::Ack(Outgoing {
            seq: entry.snd_nxt,
            ack: entry.rcv_nxt,
            flags: Flags::ACK,
            wnd: entry.wnd,
            options: Options { ts, ..Options::default() },
            mss: 0,
            ect: false,
        }))
    }
}
