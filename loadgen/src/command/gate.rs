//! `gate`: judges a saved result again, by the gates of its scenario and additional ones, and against a baseline.

mod baseline;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::options::Github;
use super::outcome::CommandOutcome;
use crate::exit::{Exit, Failure};
use crate::judge::gate::{self, Thresholds};
use crate::measure::result::{ArmResult, GateResult, RunResult};
use crate::output::export::cases::{self, Case, CaseOutcome, Suite};
use crate::output::export::json;
use crate::output::folder::{self, Folder};
use crate::scenario::Scenario;
use crate::scenario::expr::{Expr, GroupFacts};
use crate::scenario::plan::{ArmRole, ContainerPlan, GatePlan, Role};
use crate::target;
use crate::units::excerpt;

#[derive(Debug)]
pub(super) struct GateOptions<'a> {
    pub(super) baseline: Option<&'a Path>,
    /// Additional conditions on every subject.
    pub(super) exprs: &'a [String],
    /// Percent by which a number of a wall-clock run may exceed the baseline's before it counts as worse. Virtual runs
    /// are compared exactly.
    pub(super) tolerance: u64,
    /// Treat an inconclusive result as a warning (exit 0).
    pub(super) warn_only: bool,
}

/// What `gate` found.
#[derive(Debug)]
struct GateReport {
    scenario: String,
    text: String,
    word: &'static str,
    exit: u8,
    suites: Vec<Suite>,
}

/// `gate`: judges a saved result and writes the outcome for CI.
pub(super) fn gate_command(
    result: &Path,
    options: &GateOptions<'_>,
    out: Option<&Path>,
    github: &Github,
) -> Result<u8, Failure> {
    let inputs: Vec<PathBuf> =
        [Some(result), options.baseline].into_iter().flatten().map(Path::to_path_buf).collect();
    // Before any work: the output must not overwrite an input.
    out.map_or(Ok(()), |out| folder::apart(out, &inputs))?;
    let judged = judge_apart(result, options, out, github);
    // A command that judges nothing must not leave the verdict of an earlier one.
    judged.inspect_err(|_| out.map_or((), folder::forget))
}

/// The same, with an output folder that holds no input.
fn judge_apart(
    result: &Path,
    options: &GateOptions<'_>,
    out: Option<&Path>,
    github: &Github,
) -> Result<u8, Failure> {
    let found = judge_again(result, options)?;
    let folder = out.map(Folder::beside).transpose()?;
    let judged = CommandOutcome {
        of: &format!("gate {}", found.scenario),
        word: found.word,
        exit: found.exit,
        suites: &found.suites,
        text: &found.text,
    };
    judged.publish(folder.as_ref().map(Folder::dir), Vec::new(), github, None)
}

/// Judges a saved result. Precedence of the exit code: interrupted, failed gate, inconclusive, regression or no
/// baseline. A missing baseline is no warning: with `warn_only` it outweighs an inconclusive result.
fn judge_again(path: &Path, options: &GateOptions<'_>) -> Result<GateReport, Failure> {
    let result = json::read_argument(path)?;
    let mut text = String::new();
    let (gates, thresholds) = judge(&result, options.exprs)?;
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
    if let Some(path) = options.baseline {
        let before = text.len();
        // Virtual runs have no noise.
        let noise = baseline::Noise { tolerance: options.tolerance, thresholds };
        let noise = Some(&noise).filter(|_| result.target != "virtual");
        let verdict = baseline::compare(&result, path, noise, &mut text);
        suites.push(against(&result.scenario, verdict, &text[before..]));
        exit = match (exit, verdict) {
            // The outcome of the run itself outweighs a regression.
            (Exit::GateFailed | Exit::Interrupted, _) => exit,
            (Exit::Inconclusive, Exit::NoBaseline) if options.warn_only => Exit::NoBaseline,
            // The numbers of a doubtful run are neither worse than those of its baseline nor as good.
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
    Ok(GateReport { scenario: result.scenario, text, word, exit: code, suites })
}

/// The comparison with the baseline as a suite: one case per number that is worse, or one case that none is.
fn against(scenario: &str, verdict: Exit, detail: &str) -> Suite {
    let outcome = match verdict {
        Exit::Passed => CaseOutcome::Passed,
        Exit::Regression => CaseOutcome::Failed,
        _ => CaseOutcome::Doubt,
    };
    let case = |line: &str| {
        let (name, detail) =
            // A line is `WORSE  ARM  NUMBER: was X, now Y`.
            line.trim_start_matches("WORSE").trim().split_once(": ").unwrap_or(("baseline", line));
        Case { name: name.to_owned(), outcome, detail: detail.to_owned() }
    };
    let mut cases: Vec<Case> = detail.lines().map(case).collect();
    if cases.is_empty() {
        cases.push(Case {
            name: "no worse".to_owned(),
            outcome,
            detail: "no number is worse".to_owned(),
        });
    }
    Suite::new(scenario, "baseline", cases)
}

/// Judges the result by the gates of the scenario it contains and the thresholds of its target, which it returns too.
fn judge(result: &RunResult, exprs: &[String]) -> Result<(Vec<GateResult>, Thresholds), Failure> {
    if result.scenario_toml.is_empty() {
        return Err(Failure::Usage("the result does not contain its scenario".to_owned()));
    }
    let target = target::find(&result.target)?;
    let scenario = Scenario::parse("result", &result.scenario_toml, "")?;
    let plan = scenario.plan(result.seed)?;
    let facts: Vec<GroupFacts<'_>> = plan.containers.iter().map(facts).collect();
    let groups: Vec<&str> = facts.iter().map(|g| g.name).collect();
    let subjects = || result.arms.iter().filter(|a| a.role == ArmRole::Subject);
    if !exprs.is_empty() && subjects().next().is_none() {
        let why = "--expr: the result has no arm with the role subject, to which conditions apply";
        return Err(Failure::Usage(why.to_owned()));
    }
    // Conditions of `--expr` apply in addition to those of the file.
    let mut added: Vec<GatePlan> = Vec::new();
    for text in exprs {
        let expr = Expr::parse(text, &groups)
            .and_then(|expr| expr.measurable(&facts))
            .map_err(|e| Failure::Usage(format!("--expr '{}': {e}", excerpt(text))))?;
        added.extend(subjects().map(|a| GatePlan { arm: a.name.clone(), expr: expr.clone() }));
    }
    let limits = target.thresholds(&plan);
    if !result.merged_of.is_empty() {
        return Ok((of_merged(result, limits, &added), limits));
    }
    let own: Vec<GatePlan> = plan.gates.iter().cloned().chain(added).collect();
    // A repeated run stores each run's records; judge by them, as the run itself did.
    let runs: Vec<&[ArmResult]> = match result.runs.as_slice() {
        [] => vec![&result.arms],
        runs => runs.iter().map(|r| r.arms.as_slice()).collect(),
    };
    Ok((gate::judge_all(&runs, limits, &own).0, limits))
}

fn facts(c: &ContainerPlan) -> GroupFacts<'_> {
    GroupFacts { name: &c.group, is_hog: c.role == Role::Hog, probes: c.probe().is_some() }
}

/// The gates of a merged result: those of its parts as they were judged, because a sum hides the part that failed, and
/// the added conditions, judged by the sums.
fn of_merged(result: &RunResult, limits: Thresholds, added: &[GatePlan]) -> Vec<GateResult> {
    let is_added =
        |g: &GateResult| added.iter().any(|a| a.arm == g.arm && a.expr.to_string() == g.name);
    let judged = gate::judge(&result.arms, limits, added).0;
    result.gates.iter().cloned().chain(judged.into_iter().filter(is_added)).collect()
}
