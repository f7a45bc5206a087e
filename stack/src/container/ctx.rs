//! What a container's stack works with.

use skbudget_controller::{Budget, Instant};

use crate::io::{Device, Host};
use crate::queue::chunk::ChunkPool;

/// Context of every operation of a container's stack: time, memory, both ends.
pub struct Ctx<'a> {
    pub now: Instant,
    pub budget: &'a mut Budget,
    pub pool: &'a mut ChunkPool,
    pub host: &'a mut dyn Host,
    pub device: &'a mut dyn Device,
}

impl std::fmt::Debug for Ctx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx").field("now", &self.now).finish_non_exhaustive()
    }
}
