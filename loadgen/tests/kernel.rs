//! The kernel's own limits under the same load: three arms side by side, and nothing left behind.

use std::sync::atomic::AtomicBool;

use skbudget_loadgen::plan::Role;
use skbudget_loadgen::run;
use skbudget_loadgen::scenario::Scenario;
use skbudget_loadgen::target::{Control, find};

static GO_ON: AtomicBool = AtomicBool::new(false);

#[test]
#[ignore = "needs root and cgroup v1 with memory.kmem.tcp"]
fn the_kernel_has_three_arms_and_its_limits_are_seen() {
    let mut scenario = Scenario::find("stalled-sender", "kernel").unwrap();
    for set in ["run.warmup=500ms", "run.solo=2s", "run.contended=2s", "run.recovery=500ms"] {
        scenario.set(set).unwrap();
    }
    let plan = scenario.plan(1).unwrap();
    let target = find("kernel").unwrap();
    let result = match run::run(&plan, target.as_ref(), Control { stop: &GO_ON }) {
        Ok(result) => result,
        Err(e) => {
            // A machine without the limit: exit 5, with what is missing.
            assert_eq!(e.exit().code(), 5, "{e}");
            assert!(e.to_string().contains("memory.kmem.tcp"), "{e}");
            return;
        }
    };
    let names: Vec<&str> = result.arms.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["none", "shared", "container"]);
    let hog = |arm: usize| {
        let of = |c: &&skbudget_loadgen::result::ContainerResult| c.role == Role::Hog;
        result.arms[arm].containers.iter().find(of).expect("a hog").peak_held_bytes
    };
    // Without a limit it holds more than with one of its own, and that one bends.
    assert!(hog(0) > 2 * hog(2), "{} and {}", hog(0), hog(2));
    assert_eq!(result.arms[0].budgets.iter().filter(|b| b.hard_bytes.is_some()).count(), 0);
    for arm in &result.arms {
        assert_eq!(arm.fairness.corrupt, 0);
        assert!(arm.containers.iter().all(|c| c.flows_total > 0));
    }
    let conserved = result.gates.iter().filter(|g| g.name == "conservation");
    assert!(conserved.clone().count() == 3 && conserved.clone().all(|g| g.passed));
    let left = std::fs::read_dir("/sys/fs/cgroup/memory").unwrap().filter_map(Result::ok);
    let own = format!("loadgen-{}", std::process::id());
    assert!(!left.map(|d| d.file_name()).any(|n| n.to_string_lossy() == own));
}
