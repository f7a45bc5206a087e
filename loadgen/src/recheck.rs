//! `gate`: judges a saved result again, by the gates of its scenario and additional ones, and against a baseline.

use std::fmt::Write as _;
use std::path::Path;

use crate::exit::{Exit, Failure};
use crate::export::cases::{self, Case, Outcome, Suite};
use crate::export::json;
use crate::gate::{self, Expr, GroupFacts};
use crate::plan::{ArmRole, ContainerPlan, GatePlan};
use crate::result::{ArmResult, Fairness, GateResult, RunResult};
use crate::scenario::Scenario;
use crate::target;
use crate::units::{bytes, percent, time, times};

#[derive(Debug)]
pub struct Options<'a> {
    pub baseline: Option<&'a Path>,
    /// Additional conditions on every subject.
    pub exprs: &'a [String],
    /// Percent by which a number of a wall-clock run may exceed the baseline's before it counts as worse. Virtual runs
    /// are compared exactly.
    pub tolerance: u64,
    /// Treat an inconclusive result as a warning (exit 0).
    pub warn_only: bool,
}

/// The outcome of a recheck.
#[derive(Debug)]
pub struct Recheck {
    pub scenario: String,
    pub text: String,
    pub word: &'static str,
    pub exit: u8,
    pub suites: Vec<Suite>,
}

/// Judges a saved result. Precedence of the exit code: failed gate, regression, inconclusive, no baseline.
pub fn gate(path: &Path, options: &Options<'_>) -> Result<Recheck, Failure> {
    let result = json::read(path)?;
    let mut text = String::new();
    let gates = judge(&result, options.exprs)?;
    let failed = gates.iter().filter(|g| !g.passed).count();
    for g in &gates {
        let (mark, limit) = (g.mark(), &g.limit);
        let _ = writeln!(text, "{mark:5} {}  {}  {}  ({limit})", g.arm, g.name, g.observed);
    }
    let mut exit = if result.interrupted { Exit::Interrupted } else { gate::exit_of(&gates) };
    let mut suites = match result.interrupted {
        true => cases::of_run(&result),
        false => cases::of_gates(&result.scenario, &gates),
    };
    if let Some(baseline) = options.baseline {
        let before = text.len();
        let verdict = compare(&result, baseline, options.tolerance, &mut text);
        suites.push(against(&result.scenario, verdict, &text[before..]));
        exit = match (exit, verdict) {
            // The outcome of the run itself outweighs a regression.
            (Exit::GateFailed | Exit::Interrupted, _) => exit,
            (_, Exit::Regression) => Exit::Regression,
            // A doubtful run proves nothing by matching its baseline.
            (Exit::Inconclusive, _) => Exit::Inconclusive,
            (_, other) => other,
        };
    }
    let mut code = exit.code();
    if exit == Exit::Inconclusive && options.warn_only {
        let _ = writeln!(text, "warning: inconclusive, but exit 0 because of --inconclusive warn");
        code = 0;
    }
    let (word, all) = (exit.word(), gates.len());
    let _ = writeln!(text, "VERDICT: {word} exit={code} ({failed} of {all} gates failed)");
    Ok(Recheck { scenario: result.scenario, text, word, exit: code, suites })
}

/// The comparison with the baseline as a suite: one case per number that is worse, or one case that none is.
fn against(scenario: &str, verdict: Exit, said: &str) -> Suite {
    let outcome = match verdict {
        Exit::Passed => Outcome::Passed,
        Exit::Regression => Outcome::Failed,
        _ => Outcome::Doubt,
    };
    let case = |line: &str| {
        let (name, said) =
            // A line is `WORSE  ARM  NUMBER: was X, now Y`.
            line.trim_start_matches("WORSE").trim().split_once(": ").unwrap_or(("baseline", line));
        Case { name: name.to_owned(), outcome, said: said.to_owned() }
    };
    let mut cases: Vec<Case> = said.lines().map(case).collect();
    if cases.is_empty() {
        cases.push(Case {
            name: "no worse".to_owned(),
            outcome,
            said: "no number is worse".to_owned(),
        });
    }
    Suite::new(scenario, "baseline", cases)
}

/// Judges the result by the gates of the scenario it contains and the thresholds of its target.
fn judge(result: &RunResult, exprs: &[String]) -> Result<Vec<GateResult>, Failure> {
    if result.scenario_toml.is_empty() {
        return Err(Failure::Usage("the result does not contain its scenario".to_owned()));
    }
    let target = target::find(&result.target)?;
    let scenario = Scenario::parse("result", &result.scenario_toml, "")?;
    let plan = scenario.plan(result.seed)?;
    let facts: Vec<GroupFacts<'_>> = plan.containers.iter().map(facts).collect();
    let groups: Vec<&str> = facts.iter().map(|g| g.name).collect();
    // Conditions of `--expr` apply in addition to those of the file.
    let mut own = plan.gates.clone();
    for text in exprs {
        let expr = Expr::parse(text, &groups)
            .and_then(|expr| expr.measurable(&facts))
            .map_err(|e| Failure::Usage(format!("--expr '{text}': {e}")))?;
        let subjects = result.arms.iter().filter(|a| a.role == ArmRole::Subject);
        own.extend(subjects.map(|a| GatePlan { arm: a.name.clone(), expr: expr.clone() }));
    }
    // A repeated run stores each run's records; judge by them, as the run itself did.
    let runs: Vec<&[ArmResult]> = match result.runs.as_slice() {
        [] => vec![&result.arms],
        runs => runs.iter().map(|r| r.arms.as_slice()).collect(),
    };
    Ok(gate::judge_all(&runs, target.thresholds(&plan), &own).0)
}

fn facts(c: &ContainerPlan) -> GroupFacts<'_> {
    GroupFacts { name: &c.group, role: c.role, probes: c.probe().is_some() }
}

/// Name, reading (smaller is better; `None` is the worst) and format of a number.
type Number = (&'static str, fn(&Fairness) -> Option<u64>, fn(u64) -> String);

const NUMBERS: &[Number] = &[
    ("throughput slowdown", |f| f.throughput_slowdown_milli, times),
    ("p99 inflation", |f| f.p99_inflation_milli, times),
    ("longest stall", |f| Some(f.stall_ns), time),
    ("not delivered", |f| Some(1_000_000 - f.delivered_ppm.unwrap_or(0).min(1_000_000)), percent),
    ("recovery", |f| f.recovery_ns, time),
    ("overshoot", |f| Some(f.overshoot_bytes), bytes),
];

/// Compares with a baseline and appends the differences to `text`.
fn compare(result: &RunResult, baseline: &Path, tolerance: u64, text: &mut String) -> Exit {
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
    // Virtual runs have no noise.
    let tolerance = if result.target == "virtual" { 0 } else { tolerance };
    let mut regressed = false;
    for new in result.arms.iter().filter(|a| a.role == ArmRole::Subject) {
        // An arm that the baseline lacks cannot be compared.
        let Some(old) = old.arms.iter().find(|a| a.name == new.name) else { continue };
        regressed |= compare_arm(new, old, tolerance, text);
    }
    if regressed { Exit::Regression } else { Exit::Passed }
}

/// Appends each number of an arm that is worse; returns whether there is one.
fn compare_arm(new: &ArmResult, old: &ArmResult, tolerance: u64, text: &mut String) -> bool {
    let mut regressed = false;
    for (name, of, shown) in NUMBERS {
        let (new_n, old_n) = (of(&new.fairness), of(&old.fairness));
        let worse = match (new_n, old_n) {
            (None, Some(_)) => true,
            (Some(n), Some(o)) => u128::from(n) * 100 > u128::from(o) * u128::from(100 + tolerance),
            (_, None) => false,
        };
        regressed |= worse;
        if worse {
            let show = |n: Option<u64>| n.map_or_else(|| "unbounded".to_owned(), shown);
            let (was, mut is) = (show(old_n), show(new_n));
            if let Some((old, new)) = old_n.zip(new_n).filter(|_| was == is) {
                // Add the exact difference: virtual runs are compared exactly, and the rounded texts are equal.
                is.push_str(&format!(" ({} more)", new - old));
            }
            let _ = writeln!(text, "WORSE  {}  {name}: {was}, now {is}", new.name);
        }
    }
    regressed
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
        .or_else(|| {
            // Report the first line that differs; if none does, the lengths may.
            let lines = new.scenario_toml.lines().zip(old.scenario_toml.lines());
            let line = lines.clone().find(|(a, b)| a != b);
            line.map(|(a, b)| format!("scenario '{b}' in the baseline, '{a}' here")).or_else(|| {
                let same = new.scenario_toml.lines().count() == old.scenario_toml.lines().count();
                (!same).then(|| "the scenarios differ in length".to_owned())
            })
        })
}
