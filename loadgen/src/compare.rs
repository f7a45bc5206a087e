//! The schema `loadgen.compare/1`: is B worse than A? For runs on the wall clock by statistics over pairs of runs, for
//! virtual ones exactly.
//!
//! Every metric becomes the logarithm of B over A, turned so that more is worse. It is a regression if three things
//! agree: the 95 % interval of the median lies beyond the margin, the effect is above the noise floor of the session,
//! and the rank test is significant after Holm's correction over all metrics asked about. An interval that reaches over
//! the margin says neither yes nor no: that is inconclusive, and exit 5.

pub mod exact;
pub mod execute;
pub mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::metrics::{Better, METRICS, Metric, Reading, Unit, find};
use crate::plan::ArmRole;
use crate::result::{GateKind, RunResult};
use crate::stats::{bootstrap, holm, median, noise, rank};

pub const SCHEMA: &str = "loadgen.compare/1";
/// Fewer pairs cannot reject anything.
pub const PAIRS_MIN: usize = 6;
const ALPHA: f64 = 0.05;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    pub metrics: Vec<&'static Metric>,
    /// A change smaller than this part is none.
    pub margin: f64,
    /// An improvement ends with exit 4 too.
    pub both: bool,
    pub seed: u64,
}

/// What a comparison keeps of a run.
#[derive(Debug, Clone)]
pub struct Run {
    pub label: String,
    /// Arm and metric.
    pub values: BTreeMap<(String, &'static str), Reading>,
    /// Why it cannot be trusted, as of a generator that was late.
    pub doubt: Option<String>,
}

impl Run {
    /// Of the arms that are the product's: a control is there to be bad.
    pub fn of(label: &str, result: &RunResult) -> Self {
        let arms = result.arms.iter().filter(|a| a.role == ArmRole::Subject);
        let values = arms.flat_map(|arm| {
            let read = |m: &'static Metric| Some(((arm.name.clone(), m.key), m.read(result, arm)?));
            METRICS.iter().filter_map(read).collect::<Vec<_>>()
        });
        let insane = result.gates.iter().find(|g| g.kind == GateKind::Sanity && !g.passed);
        let doubt = insane.map(|g| format!("{}: {} ({})", g.name, g.observed, g.limit));
        let doubt = doubt.or_else(|| result.interrupted.then(|| "interrupted".to_owned()));
        Self { label: label.to_owned(), values: values.collect(), doubt }
    }

    /// Which run is left out, and why.
    fn left_out(&self) -> Option<String> {
        self.doubt.as_ref().map(|doubt| format!("{}: {doubt}", self.label))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Judgement {
    Same,
    Worse,
    Better,
    /// The interval holds both no change and one beyond the margin, or there are too few samples.
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
    /// Median of B over A, and its 95 % interval.
    pub ratio: f64,
    pub ratio_low: f64,
    pub ratio_high: f64,
    pub p_holm: f64,
    /// Changes by less than this factor cannot be told from none in this session; `null`: not measured.
    pub floor_ratio: Option<f64>,
    pub samples: usize,
    /// Why it is unclear.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Paired,
    Unpaired,
    Exact,
}

#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub schema: &'static str,
    pub kind: Kind,
    pub a: String,
    pub b: String,
    pub runs_a: usize,
    pub runs_b: usize,
    /// Runs left out, and why.
    pub discarded: Vec<String>,
    pub margin: f64,
    pub lines: Vec<Line>,
    /// What else there is to say, as where two exact results first differ.
    pub notes: Vec<String>,
    pub word: String,
    pub exit: u8,
}

/// Enough to find anything at all? The reason if not.
pub fn refusal(least_p: f64, samples: usize, tests: usize, what: &str) -> Option<String> {
    if samples < PAIRS_MIN {
        return Some(format!("{samples} {what}: at least {PAIRS_MIN} are needed"));
    }
    if least_p * tests.max(1) as f64 > ALPHA {
        return Some(format!(
            "{samples} {what} cannot settle {tests} metrics at once: more of them, or fewer metrics"
        ));
    }
    None
}

/// Too many to count out? The reason if so.
fn too_many(values: usize) -> Option<String> {
    let most = rank::VALUES_MAX;
    (values > most).then(|| format!("{values} values: at most {most} are compared at once"))
}

/// Pairs of runs made one next to the other. `floor`: log ratios between runs of the same side.
pub fn paired(a: &[Run], b: &[Run], names: (&str, &str), question: &Question) -> Comparison {
    let mut discarded = Vec::new();
    let mut pairs: Vec<(&Run, &Run)> = Vec::new();
    for (a, b) in a.iter().zip(b) {
        match [a, b].into_iter().find_map(Run::left_out) {
            Some(doubted) => discarded.push(doubted),
            None => pairs.push((a, b)),
        }
    }
    let asked = asked(question, &pairs.iter().map(|p| p.0).collect::<Vec<_>>());
    let lines = asked.iter().map(|(arm, metric)| {
        let of = |r: &Run| r.values.get(&(arm.clone(), metric.key)).map(|v| v.value);
        let known = pairs.iter().filter_map(|(a, b)| of(a).zip(of(b)));
        let (a, b): (Vec<f64>, Vec<f64>) = known.unzip();
        let sample = Sample { arm, metric, a: &a, b: &b, tests: asked.len() };
        sample.paired(question)
    });
    finish(Kind::Paired, names, (pairs.len(), pairs.len()), discarded, lines.collect(), question)
}

/// Two groups of runs that have nothing to do with each other. Nothing tells their days apart from their builds.
pub fn unpaired(a: &[Run], b: &[Run], names: (&str, &str), question: &Question) -> Comparison {
    let mut discarded = Vec::new();
    let mut sane = |runs: &[Run]| {
        discarded.extend(runs.iter().filter_map(Run::left_out));
        runs.iter().filter(|r| r.doubt.is_none()).cloned().collect::<Vec<Run>>()
    };
    let (a, b) = (sane(a), sane(b));
    let asked = asked(question, &a.iter().collect::<Vec<_>>());
    let lines = asked.iter().map(|(arm, metric)| {
        let of = |runs: &[Run]| -> Vec<f64> {
            let key = (arm.clone(), metric.key);
            runs.iter().filter_map(|r| r.values.get(&key)).map(|v| v.value).collect()
        };
        let (a, b) = (of(&a), of(&b));
        Sample { arm, metric, a: &a, b: &b, tests: asked.len() }.unpaired(question)
    });
    finish(Kind::Unpaired, names, (a.len(), b.len()), discarded, lines.collect(), question)
}

/// The arms that A has, with the metrics asked about.
fn asked(question: &Question, runs: &[&Run]) -> Vec<(String, &'static Metric)> {
    let mut arms: Vec<&String> = runs.iter().flat_map(|r| r.values.keys().map(|k| &k.0)).collect();
    arms.sort();
    arms.dedup();
    let of = |arm: &String| question.metrics.iter().map(|m| (arm.clone(), *m)).collect::<Vec<_>>();
    arms.into_iter().flat_map(of).collect()
}

/// Zero has no logarithm: below this a value is as good as none.
fn least(unit: Unit) -> f64 {
    match unit {
        Unit::Nanos | Unit::BitsPerSecond | Unit::Bytes => 1.0,
        Unit::Ratio => 1e-3,
        Unit::Part => 1e-6,
    }
}

struct Sample<'a> {
    arm: &'a str,
    metric: &'static Metric,
    a: &'a [f64],
    b: &'a [f64],
    tests: usize,
}

impl Sample<'_> {
    fn log(&self, v: f64) -> f64 {
        v.max(least(self.metric.unit)).ln()
    }

    fn paired(&self, question: &Question) -> (Line, f64) {
        let pairs = self.a.len();
        let refused = refusal(rank::least_p(pairs), pairs, self.tests, "pairs");
        let refused = refused.or_else(|| too_many(pairs));
        let ratios: Vec<f64> =
            self.a.iter().zip(self.b).map(|(a, b)| self.log(*b) - self.log(*a)).collect();
        if let Some(reason) = refused {
            return (self.line(median(&ratios), None, None, reason), 1.0);
        }
        let interval = bootstrap::median_interval(&ratios, question.seed);
        let floor = noise::floor(&self.neighbours(), pairs, question.seed);
        let line = self.line(median(&ratios), Some(interval), floor, String::new());
        (line, rank::signed_rank(&ratios))
    }

    /// Log ratios of runs of the same side in neighbouring pairs.
    fn neighbours(&self) -> Vec<f64> {
        let of = |v: &[f64]| -> Vec<f64> {
            v.windows(2).map(|w| self.log(w[1]) - self.log(w[0])).collect()
        };
        let mut all = of(self.a);
        all.extend(of(self.b));
        all
    }

    fn unpaired(&self, question: &Question) -> (Line, f64) {
        let (n, m) = (self.a.len(), self.b.len());
        let logs = |v: &[f64]| -> Vec<f64> { v.iter().map(|v| self.log(*v)).collect() };
        let (a, b) = (logs(self.a), logs(self.b));
        // The most extreme split of all runs.
        let ways: f64 = (1..=n.min(m)).map(|i| (n.max(m) + i) as f64 / i as f64).product();
        let refused = refusal(2.0 / ways, n.min(m), self.tests, "runs a side");
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
            judgement: Judgement::Unclear,
            a: median(self.a),
            b: median(self.b),
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

fn finish(
    kind: Kind,
    (a, b): (&str, &str),
    (runs_a, runs_b): (usize, usize),
    discarded: Vec<String>,
    lines: Vec<(Line, f64)>,
    question: &Question,
) -> Comparison {
    let (mut lines, p): (Vec<Line>, Vec<f64>) = lines.into_iter().unzip();
    for (line, p) in lines.iter_mut().zip(holm::adjust(&p)) {
        line.p_holm = p;
        judge(line, question.margin);
    }
    let mut notes = Vec::new();
    if lines.is_empty() {
        notes.push("no arm of these runs is a subject with these metrics".to_owned());
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
        notes,
        word: exit.word().to_owned(),
        exit: exit.code(),
    }
}

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

fn judge(line: &mut Line, margin: f64) {
    if !line.reason.is_empty() {
        return;
    }
    let more_is_worse = find(line.metric).is_some_and(|m| m.better == Better::Smaller);
    let turn = |log: f64| if more_is_worse { log } else { -log };
    let (x, y) = (turn(line.ratio_low.ln()), turn(line.ratio_high.ln()));
    let (low, high, middle) = (x.min(y), x.max(y), turn(line.ratio.ln()));
    let limit = (1.0 + margin).ln();
    let certain = line.p_holm <= ALPHA && middle.abs() > line.floor_ratio.map_or(0.0, f64::ln);
    line.judgement = if low > limit && certain {
        Judgement::Worse
    } else if high < -limit && certain {
        Judgement::Better
    } else if high <= limit {
        // Whatever it is, it is not worse by more than the margin.
        Judgement::Same
    } else {
        let (low, high) = ((low.exp() - 1.0) * 100.0, (high.exp() - 1.0) * 100.0);
        line.reason = format!("between {low:+.1} % and {high:+.1} % worse: too wide an interval");
        Judgement::Unclear
    };
}

/// What must be the same for two results to be comparable; the differences if it is not.
pub fn incomparable(a: &RunResult, b: &RunResult, params_too: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: &str, a: String, b: String| {
        if a != b {
            found.push(format!("{what}: {a} against {b}"));
        }
    };
    check("scenario", a.scenario.clone(), b.scenario.clone());
    check("target", a.target.clone(), b.target.clone());
    let phases = |r: &RunResult| {
        let all = r.phases.iter().map(|p| format!("{} {} ms", p.name, p.nanos() / 1_000_000));
        all.collect::<Vec<_>>().join(", ")
    };
    if params_too {
        check("phases", phases(a), phases(b));
        let keys: std::collections::BTreeSet<_> = a.params.keys().chain(b.params.keys()).collect();
        let of = |r: &RunResult, k: &String| {
            r.params.get(k).map_or_else(|| "none".to_owned(), u64::to_string)
        };
        for key in keys {
            check(key, of(a, key), of(b, key));
        }
    }
    let arms = |r: &RunResult| {
        let all = r.arms.iter().filter(|a| a.role == ArmRole::Subject).map(|a| a.name.as_str());
        all.collect::<Vec<_>>().join(", ")
    };
    check("subject arms", arms(a), arms(b));
    found
}

/// As an error, with every difference.
pub fn comparable(a: &RunResult, b: &RunResult, params_too: bool) -> Result<(), Failure> {
    let found = incomparable(a, b, params_too);
    if found.is_empty() {
        return Ok(());
    }
    Err(Failure::NoBaseline(format!(
        "these runs are not of the same thing:\n  {}",
        found.join("\n  ")
    )))
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
