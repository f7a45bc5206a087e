//! Events and counters: what happened, for logs, metrics and `/v1/events`.

use alloc::collections::VecDeque;

use crate::ledger::MemberId;
use crate::units::Instant;

/// What happened, for logs and `/v1/events`. Bounded queue; overflow is counted, never grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The budget's soft flag was set.
    PressureEnter {
        /// When.
        at: Instant,
    },
    /// The flag was cleared.
    PressureLeave {
        /// When.
        at: Instant,
        /// How long it was set, milliseconds rounded down.
        after_ms: u64,
    },
    /// The stack counted a flow that got no room (`Counter::AdmissionDenied`).
    AdmissionDenied {
        /// Whose.
        member: MemberId,
        /// When.
        at: Instant,
    },
    /// A hard counter refused, and the charge before it had passed: one event an episode.
    HardRefused {
        /// When.
        at: Instant,
    },
}

/// Counters by the kernel's names where it has them. Incremented by the stack through
/// `Budget::count`, or by the budget itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// The soft flag was set (by the budget).
    TCPMemoryPressures,
    /// Milliseconds in the flag (by the budget, when it is cleared).
    TCPMemoryPressuresChrono,
    /// A receive queue was asked to shrink.
    PruneCalled,
    /// Shrinking did not help: a segment was dropped.
    RcvPruned,
    /// Out-of-order data was dropped.
    OfoPruned,
    /// A buffer was freed by merging.
    TCPRcvCollapsed,
    /// In-order data dropped for want of budget.
    TCPRcvQDrop,
    /// Out-of-order data queued.
    TCPOFOQueue,
    /// Out-of-order data dropped for want of budget.
    TCPOFODrop,
    /// Data arrived while the window was zero.
    TCPZeroWindowDrop,
    /// The window left zero.
    TCPFromZeroWindowAdv,
    /// The window became zero.
    TCPToZeroWindowAdv,
    /// The window wanted to be zero.
    TCPWantZeroWindowAdv,
    /// A SYN waits for room.
    AdmissionDelayed,
    /// A SYN was dropped for want of room.
    AdmissionDenied,
    /// Credit of an idle flow was given back.
    CreditDemoted,
    /// Data of such a flow did not fit when it came.
    DemotedTrim,
    /// A host socket was asked (SO_MEMINFO) and held more than is charged for it.
    HostMemExcess,
    /// The oldest TIME-WAIT entry made room for a new one.
    TWRecycled,
    /// Events lost to a full queue (by the budget).
    EventsLost,
}

/// How many counters there are.
pub(crate) const COUNTERS: usize = Counter::EventsLost as usize + 1;

/// Events kept until polled.
const EVENTS_MAX: usize = 256;

/// First in, first out, bounded.
#[derive(Debug)]
pub(crate) struct EventQueue(VecDeque<Event>);

impl EventQueue {
    pub(crate) fn new() -> Self {
        Self(VecDeque::new())
    }

    /// False when the queue is full and the event is lost.
    pub(crate) fn push(&mut self, event: Event) -> bool {
        let fits = self.0.len() < EVENTS_MAX;
        if fits {
            self.0.push_back(event);
        }
        fits
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.0.pop_front()
    }
}
