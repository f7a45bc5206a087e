//! From a tuple to a flow: a keyed hash table over a slab. The key is secret, so a guest cannot aim at one bucket;
//! the table is never iterated, so its order cannot leak into behaviour.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use crate::flow::Flow;
use crate::io::FlowId;
use crate::segment::Tuple;

/// Hashes with a secret: multiply and fold, seeded per container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keyed(pub(crate) [u64; 2]);

#[derive(Debug)]
pub(crate) struct KeyedHasher {
    state: u64,
    key: u64,
}

impl BuildHasher for Keyed {
    type Hasher = KeyedHasher;
    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { state: self.0[0], key: self.0[1] | 1 }
    }
}

impl KeyedHasher {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.key ^ 0x9e37_79b9_7f4a_7c15);
        self.state = (product as u64) ^ ((product >> 64) as u64) ^ self.key.rotate_left(17);
    }
}

impl Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.mix(u64::from_le_bytes(word));
        }
    }
    fn write_u16(&mut self, n: u16) {
        self.mix(u64::from(n));
    }
    fn write_u32(&mut self, n: u32) {
        self.mix(u64::from(n));
    }
    fn finish(&self) -> u64 {
        self.state
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    /// It is on the container's list of places to serve, whether or not its flow is still there: so a place is on that
    /// list once, and the list is no longer than the table.
    dirty: bool,
    /// The same for the list of those that wait for the device.
    blocked: bool,
    flow: Option<Box<Flow>>,
}

/// All flows of a container.
#[derive(Debug)]
pub(crate) struct FlowTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_tuple: HashMap<Tuple, u32, Keyed>,
    flows_max: u32,
}

impl FlowTable {
    pub(crate) fn new(flows_max: u32, secret: [u64; 2]) -> Self {
        let by_tuple = HashMap::with_hasher(Keyed(secret));
        Self { slots: Vec::new(), free: Vec::new(), by_tuple, flows_max }
    }

    pub(crate) fn len(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    pub(crate) fn find(&self, tuple: &Tuple) -> Option<u32> {
        self.by_tuple.get(tuple).copied()
    }

    /// A free place; `None` when the table is full.
    pub(crate) fn reserve(&mut self) -> Option<FlowId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.flows_max as usize => {
                self.slots.push(Slot::default());
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        Some(FlowId { index, generation: self.slots[index as usize].generation })
    }

    /// Gives a reserved place back unused.
    pub(crate) fn unreserve(&mut self, id: FlowId) {
        self.free.push(id.index);
    }

    pub(crate) fn insert(&mut self, flow: Box<Flow>) {
        let index = flow.id.index;
        self.by_tuple.insert(flow.tuple, index);
        self.slots[index as usize].flow = Some(flow);
    }

    /// The flow leaves its place for the time of one call, so that it and the rest can be changed at once.
    pub(crate) fn take(&mut self, index: u32) -> Option<Box<Flow>> {
        self.slots.get_mut(index as usize)?.flow.take()
    }

    pub(crate) fn put(&mut self, flow: Box<Flow>) {
        let index = flow.id.index as usize;
        self.slots[index].flow = Some(flow);
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&Flow> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation == id.generation { slot.flow.as_deref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation { slot.flow.as_deref_mut() } else { None }
    }

    pub(crate) fn index_mut(&mut self, index: u32) -> Option<&mut Flow> {
        self.slots.get_mut(index as usize)?.flow.as_deref_mut()
    }

    /// The tuple names this flow no longer: another may begin with it.
    pub(crate) fn unlink(&mut self, flow: &Flow) {
        if self.by_tuple.get(&flow.tuple) == Some(&flow.id.index) {
            self.by_tuple.remove(&flow.tuple);
        }
    }

    /// The place of a taken flow is free again; late events for the old id find nothing.
    pub(crate) fn release(&mut self, flow: &Flow) {
        self.unlink(flow);
        let slot = &mut self.slots[flow.id.index as usize];
        debug_assert!(slot.flow.is_none(), "the flow was taken");
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(flow.id.index);
    }

    /// True when the place is not on the list of those to serve, where it belongs from now on.
    pub(crate) fn set_dirty(&mut self, index: u32) -> bool {
        self.slots.get_mut(index as usize).is_some_and(|s| !std::mem::replace(&mut s.dirty, true))
    }

    /// It was taken off that list.
    pub(crate) fn clear_dirty(&mut self, index: u32) {
        self.slots[index as usize].dirty = false;
    }

    /// As [`Self::set_dirty`], for the list of those that wait for the device.
    pub(crate) fn set_blocked(&mut self, index: u32) -> bool {
        let slot = self.slots.get_mut(index as usize);
        slot.is_some_and(|s| !std::mem::replace(&mut s.blocked, true))
    }

    pub(crate) fn clear_blocked(&mut self, index: u32) {
        self.slots[index as usize].blocked = false;
    }

    pub(crate) fn indices(&self) -> std::ops::Range<u32> {
        0..self.slots.len() as u32
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.slots.iter().filter_map(|s| s.flow.as_deref())
    }
}
