//! The memory that is charged: chunks, the queues of a flow that consist of them, and what a charge needs.

use std::collections::VecDeque;

use skbudget_controller::{Budget, Counter, Instant, Ledger, MemberId};

pub mod chunk;
pub(crate) mod pass;
pub(crate) mod ranges;
pub(crate) mod receive;
pub(crate) mod send;
#[cfg(test)]
pub(crate) mod tests;

use chunk::{Chunk, ChunkPool, PAYLOAD};

/// What a charge of a flow needs: the time, the budget, the chunks, and the flow's ledger.
#[derive(Debug)]
pub(crate) struct MemCtx<'a> {
    pub(crate) now: Instant,
    pub(crate) budget: &'a mut Budget,
    pub(crate) pool: &'a mut ChunkPool,
    pub(crate) ledger: &'a mut Ledger,
}

impl MemCtx<'_> {
    /// Adds `by` to a counter of the flow's container.
    pub(crate) fn count(&mut self, counter: Counter, by: u64) {
        self.budget.count(self.ledger.member(), counter, by);
    }
}

/// What a charge needs that belongs to the container and to no flow: fragments, TIME-WAIT entries, the SYN queue.
#[derive(Debug)]
pub(crate) struct MemberCtx<'a> {
    pub(crate) now: Instant,
    pub(crate) budget: &'a mut Budget,
    pub(crate) member: MemberId,
}

/// Removes the slots at the front of a queue that `head`, an offset into the first, has passed, and returns their
/// chunks to the pool. `head` is below PAYLOAD afterwards. Returns the number of slots; the caller uncharges them.
fn free_front<S: Into<Option<Chunk>>>(
    slots: &mut VecDeque<S>,
    head: &mut usize,
    pool: &mut ChunkPool,
) -> u32 {
    let mut freed = 0;
    while *head >= PAYLOAD {
        if let Some(chunk) = slots.pop_front().and_then(Into::into) {
            pool.give(chunk);
        }
        *head -= PAYLOAD;
        freed += 1;
    }
    freed
}
