//! Reassembles fragments of both families (RFC 791 section 3.2, RFC 8200 section 4.5), within a bound.
//!
//! One buffer holds the bytes of a datagram; it is charged in whole chunks before it grows. The number of datagrams,
//! the ranges of each and its time are bounded, too. A fragment that overlaps another ends the datagram, and all its
//! later fragments are dropped (RFC 5722); an exact repetition is ignored. When memory is refused, the oldest datagram
//! is dropped, so a guest that floods harms only itself.
//!
//! The datagram is marked if any fragment is (RFC 3168 section 5.3). A mark next to a Not-ECT fragment is invalid, and
//! the datagram is dropped.
//!
//! This file holds every charge for fragments (`tests/tidy.rs` checks it).

use std::time::Duration;

use skbudget_controller::{CHUNK_SIZE, Instant};

use crate::counters::Stat;
use crate::queue::{MemberCtx, ranges};
use crate::wire::addresses::Addrs;
use crate::wire::segment::{CE, NOT_ECT};

/// Largest number of incomplete datagrams.
const ENTRIES_MAX: usize = 64;
/// Largest charge of all of them, bytes (Linux `ipfrag_high_thresh`). The budget may grant less (M4).
const BYTES_MAX: u64 = 4 << 20;
/// Largest number of ranges of one datagram, with holes between them.
const RANGES_MAX: usize = 64;
/// Charge of an entry without its data, bytes.
const ENTRY_BYTES: u64 = 1024;
const _: () = assert!(
    size_of::<Entry>() + RANGES_MAX * size_of::<(u32, u32)>() + 64 <= ENTRY_BYTES as usize,
    "an entry and its list of ranges must fit what is charged for them"
);
/// The largest payload of a packet without headers, bytes.
const PAYLOAD_MAX: u32 = 65_535;
/// Time to reassemble: Linux `ipfrag_time`, and RFC 8200 section 4.5.
const HOLD_V4: Duration = Duration::from_secs(30);
const HOLD_V6: Duration = Duration::from_secs(60);

/// Protocol number of TCP.
const TCP: u8 = 6;

/// Identifies the datagram that a fragment belongs to. `protocol` is 0 for IPv6, where it is not part of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) addrs: Addrs,
    pub(crate) id: u32,
    pub(crate) protocol: u8,
}

/// One fragment from the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment<'a> {
    pub(crate) key: Key,
    /// Protocol of the datagram's payload; that of the first fragment counts.
    pub(crate) next: u8,
    /// Offset of `payload` in the datagram, bytes, a multiple of eight.
    pub(crate) offset: u32,
    /// More fragments follow.
    pub(crate) more: bool,
    /// ECN field of the packet.
    pub(crate) ecn: u8,
    pub(crate) payload: &'a [u8],
}

/// A reassembled payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) addrs: Addrs,
    pub(crate) next: u8,
    pub(crate) ecn: u8,
    pub(crate) payload: Vec<u8>,
}

/// A datagram that timed out, with its bytes up to the first hole: none if the first fragment did not arrive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) key: Key,
    pub(crate) next: u8,
    pub(crate) begin: Vec<u8>,
}

/// Result of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Stored, or a repetition; more fragments are needed.
    Held,
    /// The datagram is complete.
    Whole(Datagram),
    /// The fragment was dropped, counted by this counter.
    Dropped(Stat),
}

/// An incomplete datagram.
#[derive(Debug)]
struct Entry {
    key: Key,
    /// When it times out.
    until: Instant,
    next: u8,
    /// ECN field of the first fragment, and a bit for each value that occurred.
    ecn: u8,
    ecns: u8,
    /// Length of the datagram, once its last fragment arrived.
    total: Option<u32>,
    buffer: Vec<u8>,
    /// Stored ranges: sorted, disjoint, not touching.
    ranges: Vec<(u32, u32)>,
    /// Charge of this entry, bytes.
    charged: u64,
    /// A fragment overlapped: further ones are dropped until the entry times out.
    refused: bool,
}

/// Incomplete datagrams of a container, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    entries: Vec<Entry>,
    charged: u64,
}

impl Reassembly {
    /// Takes one fragment; returns the datagram if this completes it.
    pub(crate) fn on_fragment(
        &mut self,
        fragment: &Fragment<'_>,
        mem: &mut MemberCtx<'_>,
    ) -> Outcome {
        let end = fragment.offset + fragment.payload.len() as u32;
        // RFC 791: every fragment but the last has a multiple of eight bytes.
        let odd = fragment.more && !fragment.payload.len().is_multiple_of(8);
        if fragment.payload.is_empty() || end > PAYLOAD_MAX || odd {
            return Outcome::Dropped(Stat::DropFragment);
        }
        if is_tiny(fragment) {
            return Outcome::Dropped(Stat::DropFragmentTiny);
        }
        let known = self.entries.iter().position(|e| e.key == fragment.key);
        let Some(at) = known.or_else(|| self.begin(fragment, mem)) else {
            return Outcome::Dropped(Stat::DropFragmentMemory);
        };
        let entry = &mut self.entries[at];
        if entry.refused {
            return Outcome::Dropped(Stat::DropFragmentOverlap);
        }
        // Before the overlap check: a network may duplicate packets, and that is no attack.
        if entry.repeats(fragment, end) {
            return Outcome::Held;
        }
        if entry.overlaps(fragment, end) {
            self.refuse(at, mem);
            return Outcome::Dropped(Stat::DropFragmentOverlap);
        }
        // Many ranges are many tiny fragments: the datagram is refused as if they overlapped.
        if entry.ranges.len() >= RANGES_MAX && !entry.touches(fragment.offset, end) {
            self.refuse(at, mem);
            return Outcome::Dropped(Stat::DropFragmentTiny);
        }
        // May remove older entries, so the index changes.
        let Some(at) = self.make_room(at, end, mem) else {
            return Outcome::Dropped(Stat::DropFragmentMemory);
        };
        let entry = &mut self.entries[at];
        entry.store(fragment, end);
        // Complete: the length is known, and one range covers it.
        if entry.total.is_none_or(|total| entry.ranges != [(0, total)]) {
            return Outcome::Held;
        }
        // Uncharged here: the caller delivers the buffer in this turn.
        let entry = self.remove(at, mem);
        let Some(ecn) = entry.whole_ecn() else {
            return Outcome::Dropped(Stat::DropFragmentEcn);
        };
        let Entry { key, next, buffer, .. } = entry;
        Outcome::Whole(Datagram { addrs: key.addrs, next, ecn, payload: buffer })
    }

    /// Creates the entry of a new datagram; returns its index. `None`: no memory.
    fn begin(&mut self, fragment: &Fragment<'_>, mem: &mut MemberCtx<'_>) -> Option<usize> {
        if self.entries.len() >= ENTRIES_MAX {
            self.remove(0, mem);
        }
        while !self.charge(ENTRY_BYTES, mem) {
            if self.entries.is_empty() {
                return None;
            }
            self.remove(0, mem);
        }
        let hold = if matches!(fragment.key.addrs, Addrs::V4 { .. }) { HOLD_V4 } else { HOLD_V6 };
        self.entries.push(Entry {
            key: fragment.key,
            until: mem.now + hold,
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

    /// Charges the bytes up to `end`, dropping older datagrams if necessary; returns the index of the entry afterwards.
    /// `None`: no memory, and the datagram is dropped.
    fn make_room(&mut self, mut at: usize, end: u32, mem: &mut MemberCtx<'_>) -> Option<usize> {
        let need = u64::from(end).next_multiple_of(CHUNK_SIZE);
        let have = self.entries[at].buffer.capacity() as u64;
        if need <= have {
            return Some(at);
        }
        while !self.charge(need - have, mem) {
            // The entry itself is the oldest now: nothing older remains to be dropped.
            if at == 0 {
                self.remove(0, mem);
                return None;
            }
            self.remove(0, mem);
            at -= 1;
        }
        let entry = &mut self.entries[at];
        entry.charged += need - have;
        entry.buffer.reserve_exact(need as usize - entry.buffer.len());
        Some(at)
    }

    /// Charges `bytes` to the container; false if its share or the budget refuses.
    fn charge(&mut self, bytes: u64, mem: &mut MemberCtx<'_>) -> bool {
        let fits =
            self.charged + bytes <= BYTES_MAX && mem.budget.charge_frag(mem.member, bytes, mem.now);
        self.charged += if fits { bytes } else { 0 };
        fits
    }

    /// Uncharges `bytes`.
    fn uncharge(&mut self, bytes: u64, mem: &mut MemberCtx<'_>) {
        self.charged -= bytes;
        mem.budget.uncharge_frag(mem.member, bytes, mem.now);
    }

    /// Frees the data of a datagram but keeps the entry, so that later fragments are dropped.
    fn refuse(&mut self, at: usize, mem: &mut MemberCtx<'_>) {
        let entry = &mut self.entries[at];
        entry.refused = true;
        (entry.buffer, entry.ranges) = (Vec::new(), Vec::new());
        let held = std::mem::replace(&mut entry.charged, ENTRY_BYTES);
        self.uncharge(held - ENTRY_BYTES, mem);
    }

    /// Removes an entry and uncharges it.
    fn remove(&mut self, at: usize, mem: &mut MemberCtx<'_>) -> Entry {
        let entry = self.entries.remove(at);
        self.uncharge(entry.charged, mem);
        entry
    }

    /// Removes one datagram that timed out; `None` when there is no further one.
    pub(crate) fn expire(&mut self, mem: &mut MemberCtx<'_>) -> Option<Expired> {
        let at = self.entries.iter().position(|e| e.until <= mem.now)?;
        let Entry { key, next, mut buffer, ranges, .. } = self.remove(at, mem);
        // The part up to the first hole, for the ICMP error that quotes it.
        buffer.truncate(ranges.first().filter(|r| r.0 == 0).map_or(0, |r| r.1 as usize));
        Some(Expired { key, next, begin: buffer })
    }

    /// Removes and uncharges every datagram.
    pub(crate) fn clear(&mut self, mem: &mut MemberCtx<'_>) {
        while !self.entries.is_empty() {
            self.remove(0, mem);
        }
    }

    /// When the next datagram times out.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.entries.iter().map(|e| e.until).min()
    }
}

/// RFC 1858, RFC 7112: a header cut in two serves only to evade a filter.
fn is_tiny(fragment: &Fragment<'_>) -> bool {
    // The part of the header with ports and flags: TCP's fixed header, 8 bytes of UDP or ICMP.
    let header = if fragment.next == TCP { 20 } else { 8 };
    if fragment.offset == 0 {
        fragment.payload.len() < header
    } else {
        (fragment.offset as usize) < header
    }
}

impl Entry {
    /// The fragment repeats stored bytes exactly.
    fn repeats(&self, fragment: &Fragment<'_>, end: u32) -> bool {
        let same_end = fragment.more || self.total == Some(end);
        ranges::cover(&self.ranges, fragment.offset, end)
            && same_end
            && self.buffer[fragment.offset as usize..end as usize] == *fragment.payload
    }

    /// The fragment overlaps stored bytes, exceeds the known end, or contradicts it.
    fn overlaps(&self, fragment: &Fragment<'_>, end: u32) -> bool {
        let (start, last) = (fragment.offset, self.ranges.last().map_or(0, |r| r.1));
        let beyond = self.total.is_some_and(|total| end > total || (!fragment.more && end < total));
        let shortens = !fragment.more && last > end;
        beyond || shortens || self.ranges.iter().any(|r| start < r.1 && r.0 < end)
    }

    /// The fragment extends a stored range.
    fn touches(&self, start: u32, end: u32) -> bool {
        self.ranges.iter().any(|r| r.1 == start || r.0 == end)
    }

    /// ECN field of the whole; `None` if the fragments contradict each other (Linux `ip_frag_ecn_table`).
    fn whole_ecn(&self) -> Option<u8> {
        match self.ecns {
            // No CE: the first fragment's field. CE with ECT: marked. CE with Not-ECT: invalid.
            ecns if ecns & 1 << CE == 0 => Some(self.ecn),
            ecns if ecns & 1 << NOT_ECT == 0 => Some(CE),
            _ => None,
        }
    }

    /// Copies the fragment into the buffer; room was charged, and none of its bytes is stored.
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
