//! Prints a comparison as text.

use std::fmt::Write as _;

use super::{Comparison, ComparisonKind, Judgement, Line};
use crate::judge::metrics::{Reading, find};

/// The table of a comparison with its notes.
pub(crate) fn render(c: &Comparison) -> String {
    let mut s = String::new();
    let how = match c.kind {
        ComparisonKind::Exact => "exactly, in virtual time".to_owned(),
        ComparisonKind::Paired => format!("over {} pairs", c.runs_a),
        ComparisonKind::Unpaired => format!("{} runs against {}, not paired", c.runs_a, c.runs_b),
    };
    let _ =
        writeln!(s, "A = {}\nB = {}\ncompared {how}, margin {:.1} %\n", c.a, c.b, c.margin * 100.0);
    let rows: Vec<[String; 8]> = c.lines.iter().map(|l| row(c, l)).collect();
    let head =
        ["", "arm", "metric", "A", "B", "B / A", "95 % interval", "noise floor"].map(str::to_owned);
    let width = |i: usize| {
        let all = rows.iter().chain([&head]).map(|r| r[i].chars().count());
        all.max().unwrap_or(0)
    };
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let width = width(i);
            let _ = match i {
                0..=2 => write!(line, "{cell:width$}  "),
                _ => write!(line, "{cell:>width$}  "),
            };
        }
        let _ = writeln!(s, "{}", line.trim_end());
    }
    // Discarded runs are listed below instead.
    if c.lines.is_empty() && c.discarded.is_empty() {
        let _ = writeln!(s, "no metric differs");
    }
    s.push('\n');
    // An exact comparison gives a reason for the metrics that decide nothing too, in many lines.
    let reasoned = |l: &&Line| c.kind != ComparisonKind::Exact || l.judgement == Judgement::Unclear;
    for l in c.lines.iter().filter(|l| !l.reason.is_empty()).filter(reasoned) {
        let _ = writeln!(s, "{} {}: {}", l.arm, l.metric, l.reason);
    }
    for g in &c.newly_failed {
        let _ = writeln!(s, "fails in B only: {} {}: {} ({})", g.arm, g.name, g.observed, g.limit);
    }
    for d in &c.discarded {
        let _ = writeln!(s, "discarded: {d}");
    }
    for n in &c.notes {
        let _ = writeln!(s, "{n}");
    }
    s
}

/// A value of a line with its unit; `>=` marks a lower bound.
pub(crate) fn shown(l: &Line, value: f64, at_least: bool) -> String {
    match find(l.metric) {
        _ if value == f64::MAX => "none".to_owned(),
        Some(m) => m.show(Reading { value, at_least }),
        None => value.to_string(),
    }
}

fn row(c: &Comparison, l: &Line) -> [String; 8] {
    let mark = match l.judgement {
        Judgement::Same if c.kind == ComparisonKind::Exact => "differs",
        Judgement::Same => "same",
        Judgement::Worse => "WORSE",
        Judgement::Better => "better",
        Judgement::Unclear => "unclear",
    };
    let percent = |ratio: f64| match ratio {
        r if r == f64::MAX => "-".to_owned(),
        r => format!("{:+.1} %", (r - 1.0) * 100.0),
    };
    // Exact comparisons and refused lines have no interval.
    let known = l.ratio_high < f64::MAX && c.kind != ComparisonKind::Exact;
    let interval = format!("{} .. {}", percent(l.ratio_low), percent(l.ratio_high));
    let floor = l.floor_ratio.filter(|_| c.kind != ComparisonKind::Exact);
    [
        mark.to_owned(),
        l.arm.clone(),
        l.metric.to_owned(),
        shown(l, l.a, l.a_at_least),
        shown(l, l.b, l.b_at_least),
        percent(l.ratio),
        if known { interval } else { "-".to_owned() },
        floor.map_or_else(|| "-".to_owned(), |f| format!("{:.1} %", (f - 1.0) * 100.0)),
    ]
}

/// The last line of the output.
pub(crate) fn verdict_line(c: &Comparison) -> String {
    let count = |j: Judgement| c.lines.iter().filter(|l| l.judgement == j).count();
    let (worse, better, unclear) =
        (count(Judgement::Worse), count(Judgement::Better), count(Judgement::Unclear));
    let failed = match c.newly_failed.len() {
        0 => String::new(),
        n => format!(", newly failed gates: {n}"),
    };
    format!(
        "VERDICT: {} exit={} ({worse} worse, {better} better, {unclear} unclear{failed})",
        c.word, c.exit
    )
}
