//! Evaluates a condition against the records of an arm.

use crate::judge::analyse::{Pair, group_pairs};
use crate::measure::result::{ArmResult, ContainerResult, Quantile};
use crate::scenario::expr::{ContainerMetric, Expr, GroupFunction, Node, Op, Term, ValueFormat};
use crate::scenario::plan::{CONTENDED, Role};
use crate::units::{bytes, time};

/// Whether the condition holds (`None` where its values were not measured), and the text of each observed value.
pub(super) fn judge(expr: &Expr, arm: &ArmResult) -> (Option<bool>, String) {
    let mut seen = Vec::new();
    let holds = holds(expr.root(), arm, &mut seen);
    (holds, seen.join(", "))
}

/// `None`: a value in the condition was not measured, and the others do not decide it.
fn holds(node: &Node, arm: &ArmResult, seen: &mut Vec<String>) -> Option<bool> {
    // Evaluate both sides always, so that the report shows both.
    let mut both = |a: &Node, b: &Node| [holds(a, arm, seen), holds(b, arm, seen)];
    match node {
        Node::Or(a, b) => decided(both(a, b), true),
        Node::And(a, b) => decided(both(a, b), false),
        Node::Test(a, op, b) => {
            let (a, b) = value(a, arm, seen).zip(value(b, arm, seen))?;
            Some(match op {
                Op::AtMost => a <= b,
                Op::AtLeast => a >= b,
                Op::Less => a < b,
                Op::More => a > b,
                Op::Equal => a == b,
                Op::Unequal => a != b,
            })
        }
    }
}

/// `by` on one side decides; otherwise both sides must be known.
fn decided(sides: [Option<bool>; 2], by: bool) -> Option<bool> {
    if sides.contains(&Some(by)) {
        return Some(by);
    }
    sides.iter().all(Option::is_some).then_some(!by)
}

fn value(term: &Term, arm: &ArmResult, seen: &mut Vec<String>) -> Option<f64> {
    let v = match term {
        Term::Number(n, _) => return Some(*n),
        Term::Ratio(a, b) => {
            let mut parts = Vec::new();
            let (a, b) = (value(a, arm, &mut parts), value(b, arm, &mut parts));
            // 0 / 0 and infinity / infinity decide nothing: not known.
            a.zip(b).map(|(a, b)| a / b).filter(|r| !r.is_nan())
        }
        Term::Overshoot => Some(arm.fairness.overshoot_bytes as f64),
        Term::Leaked => Some(arm.leaked_bytes as f64),
        Term::Over(fun, group, metric) => {
            let members = arm.containers.iter().filter(|c| c.group == *group);
            // One member without a value makes the value of the group unknown.
            let values: Option<Vec<f64>> = match metric {
                ContainerMetric::SlowdownP99 => inflations(arm, group),
                _ => members.map(|c| measure(c, *metric, arm)).collect(),
            };
            values.filter(|v| !v.is_empty()).map(|v| fold(*fun, *metric, &v))
        }
    };
    seen.push(match v {
        None => "not known".to_owned(),
        Some(v) if v.is_infinite() => "without bound".to_owned(),
        Some(v) => shown(v, term.show()),
    });
    v
}

/// A value with its unit, for people.
fn shown(v: f64, show: ValueFormat) -> String {
    match show {
        ValueFormat::Times => format!("{v:.3}x"),
        ValueFormat::Part => format!("{:.2} %", v * 100.0),
        ValueFormat::Count => format!("{v:.0}"),
        ValueFormat::Time => time(v as u64),
        // Print the exact bytes too: three digits would hide an excess of one byte.
        ValueFormat::Bytes if v >= 1024.0 => format!("{} ({v:.0} B)", bytes(v as u64)),
        ValueFormat::Bytes => bytes(v as u64),
    }
}

fn fold(fun: GroupFunction, metric: ContainerMetric, v: &[f64]) -> f64 {
    let min = v.iter().copied().fold(f64::INFINITY, f64::min);
    let max = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match fun {
        GroupFunction::Min => min,
        GroupFunction::Max => max,
        // Where larger is better, the worst value is the smallest.
        GroupFunction::Worst => {
            if metric.more_is_better() {
                min
            } else {
                max
            }
        }
        GroupFunction::Sum => v.iter().sum(),
        // All zero gives 0, not 1: the shares are equal, but no container has anything.
        GroupFunction::Mmr => {
            if max > 0.0 {
                min / max
            } else {
                0.0
            }
        }
    }
}

/// A value without an upper bound is infinite.
fn unbounded(v: Option<u64>) -> f64 {
    v.map_or(f64::INFINITY, |v| v as f64)
}

/// The p99 inflations of a group of victims, from the pairs that the gate of the p99 judges: the merged group if a
/// victim has too few samples. `None` if the group has too few samples too, or no probe.
fn inflations(arm: &ArmResult, group: &str) -> Option<Vec<f64>> {
    let group = arm.groups.iter().find(|g| g.name == group && g.role == Role::Victim)?;
    let pairs = group_pairs(arm, group);
    // A merged group is one pair; otherwise each victim needs its own.
    let all = pairs.len() as u64 == group.containers || pairs.iter().any(|p| p.of == group.name);
    let of = |p: &Pair| p.enough().then(|| unbounded(p.inflation_milli()) / 1000.0);
    if all { pairs.iter().map(of).collect() } else { None }
}

fn measure(c: &ContainerResult, metric: ContainerMetric, arm: &ArmResult) -> Option<f64> {
    let probe = |phase: usize| c.phases.get(phase)?.probe.as_ref();
    let quantile =
        |q: Option<Quantile>| q.map(|q| q.upper_ns().map_or(f64::INFINITY, |ns| ns as f64));
    let contended = c.phases.get(CONTENDED)?;
    let victim = c.role == Role::Victim;
    match metric {
        // Only victims run alone first, so only victims have values relative to solo.
        ContainerMetric::SlowdownThroughput => {
            victim.then(|| unbounded(c.cost.throughput_slowdown_milli) / 1000.0)
        }
        // `inflations` measures whole groups.
        ContainerMetric::SlowdownP99 => None,
        ContainerMetric::ResponseP50 => quantile(probe(CONTENDED)?.p50),
        ContainerMetric::ResponseP99 => quantile(probe(CONTENDED)?.p99),
        ContainerMetric::ResponseP999 => quantile(probe(CONTENDED)?.p999),
        ContainerMetric::ResponseMax => quantile(probe(CONTENDED)?.max),
        // A hog may pause by design: only victims have stalls.
        ContainerMetric::Stall => victim.then_some(c.cost.stall_ns as f64),
        ContainerMetric::Delivered => probe(CONTENDED)?.delivered_ppm.map(|d| d as f64 / 1e6),
        ContainerMetric::Recovery => victim.then(|| unbounded(c.cost.recovery_ns)),
        ContainerMetric::Moved => Some(contended.moved_bytes as f64),
        ContainerMetric::Held => Some(c.peak_held_bytes as f64),
        ContainerMetric::HeldMean => Some(c.mean_held_bytes as f64),
        ContainerMetric::Pressure => arm.budgets.get(c.budget).map(|b| b.pressure_ns as f64),
        ContainerMetric::Refusals => Some(crate::judge::analyse::refusals(c) as f64),
        ContainerMetric::Flows => Some(c.flows_total as f64),
    }
}

#[cfg(test)]
#[path = "evaluate_tests.rs"]
mod tests;
