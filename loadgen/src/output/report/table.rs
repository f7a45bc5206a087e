//! The table for people: the arms side by side.

use std::fmt::Write as _;

use crate::judge::analyse::stall;
use crate::judge::metrics::{
    BulkDirection, DOWN, UP, any_bulk, least_bytes, victims, worst_quantile,
};
use crate::measure::result::{ArmResult, Quantile, RunResult};
use crate::scenario::plan::{CONTENDED, Phase, Role};
use crate::units::{after, bits_per_second, bytes, percent, rate, time, times};

type Cell = Box<dyn Fn(&ArmResult) -> String>;

struct TableRow {
    name: String,
    detail: String,
    cell: Cell,
}

pub(crate) fn render(result: &RunResult) -> String {
    let mut s = String::new();
    let _ = writeln!(s, "{}", headline(result));
    if let Some(what) = interruption(result) {
        let _ = writeln!(s, "{what}");
    }
    if let Some(what) = repetition(result) {
        let _ = writeln!(s, "{what}");
    }
    let _ = writeln!(s);
    if result.arms.is_empty() {
        return s;
    }
    let rows = rows(result);
    let name = rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
    let detail = rows.iter().map(|r| r.detail.len()).max().unwrap_or(0);
    let mut columns: Vec<Vec<String>> = Vec::new();
    for arm in &result.arms {
        let head = format!("{} ({})", arm.name, arm.rules.word());
        let cells = rows.iter().map(|r| (r.cell)(arm));
        let heads = [head, arm.role.expected().to_owned()];
        columns.push(heads.into_iter().chain(cells).collect());
    }
    let widths: Vec<usize> =
        columns.iter().map(|c| c.iter().map(|t| t.chars().count()).max().unwrap_or(0)).collect();
    let line = |s: &mut String, n: &str, d: &str, at: usize| {
        let mut text = format!("{n:name$}  {d:detail$}");
        for (column, width) in columns.iter().zip(&widths) {
            let _ = write!(text, "   {:>width$}", column[at]);
        }
        let _ = writeln!(s, "{}", text.trim_end());
    };
    line(&mut s, "", "", 0);
    line(&mut s, "", "", 1);
    // A row name that repeats is printed once.
    let mut before = "";
    for (i, row) in rows.iter().enumerate() {
        let shown = if row.name == before { "" } else { &row.name };
        before = &row.name;
        line(&mut s, shown, &row.detail, i + 2);
    }
    let _ = writeln!(s);
    s.push_str(&gates(result));
    s
}

/// One row of the table as text.
#[derive(Debug)]
pub(crate) struct TextRow {
    pub(crate) name: String,
    pub(crate) detail: String,
    pub(crate) cells: Vec<String>,
}

/// Headline and rows of the table, for other renderings.
pub(crate) fn cells(result: &RunResult) -> (String, Vec<TextRow>) {
    let mut before = String::new();
    let text = |row: TableRow| {
        let repeated = row.name == before;
        before.clone_from(&row.name);
        TextRow {
            name: if repeated { String::new() } else { row.name },
            detail: row.detail,
            cells: result.arms.iter().map(|arm| (row.cell)(arm)).collect(),
        }
    };
    (headline(result).replace('\n', " "), rows(result).into_iter().map(text).collect())
}

/// A sentence about how far an interrupted run got; `None` if it was not interrupted.
pub(crate) fn interruption(result: &RunResult) -> Option<String> {
    if !result.interrupted {
        return None;
    }
    let Some(last) = result.arms.last() else {
        return Some("Interrupted before the first measurement.".to_owned());
    };
    // An arm without an end time is complete; the stop came between two arms.
    let at = last
        .ended_ns
        .map_or_else(|| "after its end".to_owned(), |ns| format!("after {}", time(ns)));
    let last_phase = |ns: u64| result.phases.iter().rfind(|p| p.start_ns < ns);
    let phase =
        last.ended_ns.and_then(last_phase).map_or_else(String::new, |p| format!(", in {}", p.name));
    Some(format!("Interrupted in the arm {}, {at}{phase}.", last.name))
}

/// A sentence about which of several runs the table and the gates show; `None` if there was one.
fn repetition(result: &RunResult) -> Option<String> {
    let count = Some(result.runs.len()).filter(|n| *n > 1 && !result.interrupted)?;
    Some(format!(
        "The table shows the run of {count} with the median number of failed gates; each gate takes its own median."
    ))
}

/// A text on one line. A runner of CI takes a line that starts with `::` for a command, and the text is the user's.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn headline(result: &RunResult) -> String {
    let [scenario, target, about] =
        [&result.scenario, &result.target, &result.about].map(|text| one_line(text));
    let seed = result.seed;
    if result.arms.is_empty() {
        return format!("{scenario} on the {target} target, seed {seed}: {about}.");
    }
    let count = |role| {
        result.arms.first().map_or(0, |a| a.containers.iter().filter(|c| c.role == role).count())
    };
    let of = |role, one: &str| match count(role) {
        1 => format!("1 {one}"),
        n => format!("{n} {one}s"),
    };
    format!(
        "{scenario} on the {target} target, seed {seed}: {about}.\n\
         {} and {}; the same load, link and memory in each column.",
        of(Role::Hog, "hog"),
        of(Role::Victim, "victim"),
    )
}

fn rows(result: &RunResult) -> Vec<TableRow> {
    let mut rows: Vec<TableRow> = Vec::new();
    let mut add = |name: &str, detail: &str, cell: Cell| {
        rows.push(TableRow { name: name.to_owned(), detail: detail.to_owned(), cell });
    };
    for (name, way) in [("goodput up, worst victim", UP), ("goodput down, worst victim", DOWN)] {
        for (i, phase) in result.phases.iter().enumerate() {
            let whole = phase.clone();
            add(name, &phase.name, Box::new(move |arm| least_rate(arm, i, way, &whole)));
        }
    }
    let quantiles: [(&str, PickQ); 4] = [
        ("response p50, worst victim", |p| p.p50),
        ("response p99", |p| p.p99),
        ("response p99.9", |p| p.p999),
        ("response max", |p| p.max),
    ];
    for (name, pick) in quantiles {
        for (i, phase) in result.phases.iter().take(2).enumerate() {
            add(
                name,
                &phase.name,
                Box::new(move |arm| worst_quantile(arm, i, pick).map_or_else(none, quantile)),
            );
        }
    }
    for (i, phase) in result.phases.iter().take(2).enumerate() {
        let whole = phase.clone();
        let cell = move |arm: &ArmResult| match whole.until(arm.ended_ns).nanos() {
            0 => none(),
            _ => worst_stall(arm, i),
        };
        add("longest stall of a victim", &phase.name, Box::new(cell));
    }
    let contended = result.phases.get(CONTENDED).cloned();
    let mut fair = |name: &str, cell: fn(&ArmResult) -> String| {
        let phase = contended.clone();
        let measured =
            move |arm: &ArmResult| phase.as_ref().is_none_or(|p| p.until(arm.ended_ns).nanos() > 0);
        let cell = move |arm: &ArmResult| if measured(arm) { cell(arm) } else { none() };
        add(name, "", Box::new(cell));
    };
    fair("delivered in time, lowest", |a| a.fairness.delivered_ppm.map_or_else(none, percent));
    fair("throughput slowdown, worst", |a| {
        a.fairness.throughput_slowdown_milli.map_or_else(|| "nothing received".to_owned(), times)
    });
    fair("p99 inflation, worst", |a| a.fairness.p99_inflation_milli.map_or_else(none, times));
    fair("recovery to 95 % of solo", |a| after(a.fairness.recovery_ns));
    fair("Jain's index, victims", |a| {
        if any_bulk(a) { index(a.fairness.jain_victims_ppm) } else { none() }
    });
    fair("Jain's index, all", |a| index(a.fairness.jain_all_ppm));
    fair("memory refusals on victims", |a| a.fairness.victim_refusals.to_string());
    fair("victims' budget under pressure", |a| {
        a.fairness.victim_pressure_ns.map_or_else(none, time)
    });
    add(HOG_MEMORY, "", Box::new(hog_memory));
    add("hard limit overshoot", "", Box::new(overshoot));
    add("stack CPU, hog / a victim", "", Box::new(cpu));
    rows
}

type PickQ = fn(&crate::measure::result::ProbePhase) -> Option<Quantile>;

/// `-` in a phase that was not measured, and where no victim has bulk in this direction.
fn least_rate(arm: &ArmResult, i: usize, way: BulkDirection, phase: &Phase) -> String {
    let measured = phase.until(arm.ended_ns).nanos();
    let least = least_bytes(arm, i, way).filter(|_| measured > 0);
    least.map_or_else(none, |bytes| rate(bits_per_second(bytes, measured)))
}

/// The stall that the gates judge, so that both have one value.
fn worst_stall(arm: &ArmResult, phase: usize) -> String {
    time(victims(arm).map(|c| stall(c, phase)).max().unwrap_or(0))
}

pub(crate) const HOG_MEMORY: &str = "hog's peak / its hard limit";

/// The scenario's limit counts only where the arm enforces it.
pub(crate) fn hog_memory(arm: &ArmResult) -> String {
    let f = &arm.fairness;
    match f.hog_hard_bytes.filter(|_| arm.is_limited()) {
        // An arm without a hog has no peak to show.
        _ if !arm.containers.iter().any(|c| c.role == Role::Hog) => none(),
        Some(hard) => format!("{} / {}", bytes(f.hog_peak_bytes), bytes(hard)),
        None => format!("{} / none", bytes(f.hog_peak_bytes)),
    }
}

fn overshoot(arm: &ArmResult) -> String {
    if arm.is_limited() { bytes(arm.fairness.overshoot_bytes) } else { "no limit".to_owned() }
}

fn cpu(arm: &ArmResult) -> String {
    let of = |role| arm.containers.iter().filter(move |c| c.role == role);
    let hog = of(Role::Hog).filter_map(|c| c.stack_cpu_ns).max();
    let victim = of(Role::Victim).filter_map(|c| c.stack_cpu_ns).max();
    match hog.zip(victim) {
        Some((h, v)) => format!("{} / {}", time(h), time(v)),
        // Virtual time does not count CPU, and the kernel does not report that of its own stack.
        None => "not counted".to_owned(),
    }
}

pub(super) fn none() -> String {
    "-".to_owned()
}
pub(crate) fn quantile(q: Quantile) -> String {
    format!("{}{}", if q.at_least { ">= " } else { "" }, time(q.ns))
}
fn index(ppm: u64) -> String {
    format!("{}.{:03}", ppm / 1_000_000, ppm % 1_000_000 / 1000)
}

fn gates(result: &RunResult) -> String {
    let width =
        |f: fn(&crate::measure::result::GateResult) -> usize| result.gates.iter().map(f).max();
    let name = width(|g| g.name.len()).unwrap_or(0);
    let arm = width(|g| g.arm.len()).unwrap_or(0);
    let seen = width(|g| g.observed.chars().count()).unwrap_or(0);
    let mut s = String::new();
    for g in &result.gates {
        let _ = writeln!(
            s,
            "{:5} {:arm$}  {:name$}  {:>seen$}   ({})",
            g.mark(),
            g.arm,
            g.name,
            g.observed,
            g.limit
        );
    }
    s
}

/// The last line of every run.
pub(crate) fn verdict_line(result: &RunResult, out: &str) -> String {
    let v = &result.verdict;
    let failed = if v.failed == 0 {
        String::new()
    } else {
        format!(" ({} of {} gates failed)", v.failed, v.gates)
    };
    format!("VERDICT: {} exit={}{failed} out={out}", v.word, v.exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::result::Repeat;

    /// Before and after the arms are measured.
    #[test]
    fn a_text_of_the_user_starts_no_line() {
        let mut result = crate::command::selftest::sample();
        result.about = "a\n::warning title=x::y\r\n\tb".to_owned();
        let measured = headline(&result);
        assert!(measured.contains("a ::warning title=x::y b.\n"), "{measured}");
        result.arms.clear();
        assert!(!headline(&result).contains('\n'), "{}", headline(&result));
    }

    /// A gate's median run need not be the run of the table.
    #[test]
    fn the_table_tells_which_of_several_runs_it_shows() {
        let mut result = crate::command::selftest::sample();
        let one = Repeat { arms: result.arms.clone(), ..Repeat::default() };
        assert!(!render(&result).contains("median"));
        result.runs = vec![one.clone(), one.clone(), one];
        assert!(render(&result).contains("the run of 3 with the median number of failed gates;"));
        // An interrupted run judges no gate.
        result.interrupted = true;
        assert!(!render(&result).contains("median"));
    }
}
