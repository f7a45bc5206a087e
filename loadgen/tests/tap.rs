//! Scenarios on real TAPs, with the kernel's TCP in the containers. What depends on how quiet the machine is, latency
//! and stalls, is for `loadgen run --target tap` to judge; what must hold on any machine is judged here.

use std::path::Path;
use std::process::Command;

use skbudget_loadgen::export::json;
use skbudget_loadgen::plan::Role;
use skbudget_loadgen::result::{ArmResult, RunResult};

/// By the program itself: the agents in the namespaces are its children.
fn play(name: &str) -> RunResult {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tap-{name}"));
    let _ = std::fs::remove_dir_all(&dir);
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    loadgen.args(["run", name, "--target", "tap", "--format", "result", "--out"]).arg(&dir);
    for set in ["run.warmup=500ms", "run.solo=2s", "run.contended=2s", "run.recovery=500ms"] {
        loadgen.args(["--set", set]);
    }
    let out = loadgen.output().expect("loadgen starts");
    let said = String::from_utf8_lossy(&out.stderr);
    json::read(&dir).unwrap_or_else(|e| panic!("{e}: {said}"))
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
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tap-incast");
    let out = loadgen.args(["run", "incast", "--target", "tap", "--out"]).arg(dir).output();
    let out = out.expect("loadgen starts");
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("'incast' is for the virtual target only"), "{said}");
}
