//! The event queue of a world.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use skbudget_controller::Instant;

use crate::frame::Frame;

#[derive(Debug)]
/// Content of an event.
pub(crate) enum What {
    ToStack(Frame),
    ToGuest(Frame),
    /// A timer of the stack, the guest or the host (the index into `armed`).
    Timer(usize),
    /// A link that was full has room.
    Room,
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) at: Instant,
    sequence: u64,
    pub(crate) node: usize,
    pub(crate) what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The sequence number makes the order of events at one time deterministic.
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Events in the order of their time; those of one time in the order of creation.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    heap: BinaryHeap<Reverse<Event>>,
    made: u64,
}

impl EventQueue {
    pub(crate) fn add(&mut self, at: Instant, node: usize, what: What) {
        self.made += 1;
        self.heap.push(Reverse(Event { at, sequence: self.made, node, what }));
    }
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(e)| e.at)
    }
    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.heap.pop().map(|Reverse(e)| e)
    }
}
