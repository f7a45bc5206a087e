//! The flows that the next turns serve, and those that wait for the device.
//!
//! Each list holds an index at most once, even after its flow has ended, so neither is longer than the flow table.

use std::collections::VecDeque;

use skbudget_controller::Instant;

/// Table indices of flows, by the reason for which they wait.
#[derive(Debug, Default)]
pub(super) struct ReadyList {
    /// Dirty flows: a turn serves them, first marked first.
    dirty: VecDeque<u32>,
    /// Flows with a frame that the device refused, or without the guest's hardware address.
    blocked: Vec<u32>,
    /// When all blocked flows are marked as dirty again.
    blocked_until: Option<Instant>,
    /// By table index: the lists that hold it.
    listed: Vec<Listed>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Listed {
    dirty: bool,
    blocked: bool,
}

impl ReadyList {
    /// Marks a flow as dirty.
    pub(super) fn mark(&mut self, index: u32) {
        if !std::mem::replace(&mut self.listed(index).dirty, true) {
            self.dirty.push_back(index);
        }
    }

    /// Removes the flow that was marked first.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let index = self.dirty.pop_front()?;
        self.listed(index).dirty = false;
        Some(index)
    }

    /// Number of dirty flows.
    pub(super) fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// Adds a flow to the blocked ones. All of them are due at `until` or earlier.
    pub(super) fn block(&mut self, index: u32, until: Instant) {
        if !std::mem::replace(&mut self.listed(index).blocked, true) {
            self.blocked.push(index);
        }
        self.blocked_until = Some(self.blocked_until.map_or(until, |t| t.min(until)));
    }

    /// Marks all blocked flows as dirty: the device may have room now, or the guest's hardware address is known.
    pub(super) fn unblock(&mut self) {
        self.blocked_until = None;
        for index in std::mem::take(&mut self.blocked) {
            self.listed(index).blocked = false;
            self.mark(index);
        }
    }

    /// When `unblock` is due.
    pub(super) fn blocked_until(&self) -> Option<Instant> {
        self.blocked_until
    }

    /// Entries of both lists.
    pub(super) fn len(&self) -> usize {
        self.dirty.len() + self.blocked.len()
    }

    fn listed(&mut self, index: u32) -> &mut Listed {
        let index = index as usize;
        if index >= self.listed.len() {
            self.listed.resize(index + 1, Listed::default());
        }
        &mut self.listed[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_listed_once_and_served_in_order() {
        let mut ready = ReadyList::default();
        for index in [3, 0, 3, 7, 0] {
            ready.mark(index);
        }
        assert_eq!(ready.dirty(), 3);
        assert_eq!(ready.pop(), Some(3));
        ready.mark(3);
        assert_eq!(
            [ready.pop(), ready.pop(), ready.pop(), ready.pop()],
            [Some(0), Some(7), Some(3), None]
        );
    }

    #[test]
    fn blocked_flows_return_together_at_the_earliest_time() {
        let mut ready = ReadyList::default();
        ready.block(1, Instant::from_millis(5));
        ready.block(2, Instant::from_millis(3));
        ready.block(1, Instant::from_millis(9));
        ready.mark(2);
        assert_eq!((ready.blocked_until(), ready.len()), (Some(Instant::from_millis(3)), 3));
        ready.unblock();
        assert_eq!((ready.blocked_until(), ready.len()), (None, 2));
        assert_eq!([ready.pop(), ready.pop()], [Some(2), Some(1)]);
    }
}
