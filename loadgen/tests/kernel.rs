//! The kernel's own limits under the same load: three arms side by side, and nothing remains afterwards.

use std::path::Path;
use std::process::Command;

use skbudget_loadgen::measure::result::ArmResult;
use skbudget_loadgen::output::export::json;
use skbudget_loadgen::scenario::plan::Role;

#[test]
#[ignore = "needs root and cgroup v1 with memory.kmem.tcp"]
fn the_kernel_has_three_arms_and_its_limits_are_seen() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel");
    let _ = std::fs::remove_dir_all(&dir);
    // Through the program itself: the agents in the namespaces are its children.
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    loadgen.args(["run", "stalled-sender", "--target", "kernel", "--format", "result", "--out"]);
    loadgen.arg(&dir);
    for set in ["run.warmup=500ms", "run.solo=2s", "run.contended=2s", "run.recovery=500ms"] {
        loadgen.args(["--set", set]);
    }
    let child = loadgen.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let child = child.spawn().expect("loadgen starts");
    let pid = child.id();
    let out = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&out.stderr);
    if said.contains("memory.kmem.tcp") {
        // A machine without the limit: the error names it.
        assert_eq!(out.status.code(), Some(5), "{said}");
        return;
    }
    let result = json::read(&dir).unwrap_or_else(|e| panic!("{e}: {said}"));
    let names: Vec<&str> = result.arms.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["none", "shared", "container"]);
    let hog = |arm: usize| {
        let of = |c: &&skbudget_loadgen::measure::result::ContainerResult| c.role == Role::Hog;
        result.arms[arm].containers.iter().find(of).expect("a hog").peak_held_bytes
    };
    // The hog holds more without a limit than with its own, so that limit takes effect.
    assert!(hog(0) > 2 * hog(2), "{} and {}", hog(0), hog(2));
    assert_eq!(result.arms[0].budgets.iter().filter(|b| b.hard_bytes.is_some()).count(), 0);
    for arm in &result.arms {
        assert_eq!(arm.fairness.corrupt, 0);
        assert!(arm.containers.iter().all(|c| c.flows_total > 0));
    }
    // A pool filled by the hog stops the victims' downloads; with a limit each they are not affected.
    let [none, shared, own] = &result.arms[..] else { panic!("three arms") };
    let slowdown = |a: &ArmResult| a.fairness.throughput_slowdown_milli.unwrap_or(u64::MAX);
    assert!(slowdown(shared) > 2 * slowdown(none).max(slowdown(own)), "{}", slowdown(shared));
    assert!(shared.fairness.victim_refusals > 0 && shared.budgets[0].max_usage_bytes > 0);
    let conserved = result.gates.iter().filter(|g| g.name == "conservation");
    assert!(conserved.clone().count() == 3 && conserved.clone().all(|g| g.passed));
    let left = std::fs::read_dir("/sys/fs/cgroup/memory").unwrap().filter_map(Result::ok);
    let own = format!("loadgen-{pid}");
    assert!(!left.map(|d| d.file_name()).any(|n| n.to_string_lossy() == own));
}
