//! Lends the containers of a worker to the work between them.

use skbudget_controller::Instant;
use skbudget_stack::schedule::Schedule;
use skbudget_stack::{Budgets, ChunkPool, Container, Ctx, Loop, Pair, Siblings};

use super::container_slot::{ContainerSlot, TurnCtx};
use super::{BudgetSlot, Worker};

/// The parts of a worker that the work between containers needs.
struct Lender<'a> {
    now: Instant,
    containers: &'a mut [Option<ContainerSlot>],
    budgets: &'a mut [Option<BudgetSlot>],
    pool: &'a mut ChunkPool,
    schedule: &'a mut Schedule,
}

impl Loop for Lender<'_> {
    fn now(&self) -> Instant {
        self.now
    }

    fn one(&mut self, container: usize, work: &mut dyn FnMut(&mut Container, &mut Ctx<'_>)) {
        let Some(slot) = self.containers.get_mut(container).and_then(Option::as_mut) else {
            return;
        };
        let Some(owner) = &mut self.budgets[slot.budget] else { return };
        // No frame is read here.
        let mut turn = TurnCtx { now: self.now, pool: self.pool, scratch: &mut [] };
        slot.with_stack(&mut owner.budget, &mut turn, |stack, cx| work(stack, cx));
    }

    fn two(&mut self, containers: [usize; 2], work: &mut dyn FnMut(&mut Pair<'_>)) {
        let Ok([Some(a), Some(b)]) = self.containers.get_disjoint_mut(containers) else { return };
        let at = [a.budget, b.budget];
        let budgets = match self.budgets.get_disjoint_mut(at) {
            Ok([Some(giver), Some(taker)]) => Budgets::Two(&mut giver.budget, &mut taker.budget),
            Ok(_) => return,
            // They share one.
            Err(_) => match &mut self.budgets[at[0]] {
                Some(owner) => Budgets::Shared(&mut owner.budget),
                None => return,
            },
        };
        let containers = [&mut a.stack, &mut b.stack];
        work(&mut Pair { now: self.now, pool: self.pool, containers, budgets });
    }

    fn activate(&mut self, container: usize) {
        self.schedule.activate(container);
    }
}

impl Worker {
    /// Whether containers see all others, or those of their group. Before the first container.
    pub(crate) fn set_isolation(&mut self, all_see_all: bool) {
        self.siblings = Siblings::new(all_see_all);
    }

    /// Carries out what a container has for its siblings. Returns true when work is left.
    pub(super) fn run_siblings(&mut self, index: usize, now: Instant) -> bool {
        let Self { siblings, containers, budgets, pool, schedule, .. } = self;
        siblings.run(index, &mut Lender { now, containers, budgets, pool, schedule })
    }

    /// Whether the turn of a container's stack left work for its siblings.
    pub(super) fn has_sibling_work(&mut self, index: usize, now: Instant) -> bool {
        let Self { siblings, containers, budgets, pool, schedule, .. } = self;
        siblings.has_work(index, &mut Lender { now, containers, budgets, pool, schedule })
    }

    /// A container has reset its flows, and ends.
    pub(super) fn remove_sibling(&mut self, index: usize, now: Instant) {
        let Self { siblings, containers, budgets, pool, schedule, .. } = self;
        siblings.remove(index, &mut Lender { now, containers, budgets, pool, schedule });
    }
}
