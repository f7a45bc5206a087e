//! `summary.md`: the summary on the page of a CI job. GitHub refuses more than 1 MiB, so with many containers only the
//! worst are listed.

use std::fmt::Write as _;

use super::cases::{Case, CaseOutcome, Suite};
use crate::judge::metrics::METRICS;
use crate::measure::result::{ArmResult, ContainerResult, RunResult};
use crate::output::report::pick::{slowdown_milli, worst_first};
use crate::output::report::table;
use crate::scenario::plan::{CONTENDED, Phase, SOLO};
use crate::units::{bits_per_second, date, param, percent, rate, time, times};

/// Maximum victims listed per arm.
const WORST: usize = 20;
/// Maximum rows of the table of parameters, and characters of one cell: names are the user's.
const PARAMS_MAX: usize = 200;
const CELL_MAX: usize = 400;
/// Maximum cases listed for other commands, and characters of their printed text.
const CASES_MAX: usize = 200;
const TEXT_MAX: usize = 100_000;

/// An HTML comment by which a later run recognizes the file as loadgen's and may remove it.
pub(super) const MARK: &str = "<!-- loadgen.summary -->";

pub(crate) fn render(result: &RunResult) -> String {
    let mut s = String::new();
    let v = &result.verdict;
    heading(&mut s, &result.scenario, &v.word, v.exit);
    let _ = writeln!(s, "{}\n", cell(&table::headline(result)));
    match table::interruption(result) {
        Some(what) => {
            let _ = writeln!(s, "**{}** No gate was judged.\n", cell(&what));
        }
        None => gates(&mut s, result),
    }
    side_by_side(&mut s, result);
    for arm in &result.arms {
        victims(&mut s, result, arm);
    }
    details(&mut s, result);
    s
}

fn heading(s: &mut String, of: &str, word: &str, exit: u8) {
    let mark = if exit == 0 { "✅" } else { "❌" };
    let _ = writeln!(s, "## {mark} loadgen {}: {} (exit {exit})\n", cell(of), cell(word));
    let _ = writeln!(s, "{MARK}\n");
}

/// The summary of a command that judges without a run, or runs many times. `of` names the command, `text` is its
/// printed output.
pub(crate) fn of_cases(of: &str, word: &str, exit: u8, suites: &[Suite], text: &str) -> String {
    let mut s = String::new();
    heading(&mut s, of, word, exit);
    let all: Vec<(&Suite, &Case)> =
        suites.iter().flat_map(|s| s.cases.iter().map(move |c| (s, c))).collect();
    let marks = [
        (CaseOutcome::Failed, "**FAIL**"),
        (CaseOutcome::Doubt, "**unclear**"),
        (CaseOutcome::Skipped, "skipped"),
        (CaseOutcome::Passed, "ok"),
    ];
    let _ = writeln!(s, "| | suite | case | observed |\n|---|---|---|---|");
    // Failures first: they are read, passes are only counted.
    let sorted = marks.iter().flat_map(|(o, mark)| {
        let these = all.iter().filter(move |(_, c)| c.outcome == *o);
        these.map(move |(suite, c)| (*mark, *suite, *c))
    });
    for (mark, suite, c) in sorted.take(CASES_MAX) {
        let of = if suite.of == of {
            suite.name.clone()
        } else {
            format!("{} / {}", suite.of, suite.name)
        };
        let _ = writeln!(s, "| {mark} | {} | {} | {} |", cell(&of), cell(&c.name), cell(&c.detail));
    }
    let passed = all.iter().filter(|(_, c)| c.outcome == CaseOutcome::Passed).count();
    let _ = writeln!(s, "\n{passed} of {} passed.\n", all.len());
    let _ = writeln!(
        s,
        "<details><summary>As printed</summary>\n\n<pre>\n{}</pre>\n\n</details>",
        plain(text)
    );
    s
}

/// Escapes HTML and keeps line breaks.
fn plain(text: &str) -> String {
    let escape = |c: char| match c {
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '&' => "&amp;".to_owned(),
        c if c.is_control() && c != '\n' => " ".to_owned(),
        c => c.to_string(),
    };
    text.chars().take(TEXT_MAX).map(escape).collect()
}

fn gates(s: &mut String, result: &RunResult) {
    if result.gates.is_empty() {
        let _ = writeln!(s, "The run has no gates.\n");
        return;
    }
    let _ = writeln!(s, "| | arm | gate | observed | limit |\n|---|---|---|---|---|");
    // Failures first: they are read, passes are only counted.
    let mut gates: Vec<_> = result.gates.iter().collect();
    gates.sort_by_key(|g| g.passed);
    for g in gates.iter().take(100) {
        let mark = if g.mark() == "FAIL" { "**FAIL**" } else { g.mark() };
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

/// The metrics of all arms, one column each.
fn side_by_side(s: &mut String, result: &RunResult) {
    // The expectation tells which column should be good.
    let head = |a: &ArmResult| format!("{} ({})", cell(&a.name), a.role.expected());
    let heads: Vec<String> = result.arms.iter().map(head).collect();
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

/// The worst victims of an arm, folded.
fn victims(s: &mut String, result: &RunResult, arm: &ArmResult) {
    let ns = |i: usize| result.phases.get(i).map_or(1, Phase::nanos);
    let slow = |c: &ContainerResult| slowdown_milli(c, ns(SOLO), ns(CONTENDED));
    let mut all = worst_first(arm);
    // No victims: leave out the table.
    if all.is_empty() {
        return;
    }
    // The largest slowdown first.
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
            u64::MAX => "nothing received".to_owned(),
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
    let _ = writeln!(s, "| machine | {} |", cell(&m.machine()));
    let _ = writeln!(s, "| seed | {} |", result.seed);
    let _ = writeln!(s, "| started | {} |", date(m.started_unix_ms));
    for (what, text) in [("commit", &m.commit), ("command", &m.command)] {
        if let Some(text) = text {
            let _ = writeln!(s, "| {what} | {} |", cell(text));
        }
    }
    for (key, value) in result.params.iter().take(PARAMS_MAX) {
        let (key, value) = param(key, *value);
        let _ = writeln!(s, "| {} | {} |", cell(&key), cell(&value));
    }
    let _ = writeln!(s, "\n</details>");
}

/// Escapes a text so that it stays in its table cell and contains no markup.
fn cell(text: &str) -> String {
    let mut s = String::new();
    // Cut before the escaping, so that no escape sequence is split.
    for c in text.chars().take(CELL_MAX) {
        match c {
            '|' => s.push_str("\\|"),
            '<' => s.push_str("&lt;"),
            '>' => s.push_str("&gt;"),
            '&' => s.push_str("&amp;"),
            // Characters of Markdown syntax.
            '`' | '*' | '_' | '[' | ']' | '\\' => s.extend(['\\', c]),
            c if c.is_control() => s.push(' '),
            c => s.push(c),
        }
    }
    s
}
