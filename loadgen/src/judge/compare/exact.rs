//! Compares two runs in virtual time: no noise, no statistics. Every metric is compared exactly, and every other
//! difference of the results is reported with its path.

use serde_json::Value;

use super::verdict::bounds;
use super::{Comparison, ComparisonKind, Judgement, Line, Question, RunValues, SCHEMA};
use crate::exit::{Exit, Failure};
use crate::judge::metrics::{Better, METRICS, Metric};
use crate::measure::result::{GateResult, RunResult};
use crate::scenario::plan::ArmRole;

/// Maximum number of paths listed; further ones are only counted.
const PLACES_MAX: usize = 12;

/// Compares two runs exactly.
pub(crate) fn compare(
    a: &RunResult,
    b: &RunResult,
    (name_a, name_b): (&str, &str),
    question: &Question,
) -> Result<Comparison, Failure> {
    let (run_a, run_b) = (RunValues::of(name_a, a), RunValues::of(name_b, b));
    let mut notes = places(a, b)?;
    let discarded: Vec<String> =
        [&run_a, &run_b].into_iter().filter_map(RunValues::left_out).collect();
    if !discarded.is_empty() {
        // Exact does not mean sound: an interrupted run, or a p99 of ten requests, gives no number to compare.
        notes.insert(0, "no metric was compared: a run is inconclusive or interrupted".to_owned());
        let runs = [&run_a, &run_b].map(|r| usize::from(r.doubt.is_none()));
        let (lines, newly_failed) = (Vec::new(), Vec::new());
        let found = ExactResult { runs, discarded, lines, newly_failed, notes };
        return Ok(found.comparison((name_a, name_b), question, Exit::Inconclusive));
    }
    let mut lines = lines(&run_a, &run_b, question);
    lines.extend(absent(&run_a, a, question));
    let newly_failed = newly_failed(a, b);
    let any = |j: Judgement| lines.iter().any(|l| l.judgement == j);
    let worse = any(Judgement::Worse) || !newly_failed.is_empty();
    let exit = if worse || question.both && any(Judgement::Better) {
        Exit::Regression
    } else if any(Judgement::Unclear) || run_a.values.is_empty() {
        Exit::Inconclusive
    } else {
        Exit::Passed
    };
    if run_a.values.is_empty() {
        notes.insert(0, "no metric was compared: no arm of A is a subject with metrics".to_owned());
    }
    let found = ExactResult { runs: [1, 1], discarded, lines, newly_failed, notes };
    Ok(found.comparison((name_a, name_b), question, exit))
}

/// The gates that a subject fails in B and does not fail in A, whatever the metrics.
fn newly_failed(a: &RunResult, b: &RunResult) -> Vec<GateResult> {
    let failed_before = |g: &GateResult| {
        a.gates.iter().any(|old| old.arm == g.arm && old.name == g.name && old.is_fault())
    };
    b.gates.iter().filter(|g| g.is_fault() && !failed_before(g)).cloned().collect()
}

/// A line for each metric selected by `--metrics` that no subject of A has, in the first of them.
fn absent(run_a: &RunValues, a: &RunResult, question: &Question) -> Vec<Line> {
    let arm = a.arms.iter().find(|a| a.role == ArmRole::Subject);
    let Some(arm) = arm.filter(|_| question.selected) else { return Vec::new() };
    let lacks = |m: &&&Metric| !run_a.values.keys().any(|(_, key)| *key == m.key);
    let line = |m: &&'static Metric| Line {
        arm: arm.name.clone(),
        metric: m.key,
        judgement: Judgement::Unclear,
        a: f64::MAX,
        b: f64::MAX,
        a_at_least: false,
        b_at_least: false,
        ratio: f64::MAX,
        ratio_low: 0.0,
        ratio_high: f64::MAX,
        p_holm: 1.0,
        floor_ratio: None,
        samples: 0,
        reason: "A has no value of this metric".to_owned(),
    };
    question.metrics.iter().filter(lacks).map(line).collect()
}

/// The parts of a comparison, before its verdict.
struct ExactResult {
    runs: [usize; 2],
    discarded: Vec<String>,
    lines: Vec<Line>,
    newly_failed: Vec<GateResult>,
    notes: Vec<String>,
}

impl ExactResult {
    fn comparison(self, (a, b): (&str, &str), question: &Question, exit: Exit) -> Comparison {
        Comparison {
            schema: SCHEMA,
            kind: ComparisonKind::Exact,
            a: a.to_owned(),
            b: b.to_owned(),
            runs_a: self.runs[0],
            runs_b: self.runs[1],
            discarded: self.discarded,
            margin: question.margin,
            lines: self.lines,
            newly_failed: self.newly_failed,
            notes: self.notes,
            word: exit.word().to_owned(),
            exit: exit.code(),
        }
    }
}

/// Every metric that differs, and the selected ones that B lacks.
pub(super) fn lines(run_a: &RunValues, run_b: &RunValues, question: &Question) -> Vec<Line> {
    let mut lines = Vec::new();
    for m in METRICS {
        for (arm, _) in run_a.values.keys().filter(|(_, key)| *key == m.key) {
            let key = (arm.clone(), m.key);
            let before = run_a.values[&key];
            let after = run_b.values.get(&key).copied();
            // A metric that B lacks counts as the largest value.
            let (from, to) = (before.value, after.map_or(f64::MAX, |r| r.value));
            // Only selected metrics decide; others are listed.
            let gated = question.metrics.iter().any(|q| q.key == m.key);
            let b_at_least = after.is_some_and(|r| r.at_least);
            let equal = from == to && before.at_least == b_at_least;
            if equal || !gated && after.is_none() {
                continue;
            }
            // Beyond the margin in the worse direction; any improvement counts as better.
            let worse = match m.better {
                Better::Smaller => to > from * (1.0 + question.margin),
                Better::Bigger => to < from / (1.0 + question.margin) || after.is_none(),
            };
            let better = match m.better {
                Better::Smaller => to < from,
                Better::Bigger => to > from && after.is_some(),
            };
            let judgement = match (worse, better) {
                _ if !gated => Judgement::Same,
                (true, _) => Judgement::Worse,
                (_, true) => Judgement::Better,
                _ => Judgement::Same,
            };
            // JSON has no infinity: `f64::MAX` replaces it.
            let ratio = if from == 0.0 { f64::MAX } else { (to / from).min(f64::MAX) };
            let mut line = Line {
                arm: arm.clone(),
                metric: m.key,
                judgement,
                a: from,
                b: to,
                a_at_least: before.at_least,
                b_at_least,
                ratio,
                ratio_low: ratio,
                ratio_high: ratio,
                p_holm: 0.0,
                floor_ratio: Some(1.0),
                samples: 1,
                reason: if gated { String::new() } else { "not selected (--metrics)".to_owned() },
            };
            if gated {
                bounds(&mut line);
            }
            lines.push(line);
        }
    }
    lines
}

/// The paths at which the two results differ, apart from `meta`.
fn places(a: &RunResult, b: &RunResult) -> Result<Vec<String>, Failure> {
    let value = |r: &RunResult| -> Result<Value, Failure> {
        let mut v = serde_json::to_value(r).map_err(|e| Failure::io("result", e))?;
        if let Some(object) = v.as_object_mut() {
            // Time, machine and command differ between any two runs.
            object.remove("meta");
        }
        Ok(v)
    };
    let mut found = Vec::new();
    walk(&value(a)?, &value(b)?, "", &mut found);
    if found.is_empty() {
        return Ok(vec!["identical in every byte apart from meta".to_owned()]);
    }
    let count = found.len();
    found.truncate(PLACES_MAX);
    if count > PLACES_MAX {
        found.push(format!("and {} more places", count - PLACES_MAX));
    }
    Ok(found)
}

/// Collects the paths of all differences between two values.
fn walk(a: &Value, b: &Value, at: &str, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for (key, value) in x {
                walk(value, y.get(key).unwrap_or(&Value::Null), &format!("{at}/{key}"), found);
            }
            let new = y.iter().filter(|(k, _)| !x.contains_key(*k));
            found.extend(new.map(|(k, v)| format!("{at}/{k}: absent in A, {} in B", brief(v))));
        }
        // Arrays of different length count as one difference.
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                // An element with a name (arm, container, gate) appears by it in the path, others by their index.
                let name = x.get("name").and_then(Value::as_str);
                let step = name.map_or_else(|| i.to_string(), str::to_owned);
                walk(x, y, &format!("{at}/{step}"), found);
            }
        }
        _ if a == b => {}
        _ => found.push(format!("{at}: {} in A, {} in B", brief(a), brief(b))),
    }
}

/// A value in a few characters.
fn brief(v: &Value) -> String {
    match v {
        Value::Array(a) => format!("{} elements", a.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(s) if s.len() > 40 => format!("{} characters", s.len()),
        other => other.to_string(),
    }
}
