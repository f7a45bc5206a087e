//! Writes a small result in every format and reads the files back.

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use super::SECOND;
use crate::measure::ProbeRecorder;
use crate::measure::hdr;
use crate::measure::result::{
    ArmResult, ContainerPhase, ContainerResult, GateKind, GateResult, RunResult, SCHEMA,
};
use crate::output::export::{Format, render};
use crate::scenario::plan::{ArmRole, Phase, Role};

const REQUESTS: u64 = 3000;

/// A result with one victim with a name that every format must escape.
pub(crate) fn sample() -> RunResult {
    let phase = |name: &str, i: u64| Phase {
        name: name.to_owned(),
        start_ns: i * SECOND,
        end_ns: (i + 1) * SECOND,
    };
    let phases = vec![phase("solo", 0), phase("contended", 1), phase("recovery", 2)];
    let mut log = ProbeRecorder::new(&phases, SECOND);
    for i in 0..REQUESTS {
        let at = i * (3 * SECOND / REQUESTS);
        log.intend(i, at);
        // One percent of the requests does not complete.
        if i % 100 > 0 {
            log.complete(i, at + 100_000 + i * 331);
        }
    }
    (0..3).for_each(|i| log.close(i, 3 * SECOND));
    let of = |b: &crate::measure::PhaseLatency| ContainerPhase {
        up_bytes: 1 << 20,
        down_bytes: 1 << 20,
        probe: Some(b.summary()),
        ..ContainerPhase::default()
    };
    let victim = ContainerResult {
        name: "a \"b\", <c> & d|e".to_owned(),
        role: Role::Victim,
        phases: log.latencies().iter().map(of).collect(),
        up_window_bytes: vec![10, 0, 30],
        down_window_bytes: vec![0, 0, 0],
        ..ContainerResult::default()
    };
    let arm = ArmResult {
        name: "container".to_owned(),
        role: ArmRole::Subject,
        containers: vec![victim],
        ..ArmResult::default()
    };
    let gate = GateResult {
        arm: "container".to_owned(),
        kind: GateKind::Subject,
        name: "a < b".to_owned(),
        observed: "\"1\" & 2".to_owned(),
        limit: "3".to_owned(),
        passed: false,
        ..GateResult::default()
    };
    RunResult {
        schema: SCHEMA.to_owned(),
        scenario: "selftest".to_owned(),
        window_ns: SECOND,
        phases,
        arms: vec![arm],
        gates: vec![gate],
        ..RunResult::default()
    }
}

pub(super) fn all() -> Result<String, String> {
    let result = sample();
    let mut count = 0;
    for format in Format::all() {
        for (name, text) in render(&result, format).map_err(|e| format!("{format:?}: {e}"))? {
            let checked = match format {
                Format::Result => same_again(&text),
                Format::Verdict | Format::Gab | Format::Bmf => json(&text),
                Format::Ndjson => text.lines().try_for_each(json),
                Format::Hlog => interval_log(&text),
                Format::Hgrm => percentiles(&text),
                Format::Openmetrics => wanted(text.ends_with("# EOF\n"), "no end"),
                Format::Junit => {
                    wanted(text.contains("&lt; b") && text.contains("<failure"), "not escaped")
                }
                // No markup from names, and no address that a browser would request.
                Format::Html => {
                    wanted(!text.contains("<c>") && !text.contains("http"), "not escaped")
                }
                Format::Md => {
                    wanted(!text.contains("<c>") && text.contains("d\\|e"), "not escaped")
                }
                Format::Csv => wanted(text.contains("\"a \"\"b\"\", <c> & d|e\""), "not quoted"),
            };
            checked.map_err(|e| format!("{name}: {e}"))?;
            count += 1;
        }
    }
    Ok(format!("{count} files"))
}

fn wanted(ok: bool, what: &str) -> Result<(), String> {
    if ok { Ok(()) } else { Err(what.to_owned()) }
}

fn json(text: &str) -> Result<(), String> {
    serde_json::from_str::<serde_json::Value>(text).map(|_| ()).map_err(|e| e.to_string())
}

fn same_again(text: &str) -> Result<(), String> {
    let read: RunResult = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let again = crate::output::export::json::result(&read).map_err(|e| e.to_string())?;
    wanted(again == text, "not the same when read and written again")
}

fn interval_log(text: &str) -> Result<(), String> {
    let body: String = text.split_inclusive('\n').filter(|l| !l.starts_with('"')).collect();
    let mut total = 0;
    for entry in IntervalLogIterator::new(body.as_bytes()) {
        if let LogEntry::Interval(i) = entry.map_err(|e| format!("{e:?}"))?
            && i.tag().is_none()
        {
            total += hdr::decode(i.encoded_histogram())?.map_or(0, |h| h.len());
        }
    }
    wanted(total == REQUESTS, &format!("{total} samples of {REQUESTS}"))
}

/// Four fields per row, three in the last, separated by spaces.
fn percentiles(text: &str) -> Result<(), String> {
    let rows: Vec<usize> = text
        .lines()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'))
        .map(|l| l.split(' ').filter(|f| !f.is_empty()).count())
        .collect();
    let (last, rest) = rows.split_last().ok_or("no rows")?;
    wanted(*last == 3 && rest.iter().all(|n| *n == 4), "columns")
}
