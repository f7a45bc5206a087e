//! The SYN queue: every new SYN waits here for a turn, and without room until memory returns (B1, H1).
//!
//! A turn admits only a few, because connect(2) is slow beside reading a frame and the device queue must not overflow
//! meanwhile. A SYN that was dropped instead would be retransmitted after one second, then two, then four: a
//! millisecond without memory would cost the guest a second. A queued SYN is answered in the turn in which its
//! reservation fits. The whole queue is charged when the container starts, so that a place in it does not depend on the
//! memory that is missing.

use std::collections::VecDeque;
use std::time::Duration;

use skbudget_controller::{Counter, Instant};

use crate::queue::MemberCtx;
use crate::sizes::{SYN_BACKLOG_BYTES, SYN_BACKLOG_MAX};
use crate::tcp::ecn;
use crate::wire::addresses::Tuple;
use crate::wire::segment::{Flags, Options, Segment};
use crate::wire::seq::Seq;

const _: () = assert!(
    (size_of::<QueuedSyn>() * SYN_BACKLOG_MAX) as u64 <= SYN_BACKLOG_BYTES,
    "the list must fit what is charged for it"
);
/// A guest's kernel retransmits its SYN after 1, 2, 4, 8 and 16 s. An entry that was not renewed for longer is dropped.
const HOLD: Duration = Duration::from_secs(20);

/// A queued SYN: all that the handshake needs of it later.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueuedSyn {
    pub(crate) id: u32,
    pub(crate) tuple: Tuple,
    pub(crate) seq: Seq,
    pub(crate) wnd: u16,
    options: SynOptions,
    at: Instant,
    /// The budget refused it once and has it on its list of waiters.
    pub(crate) waits: bool,
}

/// The options of a SYN in 8 bytes. `bits` marks the fields that were present.
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
/// Not an option: the SYN requests ECN (RFC 3168 section 6.1.1).
const ECN: u8 = 16;

impl SynOptions {
    /// Packs the options; the echoed timestamp of a SYN is meaningless and not kept.
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

    /// The options as they were parsed, apart from SACK blocks, which a SYN cannot have.
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

impl QueuedSyn {
    /// Restores the SYN; its payload is not kept, the guest retransmits it.
    pub(crate) fn segment(&self) -> Segment<'static> {
        let asks = self.options.bits & ECN != 0;
        Segment {
            seq: self.seq,
            ack: Seq(0),
            // An ECN-setup SYN has both flags (RFC 3168 section 6.1.1).
            flags: Flags { ece: asks, cwr: asks, ..Flags::SYN },
            wnd: self.wnd,
            options: self.options.unpack(),
            ecn: 0,
            payload: &[],
        }
    }
}

/// Result of queueing a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// Queued under this id; a turn will admit it.
    Queued(u32),
    /// A retransmission of a queued SYN, which it renews.
    Renewed,
    /// The queue is full: dropped, and the guest retransmits.
    Denied,
}

/// The queue, in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct SynBacklog {
    charged: bool,
    list: VecDeque<QueuedSyn>,
    waiting: usize,
    next_id: u32,
}

impl SynBacklog {
    /// Charges the whole queue unless it is charged already.
    pub(crate) fn charge(&mut self, mem: &mut MemberCtx<'_>) {
        if !self.charged {
            self.charged = mem.budget.charge_compact(mem.member, SYN_BACKLOG_BYTES, mem.now);
        }
    }

    /// Uncharges the whole queue, when the container ends.
    pub(crate) fn uncharge(&mut self, mem: &mut MemberCtx<'_>) {
        if std::mem::take(&mut self.charged) {
            mem.budget.uncharge_compact(mem.member, SYN_BACKLOG_BYTES, mem.now);
        }
    }

    /// Queues a SYN, or renews its entry.
    pub(crate) fn push(
        &mut self,
        tuple: Tuple,
        syn: &Segment<'_>,
        mem: &mut MemberCtx<'_>,
    ) -> Pushed {
        if let Some(entry) = self.list.iter_mut().find(|e| e.tuple == tuple) {
            // A guest may retry with another ISN, window or options; the latest ones count.
            (entry.seq, entry.wnd, entry.at) = (syn.seq, syn.wnd, mem.now);
            entry.options = SynOptions::pack(syn);
            return Pushed::Renewed;
        }
        // Memory that the budget refused is not used.
        self.charge(mem);
        // The old entries stay: a flood of SYNs must not displace connections that wait longer.
        if self.list.len() >= SYN_BACKLOG_MAX || !self.charged {
            mem.budget.count(mem.member, Counter::AdmissionDenied, 1);
            return Pushed::Denied;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.list.push_back(QueuedSyn {
            id,
            tuple,
            seq: syn.seq,
            wnd: syn.wnd,
            options: SynOptions::pack(syn),
            at: mem.now,
            waits: false,
        });
        Pushed::Queued(id)
    }

    /// Marks an entry as waiting for memory. Returns true the first time.
    pub(crate) fn set_waiting(&mut self, id: u32) -> bool {
        let Some(entry) = self.list.iter_mut().find(|e| e.id == id) else { return false };
        let first = !std::mem::replace(&mut entry.waits, true);
        self.waiting += usize::from(first);
        first
    }

    /// Number of entries that were refused and wait for memory.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn get(&self, id: u32) -> Option<QueuedSyn> {
        self.list.iter().find(|e| e.id == id).copied()
    }

    /// Removes the entry.
    pub(crate) fn remove(&mut self, id: u32) {
        let Some(at) = self.list.iter().position(|e| e.id == id) else { return };
        if let Some(entry) = self.list.remove(at) {
            self.waiting -= usize::from(entry.waits);
        }
    }

    /// Finds the entry of a tuple, which a RST of the guest cancels.
    pub(crate) fn find(&self, tuple: &Tuple) -> Option<u32> {
        self.list.iter().find(|e| e.tuple == *tuple).map(|e| e.id)
    }

    /// An entry that was not renewed in time, if there is one.
    pub(crate) fn expired(&self, now: Instant) -> Option<u32> {
        self.list.iter().find(|e| e.at + HOLD <= now).map(|e| e.id)
    }

    /// When the next entry expires. A renewal moves entries out of order, so all are compared.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.list.iter().map(|e| e.at + HOLD).min()
    }

    /// The oldest entry.
    pub(crate) fn first(&self) -> Option<u32> {
        self.list.front().map(|e| e.id)
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }
}
