//! What the tests of both queues begin with.

use std::mem::ManuallyDrop;

use skbudget_controller::{Budget, FlowSizes, Instant, Ledger, MemberId};

use crate::seeded::Setting;

/// What a flow of a queue's test reserves, and the only time there is in it.
pub(crate) const SIZES: FlowSizes =
    FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 8192 };
pub(crate) const NOW: Instant = Instant(1);

/// The byte of a stream at a position.
pub(crate) fn byte(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9) >> 13) as u8
}

/// A budget, its member, and two flows of it: the one that is tried, and one that takes memory and gives it back.
pub(crate) fn two_flows(setting: Setting) -> (Budget, MemberId, [ManuallyDrop<Ledger>; 2]) {
    let mut budget = setting.budget();
    let member = budget.add_member(0).unwrap();
    let flows = [(); 2].map(|()| {
        let mut ledger = budget.admit(member, &SIZES, NOW).unwrap();
        budget.establish(&mut ledger, NOW).unwrap();
        // A failed assertion is not to be followed by that of a ledger dropped.
        ManuallyDrop::new(ledger)
    });
    (budget, member, flows)
}
