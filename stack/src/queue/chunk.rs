//! Chunks: the buffers that hold all queued data.
//!
//! A chunk is charged as 4096 bytes and carries 4032. The difference covers the bookkeeping of the queues, so that the
//! charge equals the memory that the process uses. Chunks are pages of maps that hold no other data. Free chunks are
//! reused last-in first-out, because the one freed last is still in the cache. Chunks at the other end of the list,
//! unused for a while, are returned to the system, so that the memory of the process follows the charge.

use std::time::Duration;

use skbudget_controller::{CHUNK_PAYLOAD, Instant};

#[allow(unsafe_code, reason = "maps of memory, which std has not; nothing else lives there")]
mod sys;

/// Payload bytes of one chunk, as `usize`.
pub const PAYLOAD: usize = CHUNK_PAYLOAD as usize;
const _: () = assert!(sys::PAGE as u64 == skbudget_controller::CHUNK_SIZE && PAYLOAD <= sys::PAGE);

/// Chunks per map: 1 MiB.
const MAP_CHUNKS: usize = 256;
/// Free chunks that a worker always keeps: 64 KiB (M6).
const STOCK: usize = 16;
/// A free chunk unused for this time is returned to the system; up to as much again may pass until that is noticed.
const UNUSED_FOR: Duration = Duration::from_millis(250);
/// Chunks returned at a time, and the pause before the next batch: the thread that serves containers does this work.
const BATCH: usize = 128;
const BATCH_EVERY: Duration = Duration::from_millis(1);

/// One buffer. Its bytes are plain memory; the queue that owns the chunk knows which of them are valid.
#[derive(Debug)]
pub struct Chunk(sys::Page);

impl Chunk {
    /// The payload bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8; PAYLOAD] {
        first(self.0.bytes())
    }

    /// The payload bytes, to be written.
    #[inline]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; PAYLOAD] {
        let (payload, _) = self.0.bytes_mut().split_first_chunk_mut().unwrap_or_else(|| no_room());
        payload
    }
}

#[inline]
fn first(page: &[u8; sys::PAGE]) -> &[u8; PAYLOAD] {
    let (payload, _) = page.split_first_chunk().unwrap_or_else(|| no_room());
    payload
}

/// A page is larger than a chunk's payload (asserted above); the compiler removes this branch.
#[cold]
fn no_room() -> ! {
    unreachable!("a page holds a chunk's payload")
}

/// Free chunks of a worker.
#[derive(Debug, Default)]
pub struct ChunkPool {
    /// Chunks with memory; the last one was freed last.
    free: Vec<Chunk>,
    /// Chunks without memory: new, or returned to the system.
    bare: Vec<Chunk>,
    /// Chunks that queues own.
    live: usize,
    /// Smallest length of `free` in this interval: this number of chunks was not needed.
    fewest: usize,
    /// When `tend` checks next; `None`: no more than the stock is free.
    look_at: Option<Instant>,
}

impl ChunkPool {
    /// An empty pool; the first chunk maps memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a free chunk, or maps new ones. The content is undefined.
    #[inline]
    pub(crate) fn take(&mut self) -> Chunk {
        self.live += 1;
        let Some(chunk) = self.free.pop() else { return self.take_bare() };
        self.fewest = self.fewest.min(self.free.len());
        chunk
    }

    #[cold]
    fn take_bare(&mut self) -> Chunk {
        loop {
            if let Some(chunk) = self.bare.pop() {
                return chunk;
            }
            // Reversed, so that `pop` hands out ascending addresses.
            self.bare.extend(sys::map(MAP_CHUNKS).into_iter().rev().map(Chunk));
        }
    }

    /// Returns a chunk of any queue to the pool.
    #[inline]
    pub(crate) fn give(&mut self, chunk: Chunk) {
        self.live -= 1;
        self.free.push(chunk);
    }

    /// Returns the memory of free chunks that were unused for a while to the system. Call it after each turn. Returns
    /// when to call it again if nothing happens before; `None`: nothing can be returned.
    pub fn tend(&mut self, now: Instant) -> Option<Instant> {
        if self.free.len() <= STOCK {
            self.look_at = None;
        } else if self.look_at.is_none() {
            self.begin_interval(now);
        } else if self.look_at.is_some_and(|at| at <= now) {
            self.give_back(now);
        }
        self.look_at
    }

    /// Starts an interval in which `fewest` is measured.
    fn begin_interval(&mut self, now: Instant) {
        self.fewest = self.free.len();
        self.look_at = Some(now + UNUSED_FOR);
    }

    /// Returns one batch and sets the next check.
    #[cold]
    fn give_back(&mut self, now: Instant) {
        // At least one batch, needed or not. A single read takes dozens of chunks for a moment, so light traffic would
        // keep them for ever; allocating them again four times a second is cheap. Heavy traffic needs more than a batch
        // and keeps its chunks.
        let some = (self.free.len() - STOCK).min(BATCH);
        // By address, so that neighbours are discarded with one call.
        self.free[..some].sort_unstable_by_key(|chunk| sys::address(&chunk.0));
        sys::discard(&mut self.free[..some]);
        self.bare.extend(self.free.drain(..some));
        self.fewest = self.fewest.saturating_sub(some);
        match self.fewest > STOCK {
            true => self.look_at = Some(now + BATCH_EVERY),
            false => self.begin_interval(now),
        }
        // The lists themselves grew at the peak, too.
        if self.free.capacity() > 4 * self.free.len().max(MAP_CHUNKS) {
            self.free.shrink_to(2 * self.free.len());
        }
    }

    /// Chunks that queues own.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Bytes of free chunks with memory: the pool's slack, which belongs to the platform and is in no budget.
    pub fn slack_bytes(&self) -> u64 {
        self.free.len() as u64 * skbudget_controller::CHUNK_SIZE
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const MS: u64 = 1_000_000;

    fn fill(pool: &mut ChunkPool, n: usize) -> Vec<Chunk> {
        let mut taken: Vec<Chunk> = (0..n).map(|_| pool.take()).collect();
        for (i, chunk) in taken.iter_mut().enumerate() {
            chunk.bytes_mut().fill(i as u8 | 1);
        }
        taken
    }

    /// Number of pages at `addresses` that have memory.
    fn present(addresses: &[usize]) -> usize {
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        let present = |address: &&usize| {
            let mut entry = [0; 8];
            map.read_exact_at(&mut entry, (**address / sys::PAGE * 8) as u64).unwrap();
            u64::from_ne_bytes(entry) >> 63 == 1
        };
        addresses.iter().filter(present).count()
    }

    #[test]
    fn chunks_are_reused_last_in_first_out_and_belong_to_one_owner() {
        let mut pool = ChunkPool::new();
        let taken = fill(&mut pool, 1000);
        assert!(taken.iter().enumerate().all(|(i, c)| c.bytes() == &[i as u8 | 1; PAYLOAD]));
        let mut addresses: Vec<usize> = taken.iter().map(|c| sys::address(&c.0)).collect();
        taken.into_iter().for_each(|chunk| pool.give(chunk));
        assert_eq!((pool.live(), pool.slack_bytes()), (0, 1000 * 4096));
        let again: Vec<usize> = (0..1000).map(|_| sys::address(&pool.take().0)).collect();
        assert!(again.iter().eq(addresses.iter().rev()));
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= sys::PAGE));
    }

    #[test]
    fn what_nobody_needed_for_a_while_goes_back_and_then_nothing_is_due() {
        let mut pool = ChunkPool::new();
        const CHUNKS: usize = 10_000;
        let taken = fill(&mut pool, CHUNKS);
        let addresses: Vec<usize> = taken.iter().map(|c| sys::address(&c.0)).collect();
        assert_eq!(present(&addresses), CHUNKS);
        let mut now = Instant(5 * MS);
        assert_eq!(pool.tend(now), None, "nothing is free");
        taken.into_iter().rev().for_each(|chunk| pool.give(chunk));
        let given = now;
        let mut calls = 0;
        while let Some(at) = pool.tend(now) {
            assert!(at > now);
            (now, calls) = (at, calls + 1);
        }
        assert!(now.since(given) < Duration::from_secs(1), "{:?}", now.since(given));
        assert!(calls >= CHUNKS / BATCH, "never many at a time");
        assert_eq!(pool.slack_bytes(), (STOCK * sys::PAGE) as u64);
        assert_eq!(present(&addresses), STOCK);
        let mut again = fill(&mut pool, CHUNKS);
        assert!(again.iter_mut().enumerate().all(|(i, c)| c.bytes()[PAYLOAD - 1] == i as u8 | 1));
    }

    #[test]
    fn what_is_needed_again_and_again_stays() {
        let mut pool = ChunkPool::new();
        let mut now = Instant(0);
        for _ in 0..100 {
            let taken = fill(&mut pool, 1000);
            taken.into_iter().for_each(|chunk| pool.give(chunk));
            pool.tend(now);
            now = now + Duration::from_millis(100);
        }
        let kept = (1000 - BATCH) * sys::PAGE;
        assert!(pool.slack_bytes() >= kept as u64, "but for one batch");
        // Light traffic keeps next to nothing.
        for _ in 0..100 {
            let taken = fill(&mut pool, 60);
            taken.into_iter().for_each(|chunk| pool.give(chunk));
            pool.tend(now);
            now = now + Duration::from_millis(100);
        }
        assert!(pool.slack_bytes() <= (60 + STOCK) as u64 * 4096);
    }

    #[test]
    fn a_pool_that_is_gone_leaves_the_chunks_that_are_held() {
        let mut pool = ChunkPool::new();
        let taken = fill(&mut pool, 300);
        drop(pool);
        assert!(taken.iter().all(|c| c.bytes()[0] & 1 == 1));
    }
}
