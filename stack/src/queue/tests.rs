//! What the tests of both queues share: a budget with two flows, and random steps in every setting.

use std::mem::ManuallyDrop;

use skbudget_controller::{Budget, FlowSizes, Instant, Ledger, MemberId, Rules};
use skbudget_seed::Rng;

use crate::queue::MemCtx;
use crate::queue::chunk::ChunkPool;
use crate::test_budget::Setting;

/// The reservation of a test's flow, and the only time in these tests.
pub(crate) const SIZES: FlowSizes =
    FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 8192 };
pub(crate) const NOW: Instant = Instant(1);

/// The byte at a position of a test stream.
pub(crate) fn byte(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9) >> 13) as u8
}

/// A budget and two flows: the one under test, and one that takes and returns memory.
pub(crate) struct Memory {
    pub(crate) budget: Budget,
    pub(crate) member: MemberId,
    pub(crate) pool: ChunkPool,
    // A failed assertion must not be hidden by the panic of a dropped ledger.
    pub(crate) ledger: ManuallyDrop<Ledger>,
    pub(crate) other: ManuallyDrop<Ledger>,
}

impl Memory {
    pub(crate) fn new(setting: Setting) -> Self {
        let mut budget = setting.budget();
        let member = budget.add_member(0).unwrap();
        let [ledger, other] = [(); 2].map(|()| {
            let mut ledger = budget.admit(member, &SIZES, NOW).unwrap();
            budget.establish(&mut ledger, NOW).unwrap();
            ManuallyDrop::new(ledger)
        });
        Self { budget, member, pool: ChunkPool::new(), ledger, other }
    }

    /// The context of the flow under test.
    pub(crate) fn cx(&mut self) -> MemCtx<'_> {
        let Self { budget, pool, ledger, .. } = self;
        MemCtx { now: NOW, budget, pool, ledger }
    }

    /// The budget is within its limit (strict rules).
    pub(crate) fn check(&self) {
        if self.budget.rules() == Rules::Strict {
            let meter = self.budget.meter_stats(NOW);
            assert!(Some(meter.max_usage_bytes) <= meter.hard_bytes, "hard is hard");
        }
    }

    /// The queue has returned its chunks: nothing stays charged once both flows are released.
    pub(crate) fn end(mut self) {
        assert_eq!(self.pool.live(), 0);
        self.budget.release(ManuallyDrop::into_inner(self.ledger), NOW);
        self.budget.release(ManuallyDrop::into_inner(self.other), NOW);
        assert_eq!(self.budget.meter_stats(NOW).usage_bytes, 0);
    }
}

/// A queue and a model of it.
pub(crate) trait World {
    fn new(setting: Setting) -> Self;
    /// One random operation on both, and the comparison.
    fn step(&mut self, rng: &mut Rng);
    fn end(self);
}

/// Random steps in each setting, with one seed.
pub(crate) fn random_steps<W: World>(seed: u64) {
    for setting in Setting::ALL {
        let rng = &mut Rng::new(seed);
        let mut world = W::new(setting);
        for _ in 0..400 {
            world.step(rng);
        }
        world.end();
    }
}
