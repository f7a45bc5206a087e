//! The schema `loadgen.compare/1`: is B worse than A? Wall-clock runs are compared by statistics over pairs of runs,
//! virtual ones exactly.
//!
//! Every metric becomes the logarithm of B over A, with the sign turned so that larger is worse. A change is a
//! regression if three conditions hold: the 95 % interval of the median lies beyond the margin, the effect exceeds the
//! noise floor of the session, and the rank test is significant after Holm's correction over all selected metrics. An
//! interval that spans the margin decides nothing: the comparison is inconclusive (exit 5).

mod alike;
pub(crate) mod exact;
mod sample;
pub(crate) mod text;
mod verdict;

use std::collections::BTreeMap;

use serde::Serialize;

pub(crate) use self::alike::{comparable, first_difference};
use self::sample::Sample;
use self::verdict::{bounds, exit, judge};
use crate::judge::metrics::{METRICS, Metric, Reading};
use crate::judge::stats::holm;
use crate::measure::result::{GateKind, GateResult, RunResult};
use crate::scenario::plan::ArmRole;

pub(crate) const SCHEMA: &str = "loadgen.compare/1";
/// With fewer pairs no outcome of the rank test is significant.
pub(crate) const PAIRS_MIN: usize = 6;
/// Error rate over all lines of a comparison.
const ALPHA: f64 = 0.05;

/// The metrics and limits of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub metrics: Vec<&'static Metric>,
    /// The metrics were selected by `--metrics`. Without a value of one of them the comparison does not pass; of the
    /// default metrics, an arm may lack some: a load without uploads has no upload rate.
    pub selected: bool,
    /// Relative change up to which a metric counts as unchanged.
    pub margin: f64,
    /// An improvement exits with 4 too.
    pub both: bool,
    pub seed: u64,
}

/// The values of a run that a comparison uses.
#[derive(Debug, Clone)]
pub(crate) struct RunValues {
    pub label: String,
    /// Keyed by arm and metric.
    pub values: BTreeMap<(String, &'static str), Reading>,
    /// Why the run cannot be trusted, for example because the generator fell behind; `None` for a sound run.
    pub doubt: Option<String>,
}

impl RunValues {
    /// Reads the subject arms only: a control arm is expected to be bad.
    pub(crate) fn of(label: &str, result: &RunResult) -> Self {
        let arms = result.arms.iter().filter(|a| a.role == ArmRole::Subject);
        let values = arms.flat_map(|arm| {
            let read = |m: &'static Metric| Some(((arm.name.clone(), m.key), m.read(result, arm)?));
            METRICS.iter().filter_map(read).collect::<Vec<_>>()
        });
        // A failed sanity gate makes every number of the run doubtful.
        let insane = result.gates.iter().find(|g| g.kind == GateKind::Sanity && !g.passed);
        let doubt = insane.map(|g| format!("{}: {} ({})", g.name, g.observed, g.limit));
        let doubt = doubt.or_else(|| result.interrupted.then(|| "interrupted".to_owned()));
        Self { label: label.to_owned(), values: values.collect(), doubt }
    }

    /// Label of a run that is discarded, and the reason.
    fn left_out(&self) -> Option<String> {
        self.doubt.as_ref().map(|doubt| format!("{}: {doubt}", self.label))
    }
}

/// The outcome for one metric of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Judgement {
    Same,
    Worse,
    Better,
    /// The interval contains both no change and a change beyond the margin, or there are too few samples.
    Unclear,
}

/// One metric of one arm.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub arm: String,
    pub metric: &'static str,
    pub judgement: Judgement,
    /// Medians of A and B.
    pub a: f64,
    pub b: f64,
    /// Of a value of A or of B only a lower bound is known.
    pub a_at_least: bool,
    pub b_at_least: bool,
    /// Median of B over A, and its 95 % interval.
    pub ratio: f64,
    pub ratio_low: f64,
    pub ratio_high: f64,
    pub p_holm: f64,
    /// Changes below this factor cannot be distinguished from noise in this session; `null`: not measured.
    pub floor_ratio: Option<f64>,
    pub samples: usize,
    /// Why the judgement is `Unclear`.
    pub reason: String,
}

/// How the runs were compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ComparisonKind {
    Paired,
    Unpaired,
    Exact,
}

/// The content of `compare.json`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Comparison {
    pub schema: &'static str,
    pub kind: ComparisonKind,
    pub a: String,
    pub b: String,
    pub runs_a: usize,
    pub runs_b: usize,
    /// Discarded runs, with the reason.
    pub discarded: Vec<String>,
    pub margin: f64,
    pub lines: Vec<Line>,
    /// Gates of B that a subject fails and passed in A. Only an exact comparison has them.
    pub newly_failed: Vec<GateResult>,
    /// Further remarks, for example the places where two exact results differ.
    pub notes: Vec<String>,
    pub word: String,
    pub exit: u8,
}

/// Compares pairs of runs; the runs of a pair ran next to each other.
pub(crate) fn paired(
    a: &[RunValues],
    b: &[RunValues],
    names: (&str, &str),
    question: &Question,
) -> Comparison {
    let mut discarded = Vec::new();
    let mut pairs: Vec<(&RunValues, &RunValues)> = Vec::new();
    for (a, b) in a.iter().zip(b) {
        // A pair is only as good as its worse run: one doubtful run discards both.
        match [a, b].into_iter().find_map(RunValues::left_out) {
            Some(doubted) => discarded.push(doubted),
            None => pairs.push((a, b)),
        }
    }
    let compared_metrics =
        compared_metrics(question, &pairs.iter().map(|p| p.0).collect::<Vec<_>>());
    let lines = compared_metrics.iter().map(|(arm, metric)| {
        let of = |r: &RunValues| r.values.get(&(arm.clone(), metric.key)).copied();
        // Only pairs that have the metric on both sides.
        let known = pairs.iter().filter_map(|(a, b)| of(a).zip(of(b)));
        let (a, b): (Vec<Reading>, Vec<Reading>) = known.unzip();
        Sample::new(arm, metric, (&a, &b), compared_metrics.len()).paired(question)
    });
    finish(
        ComparisonKind::Paired,
        names,
        (pairs.len(), pairs.len()),
        discarded,
        lines.collect(),
        question,
    )
}

/// Compares two independent groups of runs. A difference may be due to the day of the runs instead of their builds.
pub(crate) fn unpaired(
    a: &[RunValues],
    b: &[RunValues],
    names: (&str, &str),
    question: &Question,
) -> Comparison {
    let mut discarded = Vec::new();
    let mut sane = |runs: &[RunValues]| {
        discarded.extend(runs.iter().filter_map(RunValues::left_out));
        runs.iter().filter(|r| r.doubt.is_none()).cloned().collect::<Vec<RunValues>>()
    };
    let (a, b) = (sane(a), sane(b));
    let compared_metrics = compared_metrics(question, &a.iter().collect::<Vec<_>>());
    let lines = compared_metrics.iter().map(|(arm, metric)| {
        let of = |runs: &[RunValues]| -> Vec<Reading> {
            let key = (arm.clone(), metric.key);
            runs.iter().filter_map(|r| r.values.get(&key)).copied().collect()
        };
        Sample::new(arm, metric, (&of(&a), &of(&b)), compared_metrics.len()).unpaired(question)
    });
    finish(
        ComparisonKind::Unpaired,
        names,
        (a.len(), b.len()),
        discarded,
        lines.collect(),
        question,
    )
}

/// Every arm of A, with each of the selected metrics, or those of the default metrics that A has.
fn compared_metrics(question: &Question, runs: &[&RunValues]) -> Vec<(String, &'static Metric)> {
    let mut arms: Vec<&String> = runs.iter().flat_map(|r| r.values.keys().map(|k| &k.0)).collect();
    arms.sort();
    arms.dedup();
    let of = |arm: &String| question.metrics.iter().map(|m| (arm.clone(), *m)).collect::<Vec<_>>();
    let has = |arm: &String, key| runs.iter().any(|r| r.values.contains_key(&(arm.clone(), key)));
    let all = arms.into_iter().flat_map(of);
    all.filter(|(arm, m)| question.selected || has(arm, m.key)).collect()
}

/// Applies Holm's correction, judges the lines and derives the exit code.
fn finish(
    kind: ComparisonKind,
    (a, b): (&str, &str),
    (runs_a, runs_b): (usize, usize),
    discarded: Vec<String>,
    lines: Vec<(Line, f64)>,
    question: &Question,
) -> Comparison {
    let (mut lines, p): (Vec<Line>, Vec<f64>) = lines.into_iter().unzip();
    // Holm's correction needs the p of all lines, so the lines are judged only here.
    for (line, p) in lines.iter_mut().zip(holm::adjust(&p)) {
        line.p_holm = p;
        judge(line, question.margin);
        bounds(line);
    }
    let mut notes = Vec::new();
    if lines.is_empty() {
        notes.push("no subject arm of these runs has the selected metrics".to_owned());
    }
    let exit = exit(&lines, question.both);
    Comparison {
        schema: SCHEMA,
        kind,
        a: a.to_owned(),
        b: b.to_owned(),
        runs_a,
        runs_b,
        discarded,
        margin: question.margin,
        lines,
        newly_failed: Vec::new(),
        notes,
        word: exit.word().to_owned(),
        exit: exit.code(),
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
