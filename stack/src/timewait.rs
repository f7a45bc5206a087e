//! TIME-WAIT: 128 bytes a connection, one second, a bounded table (pressure model H2).
//!
//! The link is a device queue on this machine: a segment that is a second late was never on it. What the entry is
//! for is a FIN said again because our ACK of it was lost.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use skbudget_controller::{Budget, Counter, Instant, MemberId};

use crate::demux::Keyed;
use crate::segment::{Flags, Options, Outgoing, Segment, Tuple};
use crate::seq::Seq;

/// Bytes charged for an entry: its place in the table and in the queue.
const ENTRY_BYTES: u64 = 128;
const _: () = assert!(
    size_of::<(Tuple, (Entry, Instant))>() + size_of::<(Instant, Tuple)>() <= ENTRY_BYTES as usize,
    "an entry must fit what is charged for it"
);
const ENTRIES_MAX: usize = 4096;
const HOLD: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) snd_nxt: Seq,
    pub(crate) rcv_nxt: Seq,
    pub(crate) wnd: u16,
    /// Our timestamp's offset and the guest's last value.
    pub(crate) ts: Option<(u32, u32)>,
}

/// What a segment for a TIME-WAIT tuple means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Say again where we stand.
    Ack(Outgoing),
    /// A new connection begins: the entry is gone.
    Fresh,
    Nothing,
}

#[derive(Debug)]
pub(crate) struct TimeWait {
    entries: HashMap<Tuple, (Entry, Instant), Keyed>,
    order: VecDeque<(Instant, Tuple)>,
}

impl TimeWait {
    pub(crate) fn new(secret: [u64; 2]) -> Self {
        Self { entries: HashMap::with_hasher(Keyed(secret)), order: VecDeque::new() }
    }

    /// True when an entry was made. Without room there is none: the guest's repeated FIN is answered by RST then.
    pub(crate) fn insert(
        &mut self,
        tuple: Tuple,
        entry: Entry,
        budget: &mut Budget,
        member: MemberId,
        now: Instant,
    ) -> bool {
        while self.order.len() >= ENTRIES_MAX {
            budget.count(member, Counter::TWRecycled, 1);
            self.pop(budget, member, now);
        }
        if !budget.charge_compact(member, ENTRY_BYTES, now) {
            return false;
        }
        let until = now + HOLD;
        self.order.push_back((until, tuple));
        self.entries.insert(tuple, (entry, until));
        true
    }

    fn pop(&mut self, budget: &mut Budget, member: MemberId, now: Instant) {
        if let Some((until, tuple)) = self.order.pop_front() {
            budget.uncharge_compact(member, ENTRY_BYTES, now);
            // The tuple may have begun anew and be in its second wait.
            if self.entries.get(&tuple).is_some_and(|e| e.1 == until) {
                self.entries.remove(&tuple);
            }
        }
    }

    pub(crate) fn expire(&mut self, budget: &mut Budget, member: MemberId, now: Instant) {
        while self.order.front().is_some_and(|e| e.0 <= now) {
            self.pop(budget, member, now);
        }
    }

    pub(crate) fn clear(&mut self, budget: &mut Budget, member: MemberId, now: Instant) {
        while !self.order.is_empty() {
            self.pop(budget, member, now);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.order.front().map(|e| e.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// RFC 9293 section 3.10.7.4 for TIME-WAIT, RFC 6191 for reuse, RFC 1337 for resets (ignored).
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
