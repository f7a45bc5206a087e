//! Events and counters for logs, metrics and `/v1/events`.

use alloc::collections::VecDeque;

use crate::ledger::MemberId;
use crate::units::Instant;

/// An event of a budget. The queue is bounded; an event that finds it full is lost and counted.
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
        /// The container of the flow.
        member: MemberId,
        /// When.
        at: Instant,
    },
    /// A hard counter refused, and the charge before it had passed: one event per episode.
    HardRefused {
        /// When.
        at: Instant,
    },
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counters, by the kernel's names where it has them. The stack increments them through
        /// `Budget::count`, the budget itself those marked "by the budget".
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[$doc])* $name,)+
        }

        impl Counter {
            /// Every counter, in the order of the values in `MemberStats::counters`.
            pub const ALL: [Self; COUNTERS] = [$(Self::$name,)+];

            /// The name under which the counter is exported.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }

        /// Number of counters.
        pub(crate) const COUNTERS: usize = [$(Counter::$name,)+].len();
    };
}

counters! {
    /// The soft flag was set (by the budget).
    TCPMemoryPressures,
    /// Milliseconds in the flag (by the budget, when it is cleared).
    TCPMemoryPressuresChrono,
    /// The stack tried to shrink a receive queue.
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
    /// Credit of an idle flow was released.
    CreditDemoted,
    /// Data of a demoted flow did not fit when it arrived.
    DemotedTrim,
    /// A host socket held more (SO_MEMINFO) than is charged for it.
    HostMemExcess,
    /// The oldest TIME-WAIT entry was dropped for a new one.
    TWRecycled,
    /// Events lost because the queue was full (by the budget).
    EventsLost,
}

/// Events kept until polled; later ones are lost.
const EVENTS_MAX: usize = 256;

/// A bounded first-in, first-out queue of events.
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
