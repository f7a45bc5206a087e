//! `report.html`: one file without script or network access; light and dark; readable on a phone.

use minijinja::{Environment, Value, context};

use super::charts::{self, Key};
use super::svg::LEVELS;
use super::{method, table};
use crate::exit::Failure;
use crate::measure::result::{ArmResult, RunResult};

const TEMPLATE: &str = include_str!("report.html.jinja");

/// Maximum number of arms with charts; the tables contain all.
const ARMS_MAX: usize = 6;

pub(crate) fn render(result: &RunResult) -> Result<String, Failure> {
    let mut env = Environment::new();
    // Names come from the user's files.
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    env.add_template("report", TEMPLATE).map_err(|e| Failure::io("report.html", e))?;
    let template = env.get_template("report").map_err(|e| Failure::io("report.html", e))?;
    let drawn = result.arms.iter().take(ARMS_MAX);
    let arms: Vec<Value> = drawn.map(|arm| arm_value(result, arm)).collect();
    let (headline, rows) = table::cells(result);
    let row = |r: table::TextRow| {
        let cells: Vec<String> = r.cells.iter().map(|c| unbroken(c)).collect();
        context! { name => r.name, detail => r.detail, cells }
    };
    let rows: Vec<Value> = rows.into_iter().map(row).collect();
    let (latency, latency_keys) = charts::by_percentile(result);
    let (slowdowns, slowdown_keys) = charts::slowdowns(result);
    let params = result.params.iter().map(|(k, v)| {
        let (key, value) = crate::units::param(k, *v);
        context! { key, value }
    });
    // Every arm has the same containers.
    let victims = result.arms.first().map_or(0, |a| crate::judge::metrics::victims(a).count());
    let context = context! {
        scenario => result.scenario.as_str(), seed => result.seed,
        target => result.target.as_str(), interrupted => result.interrupted,
        verdict => verdict(result), passed => result.verdict.exit == 0,
        headline, rows, arms, victims, interruption => table::interruption(result),
        heads => result.arms.iter().map(head).collect::<Vec<_>>(),
        gates => gates(result),
        params => params.collect::<Vec<_>>(),
        toml => result.scenario_toml.as_str(),
        levels => LEVELS.iter().map(|l| l.1).collect::<Vec<_>>(),
        latency => svg(latency.render()), latency_keys => keys(&latency_keys),
        slowdowns => svg(slowdowns.render()), slowdown_keys => keys(&slowdown_keys),
        method => method::rows(result), meta => meta(result), window => crate::units::time(result.window_ns),
    };
    template.render(context).map_err(|e| Failure::io("report.html", e))
}

/// Keeps a number and its unit on one line in narrow columns; a line may break after a slash.
fn unbroken(cell: &str) -> String {
    cell.replace(" / ", "\u{a0}/\n").replace(' ', "\u{a0}").replace('\n', " ")
}

fn svg(text: String) -> Value {
    // The drawing has escaped its texts: do not escape its markup.
    Value::from_safe_string(text)
}

fn keys(keys: &[Key]) -> Vec<Value> {
    keys.iter()
        .map(|(class, name)| context! { class => class.as_str(), name => name.as_str() })
        .collect()
}

fn verdict(result: &RunResult) -> Value {
    let v = &result.verdict;
    context! { word => v.word.as_str(), exit => v.exit, gates => v.gates, failed => v.failed }
}

fn meta(result: &RunResult) -> Value {
    let m = &result.meta;
    context! {
        loadgen_version => m.loadgen_version.as_str(), machine => m.machine(),
        took => crate::units::time(m.elapsed_ms * 1_000_000), date => crate::units::date(m.started_unix_ms),
        commit => m.commit.as_deref(), command => m.command.as_deref(),
    }
}

/// The heading of a column.
fn head(arm: &ArmResult) -> Value {
    context! { name => arm.name.as_str(), expected => arm.role.expected() }
}

/// Failed gates first.
fn gates(result: &RunResult) -> Vec<Value> {
    let mut gates: Vec<_> = result.gates.iter().collect();
    gates.sort_by_key(|g| g.passed);
    let value = |g: &crate::measure::result::GateResult| {
        context! {
            arm => g.arm.as_str(), name => g.name.as_str(), seen => g.observed.as_str(),
            limit => g.limit.as_str(), ok => g.passed, mark => g.mark(),
        }
    };
    gates.into_iter().map(value).collect()
}

fn arm_value(result: &RunResult, arm: &ArmResult) -> Value {
    let budget = |i: usize| {
        context! {
            name => arm.budgets[i].name.as_str(), chart => svg(charts::usage(result, arm, i).render()),
        }
    };
    let budgets: Vec<Value> = charts::shown_budgets(arm).into_iter().map(budget).collect();
    let (goodput, goodput_keys) = charts::goodput(result, arm);
    let heat = charts::heat(result, arm);
    let (times, times_keys) = charts::over_time(result, arm);
    context! {
        name => arm.name.as_str(), rules => arm.rules.word(), expected => arm.role.expected(), budgets,
        times => (!times_keys.is_empty()).then(|| svg(times.render())), times_keys => keys(&times_keys),
        goodput => svg(goodput.render()), goodput_keys => keys(&goodput_keys),
        heat => (!heat.rows.is_empty()).then(|| svg(heat.render())),
    }
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
