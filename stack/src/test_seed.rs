//! Seeded random numbers for model tests. `SKBUDGET_SEED=n` runs only seed `n`.

use skbudget_controller::{Budget, BudgetConfig, Limits, Rules, SockLimits};

/// xorshift64*
#[derive(Debug)]
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform enough in `0..n`; 0 for `n == 0`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { ((self.next() >> 16) % n as u64) as usize }
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Prints the seed if the test panics.
struct Blame(u64);

impl Drop for Blame {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with SKBUDGET_SEED={0}; set it to run that seed alone", self.0);
        }
    }
}

/// Runs `test` with each seed of the range, or with the one from the environment.
pub(crate) fn each_seed(seeds: std::ops::Range<u64>, test: impl Fn(&mut Seeded)) {
    let only = std::env::var("SKBUDGET_SEED").ok().map(|s| s.parse().expect("a number"));
    for seed in only.map_or(seeds, |s| s..s + 1) {
        let _blame = Blame(seed);
        test(&mut Seeded::new(seed));
    }
}

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
