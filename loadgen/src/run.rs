//! One run from plan to verdict.

mod commit;
pub(crate) mod interrupt;
mod machine;
pub(crate) mod pairs;
pub(crate) mod progress;
pub(crate) mod sweep;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use skbudget::scheduling::RealTime;

use crate::exit::{Exit, Failure};
use crate::judge::analyse;
use crate::judge::gate::{self, Thresholds};
use crate::measure::result::{ArmResult, GateResult, Meta, Repeat, RunResult, SCHEMA, Verdict};
use crate::output::terminal::print_stderr;
use crate::scenario::Scenario;
use crate::scenario::plan::Plan;
use crate::target::{Control, Target};

/// The plan of a scenario with these settings, each with its command line option, checked against the target: errors
/// are reported before an output folder is created.
pub fn plan<'a>(
    scenario: &str,
    target: &dyn Target,
    set: impl IntoIterator<Item = (&'a str, &'a String)>,
    seed: u64,
) -> Result<Plan, Failure> {
    let plan = parsed(scenario, target, set, seed)?;
    target.check(&plan)?;
    Ok(plan)
}

/// The same, without the check against the target.
pub fn parsed<'a>(
    scenario: &str,
    target: &dyn Target,
    set: impl IntoIterator<Item = (&'a str, &'a String)>,
    seed: u64,
) -> Result<Plan, Failure> {
    let mut scenario = Scenario::find(scenario, target.name())?;
    for (option, assignment) in set {
        scenario.set_by(option, assignment)?;
    }
    scenario.plan(seed)
}

/// The result where the target cannot run: one failed gate with the reason.
pub fn unavailable(plan: &Plan, target: &dyn Target, why: &str) -> RunResult {
    let exit = Exit::Inconclusive;
    let gate = GateResult {
        name: "the target can run here".to_owned(),
        observed: why.to_owned(),
        limit: "it can".to_owned(),
        ..GateResult::default()
    };
    RunResult {
        schema: SCHEMA.to_owned(),
        scenario: plan.scenario.clone(),
        target: target.name().to_owned(),
        seed: plan.seed,
        gates: vec![gate],
        verdict: Verdict { word: exit.word().to_owned(), exit: exit.code(), gates: 1, failed: 1 },
        ..RunResult::default()
    }
}

/// Maximum number of runs that are judged together.
pub const REPEATS_MAX: usize = 99;
/// Set to 1 for runs that another process repeats, such as the pairs of `compare`. An environment variable, because the
/// binaries that `compare` runs may be older than the option `--repeat`.
pub const REPEAT_VARIABLE: &str = "LOADGEN_REPEAT";

/// Runs every arm, derives the numbers and judges them, as many times as the target needs.
pub fn run(plan: &Plan, target: &dyn Target, control: Control<'_>) -> Result<RunResult, Failure> {
    repeated(plan, target, control, target.repeats())
}

/// The same `count` times, judged by the median of each gate.
pub fn repeated(
    plan: &Plan,
    target: &dyn Target,
    control: Control<'_>,
    count: usize,
) -> Result<RunResult, Failure> {
    let started_unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let clock = Instant::now();
    target.check(plan)?;
    // On the wall clock, other processes of the machine must not delay what is measured. The threads and processes of
    // the arms inherit the policy. Where it is not permitted, the generator's lag shows what that costs.
    let wall = !target.parallel();
    let real_time = target.real_time().then(RealTime::request).and_then(Result::ok);
    let scheduling = wall.then(|| if real_time.is_some() { "real-time" } else { "ordinary" });
    let mut runs = Vec::new();
    let mut cut_short = None;
    // An interrupted run ends the series.
    while runs.len() < count && cut_short.is_none() {
        match once(plan, target, control) {
            Ok((run, true)) => runs.push(run),
            Ok((run, false)) => cut_short = Some(run),
            Err(e) => return Err(e),
        }
    }
    let outcome = match cut_short {
        Some(last) => JudgedRuns::interrupted(runs, last),
        None => JudgedRuns::judged(runs, target.thresholds(plan), plan),
    };
    Ok(RunResult {
        schema: SCHEMA.to_owned(),
        scenario: plan.scenario.clone(),
        about: plan.about.clone(),
        scenario_toml: plan.toml.clone(),
        interrupted: outcome.interrupted,
        merged_of: Vec::new(),
        target: target.name().to_owned(),
        seed: plan.seed,
        params: plan.params.iter().cloned().collect(),
        window_ns: plan.window_ns,
        phases: plan.phases.clone(),
        arms: outcome.arms,
        gates: outcome.gates,
        verdict: outcome.verdict,
        runs: outcome.runs,
        meta: Meta {
            loadgen_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms,
            elapsed_ms: clock.elapsed().as_millis() as u64,
            scheduling: scheduling.map(str::to_owned),
            ..machine::describe()
        },
    })
}

/// One run, and whether it is complete.
fn once(plan: &Plan, target: &dyn Target, control: Control<'_>) -> Result<(Repeat, bool), Failure> {
    let clock = Instant::now();
    let mut arms = run_arms(plan, target, control)?;
    for arm in &mut arms {
        analyse::derive(arm, &plan.phases);
    }
    // Fewer arms than planned, or an arm that stopped early, make the run incomplete.
    let planned = target.arms(plan).len();
    let complete = arms.len() == planned && arms.iter().all(|a| a.ended_ns.is_none());
    // An incomplete run has no verdict.
    let verdict = match complete {
        true => gate::judge(&arms, target.thresholds(plan), &plan.gates).1,
        false => gate::interrupted(),
    };
    let elapsed_ms = clock.elapsed().as_millis() as u64;
    Ok((Repeat { elapsed_ms, verdict, arms }, complete))
}

/// The combined outcome of several runs.
struct JudgedRuns {
    interrupted: bool,
    arms: Vec<ArmResult>,
    gates: Vec<GateResult>,
    verdict: Verdict,
    runs: Vec<Repeat>,
}

impl JudgedRuns {
    /// The outcome of complete runs.
    fn judged(mut runs: Vec<Repeat>, limits: Thresholds, plan: &Plan) -> Self {
        let arms: Vec<&[ArmResult]> = runs.iter().map(|r| r.arms.as_slice()).collect();
        let (gates, verdict) = gate::judge_all(&arms, limits, &plan.gates);
        // Each run by itself, to find the median run.
        let each: Vec<_> = arms.iter().map(|a| gate::judge(a, limits, &plan.gates).0).collect();
        let middle = gate::middle(&each);
        let arms = match runs.len() {
            // A single run is not stored a second time under `runs`.
            1 => runs.remove(0).arms,
            _ => runs[middle].arms.clone(),
        };
        Self { interrupted: false, arms, gates, verdict, runs }
    }

    /// `runs`: the complete ones. Shows the last of them, or the measured part of the first run if there is none.
    fn interrupted(mut runs: Vec<Repeat>, last: Repeat) -> Self {
        let arms = runs.last().unwrap_or(&last).arms.clone();
        if !runs.is_empty() && !last.arms.is_empty() {
            runs.push(last);
        }
        let verdict = gate::interrupted();
        Self { interrupted: true, arms, gates: Vec::new(), verdict, runs }
    }
}

/// Runs the arms and returns those with measurements. A stopped run has fewer arms, or an incomplete last one.
fn run_arms(
    plan: &Plan,
    target: &dyn Target,
    control: Control<'_>,
) -> Result<Vec<ArmResult>, Failure> {
    let mut done = Vec::new();
    for outcome in outcomes(plan, target, control) {
        match outcome {
            Err(Failure::Interrupted) => {}
            // An error while the run stops must not discard what was measured before.
            Err(e) if control.stop.load(Ordering::Relaxed) => {
                print_stderr(&format!("loadgen: error while stopping: {e}"));
            }
            other => done.push(other?),
        }
    }
    Ok(done)
}

/// Runs the arms, in parallel or one after another, as the target permits.
fn outcomes(
    plan: &Plan,
    target: &dyn Target,
    control: Control<'_>,
) -> Vec<Result<ArmResult, Failure>> {
    let arms = target.arms(plan);
    if !target.parallel() {
        // On the wall clock, arms run one after another: in parallel they would compete for CPU and memory.
        let mut outcomes = Vec::new();
        for arm in &arms {
            // After an error the run has no result: skip the remaining arms.
            let failed = outcomes.last().is_some_and(Result::is_err);
            if failed || control.stop.load(Ordering::Relaxed) {
                break;
            }
            outcomes.push(target.run_arm(plan, arm, control));
        }
        return outcomes;
    }
    // Arms of the virtual target share no state: one thread each.
    thread::scope(|scope| {
        let runs: Vec<_> = arms
            .iter()
            .map(|arm| scope.spawn(move || target.run_arm(plan, arm, control)))
            .collect();
        runs.into_iter()
            // A panic in an arm becomes an error of the run.
            .map(|r| r.join().unwrap_or_else(|_| Err(Failure::Io("an arm crashed".to_owned()))))
            .collect()
    })
}
