//! Scenarios on real TAPs, with the kernel's TCP in the containers. Values that depend on how quiet the machine is,
//! such as latency and stalls, are judged by `loadgen run --target tap`; these tests judge what must hold on any
//! machine.

use std::path::Path;
use std::process::Command;

use skbudget_loadgen::measure::result::{ArmResult, RunResult};
use skbudget_loadgen::output::export::json;
use skbudget_loadgen::scenario::plan::Role;

/// Through the program itself: the agents in the namespaces are its children.
fn play(name: &str) -> RunResult {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tap-{name}"));
    let _ = std::fs::remove_dir_all(&dir);
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    loadgen.args(["run", name, "--target", "tap", "--format", "result", "--out"]).arg(&dir);
    // What holds on any machine holds in a single run.
    loadgen.args(["--repeat", "1"]);
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

/// A wall-clock target runs three times, and the result contains all three.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn three_runs_are_one_result() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tap-repeated");
    let _ = std::fs::remove_dir_all(&dir);
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    loadgen.args(["run", "stalled-sender", "--target", "tap", "--format", "result,junit", "--out"]);
    loadgen.arg(&dir);
    for set in ["run.warmup=200ms", "run.solo=500ms", "run.contended=500ms", "run.recovery=200ms"] {
        loadgen.args(["--set", set]);
    }
    let out = loadgen.output().expect("loadgen starts");
    // Too few probes: whatever is observed, the subject is not at fault.
    assert_eq!(out.status.code(), Some(5), "{}", String::from_utf8_lossy(&out.stdout));
    let result = json::read(&dir).expect("a result");
    assert_eq!(result.runs.len(), 3);
    assert!(result.runs.iter().all(|r| r.arms.len() == 2 && r.verdict.exit == 5));
    assert!(result.gates.iter().all(|g| g.runs.len() == 3), "{:#?}", result.gates);
    // The arms shown are those of one of the runs.
    let bytes = |arms: &[ArmResult]| arms[1].containers[0].up_total_bytes;
    assert!(result.runs.iter().any(|r| bytes(&r.arms) == bytes(&result.arms)));
    holds(&result);
}

/// Victims in one budget with the hog, as in the control: a fault, and it is detected.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_real_fault_is_found() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tap-fault");
    let _ = std::fs::remove_dir_all(&dir);
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    loadgen.args(["run", "stalled-sender", "--target", "tap", "--out"]).arg(&dir);
    for set in ["arm.container.isolation=shared", "arm.container.rules=linux"] {
        loadgen.args(["--set", set]);
    }
    let out = loadgen.output().expect("loadgen starts");
    let said = String::from_utf8_lossy(&out.stdout);
    // 5: the machine is too busy for its generator.
    assert!(matches!(out.status.code(), Some(3 | 5)), "{said}");
    let result = json::read(&dir).expect("a result");
    let late = result.gates.iter().any(|g| g.name.starts_with("generator") && !g.passed);
    assert!(out.status.code() == Some(3) || late, "{said}");
}

/// Stopped in its first arm: the result has the data of agents and servers so far, with rates over the measured time.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_interrupted_run_writes_its_measurements() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tap-interrupted");
    let _ = std::fs::remove_dir_all(&dir);
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    loadgen.args(["run", "stalled-sender", "--target", "tap", "--format", "result", "--out"]);
    loadgen.arg(&dir).args(["--set", "run.solo=60s"]).stdout(std::process::Stdio::null());
    let started = std::time::Instant::now();
    let mut child = loadgen.spawn().expect("loadgen starts");
    std::thread::sleep(std::time::Duration::from_secs(5));
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(started.elapsed().as_secs() < 15);
    let result = json::read(&dir).expect("a result");
    assert!(result.interrupted && result.gates.is_empty());
    let [arm] = &result.arms[..] else { panic!("{} arms", result.arms.len()) };
    let ended = arm.ended_ns.expect("it was stopped");
    assert!((2_000_000_000..10_000_000_000).contains(&ended), "{ended}");
    assert!(arm.fairness.solo_share_ppm > 500_000, "{}", arm.fairness.solo_share_ppm);
    for victim in arm.containers.iter().filter(|c| c.role == Role::Victim) {
        let probe = victim.phases[0].probe.as_ref().expect("a probe");
        assert!(probe.completed > 0 && probe.intended < 10_000, "{}", probe.intended);
        for (windows, total) in [
            (&victim.up_window_bytes, victim.up_total_bytes),
            (&victim.down_window_bytes, victim.down_total_bytes),
        ] {
            let most = ended.div_ceil(result.window_ns);
            assert!(total > 0 && windows.len() as u64 <= most, "{total} in {}", windows.len());
            assert_eq!(windows.iter().map(|w| u64::from(*w)).sum::<u64>(), total);
        }
        assert!(victim.phases[0].moved_bytes > 0 && victim.phases[1].moved_bytes == 0);
    }
}

#[test]
fn a_load_that_a_target_does_not_carry_is_named() {
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tap-incast");
    let out = loadgen.args(["run", "incast", "--target", "tap", "--out"]).arg(dir).output();
    let out = out.expect("loadgen starts");
    assert_eq!(out.status.code(), Some(2));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("'incast' is supported on the virtual target only"), "{said}");
}

/// A namespace that nothing has set up yet: the run ends at once, with the reason.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_namespace_without_loopback_is_refused_before_the_run() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tap-without-loopback");
    let _ = std::fs::remove_dir_all(&dir);
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--net",
        env!("CARGO_BIN_EXE_loadgen"),
        "run",
        "step",
        "--target",
        "tap",
        "--out",
    ]);
    let out = unshare.arg(&dir).output().expect("unshare starts");
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("ip link set lo up"), "{text}");
    assert_eq!(out.status.code(), Some(5));
    let verdict = std::fs::read_to_string(dir.join("verdict.json")).expect("a verdict");
    assert!(verdict.contains("ip link set lo up"), "{verdict}");
}
