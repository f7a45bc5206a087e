//! `gate --baseline`: compares the numbers of a result with those of another result of the same load.
//!
//! Runs in virtual time have no noise: every increase is worse. On a wall clock an increase is worse if it exceeds the
//! tolerance and, for a number that is 0 without a neighbour, half of the increase that the number's gate allows: a
//! percentage of 0 allows nothing.

use std::fmt::Write as _;
use std::path::Path;

use crate::exit::Exit;
use crate::judge::compare::first_difference;
use crate::judge::gate::Thresholds;
use crate::measure::result::{ArmResult, Fairness, GateKind, RunResult};
use crate::output::export::json;
use crate::scenario::plan::ArmRole;
use crate::units::{bytes, percent, time, times};

/// A number of an arm; smaller is better.
struct Number {
    name: &'static str,
    /// `None` is the worst value.
    read: fn(&Fairness) -> Option<u64>,
    show: fn(u64) -> String,
    /// Increase over its best value that the gate allows, for a number whose best value is 0.
    allowed: fn(&Thresholds) -> u64,
    /// Counted, not timed: of several runs the worst decides.
    counted: bool,
}

const NUMBERS: &[Number] = &[
    Number {
        name: "throughput slowdown",
        read: |f| f.throughput_slowdown_milli,
        show: times,
        // Not 0 without a neighbour but 1, of which the tolerance is a share.
        allowed: |_| 0,
        counted: false,
    },
    Number {
        name: "p99 inflation",
        read: |f| f.p99_inflation_milli,
        show: times,
        allowed: |_| 0,
        counted: false,
    },
    Number {
        name: "longest stall",
        read: |f| Some(f.stall_ns),
        show: time,
        allowed: |t| t.stall_ns,
        counted: false,
    },
    Number {
        name: "not delivered",
        read: |f| Some(1_000_000 - f.delivered_ppm.unwrap_or(0).min(1_000_000)),
        show: percent,
        allowed: |t| 1_000_000_u64.saturating_sub(t.delivered_ppm),
        counted: false,
    },
    Number {
        name: "recovery",
        read: |f| f.recovery_ns,
        show: time,
        allowed: |t| t.recovery_ns,
        counted: false,
    },
    Number {
        name: "overshoot",
        read: |f| Some(f.overshoot_bytes),
        show: bytes,
        allowed: |t| t.overshoot_bytes,
        counted: true,
    },
];

impl Number {
    /// The value of an arm: of several runs the median, of a counted number the worst.
    fn of(&self, result: &RunResult, arm: &ArmResult) -> Option<u64> {
        let runs = result.runs.iter().filter_map(|r| r.arms.iter().find(|a| a.name == arm.name));
        let mut all: Vec<Option<u64>> = runs.map(|a| (self.read)(&a.fairness)).collect();
        if all.is_empty() {
            return (self.read)(&arm.fairness);
        }
        // `None` last, as the worst.
        all.sort_by_key(|n| (n.is_none(), *n));
        let at = if self.counted { all.len() - 1 } else { all.len() / 2 };
        all.get(at).copied().flatten()
    }

    fn is_worse(&self, new: Option<u64>, old: Option<u64>, noise: Option<&Noise>) -> bool {
        let (new, old) = match (new, old) {
            (None, Some(_)) => return true,
            (_, None) => return false,
            (Some(new), Some(old)) => (new, old),
        };
        let Some(noise) = noise else { return new > old };
        let most = u128::from(old).saturating_mul(100 + u128::from(noise.tolerance));
        let increase = new.saturating_sub(old);
        u128::from(new) * 100 > most && increase > (self.allowed)(&noise.thresholds) / 2
    }
}

/// The noise of a wall clock.
pub(super) struct Noise {
    /// Percent.
    pub(super) tolerance: u64,
    pub(super) thresholds: Thresholds,
}

/// Compares with a baseline and appends the differences to `text`. `noise`: `None` in virtual time.
pub(super) fn compare(
    result: &RunResult,
    baseline: &Path,
    noise: Option<&Noise>,
    text: &mut String,
) -> Exit {
    if subjects(result).next().is_none() {
        let _ =
            writeln!(text, "--baseline: the result has no arm with the role subject to compare");
        return Exit::NoBaseline;
    }
    let old = match json::read(baseline) {
        Ok(old) => old,
        Err(e) => {
            let _ = writeln!(text, "no baseline: {e}");
            return Exit::NoBaseline;
        }
    };
    if let Some(why) = incomparable(result, &old) {
        let _ = writeln!(text, "the baseline cannot be compared: {why}");
        return Exit::NoBaseline;
    }
    // A sanity or control gate that failed puts the times of the baseline in doubt.
    let doubt = old.gates.iter().find(|g| g.kind != GateKind::Subject && !g.passed);
    if let Some(g) = doubt {
        let _ = writeln!(
            text,
            "the baseline is inconclusive: {} {}: {} ({})",
            g.arm, g.name, g.observed, g.limit
        );
        return Exit::NoBaseline;
    }
    let mut regressed = false;
    for arm in subjects(result) {
        let before = old.arms.iter().find(|a| a.name == arm.name);
        let Some(before) = before else { continue };
        for number in NUMBERS {
            let (new, was) = (number.of(result, arm), number.of(&old, before));
            if number.is_worse(new, was, noise) {
                regressed = true;
                let _ = writeln!(text, "WORSE  {}  {}", arm.name, change(number, new, was));
            }
        }
    }
    if regressed { Exit::Regression } else { Exit::Passed }
}

fn subjects(result: &RunResult) -> impl Iterator<Item = &ArmResult> {
    result.arms.iter().filter(|a| a.role == ArmRole::Subject)
}

/// A number before and now.
fn change(number: &Number, new: Option<u64>, old: Option<u64>) -> String {
    let show = |n: Option<u64>| n.map_or_else(|| "unbounded".to_owned(), number.show);
    let (was, mut is) = (show(old), show(new));
    if let Some((old, new)) = old.zip(new).filter(|_| was == is) {
        // Add the exact difference: virtual runs are compared exactly, and the rounded texts are equal.
        is.push_str(&format!(" ({} more)", new - old));
    }
    format!("{}: was {was}, now {is}", number.name)
}

/// The first reason why two results cannot be compared.
fn incomparable(new: &RunResult, old: &RunResult) -> Option<String> {
    let differ = |what: &str, a: &str, b: &str| {
        (a != b).then(|| format!("{what} '{b}' in the baseline, '{a}' here"))
    };
    differ("schema", &new.schema, &old.schema)
        .or_else(|| differ("scenario", &new.scenario, &old.scenario))
        .or_else(|| differ("target", &new.target, &old.target))
        .or_else(|| old.interrupted.then(|| "it was interrupted".to_owned()))
        .or_else(|| {
            // In virtual time another seed is another run.
            let exact = new.target == "virtual" && new.seed != old.seed;
            exact.then(|| format!("seed {} in the baseline, {} here", old.seed, new.seed))
        })
        .or_else(|| match first_difference(&new.scenario_toml, &old.scenario_toml)? {
            (Some(a), Some(b)) => Some(format!("scenario '{b}' in the baseline, '{a}' here")),
            _ => Some("the scenarios differ in length".to_owned()),
        })
        .or_else(|| {
            let lacks = subjects(new).find(|n| !old.arms.iter().any(|o| o.name == n.name));
            lacks.map(|arm| format!("it has no arm '{}'", arm.name))
        })
}

#[cfg(test)]
#[path = "baseline_tests.rs"]
mod tests;
