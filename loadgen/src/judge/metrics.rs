//! The numbers of an arm that are worth tracking from run to run, each with its unit and its better direction. Exports,
//! `compare` and `explain` all use these keys.

use crate::judge::analyse::{Pair, latency_pairs};
use crate::measure::result::{
    ArmResult, BytesOf, ContainerResult, ProbePhase, Quantile, RunResult,
};
use crate::scenario::plan::{CONTENDED, RECOVERY, Role, SOLO};
use crate::units::{bits_per_second, bytes, rate, time};

/// The better direction of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Smaller,
    Bigger,
}

/// The unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricUnit {
    Nanos,
    BitsPerSecond,
    Bytes,
    /// A quotient; 1 when both values are equal.
    Ratio,
    /// A share between 0 and 1.
    Part,
}

/// A value of a metric. `at_least`: only this lower bound is known. Trackers record the bound: "never" or "unbounded"
/// would be a gap in their curve exactly when it matters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reading {
    pub value: f64,
    pub at_least: bool,
}

/// A tracked number of an arm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub key: &'static str,
    pub unit: MetricUnit,
    pub better: Better,
    pub about: &'static str,
    read: fn(&RunResult, &ArmResult) -> Option<Reading>,
}

impl Metric {
    /// The value of the metric; `None` where there is none, for example a percentile without samples.
    pub(crate) fn read(&self, result: &RunResult, arm: &ArmResult) -> Option<Reading> {
        // The contended phase was not measured: no value, which differs from a value of zero.
        let contended = result.phases.get(CONTENDED);
        if self.key != "p99-solo" && contended.is_some_and(|p| p.until(arm.ended_ns).nanos() == 0) {
            return None;
        }
        (self.read)(result, arm)
    }

    /// A value as text with its unit; `>=` marks a lower bound.
    pub(crate) fn show(&self, r: Reading) -> String {
        let v = r.value;
        let text = match self.unit {
            MetricUnit::Nanos => time(v as u64),
            MetricUnit::BitsPerSecond => rate(v as u64),
            MetricUnit::Bytes => bytes(v as u64),
            MetricUnit::Ratio => format!("{v:.2}x"),
            MetricUnit::Part => format!("{:.2} %", v * 100.0),
        };
        format!("{}{text}", if r.at_least { ">= " } else { "" })
    }
}

const fn smaller(
    key: &'static str,
    unit: MetricUnit,
    about: &'static str,
    read: fn(&RunResult, &ArmResult) -> Option<Reading>,
) -> Metric {
    Metric { key, unit, better: Better::Smaller, about, read }
}

const fn bigger(
    key: &'static str,
    unit: MetricUnit,
    about: &'static str,
    read: fn(&RunResult, &ArmResult) -> Option<Reading>,
) -> Metric {
    Metric { key, unit, better: Better::Bigger, about, read }
}

pub(crate) const METRICS: &[Metric] = &[
    smaller(
        "throughput-slowdown",
        MetricUnit::Ratio,
        "solo goodput over goodput beside the hog, worst victim and direction",
        |r, a| match a.fairness.throughput_slowdown_milli {
            Some(milli) => Some(exact(milli as f64 / 1e3)),
            None => slowdown_at_least(r, a),
        },
    ),
    smaller(
        "p99-inflation",
        MetricUnit::Ratio,
        "p99 response beside the hog over solo p99, worst victim",
        |_, a| match a.fairness.p99_inflation_milli {
            Some(milli) => Some(exact(milli as f64 / 1e3)),
            None => inflation_at_least(a),
        },
    ),
    smaller(
        "p50-contended",
        MetricUnit::Nanos,
        "p50 response beside the hog, worst victim",
        |_, a| worst_reading(a, CONTENDED, |p| p.p50),
    ),
    smaller(
        "p99-contended",
        MetricUnit::Nanos,
        "p99 response beside the hog, worst victim",
        |_, a| worst_reading(a, CONTENDED, |p| p.p99),
    ),
    smaller(
        "p999-contended",
        MetricUnit::Nanos,
        "p99.9 response beside the hog, worst victim",
        |_, a| worst_reading(a, CONTENDED, |p| p.p999),
    ),
    smaller("p99-solo", MetricUnit::Nanos, "solo p99 response, worst victim", |_, a| {
        worst_reading(a, SOLO, |p| p.p99)
    }),
    smaller(
        "stall",
        MetricUnit::Nanos,
        "longest stall of a victim's bulk transfer beside the hog",
        |_, a| Some(exact(a.fairness.stall_ns as f64)),
    ),
    smaller(
        "not-delivered",
        MetricUnit::Part,
        "share of requests not completed within the deadline, worst victim",
        |_, a| a.fairness.delivered_ppm.map(|ppm| exact(1.0 - ppm as f64 / 1e6)),
    ),
    smaller("unfairness", MetricUnit::Part, "1 - Jain's index of the victims with bulk", |_, a| {
        any_bulk(a).then(|| exact(1.0 - a.fairness.jain_victims_ppm as f64 / 1e6))
    }),
    smaller(
        "recovery",
        MetricUnit::Nanos,
        "time to 95 % of solo goodput after the hog left",
        |r, a| match a.fairness.recovery_ns {
            Some(ns) => Some(exact(ns as f64)),
            None => recovery_at_least(r, a),
        },
    ),
    smaller("overshoot", MetricUnit::Bytes, "maximum charged beyond a hard limit", |_, a| {
        // Without an enforced limit there is nothing to exceed.
        a.is_limited().then(|| exact(a.fairness.overshoot_bytes as f64))
    }),
    smaller(
        "victim-cpu",
        MetricUnit::Nanos,
        "most CPU time of the stack for a victim beside the hog",
        |_, a| victims(a).filter_map(|c| c.stack_cpu_ns).max().map(|ns| exact(ns as f64)),
    ),
    bigger(
        "goodput-up",
        MetricUnit::BitsPerSecond,
        "goodput up beside the hog, worst victim",
        |r, a| per_second(r, a, least_bytes(a, CONTENDED, UP)?),
    ),
    bigger(
        "goodput-down",
        MetricUnit::BitsPerSecond,
        "goodput down beside the hog, worst victim",
        |r, a| per_second(r, a, least_bytes(a, CONTENDED, DOWN)?),
    ),
    bigger(
        "goodput-all",
        MetricUnit::BitsPerSecond,
        "goodput of all victims together beside the hog",
        |r, a| {
            // A victim without bulk adds nothing, so no filter is needed.
            let sum = victims(a).filter_map(|c| c.phases.get(CONTENDED));
            let sum: u64 = sum.map(|p| p.up_bytes + p.down_bytes).sum();
            per_second(r, a, sum)
        },
    ),
];

pub(crate) fn find(key: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|m| m.key == key)
}

fn exact(value: f64) -> Reading {
    Reading { value, at_least: false }
}

fn at_least(value: f64) -> Reading {
    Reading { value, at_least: true }
}

/// The victims of an arm.
pub(crate) fn victims(arm: &ArmResult) -> impl Iterator<Item = &ContainerResult> {
    arm.containers.iter().filter(|c| c.role == Role::Victim)
}

/// Whether a victim has bulk transfer. Without one there is no goodput to compare.
pub(crate) fn any_bulk(arm: &ArmResult) -> bool {
    victims(arm).any(ContainerResult::wants_bulk)
}

/// A direction of bulk transfer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BulkDirection {
    wants: fn(&ContainerResult) -> bool,
    bytes: BytesOf,
}

pub(crate) const UP: BulkDirection = BulkDirection { wants: |c| c.wants_up, bytes: |p| p.up_bytes };
pub(crate) const DOWN: BulkDirection =
    BulkDirection { wants: |c| c.wants_down, bytes: |p| p.down_bytes };

/// The fewest bytes that a victim with bulk in this direction moved; `None` without such a victim. A victim with only a
/// probe moves no bulk by design: its 0 would hide every loss of the others.
pub(crate) fn least_bytes(arm: &ArmResult, phase: usize, way: BulkDirection) -> Option<u64> {
    let wanting = victims(arm).filter(|c| (way.wants)(c));
    wanting.filter_map(|c| c.phases.get(phase)).map(way.bytes).min()
}

/// The largest quantile over the victims. It is only a lower bound as soon as that of one victim is, because that
/// victim may be the worst. So it rises with its rank, as each victim's quantile does.
pub(crate) fn worst_quantile(
    arm: &ArmResult,
    phase: usize,
    pick: fn(&ProbePhase) -> Option<Quantile>,
) -> Option<Quantile> {
    let all = || victims(arm).filter_map(|c| c.phases.get(phase)?.probe.as_ref().and_then(pick));
    let ns = all().map(|q| q.ns).max()?;
    // One victim without an upper bound leaves the maximum without one.
    let most = all().map(|q| q.upper_ns()).reduce(|a, b| Some(a?.max(b?)))?;
    let at_least = most.is_none_or(|most| most > ns);
    Some(Quantile { ns, at_least, at_most_ns: most.filter(|_| at_least) })
}

fn worst_reading(
    arm: &ArmResult,
    phase: usize,
    pick: fn(&ProbePhase) -> Option<Quantile>,
) -> Option<Reading> {
    let worst = worst_quantile(arm, phase, pick)?;
    Some(Reading { value: worst.ns as f64, at_least: worst.at_least })
}

/// Lower bound of the slowdown when less than a byte per second arrived beside the hog: solo rate over one byte per
/// second.
fn slowdown_at_least(result: &RunResult, arm: &ArmResult) -> Option<Reading> {
    let phase = |i: usize| Some((i, result.phases.get(i)?.until(arm.ended_ns).nanos()));
    // An arm that ended early has shorter phases, or none beside the hog.
    let ((solo, solo_ns), (contended, contended_ns)) = phase(SOLO).zip(phase(CONTENDED))?;
    let per_second =
        |bytes: u64, ns: u64| u128::from(bytes) * 1_000_000_000 / u128::from(ns.max(1));
    let of = |c: &ContainerResult| {
        let no_bulk = !c.wants_bulk();
        let ways: [(bool, BytesOf); 3] = [
            (c.wants_up, |p| p.up_bytes),
            (c.wants_down, |p| p.down_bytes),
            // The probe's bytes stand in for a victim without bulk.
            (no_bulk, |p| p.probe_bytes),
        ];
        let (alone, beside) = c.phases.get(solo).zip(c.phases.get(contended))?;
        // Only a direction in which nothing arrives has no finite slowdown.
        let stopped = ways
            .into_iter()
            .filter(|(wanted, bytes)| *wanted && per_second(bytes(beside), contended_ns) == 0);
        stopped.map(|(_, bytes)| per_second(bytes(alone), solo_ns).max(1)).max()
    };
    let most = victims(arm).filter_map(of).max().filter(|_| contended_ns > 0)?;
    Some(at_least(most as f64))
}

/// Lower bound of the inflation when contended requests never completed: lower bound of their p99 over the solo p99.
fn inflation_at_least(arm: &ArmResult) -> Option<Reading> {
    let ratio = |p: &Pair| {
        // With a solo p99 that is itself only a lower bound, the ratio has no bound at all.
        let (solo, contended) = p.solo.zip(p.contended).filter(|(solo, _)| !solo.at_least)?;
        p.enough().then(|| contended.ns as f64 / solo.ns.max(1) as f64)
    };
    latency_pairs(arm).iter().filter_map(ratio).reduce(f64::max).map(at_least)
}

/// Lower bound of a recovery that was not seen: the length of the phase.
fn recovery_at_least(result: &RunResult, arm: &ArmResult) -> Option<Reading> {
    let watched = result.phases.get(RECOVERY)?.until(arm.ended_ns).nanos();
    (watched > 0 && victims(arm).next().is_some()).then(|| at_least(watched as f64))
}

fn per_second(result: &RunResult, arm: &ArmResult, bytes: u64) -> Option<Reading> {
    let ns = result.phases.get(CONTENDED)?.until(arm.ended_ns).nanos();
    Some(exact(bits_per_second(bytes, ns) as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::analyse::tests::{arm, container, newcomer, phases, settle};
    use crate::scenario::plan::ArmRole;

    fn read(c: ContainerResult, key: &str) -> Option<(f64, bool)> {
        read_all(vec![c], key)
    }

    fn read_all(containers: Vec<ContainerResult>, key: &str) -> Option<(f64, bool)> {
        let mut a = arm(ArmRole::Subject, containers);
        settle(&mut a);
        let result = RunResult { phases: phases(), ..RunResult::default() };
        find(key).unwrap().read(&result, &a).map(|r| (r.value, r.at_least))
    }

    /// Never, nothing and unbounded have a number: the lower bound that is known.
    #[test]
    fn a_metric_at_its_worst_has_a_lower_bound() {
        let fine = || container("v", Role::Victim, [110, 100, 110], [2, 3, 2]);
        for key in ["throughput-slowdown", "p99-inflation", "recovery"] {
            assert!(!read(fine(), key).unwrap().1, "{key}");
        }
        let mut dead = container("v", Role::Victim, [110, 0, 0], [2, 900, 2]);
        // Only the upload stops.
        dead.phases[CONTENDED].down_bytes = 50_000_000;
        let stopped = read(dead.clone(), "throughput-slowdown");
        assert_eq!(stopped, Some((110_000_000.0, true)), "110 MB/s over one byte a second");
        assert_eq!(read(dead.clone(), "recovery"), Some((1e9, true)), "the length of the phase");
        for q in dead.phases[CONTENDED].probe.iter_mut().flat_map(|p| &mut p.p99) {
            q.at_least = true;
        }
        assert_eq!(read(dead.clone(), "p99-inflation"), Some((450.0, true)), "900 ms over 2 ms");
        // A metric without measurements has no value.
        dead.phases.iter_mut().for_each(|p| p.probe = None);
        assert_eq!(read(dead, "p99-contended"), None);
    }

    /// The 0 of a victim without bulk would be the worst goodput of every run and hide each loss of the others.
    #[test]
    fn the_worst_goodput_is_of_a_victim_with_bulk() {
        let bulk = container("v", Role::Victim, [110, 100, 110], [2; 3]);
        let mut up_only = container("u", Role::Victim, [110, 90, 110], [2; 3]);
        up_only.wants_down = false;
        up_only.phases[CONTENDED].down_bytes = 0;
        for (containers, up, down) in [
            (vec![bulk.clone()], Some(8e8), Some(8e8)),
            (vec![newcomer(), bulk.clone()], Some(8e8), Some(8e8)),
            (vec![newcomer(), bulk, up_only.clone()], Some(7.2e8), Some(8e8)),
            (vec![newcomer(), up_only], Some(7.2e8), None),
            (vec![newcomer()], None, None),
        ] {
            let read = |key| read_all(containers.clone(), key).map(|(value, _)| value);
            assert_eq!((read("goodput-up"), read("goodput-down")), (up, down), "{containers:?}");
            assert_eq!(read("unfairness").is_some(), up.is_some());
        }
    }
}
