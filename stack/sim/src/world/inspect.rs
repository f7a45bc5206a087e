//! What a world shows of its parts.

use skbudget_controller::{Budget, MemberId};
use skbudget_stack::Container;

use super::{BudgetId, NodeId, World, WorldStats};
use crate::host::SimHost;
use crate::link::Link;

impl World {
    /// A container's stack.
    pub fn container(&self, id: NodeId) -> &Container {
        &self.nodes[id.0].container
    }
    /// A container's member of its budget.
    pub fn member(&self, id: NodeId) -> MemberId {
        self.nodes[id.0].container.member()
    }
    /// A budget.
    pub fn budget(&self, id: BudgetId) -> &Budget {
        &self.budgets[id.0]
    }
    /// For draining events (`Budget::poll_event`) and similar.
    pub fn budget_mut(&mut self, id: BudgetId) -> &mut Budget {
        &mut self.budgets[id.0]
    }
    /// A container's host sockets.
    pub fn host(&self, id: NodeId) -> &SimHost {
        &self.nodes[id.0].host
    }
    /// The links: up, down.
    pub fn links(&mut self, id: NodeId) -> (&mut Link, &mut Link) {
        let node = &mut self.nodes[id.0];
        (&mut node.up, &mut node.down)
    }
    /// Chunks that any queue holds.
    pub fn live_chunks(&self) -> usize {
        self.common.pool.live()
    }
    /// A copy of the counters.
    pub fn stats(&self) -> WorldStats {
        self.stats
    }
}
