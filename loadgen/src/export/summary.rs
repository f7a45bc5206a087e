//! `summary.md`: what the page of a CI job shows. GitHub refuses more than 1 MiB of it, so however many containers
//! there are, the worst are listed and the rest counted.

use std::fmt::Write as _;

use crate::metrics::METRICS;
use crate::plan::{CONTENDED, Phase, SOLO};
use crate::report::pick::{slowdown_milli, worst_first};
use crate::report::table;
use crate::result::{ArmResult, ContainerResult, RunResult};
use crate::units::{bits_per_second, percent, rate, time, times};

/// Listed one by one, an arm.
const WORST: usize = 20;
/// Listed in the parameters' table, and characters of one cell: names are the user's.
const PARAMS_MAX: usize = 200;
const CELL_MAX: usize = 400;

/// Not shown. By it a later run knows that it may remove the file.
pub(super) const MARK: &str = "<!-- loadgen.summary -->";

pub fn render(result: &RunResult) -> String {
    let mut s = String::new();
    let v = &result.verdict;
    let mark = if v.exit == 0 { "✅" } else { "❌" };
    let _ =
        writeln!(s, "## {mark} loadgen {}: {} (exit {})\n", cell(&result.scenario), v.word, v.exit);
    let _ = writeln!(s, "{MARK}\n");
    let _ = writeln!(s, "{}\n", cell(&table::headline(result)));
    gates(&mut s, result);
    side_by_side(&mut s, result);
    for arm in &result.arms {
        victims(&mut s, result, arm);
    }
    details(&mut s, result);
    s
}

fn gates(s: &mut String, result: &RunResult) {
    if result.gates.is_empty() {
        let _ = writeln!(s, "No gates: nothing was judged.\n");
        return;
    }
    let _ = writeln!(s, "| | arm | gate | observed | limit |\n|---|---|---|---|---|");
    // Failures are read, passes are counted.
    let mut gates: Vec<_> = result.gates.iter().collect();
    gates.sort_by_key(|g| g.passed);
    for g in gates.iter().take(100) {
        let mark = if g.passed { "ok" } else { "**FAIL**" };
        let cells = [&g.arm, &g.name, &g.observed, &g.limit].map(|t| cell(t));
        let _ = writeln!(s, "| {mark} | {} |", cells.join(" | "));
    }
    let _ = writeln!(
        s,
        "\n{} of {} gates passed.\n",
        gates.iter().filter(|g| g.passed).count(),
        gates.len()
    );
}

fn side_by_side(s: &mut String, result: &RunResult) {
    let heads: Vec<String> = result.arms.iter().map(|a| cell(&a.name)).collect();
    let _ = writeln!(s, "| | {} |", heads.join(" | "));
    let _ = writeln!(s, "|---|{}", "---:|".repeat(heads.len()));
    for m in METRICS {
        let of = |arm| m.read(result, arm).map_or_else(|| "-".to_owned(), |r| m.show(r));
        let cells: Vec<String> = result.arms.iter().map(of).collect();
        let _ = writeln!(s, "| {} ({}) | {} |", m.key, m.about, cells.join(" | "));
    }
    let memory: Vec<String> = result.arms.iter().map(table::hog_memory).collect();
    let _ = writeln!(s, "| {} | {} |", table::HOG_MEMORY, memory.join(" | "));
    s.push('\n');
}

fn victims(s: &mut String, result: &RunResult, arm: &ArmResult) {
    let ns = |i: usize| result.phases.get(i).map_or(1, Phase::nanos);
    let slow = |c: &ContainerResult| slowdown_milli(c, ns(SOLO), ns(CONTENDED));
    let mut all = worst_first(arm);
    if all.is_empty() {
        return;
    }
    all.sort_by_key(|c| std::cmp::Reverse(slow(c)));
    let shown = all.len().min(WORST);
    let of = if shown < all.len() {
        format!("the worst {shown} of {}", all.len())
    } else {
        "all".to_owned()
    };
    let _ = writeln!(s, "<details><summary>Victims of {}: {of}</summary>\n", cell(&arm.name));
    let _ = writeln!(
        s,
        "| victim | slowdown | up | down | p99 | delivered |\n|---|---:|---:|---:|---:|---:|"
    );
    for c in all.iter().take(shown) {
        let Some(p) = c.phases.get(CONTENDED) else { continue };
        let per_second = |b: u64| rate(bits_per_second(b, ns(CONTENDED)));
        let slow = match slow(c) {
            u64::MAX => "nothing came".to_owned(),
            milli => times(milli),
        };
        let probe = p.probe.as_ref();
        let p99 = probe.and_then(|p| p.p99).map_or_else(|| "-".to_owned(), table::quantile);
        let delivered = probe.and_then(|p| p.delivered_ppm).map_or_else(|| "-".to_owned(), percent);
        let (up, down) = (per_second(p.up_bytes), per_second(p.down_bytes));
        let _ = writeln!(s, "| {} | {slow} | {up} | {down} | {p99} | {delivered} |", cell(&c.name));
    }
    let _ = writeln!(s, "\n</details>\n");
}

fn details(s: &mut String, result: &RunResult) {
    let m = &result.meta;
    let _ = writeln!(s, "<details><summary>Parameters</summary>\n\n| | |\n|---|---|");
    let took = time(m.elapsed_ms * 1_000_000);
    let _ = writeln!(
        s,
        "| loadgen | {} |\n| took | {took} |\n| target | {} |",
        cell(&m.loadgen_version),
        cell(&result.target)
    );
    let _ = writeln!(s, "| machine | {} |", cell(&crate::machine::words(m)));
    let _ = writeln!(s, "| seed | {} |", result.seed);
    for (key, value) in result.params.iter().take(PARAMS_MAX) {
        let _ = writeln!(s, "| {} | {value} |", cell(key));
    }
    let _ = writeln!(s, "\n</details>");
}

/// Text that stays in its cell and is no markup.
fn cell(text: &str) -> String {
    let mut s = String::new();
    for c in text.chars().take(CELL_MAX) {
        match c {
            '|' => s.push_str("\\|"),
            '<' => s.push_str("&lt;"),
            '>' => s.push_str("&gt;"),
            '&' => s.push_str("&amp;"),
            '`' | '*' | '_' | '[' | ']' | '\\' => s.extend(['\\', c]),
            c if c.is_control() => s.push(' '),
            c => s.push(c),
        }
    }
    s
}
