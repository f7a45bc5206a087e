//! Send queue: bytes read from the host socket, from SND.UNA on, both unsent and unacknowledged. A byte stays until the
//! guest acknowledges it and is never dropped while the flow exists, because the host's kernel has acknowledged it to
//! the remote.
//!
//! Each chunk is filled to its end before the next one, so the place of a byte is arithmetic. A read first requests
//! memory and reads no more than was granted. This file holds every send-side charge (`tests/tidy.rs` checks it).

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

use crate::io::HostError;
use crate::queue::chunk::{Chunk, ChunkPool, PAYLOAD};
use crate::queue::{MemCtx, free_front};

/// Slices of one read or one frame: a 64 KiB super-frame touches at most 17 chunks, 18 if it starts inside one.
pub(crate) const PARTS_MAX: usize = 18;

/// How a read into the queue ended. Except with `Bytes` nothing was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Bytes read. `full`: the read filled all the room that it offered, so more may be available.
    Bytes {
        n: usize,
        full: bool,
    },
    /// End of the host's stream.
    Eof,
    /// The budget granted nothing, and the tail chunk is full.
    NoMemory,
    Failed(HostError),
}

/// Data of one flow for the guest.
#[derive(Debug, Default)]
pub(crate) struct TxQueue {
    chunks: VecDeque<Chunk>,
    /// Offset of the first unacknowledged byte in chunk 0, below PAYLOAD.
    head: usize,
    len: usize,
}

impl TxQueue {
    /// Bytes from SND.UNA to the end of what was read.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Chunks in the queue, each charged.
    pub(crate) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes that fit without a further chunk.
    pub(crate) fn tail_room(&self) -> usize {
        self.chunks.len() * PAYLOAD - self.head - self.len
    }

    /// Reads up to `want` bytes with `read`. Charges the chunks that it needs before it reads into them.
    pub(crate) fn fill(
        &mut self,
        want: usize,
        mem: &mut MemCtx<'_>,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, HostError>,
    ) -> Filled {
        let room = self.tail_room();
        // One slice is kept for the free bytes of the tail chunk.
        let need = want.saturating_sub(room).div_ceil(PAYLOAD).min(PARTS_MAX - 1);
        let granted = match need {
            0 => 0,
            _ => mem.budget.tx_grant(mem.ledger, need as u32, mem.now) as usize,
        };
        if granted == 0 && room == 0 {
            return Filled::NoMemory;
        }
        let had = self.chunks.len();
        self.chunks.extend((0..granted).map(|_| mem.pool.take()));
        let requested = room + granted * PAYLOAD;
        let from = if room > 0 { had - 1 } else { had };
        let outcome = read_into(&mut self.chunks, from, room, read);
        let n = outcome.unwrap_or(0).min(requested);
        self.len += n;
        // A short read: the chunks that stayed empty are uncharged at once.
        let used = (self.head + self.len).div_ceil(PAYLOAD).max(had);
        let unused = self.chunks.len() - used;
        for chunk in self.chunks.drain(used..) {
            mem.pool.give(chunk);
        }
        if unused > 0 {
            mem.budget.tx_free(mem.ledger, unused as u32, mem.now);
        }
        // A read into room that is never zero returns 0 only at the end of the stream.
        match outcome {
            Ok(0) => Filled::Eof,
            Ok(_) => Filled::Bytes { n, full: n == requested },
            Err(e) => Filled::Failed(e),
        }
    }

    /// Copies a prefix of `data` behind the bytes of the last chunk. Returns its length.
    pub(crate) fn append(&mut self, data: &[u8]) -> usize {
        let n = self.tail_room().min(data.len());
        let at = PAYLOAD - self.tail_room();
        if let Some(chunk) = self.chunks.back_mut().filter(|_| n > 0) {
            chunk.bytes_mut()[at..at + n].copy_from_slice(&data[..n]);
            self.len += n;
        }
        n
    }

    /// Copies `data` into a new chunk, from the offset `from` on, which is not zero only in an empty queue. Returns the
    /// number of bytes copied; 0: the budget refused the chunk.
    pub(crate) fn append_new(&mut self, data: &[u8], from: usize, mem: &mut MemCtx<'_>) -> usize {
        debug_assert!(self.tail_room() == 0 && (from == 0 || self.is_empty()));
        if mem.budget.tx_grant(mem.ledger, 1, mem.now) == 0 {
            return 0;
        }
        if self.is_empty() {
            self.head = from;
        }
        let n = data.len().min(PAYLOAD - from);
        let mut chunk = mem.pool.take();
        chunk.bytes_mut()[from..from + n].copy_from_slice(&data[..n]);
        self.chunks.push_back(chunk);
        self.len += n;
        n
    }

    /// Appends a chunk of another flow, with data from the offset `from` to its end. Its charge moved before (B11).
    pub(crate) fn push(&mut self, chunk: Chunk, from: usize) {
        debug_assert!(self.tail_room() == 0 && (from == 0 || self.is_empty()));
        if self.is_empty() {
            self.head = from;
        }
        self.chunks.push_back(chunk);
        self.len += PAYLOAD - from;
    }

    /// Fills `parts` with slices of `len` bytes from `offset` bytes after SND.UNA on; returns the number of slices.
    pub(crate) fn slices<'a>(
        &'a self,
        offset: usize,
        len: usize,
        parts: &mut [IoSlice<'a>],
    ) -> usize {
        debug_assert!(offset + len <= self.len);
        let (mut at, end) = (self.head + offset, self.head + offset + len);
        let mut count = 0;
        while at < end && count < parts.len() {
            let (chunk, from) = (at / PAYLOAD, at % PAYLOAD);
            let to = PAYLOAD.min(from + end - at);
            parts[count] = IoSlice::new(&self.chunks[chunk].bytes()[from..to]);
            at += to - from;
            count += 1;
        }
        debug_assert_eq!(at, end, "a frame's payload fits the slices");
        count
    }

    /// The guest acknowledged the first `n` bytes: frees and uncharges their chunks.
    pub(crate) fn acked(&mut self, n: usize, mem: &mut MemCtx<'_>) {
        assert!(n <= self.len, "the caller checked SEG.ACK against SND.MAX");
        self.head += n;
        self.len -= n;
        // An empty queue keeps no chunk, not even a partly filled one.
        if self.len == 0 {
            self.head = self.chunks.len() * PAYLOAD;
        }
        let freed = free_front(&mut self.chunks, &mut self.head, mem.pool);
        if freed > 0 {
            mem.budget.tx_free(mem.ledger, freed, mem.now);
        }
    }

    /// The flow ends: returns every chunk to the pool; the owner of the ledger releases the charge.
    pub(crate) fn clear(&mut self, pool: &mut ChunkPool) {
        for chunk in self.chunks.drain(..) {
            pool.give(chunk);
        }
        *self = Self::default();
    }
}

/// One vectored read into the chunks from index `from` on. If `room` is not zero, the first of them has `room` free
/// bytes at its end; otherwise it is empty.
fn read_into(
    chunks: &mut VecDeque<Chunk>,
    from: usize,
    room: usize,
    read: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, HostError>,
) -> Result<usize, HostError> {
    let mut parts: [IoSliceMut<'_>; PARTS_MAX] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
    let mut count = 0;
    for (i, chunk) in chunks.range_mut(from..).enumerate() {
        let start = if i == 0 && room > 0 { PAYLOAD - room } else { 0 };
        parts[count] = IoSliceMut::new(&mut chunk.bytes_mut()[start..]);
        count += 1;
    }
    read(&mut parts[..count])
}

#[cfg(test)]
mod tests;
