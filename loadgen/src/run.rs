//! One run from plan to verdict, and its files.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::analyse::{self, Frame};
use crate::exit::Failure;
use crate::gate;
use crate::machine;
use crate::plan::Plan;
use crate::result::{ArmResult, Meta, RunResult, SCHEMA};
use crate::scenario::Scenario;
use crate::target::{Control, Target};
use crate::terminal::say;

/// The plan of a scenario with these settings, each with the option it was given by, if the target carries it: what is
/// wrong with any of them is said before a place is made for what comes of it.
pub fn plan<'a>(
    scenario: &str,
    target: &dyn Target,
    set: impl IntoIterator<Item = (&'a str, &'a String)>,
    seed: u64,
) -> Result<Plan, Failure> {
    let mut scenario = Scenario::find(scenario, target.name())?;
    for (option, assignment) in set {
        scenario.set_by(option, assignment)?;
    }
    let plan = scenario.plan(seed)?;
    target.check(&plan)?;
    Ok(plan)
}

/// Runs every arm, derives, judges.
pub fn run(plan: &Plan, target: &dyn Target, control: Control<'_>) -> Result<RunResult, Failure> {
    let started_unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let clock = Instant::now();
    target.check(plan)?;
    let mut arms = run_arms(plan, target, control)?;
    for arm in &mut arms {
        analyse::derive(arm, Frame { phases: &plan.phases, window_ns: plan.window_ns });
    }
    let planned = target.arms(plan).len();
    let interrupted = arms.len() < planned || arms.iter().any(|a| a.ended_ns.is_some());
    let (gates, verdict) = if interrupted {
        // Half a run is no verdict.
        (Vec::new(), gate::interrupted())
    } else {
        gate::judge(&arms, target.thresholds(plan), &plan.gates)
    };
    Ok(RunResult {
        schema: SCHEMA.to_owned(),
        scenario: plan.scenario.clone(),
        about: plan.about.clone(),
        scenario_toml: plan.toml.clone(),
        interrupted,
        merged_of: Vec::new(),
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
            ..machine::look()
        },
    })
}

/// Those of which there is something: of a run that was stopped the first alone, the first in part, or none.
fn run_arms(
    plan: &Plan,
    target: &dyn Target,
    control: Control<'_>,
) -> Result<Vec<ArmResult>, Failure> {
    let mut done = Vec::new();
    for outcome in outcomes(plan, target, control) {
        match outcome {
            Err(Failure::Interrupted) => {}
            // What breaks while it is stopped is no reason to lose what was measured before.
            Err(e) if control.stop.load(Ordering::Relaxed) => {
                say(&format!("loadgen: while it was stopped: {e}"));
            }
            other => done.push(other?),
        }
    }
    Ok(done)
}

fn outcomes(
    plan: &Plan,
    target: &dyn Target,
    control: Control<'_>,
) -> Vec<Result<ArmResult, Failure>> {
    let arms = target.arms(plan);
    if !target.parallel() {
        let mut outcomes = Vec::new();
        for arm in &arms {
            let failed = outcomes.last().is_some_and(Result::is_err);
            if failed || control.stop.load(Ordering::Relaxed) {
                break;
            }
            outcomes.push(target.run_arm(plan, arm, control));
        }
        return outcomes;
    }
    thread::scope(|scope| {
        let runs: Vec<_> = arms
            .iter()
            .map(|arm| scope.spawn(move || target.run_arm(plan, arm, control)))
            .collect();
        runs.into_iter()
            .map(|r| r.join().unwrap_or_else(|_| Err(Failure::Io("an arm crashed".to_owned()))))
            .collect()
    })
}
