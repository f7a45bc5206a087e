//! SYNs on their way in: every one stands here until a turn takes it, those without room until room returns
//! (pressure model B1, H1).
//!
//! A turn takes a few: connect(2) is slow beside reading a frame, and the device queue must not overflow meanwhile.
//! A SYN dropped instead would be said again after one second, then two, then four: a millisecond without memory
//! would cost the guest a second. A parked SYN is answered in the turn in which its reservation fits. The list is
//! charged whole when the container begins: a place on it must not depend on the memory that is missing.

use std::collections::VecDeque;
use std::time::Duration;

use skbudget_controller::{Budget, Counter, Instant, MemberId};

use crate::segment::{Flags, Options, Segment, Tuple};
use crate::seq::Seq;
use crate::tcp::ecn;

const ENTRIES_MAX: usize = 512;
/// Charged for the list, bytes.
pub(crate) const LIST_BYTES: u64 = 64 * ENTRIES_MAX as u64;
const _: () = assert!(
    (size_of::<ParkedSyn>() * ENTRIES_MAX) as u64 <= LIST_BYTES,
    "the list must fit what is charged for it"
);
/// A guest's kernel says its SYN again after 1, 2, 4, 8 and 16 s; one that was not renewed for longer is not wanted.
const HOLD: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
pub(crate) struct ParkedSyn {
    pub(crate) id: u32,
    pub(crate) tuple: Tuple,
    pub(crate) seq: Seq,
    pub(crate) wnd: u16,
    options: SynOptions,
    at: Instant,
    /// Registered with the budget: it was refused once.
    pub(crate) waits: bool,
}

/// What of a SYN's options counts, small: the bits say which of the numbers were there.
#[derive(Debug, Clone, Copy)]
struct SynOptions {
    tsval: u32,
    mss: u16,
    wscale: u8,
    bits: u8,
}

const TS: u8 = 1;
const MSS: u8 = 2;
const WSCALE: u8 = 4;
const SACK: u8 = 8;
/// Not an option: the SYN asks for ECN.
const ECN: u8 = 16;

impl SynOptions {
    fn pack(syn: &Segment<'_>) -> Self {
        let options = &syn.options;
        let bit = |there: bool, bit: u8| if there { bit } else { 0 };
        Self {
            tsval: options.ts.map_or(0, |(tsval, _)| tsval),
            mss: options.mss.unwrap_or(0),
            wscale: options.wscale.unwrap_or(0),
            bits: bit(options.ts.is_some(), TS)
                | bit(options.mss.is_some(), MSS)
                | bit(options.wscale.is_some(), WSCALE)
                | bit(options.sack_permitted, SACK)
                | bit(ecn::asks(syn), ECN),
        }
    }

    fn unpack(self) -> Options {
        let has = |bit: u8| self.bits & bit != 0;
        Options {
            ts: has(TS).then_some((self.tsval, 0)),
            mss: has(MSS).then_some(self.mss),
            wscale: has(WSCALE).then_some(self.wscale),
            sack_permitted: has(SACK),
            ..Options::default()
        }
    }
}

impl ParkedSyn {
    pub(crate) fn segment(&self) -> Segment<'static> {
        let asks = self.options.bits & ECN != 0;
        Segment {
            seq: self.seq,
            ack: Seq(0),
            flags: Flags { ece: asks, cwr: asks, ..Flags::SYN },
            wnd: self.wnd,
            options: self.options.unpack(),
            ecn: 0,
            payload: &[],
        }
    }
}

/// What became of a SYN without room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parking {
    /// On the list: to be admitted in a turn.
    Parked(u32),
    /// It waits already; renewed.
    Renewed,
    /// The list is full: dropped, the guest says it again.
    Denied,
}

#[derive(Debug, Default)]
pub(crate) struct Parked {
    charged: bool,
    list: VecDeque<ParkedSyn>,
    waiting: usize,
    next_id: u32,
}

impl Parked {
    /// Charges the whole list, if that was not done: a place on it must not depend on the memory that is missing.
    pub(crate) fn charge(&mut self, budget: &mut Budget, member: MemberId, now: Instant) {
        if !self.charged {
            self.charged = budget.charge_compact(member, LIST_BYTES, now);
        }
    }

    pub(crate) fn uncharge(&mut self, budget: &mut Budget, member: MemberId, now: Instant) {
        if std::mem::take(&mut self.charged) {
            budget.uncharge_compact(member, LIST_BYTES, now);
        }
    }

    pub(crate) fn park(
        &mut self,
        tuple: Tuple,
        syn: &Segment<'_>,
        budget: &mut Budget,
        member: MemberId,
        now: Instant,
    ) -> Parking {
        if let Some(entry) = self.list.iter_mut().find(|e| e.tuple == tuple) {
            (entry.seq, entry.wnd, entry.at) = (syn.seq, syn.wnd, now);
            entry.options = SynOptions::pack(syn);
            return Parking::Renewed;
        }
        if self.list.len() >= ENTRIES_MAX {
            budget.count(member, Counter::AdmissionDenied, 1);
            return Parking::Denied;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.list.push_back(ParkedSyn {
            id,
            tuple,
            seq: syn.seq,
            wnd: syn.wnd,
            options: SynOptions::pack(syn),
            at: now,
            waits: false,
        });
        Parking::Parked(id)
    }

    /// Counts an entry among those that wait for memory. True the first time.
    pub(crate) fn set_waiting(&mut self, id: u32) -> bool {
        let Some(entry) = self.list.iter_mut().find(|e| e.id == id) else { return false };
        let first = !std::mem::replace(&mut entry.waits, true);
        self.waiting += usize::from(first);
        first
    }

    /// Entries that were refused and wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn get(&self, id: u32) -> Option<ParkedSyn> {
        self.list.iter().find(|e| e.id == id).copied()
    }

    /// Takes the entry off the list.
    pub(crate) fn take(&mut self, id: u32) {
        let Some(at) = self.list.iter().position(|e| e.id == id) else { return };
        if let Some(entry) = self.list.remove(at) {
            self.waiting -= usize::from(entry.waits);
        }
    }

    /// The guest gave up on a tuple (RST).
    pub(crate) fn find(&self, tuple: &Tuple) -> Option<u32> {
        self.list.iter().find(|e| e.tuple == *tuple).map(|e| e.id)
    }

    /// The first entry that was not renewed in time.
    pub(crate) fn expired(&self, now: Instant) -> Option<u32> {
        self.list.iter().find(|e| e.at + HOLD <= now).map(|e| e.id)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.list.iter().map(|e| e.at + HOLD).min()
    }

    pub(crate) fn first(&self) -> Option<u32> {
        self.list.front().map(|e| e.id)
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }
}
