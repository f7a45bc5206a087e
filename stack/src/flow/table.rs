//! Finds the flow of a tuple: a keyed hash map over a slab. The key is secret, so a guest cannot fill one bucket on
//! purpose; the map is never iterated, so its order cannot affect behaviour.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use crate::flow::Flow;
use crate::io::FlowId;
use crate::wire::addresses::Tuple;

/// Hash builder with a secret per container; multiplies and folds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keyed(pub(crate) [u64; 2]);

/// Hash state of one tuple.
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
        // Both halves of the product are folded in, so that every input bit reaches the low bits.
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

/// One place of the slab, with or without a flow.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    flow: Option<Box<Flow>>,
}

/// All flows of a container.
#[derive(Debug)]
pub(crate) struct FlowTable {
    /// Slots by `FlowId::index`.
    slots: Vec<Slot>,
    /// Indices of slots without a flow.
    free: Vec<u32>,
    by_tuple: HashMap<Tuple, u32, Keyed>,
    flows_max: u32,
}

impl FlowTable {
    pub(crate) fn new(flows_max: u32, secret: [u64; 2]) -> Self {
        let by_tuple = HashMap::with_hasher(Keyed(secret));
        Self { slots: Vec::new(), free: Vec::new(), by_tuple, flows_max }
    }

    /// Flows and reserved slots.
    pub(crate) fn len(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// Index of the tuple's flow.
    pub(crate) fn find(&self, tuple: &Tuple) -> Option<u32> {
        self.by_tuple.get(tuple).copied()
    }

    /// Reserves a slot; `None` when the table is full.
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

    /// Returns a reserved slot unused.
    pub(crate) fn unreserve(&mut self, id: FlowId) {
        self.free.push(id.index);
    }

    /// Stores a flow in its reserved slot and makes its tuple known.
    pub(crate) fn insert(&mut self, flow: Box<Flow>) {
        let index = flow.id.index;
        self.by_tuple.insert(flow.tuple, index);
        self.slots[index as usize].flow = Some(flow);
    }

    /// Takes the flow out of its slot for one call, so that the flow and the container can be changed together.
    pub(crate) fn take(&mut self, index: u32) -> Option<Box<Flow>> {
        self.slots.get_mut(index as usize)?.flow.take()
    }

    /// Puts a taken flow back.
    pub(crate) fn put(&mut self, flow: Box<Flow>) {
        let index = flow.id.index as usize;
        self.slots[index].flow = Some(flow);
    }

    /// The flow of this id; `None` if it was removed or is taken.
    pub(crate) fn get(&self, id: FlowId) -> Option<&Flow> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation == id.generation { slot.flow.as_deref() } else { None }
    }

    /// As [`Self::get`], mutable.
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation { slot.flow.as_deref_mut() } else { None }
    }

    /// The flow in a slot, whatever its generation.
    pub(crate) fn index_mut(&mut self, index: u32) -> Option<&mut Flow> {
        self.slots.get_mut(index as usize)?.flow.as_deref_mut()
    }

    /// Removes the tuple of a flow: a new flow may use it.
    pub(crate) fn unlink(&mut self, flow: &Flow) {
        // The tuple may belong to a newer flow already.
        if self.by_tuple.get(&flow.tuple) == Some(&flow.id.index) {
            self.by_tuple.remove(&flow.tuple);
        }
    }

    /// Frees the slot of a taken flow. Late events for the old id find no flow.
    pub(crate) fn release(&mut self, flow: &Flow) {
        self.unlink(flow);
        let slot = &mut self.slots[flow.id.index as usize];
        debug_assert!(slot.flow.is_none(), "the flow was taken");
        // The generation in later ids differs, so that a stale host event cannot reach the next flow in this slot.
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(flow.id.index);
    }

    /// Indices of all slots, with or without a flow.
    pub(crate) fn indices(&self) -> std::ops::Range<u32> {
        0..self.slots.len() as u32
    }

    /// Flows in `slots` slots from `from` on, and the slot after these; `None`: there are no more.
    pub(crate) fn part(&self, from: u32, slots: u32) -> (impl Iterator<Item = &Flow>, Option<u32>) {
        let part = part_of(self.slots.len(), from, slots);
        let next = (part.end < self.slots.len()).then_some(part.end as u32);
        (self.slots[part].iter().filter_map(|slot| slot.flow.as_deref()), next)
    }

    /// Flows in the order of their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.slots.iter().filter_map(|s| s.flow.as_deref())
    }
}

/// The range of `slots` slots from `from` on, within a table of `len`.
pub(crate) fn part_of(len: usize, from: u32, slots: u32) -> std::ops::Range<usize> {
    let start = (from as usize).min(len);
    start..start.saturating_add(slots as usize).min(len)
}
