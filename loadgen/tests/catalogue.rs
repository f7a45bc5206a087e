//! The whole catalogue on the virtual target: every control starves where it should, no subject does.
//!
//! One test per scenario, so that a failure has a name and the others still run.

use std::sync::atomic::AtomicBool;

use skbudget_loadgen::measure::result::{GateKind, RunResult};
use skbudget_loadgen::run;
use skbudget_loadgen::scenario::plan::{ArmRole, Plan};
use skbudget_loadgen::scenario::{Scenario, names};
use skbudget_loadgen::target::{Control, find};

#[path = "support/small.rs"]
mod small;

static GO_ON: AtomicBool = AtomicBool::new(false);

fn play(plan: &Plan) -> RunResult {
    let target = find("virtual").unwrap();
    run::run(plan, target.as_ref(), Control { stop: &GO_ON }).unwrap()
}

fn passes(name: &str) {
    let plan = Scenario::find(name, "virtual").unwrap().plan(1).unwrap();
    let result = play(&plan);
    let failed: Vec<_> = result.gates.iter().filter(|g| !g.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(result.verdict.exit, 0);
    // Every subject was judged by the gates of the contract.
    for arm in result.arms.iter().filter(|a| a.role == ArmRole::Subject) {
        let of = |g: &&skbudget_loadgen::measure::result::GateResult| {
            g.arm == arm.name && g.kind == GateKind::Subject
        };
        assert!(result.gates.iter().filter(of).count() >= 8, "{:#?}", result.gates);
    }
}

macro_rules! scenarios {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { passes($name); })*

        #[test]
        fn every_scenario_has_a_test() {
            let tested = [$($name),*];
            let left: Vec<_> = names().filter(|n| !tested.contains(n)).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    };
}

scenarios! {
    starvation: "starvation",
    slow_reader: "slow-reader",
    slow_reader_few_conns: "slow-reader-few-conns",
    stalled_sender: "stalled-sender",
    ooo_flood: "ooo-flood",
    tiny_segments: "tiny-segments",
    idle_hoard: "idle-hoard",
    fork_bomb: "fork-bomb",
    orphan_flood: "orphan-flood",
    accept_hoard: "accept-hoard",
    zero_window: "zero-window",
    incast: "incast",
    many_victims_one_hog: "many-victims-one-hog",
    many_hogs_one_victim: "many-hogs-one-victim",
    bursty_neighbour: "bursty-neighbour",
    step: "step",
    churn: "churn",
    sweep_n: "sweep-n",
    weighted: "weighted",
    priority_inversion: "priority-inversion",
    budget_edge: "budget-edge",
    no_hog: "no-hog",
    aa: "aa",
}

/// Two equal arms give the same numbers, and a seed gives the same bytes.
#[test]
fn the_same_arm_twice_is_the_same_run() {
    let plan = Scenario::find("aa", "virtual").unwrap().plan(5).unwrap();
    let result = play(&plan);
    let of = |name: &str| {
        let arm = result.arms.iter().find(|a| a.name == name).expect("the arm");
        serde_json::to_string(&(&arm.containers, &arm.budgets, &arm.fairness)).unwrap()
    };
    assert_eq!(of("container"), of("again"));
    let again = play(&plan);
    assert_eq!(
        serde_json::to_string(&result.arms).unwrap(),
        serde_json::to_string(&again.arms).unwrap()
    );
    let other = play(&Scenario::find("aa", "virtual").unwrap().plan(6).unwrap());
    assert_ne!(
        serde_json::to_string(&result.arms).unwrap(),
        serde_json::to_string(&other.arms).unwrap()
    );
}

/// Budgets cost nothing without a greedy container: within 5 % of no limits at all.
#[test]
fn without_a_hog_limits_cost_nothing() {
    let plan = Scenario::find("no-hog", "virtual").unwrap().plan(1).unwrap();
    let result = play(&plan);
    let sum = |name: &str| -> u64 {
        let arm = result.arms.iter().find(|a| a.name == name).expect("the arm");
        arm.containers.iter().map(|c| c.up_total_bytes + c.down_total_bytes).sum()
    };
    assert!(sum("container") * 100 >= sum("off") * 95, "{} {}", sum("container"), sum("off"));
}

/// A run that is stopped publishes what it has, and its word is not a verdict.
#[test]
fn a_run_stopped_half_way_writes_its_measurements() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let mut scenario = Scenario::find("step", "virtual").unwrap();
    scenario.set("solo=300s").unwrap();
    let plan = scenario.plan(1).unwrap();
    let stopper = std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_millis(700));
        STOP.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let target = find("virtual").unwrap();
    let result = run::run(&plan, target.as_ref(), Control { stop: &STOP }).unwrap();
    stopper.join().unwrap();
    assert!(result.interrupted);
    assert_eq!((result.verdict.exit, result.verdict.word.as_str()), (130, "INTERRUPTED"));
    assert!(result.gates.is_empty());
    let victim = result.arms[0].containers.iter().find(|c| c.name == "victim1").unwrap();
    assert_eq!(victim.phases.len(), 3);
    // The rate is that of the measured time, not of the planned five minutes.
    let arm = &result.arms[0];
    let ended = arm.ended_ns.unwrap();
    assert!(ended > plan.phases[0].start_ns && ended < plan.phases[0].end_ns);
    assert!(arm.fairness.solo_share_ppm > 800_000, "{}", arm.fairness.solo_share_ppm);
    assert_eq!(victim.up_window_bytes.len() as u64, ended.div_ceil(plan.window_ns));
    assert!(victim.phases[0].up_bytes > 0 && victim.phases[1].up_bytes == 0);
    let solo = victim.phases[0].probe.as_ref().unwrap();
    assert_eq!(solo.intended, solo.completed + solo.outstanding + solo.shed + solo.failed);
}

/// Exit 3, whatever the control does. A run that was stopped before any measurement returns no result.
#[test]
fn a_subject_that_starves_fails_the_run() {
    let mut scenario = Scenario::find("starvation", "virtual").unwrap();
    for set in small::SMALL {
        scenario.set(set).unwrap();
    }
    let mut plan = scenario.plan(1).unwrap();
    // The product under test is now the shared pool.
    plan.arms.truncate(1);
    plan.arms[0].role = ArmRole::Subject;
    let result = play(&plan);
    assert_eq!(result.verdict.exit, 3, "{:#?}", result.gates);

    let target = find("virtual").unwrap();
    let stop = AtomicBool::new(true);
    let interrupted = run::run(&plan, target.as_ref(), Control { stop: &stop }).unwrap();
    assert_eq!((interrupted.verdict.exit, interrupted.arms.len()), (130, 0));
}
