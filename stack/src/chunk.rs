//! Chunks: the buffers everything queued lives in.

/// A worker's free chunks.
#[derive(Debug, Default)]
pub struct ChunkPool {}

impl ChunkPool {
    pub fn new() -> Self {
        Self::default()
    }
}
