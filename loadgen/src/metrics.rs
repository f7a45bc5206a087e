//! The numbers of an arm that are worth following from run to run, each with its unit and its better direction.
//! Exports, `compare` and `explain` all know them by these keys.

use crate::plan::{CONTENDED, Role, SOLO};
use crate::result::{ArmResult, ContainerPhase, ContainerResult, ProbePhase, Quantile, RunResult};
use crate::units::{bits_per_second, bytes, rate, time};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Smaller,
    Bigger,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Nanos,
    BitsPerSecond,
    Bytes,
    /// One over another, 1 when they are the same.
    Ratio,
    /// Between 0 and 1.
    Part,
}

/// A reading. `at_least`: known from below only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub value: f64,
    pub at_least: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub key: &'static str,
    pub unit: Unit,
    pub better: Better,
    pub about: &'static str,
    read: fn(&RunResult, &ArmResult) -> Option<Reading>,
}

impl Metric {
    /// `None`: there is nothing to say, as of a percentile without samples.
    pub fn read(&self, result: &RunResult, arm: &ArmResult) -> Option<Reading> {
        (self.read)(result, arm)
    }

    pub fn show(&self, r: Reading) -> String {
        let v = r.value;
        let text = match self.unit {
            Unit::Nanos => time(v as u64),
            Unit::BitsPerSecond => rate(v as u64),
            Unit::Bytes => bytes(v as u64),
            Unit::Ratio => format!("{v:.2}x"),
            Unit::Part => format!("{:.2} %", v * 100.0),
        };
        format!("{}{text}", if r.at_least { ">= " } else { "" })
    }
}

const fn smaller(
    key: &'static str,
    unit: Unit,
    about: &'static str,
    read: fn(&RunResult, &ArmResult) -> Option<Reading>,
) -> Metric {
    Metric { key, unit, better: Better::Smaller, about, read }
}

const fn bigger(
    key: &'static str,
    unit: Unit,
    about: &'static str,
    read: fn(&RunResult, &ArmResult) -> Option<Reading>,
) -> Metric {
    Metric { key, unit, better: Better::Bigger, about, read }
}

pub const METRICS: &[Metric] = &[
    smaller(
        "throughput-slowdown",
        Unit::Ratio,
        "goodput alone over goodput beside the hog, worst victim and direction",
        |_, a| a.fairness.throughput_slowdown_milli.map(|m| exact(m as f64 / 1e3)),
    ),
    smaller(
        "p99-inflation",
        Unit::Ratio,
        "p99 response beside the hog over p99 alone, worst victim",
        |_, a| a.fairness.p99_inflation_milli.map(|m| exact(m as f64 / 1e3)),
    ),
    smaller("p50-contended", Unit::Nanos, "p50 response beside the hog, worst victim", |_, a| {
        worst_reading(a, CONTENDED, |p| p.p50)
    }),
    smaller("p99-contended", Unit::Nanos, "p99 response beside the hog, worst victim", |_, a| {
        worst_reading(a, CONTENDED, |p| p.p99)
    }),
    smaller(
        "p999-contended",
        Unit::Nanos,
        "p99.9 response beside the hog, worst victim",
        |_, a| worst_reading(a, CONTENDED, |p| p.p999),
    ),
    smaller("p99-solo", Unit::Nanos, "p99 response alone, worst victim", |_, a| {
        worst_reading(a, SOLO, |p| p.p99)
    }),
    smaller(
        "stall",
        Unit::Nanos,
        "longest time a victim's bulk got no byte beside the hog",
        |_, a| Some(exact(a.fairness.stall_ns as f64)),
    ),
    smaller("not-delivered", Unit::Part, "requests not answered in time, worst victim", |_, a| {
        a.fairness.delivered_ppm.map(|ppm| exact(1.0 - ppm as f64 / 1e6))
    }),
    smaller("unfairness", Unit::Part, "1 - Jain's index of the victims", |_, a| {
        Some(exact(1.0 - a.fairness.jain_victims_ppm as f64 / 1e6))
    }),
    smaller("recovery", Unit::Nanos, "back to 95 % of solo after the hog left", |_, a| {
        a.fairness.recovery_ns.map(|ns| exact(ns as f64))
    }),
    smaller("overshoot", Unit::Bytes, "most a budget held beyond its hard limit", |_, a| {
        a.is_limited().then(|| exact(a.fairness.overshoot_bytes as f64))
    }),
    smaller("victim-cpu", Unit::Nanos, "CPU of the stack for a victim while contended", |_, a| {
        victims(a).filter_map(|c| c.stack_cpu_ns).max().map(|ns| exact(ns as f64))
    }),
    bigger("goodput-up", Unit::BitsPerSecond, "worst victim beside the hog", |r, a| {
        least_rate(r, a, |p| p.up_bytes)
    }),
    bigger("goodput-down", Unit::BitsPerSecond, "worst victim beside the hog", |r, a| {
        least_rate(r, a, |p| p.down_bytes)
    }),
    bigger("goodput-all", Unit::BitsPerSecond, "all victims together beside the hog", |r, a| {
        let sum = victims(a).filter_map(|c| c.phases.get(CONTENDED));
        let sum: u64 = sum.map(|p| p.up_bytes + p.down_bytes).sum();
        per_second(r, a, sum)
    }),
];

pub fn find(key: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|m| m.key == key)
}

fn exact(value: f64) -> Reading {
    Reading { value, at_least: false }
}

pub fn victims(arm: &ArmResult) -> impl Iterator<Item = &ContainerResult> {
    arm.containers.iter().filter(|c| c.role == Role::Victim)
}

/// What is known only from below ranks above everything known.
pub fn worst_quantile(
    arm: &ArmResult,
    phase: usize,
    pick: fn(&ProbePhase) -> Option<Quantile>,
) -> Option<Quantile> {
    let all = victims(arm).filter_map(|c| c.phases.get(phase)?.probe.as_ref().and_then(pick));
    all.max_by_key(|q| (q.at_least, q.ns))
}

fn worst_reading(
    arm: &ArmResult,
    phase: usize,
    pick: fn(&ProbePhase) -> Option<Quantile>,
) -> Option<Reading> {
    let worst = worst_quantile(arm, phase, pick)?;
    Some(Reading { value: worst.ns as f64, at_least: worst.at_least })
}

fn least_rate(
    result: &RunResult,
    arm: &ArmResult,
    pick: fn(&ContainerPhase) -> u64,
) -> Option<Reading> {
    let least = victims(arm).filter_map(|c| c.phases.get(CONTENDED)).map(pick).min()?;
    per_second(result, arm, least)
}

fn per_second(result: &RunResult, arm: &ArmResult, bytes: u64) -> Option<Reading> {
    let ns = result.phases.get(CONTENDED)?.until(arm.ended_ns).nanos();
    Some(exact(bits_per_second(bytes, ns) as f64))
}
