//! Chunks: the buffers everything queued lives in.
//!
//! A chunk is charged at 4096 bytes and carries 4032: the difference pays for what the queues keep beside it, so that
//! what is charged is what the process holds. Each chunk is a page of a map of its own. Free chunks are reused last-in
//! first-out, because the one given back a moment ago is the one still in the cache; those at the other end, which
//! nobody needed for a while, go back to the system, so that what the process holds follows what is charged.

use std::time::Duration;

use skbudget_controller::{CHUNK_PAYLOAD, Instant};

#[allow(unsafe_code, reason = "maps of memory, which std has not; nothing else lives there")]
mod sys;

/// Payload bytes of one chunk, as an index.
pub const PAYLOAD: usize = CHUNK_PAYLOAD as usize;
const _: () = assert!(sys::PAGE as u64 == skbudget_controller::CHUNK_SIZE && PAYLOAD <= sys::PAGE);

/// Chunks of one map: 1 MiB.
const MAP_CHUNKS: usize = 256;
/// Free chunks that a worker keeps however long nobody needs them: 64 KiB (pressure model M6).
const STOCK: usize = 16;
/// A free chunk that was not needed for so long goes back; as much time again may pass before that is seen.
const UNUSED_FOR: Duration = Duration::from_millis(250);
/// So many at a time, and the next ones after a pause: it is work of the thread that serves containers.
const BATCH: usize = 128;
const BATCH_EVERY: Duration = Duration::from_millis(1);

/// One buffer. Its bytes are plain memory: what is valid in it the queue that holds it knows.
#[derive(Debug)]
pub struct Chunk(sys::Page);

impl Chunk {
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8; PAYLOAD] {
        first(self.0.bytes())
    }

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

/// A page is larger than a chunk's payload: asserted above, and the compiler knows it.
#[cold]
fn no_room() -> ! {
    unreachable!("a page holds a chunk's payload")
}

/// A worker's free chunks.
#[derive(Debug, Default)]
pub struct ChunkPool {
    /// With memory; the last one was given back last.
    free: Vec<Chunk>,
    /// Without: new, or given back to the system.
    bare: Vec<Chunk>,
    live: usize,
    /// The fewest there were in `free` since it was last looked at: so many nobody needed.
    fewest: usize,
    look_at: Option<Instant>,
}

impl ChunkPool {
    pub fn new() -> Self {
        Self::default()
    }

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
            self.bare.extend(sys::map(MAP_CHUNKS).into_iter().rev().map(Chunk));
        }
    }

    #[inline]
    pub(crate) fn give(&mut self, chunk: Chunk) {
        self.live -= 1;
        self.free.push(chunk);
    }

    /// Gives memory of free chunks back to the system when nobody needed them for a while. To be called after each
    /// turn; returns when to call it again if nothing else happens. `None`: there is nothing to give back.
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

    fn begin_interval(&mut self, now: Instant) {
        self.fewest = self.free.len();
        self.look_at = Some(now + UNUSED_FOR);
    }

    #[cold]
    fn give_back(&mut self, now: Instant) {
        // At least one batch, needed or not: a single read takes dozens of chunks for a moment; allocating them
        // anew four times a second costs nothing. So what small traffic needs is not kept, what much traffic needs is.
        let some = (self.free.len() - STOCK).min(BATCH);
        self.free[..some].sort_unstable_by_key(|chunk| sys::address(&chunk.0));
        sys::discard(&mut self.free[..some]);
        self.bare.extend(self.free.drain(..some));
        self.fewest = self.fewest.saturating_sub(some);
        match self.fewest > STOCK {
            true => self.look_at = Some(now + BATCH_EVERY),
            false => self.begin_interval(now),
        }
        // What the lists themselves took at the peak.
        if self.free.capacity() > 4 * self.free.len().max(MAP_CHUNKS) {
            self.free.shrink_to(2 * self.free.len());
        }
    }

    /// Chunks held by queues.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Bytes of free chunks that have memory: the pool's slack, the platform's and in no budget.
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

    /// Of pages at these addresses: how many have memory.
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
        // Little is not kept.
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
