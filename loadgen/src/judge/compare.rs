//! The schema `loadgen.compare/1`: is B worse than A? Wall-clock runs are compared by statistics over pairs of runs,
//! virtual ones exactly.
//!
//! Every metric becomes the logarithm of B over A, with the sign turned so that larger is worse. A change is a
//! regression if three conditions hold: the 95 % interval of the median lies beyond the margin, the effect exceeds the
//! noise floor of the session, and the rank test is significant after Holm's correction over all selected metrics. An
//! interval that spans the margin decides nothing: the comparison is inconclusive (exit 5).

mod alike;
pub mod exact;
pub mod text;

use std::collections::BTreeMap;

use serde::Serialize;

pub use self::alike::{comparable, first_difference};
use crate::exit::Exit;
use crate::judge::metrics::{Better, METRICS, Metric, MetricUnit, Reading, find};
use crate::judge::stats::{bootstrap, holm, median, noise, rank};
use crate::measure::result::{GateKind, GateResult, RunResult};
use crate::scenario::plan::ArmRole;

pub const SCHEMA: &str = "loadgen.compare/1";
/// With fewer pairs no outcome of the rank test is significant.
pub const PAIRS_MIN: usize = 6;
/// Error rate over all lines of a comparison.
const ALPHA: f64 = 0.05;

/// The metrics and limits of a comparison.
#[derive(Debug, Clone)]
pub struct Question {
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
pub struct RunValues {
    pub label: String,
    /// Keyed by arm and metric.
    pub values: BTreeMap<(String, &'static str), Reading>,
    /// Why the run cannot be trusted, for example because the generator fell behind; `None` for a sound run.
    pub doubt: Option<String>,
}

impl RunValues {
    /// Reads the subject arms only: a control arm is expected to be bad.
    pub fn of(label: &str, result: &RunResult) -> Self {
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
pub enum Judgement {
    Same,
    Worse,
    Better,
    /// The interval contains both no change and a change beyond the margin, or there are too few samples.
    Unclear,
}

/// One metric of one arm.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
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
pub enum ComparisonKind {
    Paired,
    Unpaired,
    Exact,
}

/// The content of `compare.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
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

/// Checks whether the sample can settle anything; returns the reason if not. `least_p`: the smallest p that this many
/// samples can reach.
pub fn refusal(least_p: f64, samples: usize, tests: usize, what: &str) -> Option<String> {
    if samples < PAIRS_MIN {
        return Some(format!("{samples} {what}: at least {PAIRS_MIN} are needed"));
    }
    // Bonferroni bound: even the strongest effect would not pass Holm's first step.
    if least_p * tests.max(1) as f64 > ALPHA {
        return Some(format!(
            "{samples} {what} are too few to test {tests} metrics: use more, or fewer metrics (--metrics)"
        ));
    }
    None
}

/// Checks whether the exact rank distribution can be counted out; returns the reason if there are too many values.
fn too_many(values: usize) -> Option<String> {
    let most = rank::VALUES_MAX;
    (values > most).then(|| format!("{values} values: at most {most} are compared at once"))
}

/// Compares pairs of runs; the runs of a pair ran next to each other.
pub fn paired(
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
    let asked = asked(question, &pairs.iter().map(|p| p.0).collect::<Vec<_>>());
    let lines = asked.iter().map(|(arm, metric)| {
        let of = |r: &RunValues| r.values.get(&(arm.clone(), metric.key)).copied();
        // Only pairs that have the metric on both sides.
        let known = pairs.iter().filter_map(|(a, b)| of(a).zip(of(b)));
        let (a, b): (Vec<Reading>, Vec<Reading>) = known.unzip();
        Sample::new(arm, metric, (&a, &b), asked.len()).paired(question)
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
pub fn unpaired(
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
    let asked = asked(question, &a.iter().collect::<Vec<_>>());
    let lines = asked.iter().map(|(arm, metric)| {
        let of = |runs: &[RunValues]| -> Vec<Reading> {
            let key = (arm.clone(), metric.key);
            runs.iter().filter_map(|r| r.values.get(&key)).copied().collect()
        };
        Sample::new(arm, metric, (&of(&a), &of(&b)), asked.len()).unpaired(question)
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
fn asked(question: &Question, runs: &[&RunValues]) -> Vec<(String, &'static Metric)> {
    let mut arms: Vec<&String> = runs.iter().flat_map(|r| r.values.keys().map(|k| &k.0)).collect();
    arms.sort();
    arms.dedup();
    let of = |arm: &String| question.metrics.iter().map(|m| (arm.clone(), *m)).collect::<Vec<_>>();
    let has = |arm: &String, key| runs.iter().any(|r| r.values.contains_key(&(arm.clone(), key)));
    let all = arms.into_iter().flat_map(of);
    all.filter(|(arm, m)| question.selected || has(arm, m.key)).collect()
}

/// Lower bound of a value, because zero has no logarithm; smaller values count as this.
fn least(unit: MetricUnit) -> f64 {
    match unit {
        MetricUnit::Nanos | MetricUnit::BitsPerSecond | MetricUnit::Bytes => 1.0,
        MetricUnit::Ratio => 1e-3,
        MetricUnit::Part => 1e-6,
    }
}

/// The values of one metric of one arm on both sides.
struct Sample<'a> {
    arm: &'a str,
    metric: &'static Metric,
    a: Vec<f64>,
    b: Vec<f64>,
    /// Whether A, and B, contains a lower bound.
    at_least: [bool; 2],
    tests: usize,
}

impl<'a> Sample<'a> {
    fn new(
        arm: &'a str,
        metric: &'static Metric,
        (a, b): (&[Reading], &[Reading]),
        tests: usize,
    ) -> Self {
        let values = |side: &[Reading]| side.iter().map(|r| r.value).collect();
        let at_least = [a, b].map(|side| side.iter().any(|r| r.at_least));
        Self { arm, metric, a: values(a), b: values(b), at_least, tests }
    }

    /// Logarithm of a value, bounded from below.
    fn log(&self, v: f64) -> f64 {
        v.max(least(self.metric.unit)).ln()
    }

    /// The line of paired runs, and its p before Holm's correction.
    fn paired(&self, question: &Question) -> (Line, f64) {
        let pairs = self.a.len();
        let refused = refusal(rank::least_p(pairs), pairs, self.tests, "pairs");
        let refused = refused.or_else(|| too_many(pairs));
        let ratios: Vec<f64> =
            self.a.iter().zip(&self.b).map(|(a, b)| self.log(*b) - self.log(*a)).collect();
        if let Some(reason) = refused {
            return (self.line(median(&ratios), None, None, reason), 1.0);
        }
        let interval = bootstrap::median_interval(&ratios, question.seed);
        // Neighbouring runs of one side differ by noise only.
        let floor = noise::floor(&self.neighbours(), pairs, question.seed);
        let line = self.line(median(&ratios), Some(interval), floor, String::new());
        (line, rank::signed_rank(&ratios))
    }

    /// Log ratios between runs of the same side in neighbouring pairs: the noise of the session.
    fn neighbours(&self) -> Vec<f64> {
        let of = |v: &[f64]| -> Vec<f64> {
            v.windows(2).map(|w| self.log(w[1]) - self.log(w[0])).collect()
        };
        let mut all = of(&self.a);
        all.extend(of(&self.b));
        all
    }

    /// The line of independent runs, and its p before Holm's correction.
    fn unpaired(&self, question: &Question) -> (Line, f64) {
        let (n, m) = (self.a.len(), self.b.len());
        let logs = |v: &[f64]| -> Vec<f64> { v.iter().map(|v| self.log(*v)).collect() };
        let (a, b) = (logs(&self.a), logs(&self.b));
        // Smallest p of the two-sided rank sum test: 2 over the number of ways to split the runs (n + m choose n).
        let ways: f64 = (1..=n.min(m)).map(|i| (n.max(m) + i) as f64 / i as f64).product();
        let refused = refusal(2.0 / ways, n.min(m), self.tests, "runs per side");
        let refused = refused.or_else(|| too_many(n + m));
        let difference = median(&b) - median(&a);
        if let Some(reason) = refused {
            return (self.line(difference, None, None, reason), 1.0);
        }
        let interval = bootstrap::difference_interval(&a, &b, question.seed);
        let floor = noise::floor(&self.neighbours(), n.min(m), question.seed);
        let line = self.line(difference, Some(interval), floor, String::new());
        (line, rank::rank_sum(&a, &b))
    }

    /// A line from a log ratio; without an interval, its bounds are those of no information.
    fn line(
        &self,
        log_ratio: f64,
        interval: Option<bootstrap::Interval>,
        floor: Option<f64>,
        reason: String,
    ) -> Line {
        Line {
            arm: self.arm.to_owned(),
            metric: self.metric.key,
            // Until `judge` decides, after Holm's correction. A refused line stays unclear.
            judgement: Judgement::Unclear,
            a: median(&self.a),
            b: median(&self.b),
            a_at_least: self.at_least[0],
            b_at_least: self.at_least[1],
            ratio: log_ratio.exp(),
            ratio_low: interval.map_or(0.0, |i| i.low.exp()),
            ratio_high: interval.map_or(f64::MAX, |i| i.high.exp()),
            p_holm: 1.0,
            floor_ratio: floor.map(f64::exp),
            samples: self.a.len().min(self.b.len()),
            reason,
        }
    }
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

/// One regression decides; then one unclear line.
fn exit(lines: &[Line], both: bool) -> Exit {
    let any = |j: Judgement| lines.iter().any(|l| l.judgement == j);
    if any(Judgement::Worse) || both && any(Judgement::Better) {
        Exit::Regression
    } else if any(Judgement::Unclear) || lines.is_empty() {
        Exit::Inconclusive
    } else {
        Exit::Passed
    }
}

/// Judges a line by the three conditions at the head of this module.
fn judge(line: &mut Line, margin: f64) {
    // A line with a reason was refused before any test ran: it stays unclear.
    if !line.reason.is_empty() {
        return;
    }
    let more_is_worse = find(line.metric).is_some_and(|m| m.better == Better::Smaller);
    let turn = |log: f64| if more_is_worse { log } else { -log };
    let (x, y) = (turn(line.ratio_low.ln()), turn(line.ratio_high.ln()));
    // Turning the sign may swap the ends of the interval.
    let (low, high, middle) = (x.min(y), x.max(y), turn(line.ratio.ln()));
    let limit = (1.0 + margin).ln();
    let certain = line.p_holm <= ALPHA && middle.abs() > line.floor_ratio.map_or(0.0, f64::ln);
    line.judgement = if low > limit && certain {
        Judgement::Worse
    } else if high < -limit && certain {
        Judgement::Better
    } else if high <= limit {
        // The whole interval lies at or below the margin: whatever the change is, it is not a regression.
        Judgement::Same
    } else {
        let (low, high) = ((low.exp() - 1.0) * 100.0, (high.exp() - 1.0) * 100.0);
        line.reason = format!(
            "between {low:+.1} % and {high:+.1} % worse: the interval is too wide to decide"
        );
        Judgement::Unclear
    };
}

/// Withdraws a judgement that a lower bound does not support. The value behind the bound may be any larger one.
fn bounds(line: &mut Line) {
    let more_is_worse = find(line.metric).is_some_and(|m| m.better == Better::Smaller);
    // A larger value of B is worse, and of A better, if smaller is better.
    let (may_be_worse, may_be_better) = match more_is_worse {
        true => (line.b_at_least, line.a_at_least),
        false => (line.a_at_least, line.b_at_least),
    };
    let holds = match line.judgement {
        Judgement::Unclear => return,
        Judgement::Worse => !may_be_better,
        // A smaller change than the margin, or none, even if A is larger than known.
        Judgement::Better | Judgement::Same => !may_be_worse,
    };
    if !holds {
        let sides = match (line.a_at_least, line.b_at_least) {
            (true, true) => "A and B",
            (true, false) => "A",
            _ => "B",
        };
        line.judgement = Judgement::Unclear;
        line.reason = format!("of {sides} only a lower bound is known");
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
