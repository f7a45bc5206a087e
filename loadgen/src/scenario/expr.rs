//! Conditions of a scenario file: `worst(victim.p99-inflation) <= 1.2 && sum(hog.refusals) > 0`.
//!
//! ```text
//! or    := and ( "||" and )*
//! and   := test ( "&&" test )*
//! test  := ratio ( "<=" | ">=" | "<" | ">" | "==" | "!=" ) ratio
//! ratio := term ( "/" term )*
//! term  := number unit? | function "(" group "." metric ")" | "overshoot" | "leaked" | "(" or ")"
//! ```
//! Both sides of a comparison must have the same kind: a time with a time, a size with a size. A number without a unit
//! may be a size in bytes; 0 needs no unit.
//!
//! A value without an upper bound (a percentile among requests that never completed, nothing delivered at all) counts
//! as infinite: it fails every `<=`. A value that was not measured, such as the response times of a group without a
//! probe, decides nothing: the gate does not pass, but the subject is not at fault.

mod parse;
pub mod words;

use std::fmt;

use self::parse::Parser;

/// A parsed condition with its text.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    text: String,
    root: Node,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Or(Box<Self>, Box<Self>),
    And(Box<Self>, Box<Self>),
    Test(Term, Op, Term),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
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
pub(crate) enum Term {
    Number(f64, ValueKind),
    Over(GroupFunction, String, ContainerMetric),
    Overshoot,
    Leaked,
    Ratio(Box<Self>, Box<Self>),
}

/// The kind of a number, which decides what it may be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    /// A literal without a unit.
    Bare,
    /// A count, a factor, or a ratio.
    Plain,
    Time,
    Bytes,
}

impl ValueKind {
    fn word(self) -> &'static str {
        match self {
            Self::Bare | Self::Plain => "a number",
            Self::Time => "a time",
            Self::Bytes => "a size",
        }
    }
}

/// The format in which a number is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueFormat {
    Times,
    Part,
    Count,
    Time,
    Bytes,
}

impl ValueFormat {
    fn kind(self) -> ValueKind {
        match self {
            Self::Times | Self::Part | Self::Count => ValueKind::Plain,
            Self::Time => ValueKind::Time,
            Self::Bytes => ValueKind::Bytes,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupFunction {
    /// Maximum of a metric that is better small; minimum of one that is better large.
    Worst,
    Min,
    Max,
    Sum,
    /// Minimum over maximum.
    Mmr,
}

const FUNS: &[(&str, GroupFunction)] = &[
    ("worst", GroupFunction::Worst),
    ("min", GroupFunction::Min),
    ("max", GroupFunction::Max),
    ("sum", GroupFunction::Sum),
    ("mmr", GroupFunction::Mmr),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerMetric {
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

/// Name, metric, whether larger is better, and format.
const METRICS: &[(&str, ContainerMetric, bool, ValueFormat)] = &[
    ("throughput-slowdown", ContainerMetric::SlowdownThroughput, false, ValueFormat::Times),
    ("p99-inflation", ContainerMetric::SlowdownP99, false, ValueFormat::Times),
    ("p50-contended", ContainerMetric::ResponseP50, false, ValueFormat::Time),
    ("p99-contended", ContainerMetric::ResponseP99, false, ValueFormat::Time),
    ("p999-contended", ContainerMetric::ResponseP999, false, ValueFormat::Time),
    ("max-contended", ContainerMetric::ResponseMax, false, ValueFormat::Time),
    ("stall", ContainerMetric::Stall, false, ValueFormat::Time),
    ("delivered", ContainerMetric::Delivered, true, ValueFormat::Part),
    ("recovery", ContainerMetric::Recovery, false, ValueFormat::Time),
    ("moved", ContainerMetric::Moved, true, ValueFormat::Bytes),
    ("held", ContainerMetric::Held, true, ValueFormat::Bytes),
    ("held-mean", ContainerMetric::HeldMean, true, ValueFormat::Bytes),
    ("pressure", ContainerMetric::Pressure, false, ValueFormat::Time),
    ("refusals", ContainerMetric::Refusals, false, ValueFormat::Count),
    ("flows", ContainerMetric::Flows, true, ValueFormat::Count),
];

/// The facts about a group that decide which of its values can be measured.
#[derive(Debug, Clone, Copy)]
pub struct GroupFacts<'a> {
    /// Name of the group.
    pub name: &'a str,
    /// A hog arrives after the solo phase and leaves before the end.
    pub is_hog: bool,
    /// The load of the group has a probe.
    pub probes: bool,
}

impl ContainerMetric {
    fn name(self) -> &'static str {
        METRICS.iter().find(|m| m.1 == self).map_or("", |m| m.0)
    }
    /// The reason why a group never has a value of this metric.
    fn lack(self, group: &GroupFacts<'_>) -> Option<&'static str> {
        let solo = matches!(
            self,
            Self::SlowdownThroughput | Self::SlowdownP99 | Self::Stall | Self::Recovery
        );
        let by_probe = self.is_latency() || matches!(self, Self::SlowdownP99 | Self::Delivered);
        if solo && group.is_hog {
            return Some("a hog has no run alone and pauses by design; only victims have it");
        }
        (by_probe && !group.probes).then_some("the group has no probe")
    }
    pub(crate) fn more_is_better(self) -> bool {
        METRICS.iter().any(|m| m.1 == self && m.2)
    }
    fn show(self) -> ValueFormat {
        METRICS.iter().find(|m| m.1 == self).map_or(ValueFormat::Count, |m| m.3)
    }
    /// Measured by requests, so a lag of the generator is part of it.
    fn is_latency(self) -> bool {
        matches!(
            self,
            Self::ResponseP50 | Self::ResponseP99 | Self::ResponseP999 | Self::ResponseMax
        )
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Expr {
    /// Parses a condition. `groups`: the groups that it may refer to.
    pub fn parse(text: &str, groups: &[&str]) -> Result<Self, String> {
        let root = Parser::new(text, groups).whole()?;
        Ok(Self { text: text.to_owned(), root })
    }

    /// Refuses a term that no run can measure: its group has no run alone, or no probe.
    pub fn measurable(self, groups: &[GroupFacts<'_>]) -> Result<Self, String> {
        let mut open: Vec<&Term> = self.tests().into_iter().flat_map(|(a, _, b)| [a, b]).collect();
        while let Some(term) = open.pop() {
            match term {
                Term::Ratio(a, b) => open.extend([a.as_ref(), b.as_ref()]),
                Term::Over(_, group, metric) => {
                    let facts = groups.iter().find(|g| g.name == *group);
                    if let Some(lack) = facts.and_then(|facts| metric.lack(facts)) {
                        return Err(format!(
                            "'{group}.{}' is never measured: {lack}",
                            metric.name()
                        ));
                    }
                }
                Term::Number(..) | Term::Overshoot | Term::Leaked => {}
            }
        }
        Ok(self)
    }

    pub(crate) fn root(&self) -> &Node {
        &self.root
    }

    /// Whether the condition depends only on counted bytes, not on measured times: such a gate is never in doubt.
    pub fn is_exact(&self) -> bool {
        self.tests().iter().all(|(a, _, b)| a.is_exact() && b.is_exact())
    }

    /// Whether response times decide the condition, wholly or in part.
    pub fn is_latency(&self) -> bool {
        self.tests().iter().any(|(a, _, b)| a.is_latency() || b.is_latency())
    }

    /// The shortest upper limit of a response time in the condition.
    pub fn least_latency_ns(&self) -> Option<u64> {
        let limits = self.tests().into_iter().filter_map(|test| match test {
            // `metric <= number`, or `number >= metric`.
            (Term::Over(_, _, m), Op::AtMost | Op::Less, Term::Number(n, _))
            | (Term::Number(n, _), Op::AtLeast | Op::More, Term::Over(_, _, m))
                if m.is_latency() =>
            {
                Some(*n as u64)
            }
            _ => None,
        });
        limits.min()
    }

    fn tests(&self) -> Vec<(&Term, Op, &Term)> {
        let mut found = Vec::new();
        let mut open = vec![&self.root];
        // Iterative, so that no nesting of a user's condition overflows the stack here.
        while let Some(node) = open.pop() {
            match node {
                Node::Or(a, b) | Node::And(a, b) => open.extend([a.as_ref(), b.as_ref()]),
                Node::Test(a, op, b) => found.push((a, *op, b)),
            }
        }
        found
    }
}

impl Term {
    fn is_exact(&self) -> bool {
        match self {
            Self::Number(..) | Self::Overshoot | Self::Leaked => true,
            Self::Over(..) => false,
            Self::Ratio(a, b) => a.is_exact() && b.is_exact(),
        }
    }

    fn is_latency(&self) -> bool {
        match self {
            Self::Number(..) | Self::Overshoot | Self::Leaked => false,
            Self::Over(_, _, metric) => {
                metric.is_latency() || *metric == ContainerMetric::SlowdownP99
            }
            Self::Ratio(a, b) => a.is_latency() || b.is_latency(),
        }
    }

    fn is_literal(&self) -> bool {
        match self {
            Self::Number(..) => true,
            Self::Overshoot | Self::Leaked | Self::Over(..) => false,
            Self::Ratio(a, b) => a.is_literal() && b.is_literal(),
        }
    }

    pub(crate) fn show(&self) -> ValueFormat {
        match self {
            Self::Number(..) => ValueFormat::Count,
            Self::Overshoot | Self::Leaked => ValueFormat::Bytes,
            Self::Over(GroupFunction::Mmr, ..) => ValueFormat::Part,
            Self::Over(_, _, metric) => metric.show(),
            // A value over a plain number keeps its unit.
            Self::Ratio(a, b) if matches!(**b, Self::Number(..)) => a.show(),
            Self::Ratio(..) => ValueFormat::Times,
        }
    }

    fn kind(&self) -> ValueKind {
        match self {
            Self::Number(_, kind) => *kind,
            other => other.show().kind(),
        }
    }
}

#[cfg(test)]
#[path = "expr/tests.rs"]
mod tests;
