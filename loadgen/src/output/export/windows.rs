//! Windows over time, one row per time, container and metric: `windows.ndjson` and `windows.csv`. A window without a
//! byte is a row with a zero, never a gap.

use std::fmt::Write as _;

use crate::measure::result::RunResult;

/// Maximum number of rows. Beyond it, neighbouring windows are combined until they fit; each row has its own length.
const ROWS_MAX: usize = 1_000_000;

/// One row of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowRow<'a> {
    /// Start of the window since the start of the run.
    pub t_ns: u64,
    pub length_ns: u64,
    pub arm: &'a str,
    pub name: &'a str,
    /// `up_bytes` or `down_bytes` of a container, `usage_bytes` of a budget.
    pub metric: &'static str,
    pub value: u64,
}

/// Calls `each` for every row, by arm, then name, then time.
fn rows<'a>(result: &'a RunResult, mut each: impl FnMut(WindowRow<'a>)) {
    let step = step(result);
    for arm in &result.arms {
        for c in &arm.containers {
            for (metric, windows) in
                [("up_bytes", &c.up_window_bytes), ("down_bytes", &c.down_window_bytes)]
            {
                for (i, chunk) in windows.chunks(step).enumerate() {
                    let value = chunk.iter().map(|b| u64::from(*b)).sum();
                    let (t_ns, length_ns) = place(result, i * step, chunk.len());
                    let (arm, name) = (arm.name.as_str(), c.name.as_str());
                    each(WindowRow { t_ns, length_ns, arm, name, metric, value });
                }
            }
        }
        for b in &arm.budgets {
            for (i, chunk) in b.usage_bytes.chunks(step).enumerate() {
                // Usage is a level, not a flow: combined windows report the peak.
                let value = chunk.iter().copied().max().unwrap_or(0);
                let (t_ns, length_ns) = place(result, i * step, chunk.len());
                let (arm, name) = (arm.name.as_str(), b.name.as_str());
                each(WindowRow { t_ns, length_ns, arm, name, metric: "usage_bytes", value });
            }
        }
    }
}

fn place(result: &RunResult, first: usize, count: usize) -> (u64, u64) {
    (first as u64 * result.window_ns, count as u64 * result.window_ns)
}

/// Number of windows that are combined into one row.
fn step(result: &RunResult) -> usize {
    let of = |a: &crate::measure::result::ArmResult| -> usize {
        let bytes = |c: &crate::measure::result::ContainerResult| {
            c.up_window_bytes.len() + c.down_window_bytes.len()
        };
        let usage = a.budgets.iter().map(|b| b.usage_bytes.len());
        a.containers.iter().map(bytes).chain(usage).sum()
    };
    // Rounded up, so that all rows fit.
    result.arms.iter().map(of).sum::<usize>().div_ceil(ROWS_MAX).max(1)
}

pub(crate) fn ndjson(result: &RunResult) -> String {
    let mut s = String::new();
    rows(result, |r| {
        // JSON strings, with quotes and escapes.
        let (arm, name) = (serde_json::json!(r.arm), serde_json::json!(r.name));
        let _ = writeln!(
            s,
            "{{\"t_ns\":{},\"length_ns\":{},\"arm\":{arm},\"name\":{name},\"metric\":\"{}\",\"value\":{}}}",
            r.t_ns, r.length_ns, r.metric, r.value
        );
    });
    s
}

pub(crate) fn csv(result: &RunResult) -> String {
    let mut s = String::from("t_ns,length_ns,arm,name,metric,value\n");
    rows(result, |r| {
        let (arm, name) = (field(r.arm), field(r.name));
        let _ = writeln!(s, "{},{},{arm},{name},{},{}", r.t_ns, r.length_ns, r.metric, r.value);
    });
    s
}

/// A CSV field, quoted where RFC 4180 section 2 requires it.
pub(super) fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
