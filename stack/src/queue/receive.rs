//! Receive queue: chunk slots at fixed stream positions, from the first unread byte to the advertised edge.
//!
//! ```text
//!   slot 0        slot 1        slot 2        slot 3                      span slots, all charged
//! ├─────────────┼─────────────┼─────────────┼─────────────┤
//!      head│ in order │rcv.nxt        ofo ▓▓▓            edge ≤ span * 4032
//! ```
//!
//! The stream position of a byte determines its slot, so the place of a byte is known when the window that permits it
//! is advertised, and in-order and out-of-order data are stored alike. Under the strict rules a slot is charged when
//! the edge moves over it (B8): data inside the window is never refused, and a hole costs nothing extra. Under the
//! linux rules a slot is charged when data fills it, and the charge may be refused.
//!
//! Positions are 64-bit offsets of the stream (0 is the first byte after SYN), so they never wrap. This file holds
//! every receive-side charge (`tests/tidy.rs` checks it).

use std::collections::VecDeque;
use std::io::IoSlice;

use skbudget_controller::sizing::prune_ofo;
use skbudget_controller::{CHUNK_SIZE, Ledger, RxKind};

use crate::queue::chunk::{Chunk, ChunkPool, PAYLOAD};
use crate::queue::{MemCtx, free_front, ranges};

/// Out-of-order ranges that a flow may hold; a further range is dropped (M2).
const RANGES_MAX: usize = 64;

/// Outcome of storing a segment's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stored {
    /// Bytes by which the in-order edge (RCV.NXT) advanced.
    pub(crate) advanced: u64,
    /// Bytes were stored beyond a hole.
    pub(crate) out_of_order: bool,
    /// Bytes for which memory was refused.
    pub(crate) refused: u32,
}

/// Received data of one flow.
#[derive(Debug, Default)]
pub(crate) struct RxQueue {
    /// Chunks by stream position; `None`: no byte of this slot arrived.
    slots: VecDeque<Option<Chunk>>,
    /// Offset of the first unread byte in slot 0, below PAYLOAD.
    head: usize,
    /// In-order unread bytes.
    len: usize,
    /// Slots charged (strict) or permitted (linux); `slots.len() <= span`.
    span: usize,
    /// Stream position of the next in-order byte.
    nxt: u64,
    /// Out-of-order ranges [start, end), sorted, disjoint, beyond `nxt`.
    ranges: Vec<(u64, u64)>,
    /// Start of the range that changed last: the first SACK block (RFC 2018 section 4).
    latest: u64,
}

impl RxQueue {
    /// Stream position of the next in-order byte.
    pub(crate) fn nxt(&self) -> u64 {
        self.nxt
    }

    /// In-order bytes that wait for the host.
    pub(crate) fn unread(&self) -> u64 {
        self.len as u64
    }

    /// No in-order byte waits for the host.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Data beyond a hole is stored.
    pub(crate) fn has_holes(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// All bytes of [`start`, `end`) are stored beyond a hole.
    pub(crate) fn has(&self, start: u64, end: u64) -> bool {
        ranges::cover(&self.ranges, start, end)
    }

    /// Bytes beyond `nxt` that the charged slots can hold.
    pub(crate) fn room(&self) -> u64 {
        (self.span * PAYLOAD - self.head - self.len) as u64
    }

    /// Bytes beyond `nxt` that the first `slots` slots can hold, counted from the first unread byte.
    pub(crate) fn room_within(&self, slots: usize) -> u64 {
        (slots * PAYLOAD).saturating_sub(self.head + self.len) as u64
    }

    /// Out-of-order ranges for SACK: the latest first, then ascending.
    pub(crate) fn sack_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let latest = self.latest;
        let is_latest = move |r: &&(u64, u64)| r.0 <= latest && latest < r.1;
        self.ranges
            .iter()
            .filter(is_latest)
            .chain(self.ranges.iter().filter(move |r| !is_latest(r)))
            .copied()
    }

    /// Charges slots so that `window` bytes beyond `nxt` have one, as far as the budget grants. Returns the bytes
    /// beyond `nxt` that have one.
    pub(crate) fn open(&mut self, window: u64, mem: &mut MemCtx<'_>) -> u64 {
        let want = (self.head + self.len + window as usize).div_ceil(PAYLOAD);
        if want > self.span {
            let more = u32::try_from(want - self.span).unwrap_or(u32::MAX);
            self.span += mem.budget.rx_open(mem.ledger, more, mem.now) as usize;
        }
        self.room()
    }

    /// Returns credit that neither holds data nor is needed for `keep` bytes beyond `nxt`. Returns the number of slots
    /// uncharged.
    pub(crate) fn close_to(&mut self, keep: u64, mem: &mut MemCtx<'_>) -> u32 {
        let need = (self.head + self.len + keep as usize).div_ceil(PAYLOAD).max(self.slots.len());
        let spare = self.span.saturating_sub(need);
        if spare == 0 {
            return 0;
        }
        let spare = u32::try_from(spare).unwrap_or(u32::MAX);
        self.span -= spare as usize;
        mem.budget.rx_close(mem.ledger, spare, mem.now)
    }

    /// Stores `data`; its first byte is `offset` bytes beyond `nxt`, and `offset + data.len()` is within the window.
    pub(crate) fn store(&mut self, offset: u64, data: &[u8], mem: &mut MemCtx<'_>) -> Stored {
        let mut stored = Stored::default();
        let start = self.nxt + offset;
        let want = data.len().min(self.room().saturating_sub(offset) as usize);
        // Checked before memory is charged: the list of ranges is bounded, too (M2).
        if offset > 0 && !self.range_fits(start, start + want as u64) {
            return Stored { refused: data.len() as u32, ..stored };
        }
        let taken = self.fill(offset as usize, &data[..want], mem);
        stored.refused = (data.len() - taken) as u32;
        if taken == 0 {
            return stored;
        }
        // A prefix may be stored even if the budget refuses the remaining bytes.
        let end = start + taken as u64;
        if offset > 0 {
            ranges::insert(&mut self.ranges, start, end);
            self.latest = start;
            stored.out_of_order = true;
            return stored;
        }
        stored.advanced = self.advance_to(end, mem);
        stored
    }

    /// Copies `data` into the slots from `offset` bytes beyond `nxt`, charging slots that were empty. Returns the bytes
    /// copied, which are a prefix of `data`.
    fn fill(&mut self, offset: usize, data: &[u8], mem: &mut MemCtx<'_>) -> usize {
        let kind = if offset == 0 { RxKind::InOrder } else { RxKind::Ofo };
        let mut at = self.head + self.len + offset;
        let mut taken = 0;
        while taken < data.len() {
            let (slot, from) = (at / PAYLOAD, at % PAYLOAD);
            // Slots of a hole stay empty until data arrives for them.
            while self.slots.len() <= slot {
                self.slots.push_back(None);
            }
            if self.slots[slot].is_none() {
                // Strict rules: the slot is charged already and changes its category only, so this is not refused.
                if mem.budget.rx_fill(mem.ledger, 1, kind, mem.now) == 0 {
                    break;
                }
                self.slots[slot] = Some(mem.pool.take());
            }
            let n = (PAYLOAD - from).min(data.len() - taken);
            if let Some(chunk) = &mut self.slots[slot] {
                chunk.bytes_mut()[from..from + n].copy_from_slice(&data[taken..taken + n]);
            }
            at += n;
            taken += n;
        }
        taken
    }

    /// Advances `nxt` to `end`, or to the end of stored ranges that touch it. Slots that become in-order change their
    /// category. Returns the bytes by which `nxt` advanced.
    fn advance_to(&mut self, end: u64, mem: &mut MemCtx<'_>) -> u64 {
        let old_nxt = self.nxt;
        let mut end = end;
        let merged = self.ranges.iter().take_while(|r| r.0 <= end).count();
        for r in self.ranges.drain(..merged) {
            end = end.max(r.1);
        }
        self.len += (end - self.nxt) as usize;
        self.nxt = end;
        if mem.ledger.ofo() > 0 {
            let settled = self.settled_slots(mem.ledger);
            mem.budget.rx_settle(mem.ledger, settled);
        }
        end - old_nxt
    }

    /// Slots that the ledger counts as out-of-order but that the in-order edge has reached: all that it counts, less
    /// those beyond the slot of the edge.
    fn settled_slots(&self, ledger: &Ledger) -> u32 {
        let beyond = self.slots.iter().skip(self.edge_slot()).flatten().count() as u64;
        let counted = ledger.ofo() / CHUNK_SIZE;
        u32::try_from(counted.saturating_sub(beyond)).unwrap_or(u32::MAX)
    }

    /// The list has room for [`start`, `end`), or a stored range takes it in.
    fn range_fits(&self, start: u64, end: u64) -> bool {
        self.ranges.len() < RANGES_MAX || self.ranges.iter().any(|r| start <= r.1 && r.0 <= end)
    }

    /// The in-order bytes, oldest first, as at most `parts_max` slices.
    pub(crate) fn readable(&self, parts_max: usize) -> impl Iterator<Item = IoSlice<'_>> {
        let (head, end) = (self.head, self.head + self.len);
        self.slots.iter().enumerate().take(parts_max).map_while(move |(i, slot)| {
            let (from, to) = ((i * PAYLOAD).max(head), ((i + 1) * PAYLOAD).min(end));
            if from >= to {
                return None;
            }
            slot.as_ref().map(|c| IoSlice::new(&c.bytes()[from - i * PAYLOAD..to - i * PAYLOAD]))
        })
    }

    /// The host took the first `n` in-order bytes: frees and uncharges the slots they filled.
    pub(crate) fn consume(&mut self, n: usize, mem: &mut MemCtx<'_>) {
        assert!(n <= self.len, "the host cannot take more than there is");
        self.head += n;
        self.len -= n;
        let freed = free_front(&mut self.slots, &mut self.head, mem.pool);
        self.span -= freed as usize;
        if freed > 0 {
            mem.budget.rx_free(mem.ledger, freed, mem.now);
        }
        if self.len == 0 && self.ranges.is_empty() {
            self.rebase(mem);
        }
    }

    /// As [`Self::consume`], but a queue that is empty afterwards keeps its place in the slot: the next byte has the
    /// same offset in its chunk here and in the queue that the data is passed to.
    pub(crate) fn consume_in_place(&mut self, n: usize, mem: &mut MemCtx<'_>) {
        assert!(n <= self.len, "no more is consumed than there is");
        self.head += n;
        self.len -= n;
        let freed = free_front(&mut self.slots, &mut self.head, mem.pool);
        self.span -= freed as usize;
        if freed > 0 {
            mem.budget.rx_free(mem.ledger, freed, mem.now);
        }
    }

    /// Offset of the first unread byte in its slot.
    pub(crate) fn head(&self) -> usize {
        self.head
    }

    /// Slots at the front that in-order bytes fill to their end.
    pub(crate) fn full_slots(&self) -> usize {
        (self.head + self.len) / PAYLOAD
    }

    /// The in-order bytes of the first slot.
    pub(crate) fn first_part(&self) -> Option<&[u8]> {
        let end = (self.head + self.len).min(PAYLOAD);
        self.slots.front()?.as_ref().map(|chunk| &chunk.bytes()[self.head..end])
    }

    /// Removes the first slot, which is full. Its charge was moved to another flow already (B11).
    pub(crate) fn take_full(&mut self) -> Option<Chunk> {
        debug_assert!(self.full_slots() > 0, "the slot is full");
        let chunk = self.slots.pop_front().flatten()?;
        self.len -= PAYLOAD - self.head;
        self.head = 0;
        self.span -= 1;
        Some(chunk)
    }

    /// An empty queue that kept its place starts a slot again: a window within the reserve needs the whole slot.
    pub(crate) fn rebase_if_empty(&mut self, mem: &mut MemCtx<'_>) {
        if self.len == 0 && self.ranges.is_empty() && self.head > 0 {
            self.rebase(mem);
        }
    }

    /// The queue is empty: frees its last chunk, so that the next byte starts a slot. The slots that the window needs
    /// stay charged; after the rebase it needs as many or fewer, never more.
    fn rebase(&mut self, mem: &mut MemCtx<'_>) {
        while let Some(slot) = self.slots.pop_front() {
            if let Some(chunk) = slot {
                mem.pool.give(chunk);
                mem.budget.rx_drain(mem.ledger, 1, mem.now);
            }
        }
        self.head = 0;
    }

    /// Drops all data beyond a hole. Nothing is lost: the guest keeps SACKed bytes until they are acknowledged.
    pub(crate) fn drop_ofo(&mut self, mem: &mut MemCtx<'_>) {
        self.ranges.clear();
        self.drop_slots(usize::MAX, self.edge_slot(), mem);
    }

    /// Linux rules: drops out-of-order data as `tcp_prune_ofo_queue` (L7), from the highest slot down, but not the slot
    /// of the byte that arrived `offset` bytes beyond `nxt` or one before it. Returns false if nothing was dropped.
    pub(crate) fn prune_ofo(&mut self, offset: u64, pressure: bool, mem: &mut MemCtx<'_>) -> bool {
        let arrival_slot = (self.head + self.len + offset as usize) / PAYLOAD;
        let first = self.edge_slot().max(arrival_slot + 1);
        let beyond = self.slots.iter().skip(first).flatten().count();
        let sizes = std::iter::repeat_n(CHUNK_SIZE as u32, beyond);
        let count = prune_ofo(sizes, mem.ledger.rx_bytes(), mem.ledger.rcvbuf(), pressure);
        if count == 0 {
            return false;
        }
        self.drop_slots(count, first, mem);
        // Stream position at which the last slot that stays ends.
        let end = self.nxt + (self.slots.len() * PAYLOAD - self.head - self.len) as u64;
        ranges::truncate(&mut self.ranges, end);
        true
    }

    /// The first slot without in-order bytes. The slot before it may hold both kinds.
    fn edge_slot(&self) -> usize {
        (self.head + self.len).div_ceil(PAYLOAD)
    }

    /// Frees and uncharges the last chunks, at most `count` of them and none before slot `first`.
    fn drop_slots(&mut self, count: usize, first: usize, mem: &mut MemCtx<'_>) {
        let mut dropped = 0;
        while (dropped as usize) < count && self.slots.len() > first {
            if let Some(chunk) = self.slots.pop_back().flatten() {
                mem.pool.give(chunk);
                dropped += 1;
            }
        }
        mem.budget.rx_prune(mem.ledger, dropped, mem.now);
    }

    /// The flow ends: returns every chunk to the pool; the owner of the ledger releases the charge.
    pub(crate) fn clear(&mut self, pool: &mut ChunkPool) {
        for chunk in self.slots.drain(..).flatten() {
            pool.give(chunk);
        }
        *self = Self { nxt: self.nxt, ..Self::default() };
    }
}

#[cfg(test)]
mod tests;
