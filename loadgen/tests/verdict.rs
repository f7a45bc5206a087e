//! The subject starves: exit 3, whatever the control does.

use std::sync::atomic::AtomicBool;

use skbudget_loadgen::plan::ArmRole;
use skbudget_loadgen::run;
use skbudget_loadgen::scenario::Scenario;
use skbudget_loadgen::target::{Control, find};

#[path = "support/small.rs"]
mod small;

use small::SMALL;

#[test]
fn a_subject_that_starves_fails_the_run() {
    let mut scenario = Scenario::find("starvation", "virtual").unwrap();
    for set in SMALL {
        scenario.set(set).unwrap();
    }
    let mut plan = scenario.plan(1).unwrap();
    // The product under test is now the shared pool.
    plan.arms.truncate(1);
    plan.arms[0].role = ArmRole::Subject;
    let stop = AtomicBool::new(false);
    let target = find("virtual").unwrap();
    let result = run::run(&plan, target.as_ref(), Control { stop: &stop }).unwrap();
    assert_eq!(result.verdict.exit, 3, "{:#?}", result.gates);

    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let interrupted = run::run(&plan, target.as_ref(), Control { stop: &stop }).unwrap_err();
    assert_eq!(interrupted.exit().code(), 130);
}
