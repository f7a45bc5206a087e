//! Conditions in a scenario's own words: `worst(victim.p99-inflation) <= 1.2 && sum(hog.refusals) > 0`.
//!
//! ```text
//! or    := and ( "||" and )*
//! and   := test ( "&&" test )*
//! test  := ratio ( "<=" | ">=" | "<" | ">" | "==" | "!=" ) ratio
//! ratio := term ( "/" term )*
//! term  := number unit? | function "(" group "." metric ")" | "overshoot" | "leaked" | "(" or ")"
//! ```
//! A number that is not known from above (a percentile among requests that never came back, nothing delivered at all)
//! is infinite: it fails every `<=`. One that is not known at all fails every test.

use std::fmt;

use super::words;
use crate::plan::{CONTENDED, Role, SOLO};
use crate::result::{ArmResult, ContainerResult, Quantile};
use crate::units::{Unit, hint_or_all};

#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    text: String,
    root: Node,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Or(Box<Self>, Box<Self>),
    And(Box<Self>, Box<Self>),
    Test(Term, Op, Term),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    AtMost,
    AtLeast,
    Less,
    More,
    Equal,
    Unequal,
}

const OPS: &[(&str, Op)] = &[
    ("<=", Op::AtMost),
    (">=", Op::AtLeast),
    ("==", Op::Equal),
    ("!=", Op::Unequal),
    ("<", Op::Less),
    (">", Op::More),
];

#[derive(Debug, Clone, PartialEq)]
enum Term {
    Number(f64),
    Over(Fun, String, Metric),
    Overshoot,
    Leaked,
    Ratio(Box<Self>, Box<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fun {
    /// The largest, of what is better small; the smallest, of what is better large.
    Worst,
    Min,
    Max,
    Sum,
    /// Smallest over largest.
    Mmr,
}

const FUNS: &[(&str, Fun)] = &[
    ("worst", Fun::Worst),
    ("min", Fun::Min),
    ("max", Fun::Max),
    ("sum", Fun::Sum),
    ("mmr", Fun::Mmr),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    SlowdownThroughput,
    SlowdownP99,
    ResponseP50,
    ResponseP99,
    ResponseP999,
    ResponseMax,
    Stall,
    Delivered,
    Recovery,
    Moved,
    Held,
    HeldMean,
    Pressure,
    Refusals,
    Flows,
}

/// Names and whether more is better.
const METRICS: &[(&str, Metric, bool)] = &[
    ("throughput-slowdown", Metric::SlowdownThroughput, false),
    ("p99-inflation", Metric::SlowdownP99, false),
    ("p50-contended", Metric::ResponseP50, false),
    ("p99-contended", Metric::ResponseP99, false),
    ("p999-contended", Metric::ResponseP999, false),
    ("max-contended", Metric::ResponseMax, false),
    ("stall", Metric::Stall, false),
    ("delivered", Metric::Delivered, true),
    ("recovery", Metric::Recovery, false),
    ("moved", Metric::Moved, true),
    ("held", Metric::Held, true),
    ("held-mean", Metric::HeldMean, true),
    ("pressure", Metric::Pressure, false),
    ("refusals", Metric::Refusals, false),
    ("flows", Metric::Flows, true),
];

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Expr {
    /// `groups`: those that it may speak of.
    pub fn parse(text: &str, groups: &[&str]) -> Result<Self, String> {
        let mut p = Parser { rest: text, groups };
        let root = p.or()?;
        p.rest = p.rest.trim_start();
        if !p.rest.is_empty() {
            return Err(format!("'{}' is not understood", p.rest));
        }
        Ok(Self { text: text.to_owned(), root })
    }

    /// Whether it holds, and what was seen of each of its numbers.
    pub fn judge(&self, arm: &ArmResult) -> (bool, String) {
        let mut seen = Vec::new();
        let ok = judge(&self.root, arm, &mut seen);
        (ok, seen.join(", "))
    }
}

struct Parser<'a> {
    rest: &'a str,
    groups: &'a [&'a str],
}

impl Parser<'_> {
    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest;
        true
    }

    fn or(&mut self) -> Result<Node, String> {
        let mut left = self.and()?;
        while self.eat("||") {
            left = Node::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Node, String> {
        let mut left = self.test()?;
        while self.eat("&&") {
            left = Node::And(Box::new(left), Box::new(self.test()?));
        }
        Ok(left)
    }

    fn test(&mut self) -> Result<Node, String> {
        if self.eat("(") {
            let inner = self.or()?;
            return if self.eat(")") { Ok(inner) } else { Err("a ')' is missing".to_owned()) };
        }
        let left = self.ratio()?;
        let Some((_, op)) = OPS.iter().find(|(token, _)| self.eat(token)) else {
            return Err(format!("one of <= >= < > == != is wanted before '{}'", self.rest));
        };
        Ok(Node::Test(left, *op, self.ratio()?))
    }

    fn ratio(&mut self) -> Result<Term, String> {
        let mut left = self.term()?;
        while self.eat("/") {
            left = Term::Ratio(Box::new(left), Box::new(self.term()?));
        }
        Ok(left)
    }

    fn word(&mut self) -> String {
        self.rest = self.rest.trim_start();
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '%');
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn term(&mut self) -> Result<Term, String> {
        let word = self.word();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return number(&word).map(Term::Number);
        }
        match word.as_str() {
            "overshoot" => return Ok(Term::Overshoot),
            "leaked" => return Ok(Term::Leaked),
            _ => {}
        }
        let Some((_, fun)) = FUNS.iter().find(|(name, _)| *name == word) else {
            return Err(unknown("function", &word, FUNS.iter().map(|f| f.0)));
        };
        if !self.eat("(") {
            return Err(format!("a '(' is wanted after '{word}'"));
        }
        let inner = self.word();
        if !self.eat(")") {
            return Err(format!("a ')' is wanted after '{inner}'"));
        }
        let (group, metric) = inner.split_once('.').unwrap_or((&inner, ""));
        if !self.groups.contains(&group) {
            return Err(unknown("group", group, self.groups.iter().copied()));
        }
        let Some((_, known, _)) = METRICS.iter().find(|m| m.0 == words::canonical(metric)) else {
            return Err(unknown("metric", metric, METRICS.iter().map(|m| m.0)));
        };
        Ok(Term::Over(*fun, group.to_owned(), *known))
    }
}

fn unknown<'a>(what: &str, word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    format!("no {what} '{word}'{}", hint_or_all(word, known))
}

/// `1.2`, `5x`, `99.9%`, `1ms`, `4KiB`.
fn number(word: &str) -> Result<f64, String> {
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    let (digits, unit) = word.split_at(end);
    let n: f64 = digits.parse().map_err(|_| format!("'{word}' is not a number"))?;
    let scale = match unit {
        "" | "x" => 1.0,
        "%" => 0.01,
        _ => [Unit::Nanos, Unit::Bytes]
            .iter()
            .find_map(|u| u.parse(&format!("1{unit}")).ok())
            .ok_or_else(|| format!("'{word}': no unit '{unit}'"))? as f64,
    };
    Ok(n * scale)
}

fn judge(node: &Node, arm: &ArmResult, seen: &mut Vec<String>) -> bool {
    match node {
        // Both sides, so that both are shown.
        Node::Or(a, b) => judge(a, arm, seen) | judge(b, arm, seen),
        Node::And(a, b) => judge(a, arm, seen) & judge(b, arm, seen),
        Node::Test(a, op, b) => {
            let Some((a, b)) = value(a, arm, seen).zip(value(b, arm, seen)) else { return false };
            match op {
                Op::AtMost => a <= b,
                Op::AtLeast => a >= b,
                Op::Less => a < b,
                Op::More => a > b,
                Op::Equal => a == b,
                Op::Unequal => a != b,
            }
        }
    }
}

fn value(term: &Term, arm: &ArmResult, seen: &mut Vec<String>) -> Option<f64> {
    let v = match term {
        Term::Number(n) => return Some(*n),
        Term::Ratio(a, b) => {
            let mut parts = Vec::new();
            let (a, b) = (value(a, arm, &mut parts), value(b, arm, &mut parts));
            a.zip(b).map(|(a, b)| a / b).filter(|r| !r.is_nan())
        }
        Term::Overshoot => Some(arm.fairness.overshoot_bytes as f64),
        Term::Leaked => Some(arm.leaked_bytes as f64),
        Term::Over(fun, group, metric) => {
            let members = arm.containers.iter().filter(|c| c.group == *group);
            let values: Option<Vec<f64>> = members.map(|c| measure(c, *metric, arm)).collect();
            values.filter(|v| !v.is_empty()).map(|v| fold(*fun, *metric, &v))
        }
    };
    seen.push(match v {
        None => "not known".to_owned(),
        Some(v) if v.is_infinite() => "without bound".to_owned(),
        Some(v) if v == v.trunc() => format!("{v:.0}"),
        Some(v) => format!("{v:.3}"),
    });
    v
}

fn fold(fun: Fun, metric: Metric, v: &[f64]) -> f64 {
    let min = v.iter().copied().fold(f64::INFINITY, f64::min);
    let max = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let more_is_better = METRICS.iter().any(|m| m.1 == metric && m.2);
    match fun {
        Fun::Min => min,
        Fun::Max => max,
        Fun::Worst => {
            if more_is_better {
                min
            } else {
                max
            }
        }
        Fun::Sum => v.iter().sum(),
        Fun::Mmr => {
            if max > 0.0 {
                min / max
            } else {
                0.0
            }
        }
    }
}

fn measure(c: &ContainerResult, metric: Metric, arm: &ArmResult) -> Option<f64> {
    let unbounded = |v: Option<u64>| v.map_or(f64::INFINITY, |v| v as f64);
    let probe = |phase: usize| c.phases.get(phase)?.probe.as_ref();
    let quantile =
        |q: Option<Quantile>| q.map(|q| if q.at_least { f64::INFINITY } else { q.ns as f64 });
    let contended = c.phases.get(CONTENDED)?;
    match metric {
        Metric::SlowdownThroughput => Some(unbounded(c.cost.throughput_slowdown_milli) / 1000.0),
        Metric::SlowdownP99 => {
            // Without samples alone there is nothing to compare with.
            probe(SOLO).filter(|p| p.intended > 0)?;
            Some(unbounded(c.cost.p99_inflation_milli) / 1000.0)
        }
        Metric::ResponseP50 => quantile(probe(CONTENDED)?.p50),
        Metric::ResponseP99 => quantile(probe(CONTENDED)?.p99),
        Metric::ResponseP999 => quantile(probe(CONTENDED)?.p999),
        Metric::ResponseMax => quantile(probe(CONTENDED)?.max),
        Metric::Stall => (c.role == Role::Victim).then_some(c.cost.stall_ns as f64),
        Metric::Delivered => probe(CONTENDED)?.delivered_ppm.map(|d| d as f64 / 1e6),
        Metric::Recovery => Some(unbounded(c.cost.recovery_ns)),
        Metric::Moved => Some(contended.moved_bytes as f64),
        Metric::Held => Some(c.peak_held_bytes as f64),
        Metric::HeldMean => Some(c.mean_held_bytes as f64),
        Metric::Pressure => arm.budgets.get(c.budget).map(|b| b.pressure_ns as f64),
        Metric::Refusals => Some(crate::analyse::refusals(c) as f64),
        Metric::Flows => Some(c.flows_total as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::tests::{arm, container, settle};
    use crate::plan::ArmRole;

    fn holds(text: &str) -> bool {
        let mut c = container("victim1", Role::Victim, [110, 100, 110], [2, 3, 2]);
        c.group = "victim".to_owned();
        let mut a = arm(ArmRole::Subject, vec![c]);
        settle(&mut a);
        Expr::parse(text, &["victim"]).unwrap().judge(&a).0
    }

    #[test]
    fn conditions_hold_or_not() {
        for text in [
            "worst(victim.slowdown.throughput) <= 1.1",
            "worst(victim.slowdown.p99) == 1.5x",
            "min(victim.delivered) == 100%",
            "worst(victim.response.p99) <= 3ms && overshoot == 0",
            "worst(victim.stall) > 1s || (leaked < 1 && max(victim.held) >= 1MiB)",
            "max(victim.held) / min(victim.held) == 1",
        ] {
            assert!(holds(text), "{text}");
            assert!(!holds(&format!("{text} && leaked > 0")), "{text}");
        }
        assert!(!holds("worst(victim.slowdown.throughput) <= 1.05"));
    }

    #[test]
    fn what_is_not_understood_is_named_with_what_would_be() {
        let e = |text| Expr::parse(text, &["victim", "hog"]).unwrap_err();
        assert!(e("wurst(victim.stall) < 1").contains("did you mean 'worst'"));
        assert!(e("worst(victm.stall) < 1").contains("did you mean 'victim'"));
        assert!(e("worst(victim.stal) < 1").contains("did you mean 'stall'"));
        assert!(e("worst(victim.stall)").contains("<="));
        assert!(e("worst(victim.stall) < 1parsec").contains("parsec"));
        assert!(e("worst(victim.stall) < 1 and").contains("'and'"));
    }

    #[test]
    fn nobody_is_no_pass() {
        let a = arm(ArmRole::Subject, Vec::new());
        let e = Expr::parse("worst(victim.stall) <= 1s", &["victim"]).unwrap();
        assert!(!e.judge(&a).0);
    }
}
