//! Makes the charts of a report from a result. The size of the drawing is bounded for any number of containers and
//! windows: only some containers are chosen, lines are thinned, rows and columns are combined.

mod heat;
mod latency;

pub(crate) use heat::heat;
pub(crate) use latency::{by_percentile, over_time};

use super::pick::{slowdown_milli, worst, worst_bulk_first, worst_first};
use super::svg::{AxisFormat, Band, Chart, Mark, Scale, Series, log_steps, steps};
use crate::measure::result::{ArmResult, ContainerResult, RunResult};
use crate::scenario::plan::{CONTENDED, Phase, Role, SOLO};
use crate::units::bytes;

/// Number of colours for arms.
const COLOURS: usize = 6;

/// A slowdown from this value on, in thousandths, is drawn as "nothing arrived".
const SLOWDOWN_END: u64 = 1_000_000;

/// An entry of a legend: CSS class and name.
pub(crate) type Key = (String, String);

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The measured part of each phase, and a band for the part that was not measured.
fn bands(result: &RunResult, arm: &ArmResult) -> Vec<Band> {
    let class = |i: usize| if i == CONTENDED { "hot" } else { "calm" };
    let band = |(i, p): (usize, &Phase)| {
        let p = p.until(arm.ended_ns);
        let (from, to) = (seconds(p.start_ns), seconds(p.end_ns));
        (from < to).then(|| Band { name: p.name.clone(), from, to, class: class(i) })
    };
    let mut bands: Vec<Band> = result.phases.iter().enumerate().filter_map(band).collect();
    let end = result.phases.last().map_or(0, |p| p.end_ns);
    if let Some(ended) = arm.ended_ns.filter(|ended| *ended < end) {
        let name = "not measured".to_owned();
        bands.push(Band { name, from: seconds(ended), to: seconds(end), class: "unmeasured" });
    }
    bands
}

fn time_axis(result: &RunResult) -> ((f64, f64), Vec<(f64, String)>) {
    let end = seconds(result.phases.last().map_or(1, |p| p.end_ns)).max(1e-9);
    let ticks = steps(end).into_iter().filter(|t| *t <= end);
    ((0.0, end), ticks.map(|t| (t, format!("{} s", short(t)))).collect())
}

/// A number without trailing zeros.
fn short(v: f64) -> String {
    let text = format!("{v:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A linear axis up to at least `top`, with ticks in the largest unit that keeps their labels short.
fn axis(top: f64, units: &[(f64, &str)]) -> (f64, Vec<(f64, String)>, String) {
    let unit = units.iter().rev().find(|(scale, _)| top >= *scale).or_else(|| units.first());
    let (scale, name) = unit.copied().unwrap_or((1.0, ""));
    let ticks: Vec<f64> = steps(top / scale).into_iter().map(|t| t * scale).collect();
    let end = ticks.last().copied().unwrap_or(1.0);
    (end, ticks.into_iter().map(|t| (t, short(t / scale))).collect(), name.to_owned())
}

const RATES: &[(f64, &str)] = &[(1.0, "bit/s"), (1e3, "kbit/s"), (1e6, "Mbit/s"), (1e9, "Gbit/s")];
const SIZES: &[(f64, &str)] =
    &[(1.0, "B"), (1024.0, "KiB"), (1_048_576.0, "MiB"), (1_073_741_824.0, "GiB")];

/// Goodput over time of the worst victim, with the median victim faintly behind it for comparison.
pub(crate) fn goodput(result: &RunResult, arm: &ArmResult) -> (Chart, Vec<Key>) {
    let per_second = 8e9 / result.window_ns.max(1) as f64;
    let order = worst_bulk_first(arm);
    let mut series = Vec::new();
    let mut add = |c: &ContainerResult, faint: &str, who: &str| {
        for (way, windows) in [("up", &c.up_window_bytes), ("down", &c.down_window_bytes)] {
            // Leave out the last window: it also contains all later bytes and would appear as a spike.
            let whole = windows.split_last().map_or(&[][..], |(_, rest)| rest);
            if windows.iter().any(|b| *b > 0) {
                // A window is drawn at its end.
                let at = |(i, b): (usize, &u32)| {
                    (seconds((i as u64 + 1) * result.window_ns), f64::from(*b) * per_second)
                };
                series.push(Series {
                    name: format!("{who} ({}), {way}", c.name),
                    class: format!("{way}{faint}"),
                    points: whole.iter().enumerate().map(at).collect(),
                    dots: false,
                });
            }
        }
    };
    // With one or two victims the median adds nothing.
    if order.len() > 2 {
        add(order[order.len() / 2], " faint", "median victim");
    }
    if let Some(c) = order.first() {
        add(c, "", "worst victim");
    }
    // The worst victim is drawn last, on top, but is the first in the legend.
    let keys = series.iter().rev().map(|s| (s.class.clone(), s.name.clone())).collect();
    // One scale for all arms; otherwise the starved arm appears as busy as the other.
    let every = result.arms.iter().flat_map(worst_bulk_first);
    let top = every.flat_map(|c| c.up_window_bytes.iter().chain(&c.down_window_bytes)).max();
    let (end, y_ticks, unit) = axis(f64::from(top.copied().unwrap_or(0)) * per_second, RATES);
    let (x, x_ticks) = time_axis(result);
    let chart = Chart {
        title: format!("Goodput of the worst victim over time, {}", arm.name),
        unit,
        x,
        y: (0.0, end),
        x_ticks,
        y_ticks,
        bands: bands(result, arm),
        series,
        show: (AxisFormat::Seconds, AxisFormat::BitsPerSecond),
        ..Chart::default()
    };
    (chart, keys)
}

/// The budgets of the hog and of the worst victim; a single one when it is shared.
pub(crate) fn shown_budgets(arm: &ArmResult) -> Vec<usize> {
    let hog = arm.containers.iter().find(|c| c.role == Role::Hog).map(|c| c.budget);
    let mut shown: Vec<usize> = hog.into_iter().chain(worst(arm).map(|c| c.budget)).collect();
    shown.dedup();
    shown.retain(|i| *i < arm.budgets.len());
    shown
}

pub(crate) fn usage(result: &RunResult, arm: &ArmResult, budget: usize) -> Chart {
    let b = &arm.budgets[budget];
    let point = |(i, v): (usize, &u64)| (seconds((i as u64 + 1) * result.window_ns), *v as f64);
    let limits = [("low", b.low_bytes), ("soft", b.soft_bytes), ("hard", b.hard_bytes)].into_iter();
    let marks = limits.filter_map(|(name, limit)| {
        let y = limit? as f64;
        Some(Mark { name: format!("{name} {}", bytes(limit?)), class: name, y })
    });
    // 5 % above peak and limit, so that neither is on the edge.
    let top = b.max_usage_bytes.max(b.hard_bytes.unwrap_or(0)) as f64 * 1.05;
    let (end, y_ticks, unit) = axis(top, SIZES);
    let (x, x_ticks) = time_axis(result);
    Chart {
        title: format!("Memory of {} over time, {}", b.name, arm.name),
        unit,
        x,
        y: (0.0, end),
        x_ticks,
        y_ticks,
        bands: bands(result, arm),
        marks: marks.collect(),
        series: vec![Series {
            name: format!("usage of {}", b.name),
            class: "usage".to_owned(),
            points: b.usage_bytes.iter().enumerate().map(point).collect(),
            dots: false,
        }],
        show: (AxisFormat::Seconds, AxisFormat::Bytes),
        ..Chart::default()
    }
}

/// The victims of each arm sorted by slowdown, with the limit of the gate.
pub(crate) fn slowdowns(result: &RunResult) -> (Chart, Vec<Key>) {
    let ns = |i: usize| result.phases.get(i).map_or(1, Phase::nanos);
    let sorted = |arm: &ArmResult| {
        let of = |c: &&ContainerResult| slowdown_milli(c, ns(SOLO), ns(CONTENDED));
        let mut all: Vec<u64> = worst_first(arm).iter().map(of).collect();
        all.sort_unstable();
        all
    };
    let measured = |arm: &ArmResult| {
        result.phases.get(CONTENDED).is_none_or(|p| p.until(arm.ended_ns).nanos() > 0)
    };
    let all = result.arms.iter();
    let arms: Vec<Vec<u64>> =
        all.map(|arm| if measured(arm) { sorted(arm) } else { Vec::new() }).collect();
    let finite = arms.iter().flatten().filter(|m| **m < SLOWDOWN_END);
    let most = finite.max().map_or(1.0, |m| *m as f64 / 1e3).max(1.5);
    let nothing = arms.iter().flatten().any(|m| *m >= SLOWDOWN_END);
    let gate = gate_limit(result);
    // Victims that received next to nothing are drawn on a separate line above all others.
    let ceiling = (most.max(gate.unwrap_or(1.0))) * if nothing { 3.0 } else { 1.0 };
    let (mut series, mut keys) = (Vec::new(), Vec::new());
    for (i, (arm, all)) in result.arms.iter().zip(&arms).enumerate() {
        let last = all.len().saturating_sub(1).max(1) as f64;
        let y = |m: u64| if m >= SLOWDOWN_END { ceiling } else { m as f64 / 1e3 };
        let point = |(i, m): (usize, &u64)| (i as f64 / last * 100.0, y(*m));
        let class = format!("a{}", i % COLOURS);
        keys.push((class.clone(), arm.name.clone()));
        let points = all.iter().enumerate().map(point).collect();
        series.push(Series { name: arm.name.clone(), class, points, dots: all.len() <= 40 });
    }
    let mut marks: Vec<Mark> = gate
        .map(|y| Mark { name: format!("gate {}x", short(y)), class: "hard", y })
        .into_iter()
        .collect();
    if nothing {
        marks.push(Mark {
            name: "nothing received, or 1000x slower".to_owned(),
            class: "soft",
            y: ceiling,
        });
    }
    let y = (0.7, ceiling * 1.3);
    let chart = Chart {
        title: "Throughput slowdown of every victim, sorted".to_owned(),
        x: (0.0, 100.0),
        y,
        y_scale: Scale::Log10,
        x_ticks: [(0.0, "least slowed"), (100.0, "most slowed")]
            .map(|(x, t)| (x, t.to_owned()))
            .to_vec(),
        y_ticks: log_steps(y.0, y.1).into_iter().map(|t| (t, format!("{}x", short(t)))).collect(),
        marks,
        series,
        show: (AxisFormat::Part, AxisFormat::Times),
        ..Chart::default()
    };
    (chart, keys)
}

/// The limit of the gate on the throughput slowdown of a subject, if there is one.
fn gate_limit(result: &RunResult) -> Option<f64> {
    let about = |text: &str| text.contains("slowdown") && !text.contains("p99");
    let gate = result
        .gates
        .iter()
        .find(|g| g.kind == crate::measure::result::GateKind::Subject && about(&g.name))?;
    let number = |c: char| c.is_ascii_digit() || c == '.';
    // The limit is a text such as `<= 1.05x`.
    let from = gate.limit.find(|c: char| c.is_ascii_digit())?;
    let text: String = gate.limit[from..].chars().take_while(|c| number(*c)).collect();
    text.parse().ok()
}
