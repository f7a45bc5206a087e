//! What a container's stack works with.

use skbudget_controller::{Budget, Instant, Ledger, MemberId};

use crate::io::{Device, Host};
use crate::queue::chunk::ChunkPool;
use crate::queue::{MemCtx, MemberCtx};

/// Context of every operation of a container's stack: time, memory, both ends.
pub struct Ctx<'a> {
    /// The time of the call; it never goes back.
    pub now: Instant,
    /// The budget that the container is a member of.
    pub budget: &'a mut Budget,
    /// The memory of all queues.
    pub pool: &'a mut ChunkPool,
    /// The container's host sockets.
    pub host: &'a mut dyn Host,
    /// The container's device, towards the guest.
    pub device: &'a mut dyn Device,
}

impl Ctx<'_> {
    /// The memory context of the flow with this ledger.
    pub(crate) fn mem<'a>(&'a mut self, ledger: &'a mut Ledger) -> MemCtx<'a> {
        MemCtx { now: self.now, budget: self.budget, pool: self.pool, ledger }
    }

    /// The memory context of a container, for charges that belong to no flow.
    pub(crate) fn member(&mut self, member: MemberId) -> MemberCtx<'_> {
        MemberCtx { now: self.now, budget: self.budget, member }
    }
}

impl std::fmt::Debug for Ctx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ctx").field("now", &self.now).finish_non_exhaustive()
    }
}
