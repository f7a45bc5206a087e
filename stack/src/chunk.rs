//! Chunks: the buffers everything queued lives in.
//!
//! A chunk is charged at 4096 bytes and carries 4032: the difference pays for what the allocator and the queues keep
//! beside it, so that what is charged is what the process holds. Free chunks are reused last-in first-out, because
//! the one given back a moment ago is the one still in the cache.

use skbudget_controller::CHUNK_PAYLOAD;

/// Payload bytes of one chunk, as an index.
pub const PAYLOAD: usize = CHUNK_PAYLOAD as usize;

/// Free chunks kept for reuse: 1 MiB a worker, or a sixteenth of what is in use, at most 8 MiB (pressure model M6).
/// Beyond, memory goes back to the allocator: what the process holds follows what is charged.
const FREE_MIN: usize = 256;
const FREE_MAX: usize = 2048;

/// One buffer. Its bytes are plain memory: what is valid in it the queue that holds it knows.
#[derive(Debug)]
pub struct Chunk(Box<[u8; PAYLOAD]>);

impl Chunk {
    pub(crate) fn bytes(&self) -> &[u8; PAYLOAD] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; PAYLOAD] {
        &mut self.0
    }
}

/// A worker's free chunks.
#[derive(Debug, Default)]
pub struct ChunkPool {
    free: Vec<Chunk>,
    live: usize,
}

impl ChunkPool {
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn take(&mut self) -> Chunk {
        self.live += 1;
        self.free.pop().unwrap_or_else(|| Chunk(Box::new([0; PAYLOAD])))
    }

    pub(crate) fn give(&mut self, chunk: Chunk) {
        self.live -= 1;
        if self.free.len() < (self.live / 16).clamp(FREE_MIN, FREE_MAX) {
            self.free.push(chunk);
        }
    }

    /// Chunks held by queues.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Bytes held by nobody: the pool's slack, the platform's and in no budget.
    pub fn slack_bytes(&self) -> u64 {
        self.free.len() as u64 * skbudget_controller::CHUNK_SIZE
    }
}
