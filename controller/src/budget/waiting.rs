//! Flows and SYNs that were refused wait for room, and are woken oldest first (B9, H8).

use super::{Budget, Rules};
use crate::ledger::MemberId;
use crate::units::Instant;
use crate::wait::Waiter;

/// Bound of speculative wake-ups in one turn.
const SPECULATIVE_WAKES_MAX: u32 = 16;

impl Budget {
    /// Registers a refused flow or SYN under `key`, a value of the stack's. Waiters are woken
    /// oldest first; a key waits once. `need` is what it waits for, bytes (one chunk, or a whole
    /// reservation). Also marks the shared levels. Call it right after the refusal, before anything
    /// is released. Linux rules: no effect (there, no socket is reopened when another one frees
    /// memory).
    pub fn wait(&mut self, key: u64, need: u64) {
        self.wait_for(key, need, false);
    }

    /// As [`Self::wait`], for the reservation of a new flow.
    pub fn wait_for_admission(&mut self, key: u64, need: u64) {
        self.wait_for(key, need, true);
    }

    fn wait_for(&mut self, key: u64, need: u64, admission: bool) {
        if self.rules == Rules::Linux {
            return;
        }
        // `ripe` compares this room with `need`: was the refusal for want of room?
        let room = self.room_of(admission);
        self.waiters.push(Waiter { key, need, admission, room, releases: self.refused_at });
        if let Some(level) = &self.chain.leaf {
            level.mark_waiting();
        }
    }

    /// Sets the bytes that the member's flows waiting for admission are going to reserve, all
    /// together. Flows do not grow beyond their reserve into this room (H1), up to half of the room
    /// that reservations leave. Linux rules: no effect.
    pub fn hold_for_admission(&mut self, member: MemberId, bytes: u64) {
        if self.rules == Rules::Linux {
            return;
        }
        let Some(Some(found)) = self.members.get_mut(usize::from(member.0)) else { return };
        let before = core::mem::replace(&mut found.hold, bytes);
        self.meter.hold = self.meter.hold - before + bytes;
        if bytes < before {
            // A flow that was refused because of the larger hold may try again.
            self.releases += 1;
        }
    }

    /// Removes the waiter `key`, if there is one.
    pub fn forget(&mut self, key: u64) {
        self.waiters.remove(key);
    }

    /// Number of waiters.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// The oldest waiter, removed from the list, if its need fits now. The stack calls this until
    /// `None` after each turn.
    ///
    /// A waiter that lacked room is woken when the room exists. A waiter that was refused although
    /// there was room (its share, the half-open bound) is woken when something was released since,
    /// at most 16 of them in a turn: so the loop ends, and a turn under pressure does
    /// not visit every waiter.
    pub fn poll_wake(&mut self, now: Instant) -> Option<u64> {
        self.at(now);
        let key = self.ripe().or_else(|| {
            // Register, then test once more (H8): a release by another worker between the first
            // test and the mark is not lost.
            self.waiters.head()?;
            self.chain.leaf.as_ref()?.mark_waiting();
            self.ripe()
        });
        match key {
            Some(key) => {
                self.waiters.remove(key);
            }
            None => self.speculative_wakes = 0,
        }
        key
    }

    fn ripe(&mut self) -> Option<u64> {
        let head = *self.waiters.head()?;
        let room = self.room_of(head.admission);
        // Oldest first: younger waiters do not overtake the head, even when their need would fit.
        if room < head.need {
            return None;
        }
        // It lacked room when it was refused, and now it fits.
        if head.room < head.need {
            return Some(head.key);
        }
        // It had room when it was refused: retry only after a release, or if the room grew.
        let due = head.releases != self.releases || room > head.room;
        if due && self.speculative_wakes < SPECULATIVE_WAKES_MAX {
            self.speculative_wakes += 1;
            return Some(head.key);
        }
        None
    }

    fn room_of(&self, admission: bool) -> u64 {
        if admission { self.admission_room() } else { self.headroom() }
    }
}
