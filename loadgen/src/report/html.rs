//! `report.html`: one file, no script, no network; light and dark; readable on a phone.

use minijinja::{Environment, Value, context};

use super::pick::worst;
use super::svg::{Band, Chart, Mark, Scale, Series, steps};
use super::table;
use crate::exit::Failure;
use crate::plan::{CONTENDED, Role, SOLO};
use crate::result::{ArmResult, RunResult};
use crate::units::{bytes, rate};

const TEMPLATE: &str = include_str!("report.html.jinja");

pub fn render(result: &RunResult) -> Result<String, Failure> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    env.add_template("report", TEMPLATE).map_err(|e| Failure::io("report.html", e))?;
    let template = env.get_template("report").map_err(|e| Failure::io("report.html", e))?;
    let arms: Vec<Value> = result.arms.iter().map(|arm| arm_value(result, arm)).collect();
    let gates: Vec<Value> = result
        .gates
        .iter()
        .map(|g| {
            context! {
                arm => g.arm.as_str(), name => g.name.as_str(), seen => g.observed.as_str(),
                limit => g.limit.as_str(), ok => g.passed
            }
        })
        .collect();
    let params: Vec<Value> =
        result.params.iter().map(|(k, v)| context! { key => k, value => v }).collect();
    let (headline, rows) = table::cells(result);
    let row = |r: table::TextRow| context! { name => r.name, detail => r.detail, cells => r.cells };
    let rows: Vec<Value> = rows.into_iter().map(row).collect();
    let latency = Value::from_safe_string(latency_chart(result).render());
    let context = context! {
        scenario => result.scenario.as_str(), target => result.target.as_str(), seed => result.seed,
        verdict => result.verdict.word.as_str(), exit => result.verdict.exit, passed => result.verdict.exit == 0,
        headline, rows, arms, gates, params, latency,
    };
    template.render(context).map_err(|e| Failure::io("report.html", e))
}

fn arm_value(result: &RunResult, arm: &ArmResult) -> Value {
    let budgets: Vec<Value> = shown_budgets(arm)
        .into_iter()
        .map(|i| Value::from_safe_string(usage_chart(result, arm, i).render()))
        .collect();
    context! {
        name => arm.name.clone(), rules => arm.rules.word(),
        goodput => Value::from_safe_string(goodput_chart(result, arm).render()),
        budgets,
    }
}

/// The hog's and the worst victim's; the only one when it is shared.
fn shown_budgets(arm: &ArmResult) -> Vec<usize> {
    let hog = arm.containers.iter().find(|c| c.role == Role::Hog).map(|c| c.budget);
    let mut shown: Vec<usize> = hog.into_iter().chain(worst(arm).map(|c| c.budget)).collect();
    shown.dedup();
    shown
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn bands(result: &RunResult) -> Vec<Band> {
    let class = |i: usize| if i == CONTENDED { "hot" } else { "calm" };
    let band = |(i, p): (usize, &crate::plan::Phase)| Band {
        name: p.name.clone(),
        from: seconds(p.start_ns),
        to: seconds(p.end_ns),
        class: class(i),
    };
    result.phases.iter().enumerate().map(band).collect()
}

fn time_axis(result: &RunResult) -> ((f64, f64), Vec<(f64, String)>) {
    let end = seconds(result.phases.last().map_or(1, |p| p.end_ns));
    let ticks = steps(end).into_iter().filter(|t| *t <= end);
    ((0.0, end), ticks.map(|t| (t, format!("{t} s"))).collect())
}

fn line(windows: &[u32], window_ns: u64, name: &str, class: &'static str) -> Series {
    let per_second = 8e9 / window_ns as f64;
    let point =
        |(i, b): (usize, &u32)| (seconds((i as u64 + 1) * window_ns), f64::from(*b) * per_second);
    Series { name: name.to_owned(), class, points: windows.iter().enumerate().map(point).collect() }
}

fn goodput_chart(result: &RunResult, arm: &ArmResult) -> Chart {
    let mut series = Vec::new();
    if let Some(c) = worst(arm) {
        let name = |way: &str| format!("{} {way}", c.name);
        series.push(line(&c.down_window_bytes, result.window_ns, &name("down"), "c2"));
        series.push(line(&c.up_window_bytes, result.window_ns, &name("up"), "c1"));
    }
    // One scale for all arms, or the starved one looks as busy as the other.
    let per_second = 8e9 / result.window_ns as f64;
    let every = result.arms.iter().flat_map(|a| &a.containers);
    let top = every.flat_map(|c| c.up_window_bytes.iter().chain(&c.down_window_bytes)).max();
    let ticks = steps(f64::from(top.copied().unwrap_or(1)) * per_second);
    let (x, x_ticks) = time_axis(result);
    Chart {
        title: format!("Goodput of the worst victim over time, {}", arm.name),
        y_label: String::new(),
        x,
        y: (0.0, ticks.last().copied().unwrap_or(1.0)),
        y_scale: Scale::Linear,
        x_ticks,
        y_ticks: ticks.into_iter().map(|t| (t, rate(t as u64))).collect(),
        bands: bands(result),
        marks: Vec::new(),
        series,
    }
}

fn usage_chart(result: &RunResult, arm: &ArmResult, budget: usize) -> Chart {
    let b = &arm.budgets[budget];
    let point = |(i, v): (usize, &u64)| (seconds((i as u64 + 1) * result.window_ns), *v as f64);
    let mut marks = Vec::new();
    for (name, class, limit) in [
        ("low", "low", b.low_bytes),
        ("soft", "soft", b.soft_bytes),
        ("hard", "hard", b.hard_bytes),
    ] {
        if let Some(l) = limit {
            marks.push(Mark { name: format!("{name} {}", bytes(l)), class, y: l as f64 });
        }
    }
    let top = b.max_usage_bytes.max(b.hard_bytes.unwrap_or(0)) as f64 * 1.08;
    let mib = f64::from(1 << 20);
    let ticks: Vec<f64> = steps(top / mib).into_iter().map(|t| t * mib).collect();
    let (x, x_ticks) = time_axis(result);
    Chart {
        title: format!("Memory of {} over time, {}", b.name, arm.name),
        y_label: b.name.clone(),
        x,
        y: (0.0, ticks.last().copied().unwrap_or(1.0)),
        y_scale: Scale::Linear,
        x_ticks,
        y_ticks: ticks.into_iter().map(|t| (t, bytes(t as u64))).collect(),
        bands: bands(result),
        marks,
        series: vec![Series {
            name: format!("usage of {}", b.name),
            class: "c1",
            points: b.usage_bytes.iter().enumerate().map(point).collect(),
        }],
    }
}

/// Latency against log10(1/(1-p)), which gives every nine the same width.
fn latency_chart(result: &RunResult) -> Chart {
    let mut series = Vec::new();
    let classes = [["c3", "c1"], ["c4", "c2"]];
    for (arm, classes) in result.arms.iter().zip(classes.iter().cycle()) {
        let Some(c) = worst(arm) else { continue };
        for (phase, class) in [SOLO, CONTENDED].into_iter().zip(classes) {
            let Some(probe) = &c.phases[phase].probe else { continue };
            let points = probe.spectrum.iter().filter(|r| r.quantile_ppb < 1_000_000_000);
            let nines = |ppb: u64| -(1.0 - ppb as f64 / 1e9).log10();
            series.push(Series {
                name: format!("{}, {}", arm.name, result.phases[phase].name),
                class,
                points: points.map(|r| (nines(r.quantile_ppb), r.ns as f64)).collect(),
            });
        }
    }
    let all = || series.iter().flat_map(|s| &s.points);
    let low = all().map(|p| p.1).fold(f64::MAX, f64::min).min(1e9);
    let high = all().map(|p| p.1).fold(0.0, f64::max).max(low * 10.0);
    let decade = |v: f64| 10f64.powf(v);
    let (low, high) = ((low * 0.8).log10().floor(), high.log10().ceil());
    let ticks = (low as i32..=high as i32).map(|d| decade(f64::from(d)));
    Chart {
        title: "Response time by percentile, worst victim".to_owned(),
        y_label: String::new(),
        x: (0.0, 3.3),
        y: (decade(low), decade(high)),
        y_scale: Scale::Log10,
        x_ticks: [(0.0, "0"), (1.0, "p90"), (2.0, "p99"), (3.0, "p99.9")]
            .map(|(x, t)| (x, t.to_owned()))
            .to_vec(),
        y_ticks: ticks.map(|t| (t, crate::units::time(t as u64).replace(".00", ""))).collect(),
        bands: Vec::new(),
        marks: Vec::new(),
        series,
    }
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
