//! One run from plan to verdict, and its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::analyse::{self, Frame};
use crate::exit::Failure;
use crate::gate;
use crate::plan::Plan;
use crate::report::{hgrm, html};
use crate::result::{ArmResult, Meta, RunResult, SCHEMA};
use crate::target::{Control, Target};

/// Runs every arm, derives, judges.
pub fn run(plan: &Plan, target: &dyn Target, control: Control<'_>) -> Result<RunResult, Failure> {
    let started_unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let clock = Instant::now();
    let mut arms = run_arms(plan, target, control)?;
    for arm in &mut arms {
        arm.fairness = analyse::fairness(
            arm,
            Frame {
                phases: &plan.phases,
                window_ns: plan.window_ns,
                bits_per_second: plan.victims().map(|c| c.bits_per_second).max().unwrap_or(0),
            },
        );
    }
    let (gates, verdict) = gate::judge(&arms, target.thresholds(plan), target.has_link_rate());
    Ok(RunResult {
        schema: SCHEMA.to_owned(),
        scenario: plan.scenario.to_owned(),
        target: target.name().to_owned(),
        seed: plan.seed,
        params: plan.params.iter().cloned().collect(),
        window_ns: plan.window_ns,
        phases: plan.phases.clone(),
        arms,
        gates,
        verdict,
        meta: Meta {
            loadgen_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms,
            elapsed_ms: clock.elapsed().as_millis() as u64,
            os: std::env::consts::OS.to_owned(),
            cpus: thread::available_parallelism().map_or(1, |n| n.get() as u64),
        },
        ..RunResult::default()
    })
}

fn run_arms(
    plan: &Plan,
    target: &dyn Target,
    control: Control<'_>,
) -> Result<Vec<ArmResult>, Failure> {
    if !target.parallel() {
        return plan.arms.iter().map(|arm| target.run_arm(plan, arm, control)).collect();
    }
    thread::scope(|scope| {
        let runs: Vec<_> = plan
            .arms
            .iter()
            .map(|arm| scope.spawn(move || target.run_arm(plan, arm, control)))
            .collect();
        runs.into_iter()
            .map(|r| r.join().unwrap_or_else(|_| Err(Failure::Io("an arm crashed".to_owned()))))
            .collect()
    })
}

/// Writes everything a run leaves behind. Fails before writing anything if the directory cannot be made.
pub fn write_out(dir: &Path, result: &RunResult) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|e| Failure::io(dir.display(), e))?;
    let put = |name: String, text: String| {
        let path: PathBuf = dir.join(name);
        fs::write(&path, text).map_err(|e| Failure::io(path.display(), e))
    };
    put("result.json".to_owned(), to_json(result)?)?;
    put("verdict.json".to_owned(), verdict_json(result)?)?;
    put("report.html".to_owned(), html::render(result)?)?;
    for (name, text) in hgrm::files(result) {
        put(name, text)?;
    }
    Ok(())
}

pub fn to_json(result: &RunResult) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(result).map_err(|e| Failure::io("result.json", e))?;
    Ok(compact_series(&text) + "\n")
}

/// Series of numbers on one line each: thousands of lines with one number help nobody.
fn compact_series(pretty: &str) -> String {
    let mut out = String::with_capacity(pretty.len());
    let mut in_series = false;
    for (i, line) in pretty.lines().enumerate() {
        let word = line.trim();
        let number = word.trim_end_matches(',');
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        if is_number || (in_series && word.starts_with(']')) {
            out.push_str(if is_number && in_series { " " } else { "" });
            out.push_str(word);
        } else {
            out.push_str(if i == 0 { "" } else { "\n" });
            out.push_str(line);
        }
        in_series = is_number;
    }
    out
}

fn verdict_json(result: &RunResult) -> Result<String, Failure> {
    let value = serde_json::json!({
        "schema": "loadgen.verdict/1",
        "scenario": result.scenario,
        "target": result.target,
        "seed": result.seed,
        "verdict": result.verdict,
        "gates": result.gates,
    });
    let text = serde_json::to_string_pretty(&value).map_err(|e| Failure::io("verdict.json", e))?;
    Ok(text + "\n")
}
