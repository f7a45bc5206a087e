//! Moves received data of one flow into the send queue of another, without a copy of whole chunks (B11).
//!
//! ```text
//! receive queue of the sender's flow          send queue of the receiver's flow
//! ├──▒▒▒▒▒┼▒▒▒▒▒▒▒┼▒▒▒▒▒▒▒┼▒▒▒────┤           ├──▒▒▒▒▒┼▒▒▒▒▒▒▒┼▒▒▒────┤
//!         └── moved, with their charge ────────────────────▲
//!                         └── copied, into a chunk of the receiver ▲
//! ```
//!
//! A byte keeps its offset in its chunk: both queues fill a chunk to its end before the next one, and a receive queue
//! that is emptied here keeps its place in the slot. So a chunk that is full moves as it is. The last one may still be
//! filling, and its remaining bytes are in the advertised window, which is charged to the sender (B8): it stays, and
//! its bytes are copied.

use skbudget_controller::{Budget, Instant, Ledger, transfer};

use crate::queue::MemCtx;
use crate::queue::chunk::{ChunkPool, PAYLOAD};
use crate::queue::receive::RxQueue;
use crate::queue::send::TxQueue;

/// The budgets of two flows.
#[derive(Debug)]
pub enum Budgets<'a> {
    /// Both containers are members of one budget.
    Shared(&'a mut Budget),
    /// The budget of the flow that gives, and of the one that takes.
    Two(&'a mut Budget, &'a mut Budget),
}

impl Budgets<'_> {
    /// The same for a shorter time, exchanged if `reversed`.
    pub(crate) fn reborrow(&mut self, reversed: bool) -> Budgets<'_> {
        match (self, reversed) {
            (Self::Shared(budget), _) => Budgets::Shared(budget),
            (Self::Two(giver, taker), false) => Budgets::Two(giver, taker),
            (Self::Two(giver, taker), true) => Budgets::Two(taker, giver),
        }
    }

    /// The budget of the flow that gives.
    pub(crate) fn giver(&mut self) -> &mut Budget {
        match self {
            Self::Shared(budget) | Self::Two(budget, _) => budget,
        }
    }

    /// The budget of the flow that takes.
    pub(crate) fn taker(&mut self) -> &mut Budget {
        match self {
            Self::Shared(budget) | Self::Two(_, budget) => budget,
        }
    }
}

/// Time, budgets, chunks and ledgers of a move between two flows.
#[derive(Debug)]
pub(crate) struct PassCtx<'a> {
    pub(crate) now: Instant,
    pub(crate) budgets: Budgets<'a>,
    pub(crate) pool: &'a mut ChunkPool,
    /// Ledgers of the flow that gives and of the one that takes.
    pub(crate) from: &'a mut Ledger,
    pub(crate) to: &'a mut Ledger,
}

impl PassCtx<'_> {
    /// The context of the flow that gives.
    pub(crate) fn giver(&mut self) -> MemCtx<'_> {
        let Self { now, budgets, pool, from, .. } = self;
        MemCtx { now: *now, budget: budgets.giver(), pool, ledger: from }
    }

    /// The context of the flow that takes.
    pub(crate) fn taker(&mut self) -> MemCtx<'_> {
        let Self { now, budgets, pool, to, .. } = self;
        MemCtx { now: *now, budget: budgets.taker(), pool, ledger: to }
    }

    /// Moves the charge of up to `chunks` received chunks. Returns the number moved.
    fn transfer(&mut self, chunks: u32) -> u32 {
        let Self { now, budgets, from, to, .. } = self;
        match budgets {
            Budgets::Shared(budget) => budget.transfer_within(from, to, chunks, *now),
            Budgets::Two(giver, taker) => transfer(giver, from, taker, to, chunks, *now),
        }
    }
}

/// Result of [`pass`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Passed {
    /// Bytes moved.
    pub(crate) bytes: usize,
    /// The taker's budget refused the next chunk: its bytes stay with the giver.
    pub(crate) refused: bool,
}

/// Moves in-order bytes of `rx` to `tx`: about `most`, exceeded by less than one chunk, because a whole chunk is moved
/// and not split.
pub(crate) fn pass(
    rx: &mut RxQueue,
    tx: &mut TxQueue,
    most: usize,
    cx: &mut PassCtx<'_>,
) -> Passed {
    let mut passed = Passed::default();
    while passed.bytes < most && !rx.is_empty() {
        let left = most - passed.bytes;
        let whole = rx.full_slots().min(left.div_ceil(PAYLOAD));
        let moved = match whole {
            _ if tx.tail_room() > 0 => fill_tail(rx, tx, left, cx),
            // With another offset the chunk would leave a gap.
            1.. if rx.head() == 0 || tx.is_empty() => move_whole(rx, tx, whole, cx),
            _ => copy_part(rx, tx, cx),
        };
        if moved == 0 {
            passed.refused = true;
            break;
        }
        passed.bytes += moved;
    }
    passed
}

/// Copies bytes behind those of the last chunk of `tx`.
fn fill_tail(rx: &mut RxQueue, tx: &mut TxQueue, left: usize, cx: &mut PassCtx<'_>) -> usize {
    let n = rx.first_part().map_or(0, |part| tx.append(&part[..part.len().min(left)]));
    rx.consume_in_place(n, &mut cx.giver());
    n
}

/// Moves up to `whole` full chunks with their charge.
fn move_whole(rx: &mut RxQueue, tx: &mut TxQueue, whole: usize, cx: &mut PassCtx<'_>) -> usize {
    let granted = cx.transfer(u32::try_from(whole).unwrap_or(u32::MAX));
    let before = tx.len();
    for _ in 0..granted {
        let from = rx.head();
        if let Some(chunk) = rx.take_full() {
            tx.push(chunk, from);
        }
    }
    tx.len() - before
}

/// Copies the first part of `rx` into a new chunk of `tx`, at the same offset if `tx` is empty.
fn copy_part(rx: &mut RxQueue, tx: &mut TxQueue, cx: &mut PassCtx<'_>) -> usize {
    let from = if tx.is_empty() { rx.head() } else { 0 };
    let Some(part) = rx.first_part() else { return 0 };
    let n = tx.append_new(part, from, &mut cx.taker());
    rx.consume_in_place(n, &mut cx.giver());
    n
}

#[cfg(test)]
mod tests;
