//! The statistics of one metric of one arm.

use super::{ALPHA, Judgement, Line, PAIRS_MIN, Question};
use crate::judge::metrics::{Metric, MetricUnit, Reading};
use crate::judge::stats::{bootstrap, median, noise, rank};

/// Checks whether the sample can settle anything; returns the reason if not. `least_p`: the smallest p that this many
/// samples can reach.
fn refusal(least_p: f64, samples: usize, tests: usize, what: &str) -> Option<String> {
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

/// Lower bound of a value, because zero has no logarithm; smaller values count as this.
fn least(unit: MetricUnit) -> f64 {
    match unit {
        MetricUnit::Nanos | MetricUnit::BitsPerSecond | MetricUnit::Bytes => 1.0,
        MetricUnit::Ratio => 1e-3,
        MetricUnit::Part => 1e-6,
    }
}

/// The values of one metric of one arm on both sides.
pub(super) struct Sample<'a> {
    arm: &'a str,
    metric: &'static Metric,
    a: Vec<f64>,
    b: Vec<f64>,
    /// Whether A, and B, contains a lower bound.
    at_least: [bool; 2],
    tests: usize,
}

impl<'a> Sample<'a> {
    pub(super) fn new(
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
    pub(super) fn paired(&self, question: &Question) -> (Line, f64) {
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
    pub(super) fn unpaired(&self, question: &Question) -> (Line, f64) {
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
