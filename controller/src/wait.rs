//! The flows that wait for room, oldest first.
//!
//! A slab of entries in a doubly linked list, and an open-addressing index from key to entry. Every
//! operation is O(1) amortised, memory follows the largest number of waiters so far, and the hash
//! has no random seed, so that the same operations give the same order.

use alloc::vec::Vec;

/// One waiting flow or SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// The stack's key of the waiter.
    pub(crate) key: u64,
    /// Bytes it waits for.
    pub(crate) need: u64,
    /// It waits for the reservation of a new flow.
    pub(crate) admission: bool,
    /// Room when it was refused, bytes.
    pub(crate) room: u64,
    /// The budget's count of releases when it was refused.
    pub(crate) releases: u64,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    waiter: Waiter,
    prev: u32,
    next: u32,
}

/// End of the list, or an empty slot of the index.
const NONE: u32 = u32::MAX;

/// The list of waiters.
#[derive(Debug)]
pub(crate) struct WaitList {
    nodes: Vec<Node>,
    /// Head of the unused nodes, linked by `next`.
    spare: u32,
    head: u32,
    tail: u32,
    len: usize,
    /// Node numbers by hash of key, with linear probing; the length is a power of two, at most half
    /// full.
    index: Vec<u32>,
}

impl WaitList {
    pub(crate) const fn new() -> Self {
        Self { nodes: Vec::new(), spare: NONE, head: NONE, tail: NONE, len: 0, index: Vec::new() }
    }

    pub(crate) fn head(&self) -> Option<&Waiter> {
        self.nodes.get(self.head as usize).map(|node| &node.waiter)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends a waiter. A key that waits already keeps its place and takes the new need, room and
    /// count.
    pub(crate) fn push(&mut self, waiter: Waiter) {
        if let Some(slot) = self.find(waiter.key) {
            self.nodes[self.index[slot] as usize].waiter = waiter;
            return;
        }
        // At most half full, so that probes stay short.
        if self.index.len() < 2 * (self.len + 1) {
            self.grow();
        }
        let node = Node { waiter, prev: self.tail, next: NONE };
        let at = if self.spare == NONE {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        } else {
            let at = self.spare;
            self.spare = self.nodes[at as usize].next;
            self.nodes[at as usize] = node;
            at
        };
        match self.tail {
            NONE => self.head = at,
            tail => self.nodes[tail as usize].next = at,
        }
        self.tail = at;
        self.len += 1;
        let slot = self.free_slot(waiter.key);
        self.index[slot] = at;
    }

    /// Removes `key`; returns whether it was there.
    pub(crate) fn remove(&mut self, key: u64) -> bool {
        let Some(slot) = self.find(key) else { return false };
        let at = self.index[slot];
        // Before the node is unlinked: the index reads the keys of the nodes.
        self.vacate(slot);
        let Node { prev, next, .. } = self.nodes[at as usize];
        match prev {
            NONE => self.head = next,
            prev => self.nodes[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => self.nodes[next as usize].prev = prev,
        }
        self.nodes[at as usize].next = self.spare;
        self.spare = at;
        self.len -= 1;
        true
    }

    // ---- the index ----

    /// Fibonacci hashing: the high bits of the product are well mixed, for sequential keys too.
    fn home(&self, key: u64) -> usize {
        let bits = self.index.len().trailing_zeros();
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as usize
    }

    fn find(&self, key: u64) -> Option<usize> {
        if self.index.is_empty() {
            return None;
        }
        let mask = self.index.len() - 1;
        let mut slot = self.home(key);
        while self.index[slot] != NONE {
            if self.nodes[self.index[slot] as usize].waiter.key == key {
                return Some(slot);
            }
            slot = (slot + 1) & mask;
        }
        None
    }

    fn free_slot(&self, key: u64) -> usize {
        let mask = self.index.len() - 1;
        let mut slot = self.home(key);
        while self.index[slot] != NONE {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Empties `slot` and moves later entries of its run back, so that no probe ends early.
    fn vacate(&mut self, slot: usize) {
        let mask = self.index.len() - 1;
        let mut hole = slot;
        let mut next = (hole + 1) & mask;
        while self.index[next] != NONE {
            let home = self.home(self.nodes[self.index[next] as usize].waiter.key);
            // An entry may move into the hole unless that is before its home slot.
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.index[hole] = self.index[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.index[hole] = NONE;
    }

    fn grow(&mut self) {
        let len = (2 * self.index.len()).max(16);
        self.index.clear();
        self.index.resize(len, NONE);
        // Only waiting entries are indexed; spare nodes are not.
        let mut at = self.head;
        while at != NONE {
            let Node { waiter, next, .. } = self.nodes[at as usize];
            let slot = self.free_slot(waiter.key);
            self.index[slot] = at;
            at = next;
        }
    }
}
