//! Lends the containers of a world to the work between them.

use skbudget_controller::{Budget, Instant};
use skbudget_stack::schedule::Schedule;
use skbudget_stack::{Budgets, Container, Ctx, Loop, Pair};

use super::node::{Common, Node};
use super::{NodeId, World};

/// The parts of a world that the work between containers needs.
struct Lender<'a> {
    common: &'a mut Common,
    budgets: &'a mut [Budget],
    nodes: &'a mut [Node],
    schedule: &'a mut Schedule,
    touched: &'a mut Vec<usize>,
}

impl Loop for Lender<'_> {
    fn now(&self) -> Instant {
        self.common.now
    }

    fn one(&mut self, container: usize, work: &mut dyn FnMut(&mut Container, &mut Ctx<'_>)) {
        let node = &mut self.nodes[container];
        if node.alive {
            node.with(self.common, &mut self.budgets[node.budget], |stack, cx| work(stack, cx));
        }
    }

    fn two(&mut self, containers: [usize; 2], work: &mut dyn FnMut(&mut Pair<'_>)) {
        let Ok([a, b]) = self.nodes.get_disjoint_mut(containers) else { return };
        if !a.alive || !b.alive {
            return;
        }
        let Common { now, pool, .. } = &mut *self.common;
        let budgets = match self.budgets.get_disjoint_mut([a.budget, b.budget]) {
            Ok([giver, taker]) => Budgets::Two(giver, taker),
            // The same one.
            Err(_) => Budgets::Shared(&mut self.budgets[a.budget]),
        };
        let containers = [&mut a.container, &mut b.container];
        work(&mut Pair { now: *now, pool, containers, budgets });
    }

    fn activate(&mut self, container: usize) {
        self.schedule.activate(container);
        self.touched.push(container);
    }
}

impl World {
    /// Moves a container to a group: it sees the others of this group. All are in one group at first.
    pub fn set_group(&mut self, id: NodeId, group: &str) {
        self.siblings.set_group(id.0, group);
    }

    /// Carries out what a container has for its siblings. Returns true when work is left.
    pub(super) fn run_siblings(&mut self, index: usize) -> bool {
        let Self { common, budgets, nodes, schedule, touched, siblings, .. } = self;
        siblings.run(index, &mut Lender { common, budgets, nodes, schedule, touched })
    }

    /// Whether the turn of a container's stack left work for its siblings.
    pub(super) fn has_sibling_work(&mut self, index: usize) -> bool {
        let Self { common, budgets, nodes, schedule, touched, siblings, .. } = self;
        siblings.has_work(index, &mut Lender { common, budgets, nodes, schedule, touched })
    }

    /// A container has reset its flows, and ends.
    pub(super) fn remove_sibling(&mut self, index: usize) {
        let Self { common, budgets, nodes, schedule, touched, siblings, .. } = self;
        siblings.remove(index, &mut Lender { common, budgets, nodes, schedule, touched });
    }
}
