//! Set-up shared by the tests of both queues.

use std::mem::ManuallyDrop;

use skbudget_controller::{Budget, FlowSizes, Instant, Ledger, MemberId};

use crate::test_seed::Setting;

/// The reservation of a test's flow, and the only time in these tests.
pub(crate) const SIZES: FlowSizes =
    FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 8192 };
pub(crate) const NOW: Instant = Instant(1);

/// The byte at a position of a test stream.
pub(crate) fn byte(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9) >> 13) as u8
}

/// A budget, its member, and two flows: the one under test, and one that takes and returns memory.
pub(crate) fn two_flows(setting: Setting) -> (Budget, MemberId, [ManuallyDrop<Ledger>; 2]) {
    let mut budget = setting.budget();
    let member = budget.add_member(0).unwrap();
    let flows = [(); 2].map(|()| {
        let mut ledger = budget.admit(member, &SIZES, NOW).unwrap();
        budget.establish(&mut ledger, NOW).unwrap();
        // A failed assertion must not be hidden by the panic of a dropped ledger.
        ManuallyDrop::new(ledger)
    });
    (budget, member, flows)
}
