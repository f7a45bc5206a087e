//! Scenarios on real TAPs, with the kernel's TCP in the containers. What depends on how quiet the machine is, latency
//! and stalls, is for `loadgen run --target tap` to judge; what must hold on any machine is judged here.

use std::sync::atomic::AtomicBool;

use skbudget_loadgen::plan::Role;
use skbudget_loadgen::result::{ArmResult, RunResult};
use skbudget_loadgen::run;
use skbudget_loadgen::scenario::Scenario;
use skbudget_loadgen::target::{Control, find};

static GO_ON: AtomicBool = AtomicBool::new(false);

fn play(name: &str) -> RunResult {
    let mut scenario = Scenario::find(name, "tap").unwrap();
    for set in ["run.warmup=500ms", "run.solo=2s", "run.contended=2s", "run.recovery=500ms"] {
        scenario.set(set).unwrap();
    }
    let plan = scenario.plan(1).unwrap();
    let target = find("tap").unwrap();
    run::run(&plan, target.as_ref(), Control { stop: &GO_ON }).unwrap()
}

fn holds(result: &RunResult) {
    let arm = |name: &str| -> &ArmResult {
        result.arms.iter().find(|a| a.name == name).expect("the arm")
    };
    for arm in &result.arms {
        for name in ["conservation", "every byte arrives intact", "hard limit overshoot"] {
            let gates = result.gates.iter().filter(|g| g.arm == arm.name && g.name == name);
            for gate in gates {
                assert!(gate.passed, "{gate:?}");
            }
        }
    }
    let container = arm("container");
    assert_eq!(container.fairness.overshoot_bytes, 0);
    assert_eq!((container.fairness.corrupt, container.fairness.broken), (0, 0));
    let hog = container.containers.iter().find(|c| c.role == Role::Hog).expect("a hog");
    assert!(hog.flows_total > 0, "the hog opened nothing");
    assert!(hog.peak_held_bytes <= hog.hard_bytes);
    for victim in container.containers.iter().filter(|c| c.role == Role::Victim) {
        let probe = victim.phases[1].probe.as_ref().expect("a probe");
        assert!(probe.completed > 0, "{}: nothing came back", victim.name);
        assert!(victim.stack_cpu_ns.is_some_and(|ns| ns > 0));
    }
}

macro_rules! scenarios {
    ($($test:ident: $name:literal,)*) => { $(
        #[test]
        #[ignore = "needs root and /dev/net/tun"]
        fn $test() {
            holds(&play($name));
        }
    )* };
}

scenarios! {
    slow_reader: "slow-reader",
    stalled_sender: "stalled-sender",
    step: "step",
    tiny_segments: "tiny-segments",
    idle_hoard: "idle-hoard",
    ooo_flood: "ooo-flood",
}

#[test]
fn a_load_that_a_target_does_not_carry_is_named() {
    // Without root it is the root that is missing, which is said first.
    let plan = Scenario::find("incast", "tap").unwrap().plan(1).unwrap();
    let target = find("tap").unwrap();
    let e = run::run(&plan, target.as_ref(), Control { stop: &GO_ON }).unwrap_err();
    let text = e.to_string();
    assert!(text.contains("'incast'") || text.contains("root") || text.contains("tun"), "{text}");
}
