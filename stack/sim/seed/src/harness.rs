//! Runs a test once for each seed and, when one fails, prints the command that replays it.

use std::ops::Range;

/// Runs a closure with each seed of a range, in order. Called in the test function itself, from which it takes the
/// names of the replay command.
///
/// `SKBUDGET_SEED=n` runs only seed `n`; `SKBUDGET_SEEDS=n` runs the first `n` seeds from the start of the range.
///
/// # Examples
///
/// ```
/// // In `tests/queue.rs` of the package `x`: a failure of seed 7 prints
/// // SKBUDGET_SEED=7 cargo test -p x --test queue in_any_order -- --exact
/// fn in_any_order() {
///     skbudget_seed::each_seed!(0..30, |seed| {
///         let mut rng = skbudget_seed::Rng::new(seed);
///         assert!(rng.below(10) < 10);
///     });
/// }
/// in_any_order();
/// ```
#[macro_export]
macro_rules! each_seed {
    ($seeds:expr, $run:expr) => {{
        fn here() {}
        let path = ::std::any::type_name_of_val(&here);
        let (package, target) = (env!("CARGO_PKG_NAME"), env!("CARGO_CRATE_NAME"));
        $crate::Test::new(package, target, path).run($seeds, $run);
    }};
}

/// Names of a test: what `cargo test` needs to run it alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    package: &'static str,
    target: &'static str,
    name: String,
}

impl Test {
    /// `target` is the crate's name. `path` is that of an item in the test function:
    /// `crate::module::function::item`.
    pub fn new(package: &'static str, target: &'static str, path: &str) -> Self {
        let inner = path.rsplit_once("::").map_or(path, |(function, _)| function);
        let name = inner.split_once("::").map_or(inner, |(_, name)| name).to_owned();
        Self { package, target, name }
    }

    /// Runs the closure with each seed, or with those of the environment.
    ///
    /// # Panics
    /// As the closure does; before, the command that replays the seed is printed.
    pub fn run(&self, seeds: Range<u64>, run: impl Fn(u64)) {
        let number = |name| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
        let seeds = match (number("SKBUDGET_SEED"), number("SKBUDGET_SEEDS")) {
            (Some(seed), _) => seed..seed + 1,
            (None, Some(count)) => seeds.start..seeds.start + count,
            (None, None) => seeds,
        };
        for seed in seeds {
            let _on_panic = Replay { test: self, seed };
            run(seed);
        }
    }

    fn replay(&self, seed: u64) -> String {
        // The unit tests of a library are compiled under the library's name.
        let target = if self.target == self.package.replace('-', "_") {
            "--lib".to_owned()
        } else {
            format!("--test {}", self.target)
        };
        let Self { package, name, .. } = self;
        format!("SKBUDGET_SEED={seed} cargo test -p {package} {target} {name} -- --exact")
    }
}

/// Prints the command when the run of a seed panics.
struct Replay<'a> {
    test: &'a Test,
    seed: u64,
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} fails: {}", self.seed, self.test.replay(self.seed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Test;

    #[test]
    fn the_command_names_package_target_and_test() {
        fn here() {}
        let path = std::any::type_name_of_val(&here);
        let unit = Test::new(env!("CARGO_PKG_NAME"), env!("CARGO_CRATE_NAME"), path);
        assert_eq!(
            unit.replay(7),
            "SKBUDGET_SEED=7 cargo test -p skbudget-seed --lib \
             harness::tests::the_command_names_package_target_and_test -- --exact"
        );
        let target = Test::new("skbudget-stack", "simulation", "simulation::faulty_links::here");
        assert_eq!(
            target.replay(1000),
            "SKBUDGET_SEED=1000 cargo test -p skbudget-stack --test simulation faulty_links -- --exact"
        );
    }

    #[test]
    fn every_seed_of_the_range_runs_once_and_a_failure_ends_it() {
        let test = Test::new("skbudget-seed", "skbudget_seed", "skbudget_seed::here");
        let seen = std::cell::RefCell::new(Vec::new());
        let run = std::panic::AssertUnwindSafe(|| {
            test.run(3..9, |seed| {
                seen.borrow_mut().push(seed);
                assert!(seed < 5, "on purpose");
            });
        });
        assert!(std::panic::catch_unwind(run).is_err());
        // A seed of the environment replaces the range.
        if std::env::var_os("SKBUDGET_SEED").is_none() {
            assert_eq!(*seen.borrow(), [3, 4, 5]);
        }
    }
}
