//! Fragments of both families (RFC 791 section 3.2, RFC 8200 section 4.5) become packets again, within a bound.
//!
//! A datagram's bytes lie in one buffer that is charged, in whole chunks, before it grows; datagrams, the ranges of
//! one and the time it may take are bounded too. A fragment that overlaps another ends the datagram and all that is
//! still to come of it (RFC 5722); one that only repeats what is there already is ignored. When there is no room, the
//! oldest datagram goes: a guest that floods hinders nobody but itself.
//!
//! A mark on any piece is a mark on the whole (RFC 3168 section 5.3); beside a piece that cannot bear one it was made
//! up, and the datagram is dropped.
//!
//! This file holds every charge for fragments (`tests/tidy.rs` checks it).

use std::time::Duration;

use skbudget_controller::{Budget, CHUNK_SIZE, Instant, MemberId};

use crate::counters::Stat;
use crate::ranges;
use crate::segment::{Addrs, CE, NOT_ECT};

/// Datagrams that wait for the rest of them.
const ENTRIES_MAX: usize = 64;
/// All of them together, bytes: Linux' ipfrag_high_thresh. The budget may give less (pressure model M4).
const BYTES_MAX: u64 = 4 << 20;
/// Pieces of one datagram with holes between them.
const RANGES_MAX: usize = 64;
/// Charged for an entry beside its bytes.
const ENTRY_BYTES: u64 = 1024;
const _: () = assert!(
    size_of::<Entry>() + RANGES_MAX * size_of::<(u32, u32)>() + 64 <= ENTRY_BYTES as usize,
    "an entry and its list of ranges must fit what is charged for them"
);
/// The largest payload of a packet, headers apart.
const PAYLOAD_MAX: u32 = 65_535;
/// Linux' ipfrag_time; RFC 8200 section 4.5.
const HOLD_V4: Duration = Duration::from_secs(30);
const HOLD_V6: Duration = Duration::from_secs(60);

const TCP: u8 = 6;

/// What fragments of one datagram have in common. `protocol` is 0 for IPv6, where it does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) addrs: Addrs,
    pub(crate) id: u32,
    pub(crate) protocol: u8,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment<'a> {
    pub(crate) key: Key,
    /// Kind of what the datagram begins with; that of the first fragment counts.
    pub(crate) next: u8,
    /// Bytes, a multiple of eight.
    pub(crate) offset: u32,
    pub(crate) more: bool,
    /// The packet's ECN field.
    pub(crate) ecn: u8,
    pub(crate) payload: &'a [u8],
}

/// A payload that is whole again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) addrs: Addrs,
    pub(crate) next: u8,
    pub(crate) ecn: u8,
    pub(crate) payload: Vec<u8>,
}

/// A datagram given up: what is there of its beginning, which is nothing when the first fragment never came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) key: Key,
    pub(crate) next: u8,
    pub(crate) begin: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// More is needed.
    Held,
    Whole(Datagram),
    Dropped(Stat),
}

#[derive(Debug)]
struct Entry {
    key: Key,
    until: Instant,
    next: u8,
    /// ECN fields: of the first fragment, and a bit for each that occurred.
    ecn: u8,
    ecns: u8,
    total: Option<u32>,
    buffer: Vec<u8>,
    /// What is there: sorted, disjoint, not touching.
    ranges: Vec<(u32, u32)>,
    charged: u64,
    /// Something of it overlapped: whatever comes is dropped until it is forgotten.
    refused: bool,
}

/// A container's incomplete datagrams, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    entries: Vec<Entry>,
    charged: u64,
}

/// The budget, whose it is, and when.
pub(crate) struct Payer<'a> {
    pub(crate) budget: &'a mut Budget,
    pub(crate) member: MemberId,
    pub(crate) now: Instant,
}

impl Reassembly {
    pub(crate) fn on_fragment(
        &mut self,
        fragment: &Fragment<'_>,
        payer: &mut Payer<'_>,
    ) -> Outcome {
        let end = fragment.offset + fragment.payload.len() as u32;
        let odd = fragment.more && !fragment.payload.len().is_multiple_of(8);
        if fragment.payload.is_empty() || end > PAYLOAD_MAX || odd {
            return Outcome::Dropped(Stat::DropFragment);
        }
        if is_tiny(fragment) {
            return Outcome::Dropped(Stat::DropFragmentTiny);
        }
        let known = self.entries.iter().position(|e| e.key == fragment.key);
        let Some(at) = known.or_else(|| self.begin(fragment, payer)) else {
            return Outcome::Dropped(Stat::DropFragmentMemory);
        };
        let entry = &mut self.entries[at];
        if entry.refused {
            return Outcome::Dropped(Stat::DropFragmentOverlap);
        }
        if entry.repeats(fragment, end) {
            return Outcome::Held;
        }
        if entry.overlaps(fragment, end) {
            self.refuse(at, payer);
            return Outcome::Dropped(Stat::DropFragmentOverlap);
        }
        if entry.ranges.len() >= RANGES_MAX && !entry.touches(fragment.offset, end) {
            self.refuse(at, payer);
            return Outcome::Dropped(Stat::DropFragmentTiny);
        }
        let Some(at) = self.make_room(at, end, payer) else {
            return Outcome::Dropped(Stat::DropFragmentMemory);
        };
        let entry = &mut self.entries[at];
        entry.store(fragment, end);
        if entry.total.is_none_or(|total| entry.ranges != [(0, total)]) {
            return Outcome::Held;
        }
        let entry = self.remove(at, payer);
        let Some(ecn) = entry.whole_ecn() else {
            return Outcome::Dropped(Stat::DropFragmentEcn);
        };
        let Entry { key, next, buffer, .. } = entry;
        Outcome::Whole(Datagram { addrs: key.addrs, next, ecn, payload: buffer })
    }

    /// An entry for a datagram not seen before; `None`: no memory for it.
    fn begin(&mut self, fragment: &Fragment<'_>, payer: &mut Payer<'_>) -> Option<usize> {
        if self.entries.len() >= ENTRIES_MAX {
            self.remove(0, payer);
        }
        while !self.charge(ENTRY_BYTES, payer) {
            if self.entries.is_empty() {
                return None;
            }
            self.remove(0, payer);
        }
        let hold = if matches!(fragment.key.addrs, Addrs::V4 { .. }) { HOLD_V4 } else { HOLD_V6 };
        self.entries.push(Entry {
            key: fragment.key,
            until: payer.now + hold,
            next: fragment.next,
            ecn: fragment.ecn,
            ecns: 0,
            total: None,
            buffer: Vec::new(),
            ranges: Vec::new(),
            charged: ENTRY_BYTES,
            refused: false,
        });
        Some(self.entries.len() - 1)
    }

    /// Memory for the bytes up to `end`, from older datagrams if it must be; the entry's place afterwards. `None`:
    /// there is none, and the datagram is gone.
    fn make_room(&mut self, mut at: usize, end: u32, payer: &mut Payer<'_>) -> Option<usize> {
        let need = u64::from(end).next_multiple_of(CHUNK_SIZE);
        let have = self.entries[at].buffer.capacity() as u64;
        if need <= have {
            return Some(at);
        }
        while !self.charge(need - have, payer) {
            if at == 0 {
                self.remove(0, payer);
                return None;
            }
            self.remove(0, payer);
            at -= 1;
        }
        let entry = &mut self.entries[at];
        entry.charged += need - have;
        entry.buffer.reserve_exact(need as usize - entry.buffer.len());
        Some(at)
    }

    fn charge(&mut self, bytes: u64, payer: &mut Payer<'_>) -> bool {
        let fits = self.charged + bytes <= BYTES_MAX
            && payer.budget.charge_udp(payer.member, bytes, payer.now);
        self.charged += if fits { bytes } else { 0 };
        fits
    }

    fn uncharge(&mut self, bytes: u64, payer: &mut Payer<'_>) {
        self.charged -= bytes;
        payer.budget.uncharge_udp(payer.member, bytes, payer.now);
    }

    /// Keeps nothing of the datagram but that it was refused.
    fn refuse(&mut self, at: usize, payer: &mut Payer<'_>) {
        let entry = &mut self.entries[at];
        entry.refused = true;
        (entry.buffer, entry.ranges) = (Vec::new(), Vec::new());
        let held = std::mem::replace(&mut entry.charged, ENTRY_BYTES);
        self.uncharge(held - ENTRY_BYTES, payer);
    }

    fn remove(&mut self, at: usize, payer: &mut Payer<'_>) -> Entry {
        let entry = self.entries.remove(at);
        self.uncharge(entry.charged, payer);
        entry
    }

    /// The next that waited too long goes.
    pub(crate) fn expire(&mut self, payer: &mut Payer<'_>) -> Option<Expired> {
        let at = self.entries.iter().position(|e| e.until <= payer.now)?;
        let Entry { key, next, mut buffer, ranges, .. } = self.remove(at, payer);
        buffer.truncate(ranges.first().filter(|r| r.0 == 0).map_or(0, |r| r.1 as usize));
        Some(Expired { key, next, begin: buffer })
    }

    pub(crate) fn clear(&mut self, payer: &mut Payer<'_>) {
        while !self.entries.is_empty() {
            self.remove(0, payer);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.entries.iter().map(|e| e.until).min()
    }
}

/// RFC 1858, RFC 7112: a header that is cut in two is there to be hidden from somebody.
fn is_tiny(fragment: &Fragment<'_>) -> bool {
    let header = if fragment.next == TCP { 20 } else { 8 };
    if fragment.offset == 0 {
        fragment.payload.len() < header
    } else {
        (fragment.offset as usize) < header
    }
}

impl Entry {
    /// All of it is there, and the same.
    fn repeats(&self, fragment: &Fragment<'_>, end: u32) -> bool {
        let same_end = fragment.more || self.total == Some(end);
        ranges::cover(&self.ranges, fragment.offset, end)
            && same_end
            && self.buffer[fragment.offset as usize..end as usize] == *fragment.payload
    }

    /// Some of it is there, or it is beyond the end, or it ends elsewhere.
    fn overlaps(&self, fragment: &Fragment<'_>, end: u32) -> bool {
        let (start, last) = (fragment.offset, self.ranges.last().map_or(0, |r| r.1));
        let beyond = self.total.is_some_and(|total| end > total || (!fragment.more && end < total));
        let shortens = !fragment.more && last > end;
        beyond || shortens || self.ranges.iter().any(|r| start < r.1 && r.0 < end)
    }

    fn touches(&self, start: u32, end: u32) -> bool {
        self.ranges.iter().any(|r| r.1 == start || r.0 == end)
    }

    /// What the whole says in its ECN field; `None`: what its fragments say contradicts (Linux' ip_frag_ecn_table).
    fn whole_ecn(&self) -> Option<u8> {
        match self.ecns {
            ecns if ecns & 1 << CE == 0 => Some(self.ecn),
            ecns if ecns & 1 << NOT_ECT == 0 => Some(CE),
            _ => None,
        }
    }

    /// The buffer has room for it, and nothing of it is there.
    fn store(&mut self, fragment: &Fragment<'_>, end: u32) {
        let start = fragment.offset;
        if self.buffer.len() < end as usize {
            self.buffer.resize(end as usize, 0);
        }
        self.buffer[start as usize..end as usize].copy_from_slice(fragment.payload);
        if start == 0 {
            (self.next, self.ecn) = (fragment.next, fragment.ecn);
        }
        self.ecns |= 1 << fragment.ecn;
        if !fragment.more {
            self.total = Some(end);
        }
        ranges::insert(&mut self.ranges, start, end);
    }
}

#[cfg(test)]
mod tests;
