//! Budgets of the unit tests.

use skbudget_controller::{Budget, BudgetConfig, Limits, Rules, SockLimits};

/// Settings for tests of the queues: plenty of memory, almost none, and both under the kernel's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    Plenty,
    Tiny,
    Linux,
    LinuxTiny,
}

impl Setting {
    pub(crate) const ALL: [Self; 4] = [Self::Plenty, Self::Tiny, Self::Linux, Self::LinuxTiny];

    pub(crate) fn budget(self) -> Budget {
        let (rules, hard_bytes) = match self {
            Self::Plenty => (Rules::Strict, 64 << 20),
            Self::Tiny => (Rules::Strict, 80 << 10),
            Self::Linux => (Rules::Linux, 64 << 20),
            Self::LinuxTiny => (Rules::Linux, 80 << 10),
        };
        let config = BudgetConfig {
            rules,
            limits: Limits::from_bytes(hard_bytes, None, None).expect("limits in order"),
            sock: SockLimits::default(),
            min_bytes: 0,
            weight: 100,
        };
        Budget::new(config, None).expect("a budget of its own")
    }
}
