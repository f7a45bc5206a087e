//! The command: exit codes, files, determinism, and its errors for bad input.

use std::path::Path;
use std::process::Command;

#[path = "support/program.rs"]
mod program;
#[path = "support/small.rs"]
mod small;

use program::{json, loadgen, scratch};
use small::SMALL;

fn repro(dir: &Path, more: &[&str]) -> (i32, String, String) {
    let dir = dir.display().to_string();
    let mut args = vec!["repro", "--seed", "3", "--out", &dir];
    for set in SMALL.iter().chain(more) {
        args.extend(["--set", set]);
    }
    loadgen(&args)
}

#[test]
fn a_seed_is_the_same_bytes_twice_and_leaves_every_file() {
    let dirs = [scratch("same-1"), scratch("same-2")];
    let outs = dirs.each_ref().map(|d| repro(d, &[]));
    for (code, out, err) in &outs {
        assert_eq!(*code, 0, "{out}{err}");
        let last = out.lines().last().unwrap();
        assert!(last.starts_with("VERDICT: PASS exit=0 out="), "{last}");
        // Progress appears only on a terminal.
        assert_eq!(err, "");
    }
    let results = dirs.each_ref().map(|d| {
        let text = std::fs::read_to_string(d.join("result.json")).unwrap();
        let (body, meta) = text.split_once("\"meta\"").unwrap();
        assert!(meta.len() < 4000, "meta comes last");
        body.to_owned()
    });
    assert_eq!(results[0], results[1]);
    let result = json(&dirs[0].join("result.json"));
    assert_eq!(result["schema"], "loadgen.result/1");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(result["meta"]["kernel"], kernel.trim());
    assert_eq!(json(&dirs[0].join("verdict.json"))["verdict"]["exit"], 0);
    for file in ["report.html", "shared-victim1-solo.hgrm", "container-victim1-contended.hgrm"] {
        let file = dirs[0].join(file);
        assert!(std::fs::metadata(&file).unwrap().len() > 500, "{}", file.display());
    }
}

/// Integers only: a float is a sign of a missing unit.
#[test]
fn the_result_holds_no_floats() {
    fn walk(v: &serde_json::Value, at: &str) {
        match v {
            serde_json::Value::Number(n) => assert!(n.is_u64(), "{at}: {n}"),
            serde_json::Value::Array(a) => a.iter().for_each(|v| walk(v, at)),
            serde_json::Value::Object(o) => o.iter().for_each(|(k, v)| walk(v, k)),
            serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::String(_) => {
            }
        }
    }
    let dir = scratch("floats");
    repro(&dir, &[]);
    walk(&json(&dir.join("result.json")), "result");
}

#[test]
fn without_a_hog_the_run_proves_nothing() {
    let dir = scratch("no-hog");
    let (code, out, _) = repro(&dir, &["stuff=0", "hoard=0"]);
    assert_eq!(code, 5, "{out}");
    assert!(out.contains("VERDICT: INCONCLUSIVE exit=5"));
}

#[test]
fn too_few_samples_prove_nothing() {
    let dir = scratch("few");
    let (code, out, _) = repro(&dir, &["probe-rate=100"]);
    assert_eq!(code, 5, "{out}");
    assert!(out.contains("FAIL  shared     probes a phase"));
}

/// A control that did not starve, too few probes, or a recovery phase that is too short: none of them is the victim's
/// fault.
#[test]
fn doubt_is_exit_5_and_no_failure() {
    for (name, sets) in [
        ("short", &["solo=10ms", "contended=10ms", "recovery=10ms"][..]),
        ("far", &["rtt=20ms"]),
        ("short-recovery", &["recovery=10ms"]),
        ("few-and-far", &["rtt=50ms", "probe-rate=100"]),
    ] {
        let dir = scratch(&format!("doubt-{name}"));
        let (code, out, _) = repro(&dir, sets);
        assert_eq!(code, 5, "{name}: {out}");
        let verdict = json(&dir.join("verdict.json"));
        for gate in verdict["gates"].as_array().unwrap() {
            let failed = gate["passed"] == false && gate["kind"] == "subject";
            assert!(!failed || gate["in_doubt"] == true, "{name}: {gate}");
        }
        let junit = std::fs::read_to_string(dir.join("junit.xml")).unwrap();
        assert!(!junit.contains("<failure"), "{name}: {junit}");
    }
}

/// The resolution of the charts does not affect the verdict.
#[test]
fn no_gate_depends_on_the_charts_windows() {
    let gates = |name: &str, window: &str| {
        let dir = scratch(&format!("window-{name}-{window}"));
        let out = dir.display().to_string();
        let set = format!("run.window={window}");
        let (code, said, _) = loadgen(&["run", name, "--out", &out, "--set", &set]);
        let verdict = json(&dir.join("verdict.json"));
        let gates = verdict["gates"].as_array().unwrap().clone();
        let of = |g: &serde_json::Value| (g["name"].clone(), g["passed"].clone());
        (code, gates.iter().map(of).collect::<Vec<_>>(), said)
    };
    for name in ["step", "budget-edge"] {
        let (code, usual, said) = gates(name, "10ms");
        assert_eq!(code, 0, "{name}: {said}");
        for window in ["1ms", "700us", "40ms"] {
            let (code, seen, said) = gates(name, window);
            assert_eq!((code, &seen), (0, &usual), "{name} {window}: {said}");
        }
    }
}

#[test]
fn bad_input_is_exit_2_and_names_the_allowed_values() {
    for (args, wants) in [
        (&["run", "starvaton"][..], "did you mean 'starvation'"),
        (&["repro", "--set", "victms=3"], "did you mean 'victims'"),
        (&["repro", "--set", "victims"], "KEY=VALUE"),
        (&["repro", "--set", "victims=none"], "whole number"),
        (&["repro", "--set", "victims=0"], "must be 1 to 4096"),
        (&["repro", "--set", "rate=10"], "units"),
        (&["run", "starvation", "--target", "virtul"], "did you mean 'virtual'"),
        (&["run", "starvation", "--sead", "3"], "--seed"),
        (&["run", "starvation", "--target", "podman"], "known are virtual, tap, kernel"),
        (&["explain", "jan"], "did you mean 'jain'"),
        (&["explain", "p99"], "p99-inflation"),
        (&["explain", "zzzzzz"], "`loadgen explain` lists the topics"),
        (&["nonsense"], "unrecognized subcommand"),
    ] {
        let (code, _, err) = loadgen(args);
        assert_eq!(code, 2, "{args:?}");
        assert!(err.contains(wants), "{args:?}: {err}");
    }
}

/// Every error is reported before a folder is created or a run starts.
#[test]
fn bad_input_leaves_nothing_behind() {
    let dir = scratch("nothing");
    let out = dir.display().to_string();
    let conns = "group.hog.stuff.conns";
    for (args, wants) in [
        (
            &["run", "incast", "--target", "tap"][..],
            "'incast' is supported on the virtual target only",
        ),
        (
            &["sweep", "incast", "--target", "tap", "--param", "run.solo=1s,2s"],
            "'incast' is supported on",
        ),
        (&["sweep", "step", "--param", "group.hog.stuff.conns=1,many"], "conns=many"),
        (&["sweep", "step", "--param", "victms=1"], "--param victms=1: no such key"),
        (&["sweep", "step", "--param", "victims=0"], "--param victims=0: 0 must be"),
        (&["search", "step", "--param", conns, "--from", "1", "--to", "9999999"], "0 to 5000"),
        (
            &["search", "aa", "--param", "run.solo", "--from", "2s", "--to", "2s"],
            "the values must differ",
        ),
        (&["run", "step", "--target", "tap", "--repeat", "2"], "--repeat 2: must be an odd number"),
        (&["run", "step", "--target", "tap", "--repeat", "101"], "from 1 to 99"),
        (&["run", "step", "--repeat", "3"], "--repeat 3: must be 1"),
        (
            &["sweep", "step", "--target", "tap", "--param", "conns=1", "--repeat", "0"],
            "--repeat 0",
        ),
        (&["compare", "--exec", "--scenario", "stepp"], "did you mean 'step'"),
        (&["compare", "--exec", "--target", "tapp"], "did you mean 'tap'"),
        (&["compare", "--exec", "--set-b", "victms=3"], "did you mean 'victims'"),
        (&["compare"], "--exec"),
    ] {
        let (code, _, err) = loadgen(&[args, &["--out", &out]].concat());
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(err.contains(wants), "{args:?}: {err}");
        assert!(!dir.exists(), "{args:?}");
    }
}

/// Without gates nothing can fail.
#[test]
fn a_search_without_a_subject_is_refused() {
    let (file, dir) = (scratch("judged-by-nobody.toml"), scratch("judged-by-nobody"));
    let arm = "[[arm]]\nname = \"shared\"\nrole = \"baseline\"\n";
    let more = "[[arm]]\nname = \"container\"\nrole = \"baseline\"\n";
    let head = "name = \"unjudged\"\nextends = \"builtin:step\"\n";
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, [head, arm, more].concat()).unwrap();
    let (file, out) = (file.display().to_string(), dir.display().to_string());
    let conns = "group.hog.stuff.conns";
    let args = ["search", &file, "--param", conns, "--from", "1", "--to", "9", "--out", &out];
    let (code, _, err) = loadgen(&args);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("has no subject") && !dir.exists(), "{err}");
}

#[test]
fn an_unwritable_folder_is_reported_before_the_run() {
    let (code, _, err) = loadgen(&["repro", "--out", "/proc/nowhere"]);
    assert_eq!(code, 1);
    assert!(err.contains("/proc/nowhere"), "{err}");
}

/// A run of minutes, interrupted after a moment: it ends soon and writes what it measured.
#[test]
fn an_interrupted_run_is_exit_130_and_soon() {
    let out = scratch("interrupted");
    let dir = out.display().to_string();
    let started = std::time::Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["repro", "--out", &dir, "--set", "solo=600s"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("loadgen starts");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(started.elapsed().as_secs() < 30);
    let result = json(&out.join("result.json"));
    assert_eq!((&result["interrupted"], &result["verdict"]["exit"]), (&true.into(), &130.into()));
}

#[test]
fn help_list_and_explain_succeed() {
    for args in [&["--help"][..], &["--version"], &["list"], &["explain"], &["explain", "exit"]] {
        let (code, out, _) = loadgen(args);
        assert_eq!(code, 0, "{args:?}");
        assert!(!out.is_empty());
    }
}

#[test]
fn help_has_exit_codes_and_an_example_of_every_command() {
    let (_, text, _) = loadgen(&["--help"]);
    for code in ["  0  ", "  3  ", "  5  ", "130  "] {
        assert!(text.contains(code), "{code}: {text}");
    }
    let from = text.split("Commands:").nth(1).expect("commands");
    let commands = from.lines().skip(1).take_while(|l| !l.is_empty());
    let commands: Vec<&str> = commands.filter_map(|l| l.split_whitespace().next()).collect();
    assert!(commands.len() >= 12, "{commands:?}");
    for command in commands.into_iter().filter(|c| *c != "help") {
        let (code, text, _) = loadgen(&[command, "--help"]);
        assert!(code == 0 && text.contains("Example"), "{command}: {text}");
        assert!(text.contains(&format!("loadgen {command}")), "{command}: {text}");
    }
}

/// Without root: a target that cannot run here proves nothing, as documented in `--help` and the README.
#[test]
fn no_root_for_tap_is_exit_5_and_in_the_verdict() {
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65534;
    let own = format!("loadgen-{}", std::process::id());
    let out = std::env::temp_dir().join(format!("{own}-no-root"));
    std::fs::create_dir(&out).unwrap();
    let program = std::env::temp_dir().join(&own);
    let mut command = if nix::unistd::geteuid().is_root() {
        // A folder in which every user may start the program and write.
        std::fs::copy(env!("CARGO_BIN_EXE_loadgen"), &program).unwrap();
        std::os::unix::fs::chown(&out, Some(NOBODY), Some(NOBODY)).unwrap();
        let mut command = Command::new(&program);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_loadgen"))
    };
    // An earlier run passed.
    let old =
        [("verdict.json", PASS), ("summary.md", "<!-- loadgen.summary -->"), ("mine.txt", "")];
    old.iter().for_each(|(name, text)| std::fs::write(out.join(name), text).unwrap());
    command.args(["run", "step", "--target", "tap", "--out"]).arg(&out);
    let done = command.output().expect("loadgen starts");
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(5) && err.contains("as root"), "{err}");
    let verdict = json(&out.join("verdict.json"));
    assert_eq!(verdict["schema"], "loadgen.verdict/1");
    assert_eq!((&verdict["verdict"]["exit"], &verdict["target"]), (&5.into(), &"tap".into()));
    assert!(verdict["gates"][0]["observed"].as_str().unwrap().contains("as root"), "{verdict}");
    let junit = std::fs::read_to_string(out.join("junit.xml")).unwrap();
    assert!(junit.contains("<error type=\"inconclusive\"") && junit.contains("as root"), "{junit}");
    assert!(out.join("mine.txt").exists() && !out.join("result.json").exists());
    std::fs::remove_dir_all(&out).unwrap();
    let _ = std::fs::remove_file(program);
}

const PASS: &str = r#"{"schema":"loadgen.verdict/1","verdict":{"word":"PASS","exit":0}}"#;

/// The verdict of an earlier run does not remain. Its measurements and foreign files do.
#[test]
fn a_run_that_does_not_start_leaves_no_old_verdict() {
    let dir = scratch("old-verdict");
    std::fs::create_dir_all(&dir).unwrap();
    let out = dir.display().to_string();
    for args in [
        &["run", "step", "--set", "foo=1"][..],
        &["run", "no-such-scenario"],
        &["run", "step", "--target", "tapp"],
        &["run", "step", "--repeat", "3"],
        &["run", "incast", "--target", "tap"],
        &["repro", "--set", "victims=0"],
    ] {
        std::fs::write(dir.join("verdict.json"), PASS).unwrap();
        std::fs::write(dir.join("result.json"), "{\"schema\":\"loadgen.result/1\"}").unwrap();
        std::fs::write(dir.join("junit.xml"), "<somebody/>").unwrap();
        let (code, _, err) = loadgen(&[args, &["--out", &out]].concat());
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(!dir.join("verdict.json").exists(), "{args:?}");
        assert!(dir.join("result.json").exists() && dir.join("junit.xml").exists(), "{args:?}");
    }
}

/// The measurements are the same bytes in every file; four files also contain time, duration and command.
#[test]
fn a_seed_is_the_same_bytes_in_every_file_but_for_when_it_was_run() {
    let dirs = [scratch("bytes-1"), scratch("bytes-2")];
    for dir in &dirs {
        repro(dir, &[]);
        // Wait until the time stamp changes.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    let mut differ = Vec::new();
    for entry in std::fs::read_dir(&dirs[0]).unwrap().map(|e| e.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        let text = |dir: &Path| std::fs::read_to_string(dir.join(&name)).unwrap();
        let (a, b) = (text(&dirs[0]), text(&dirs[1]));
        if a != b {
            let lines = a.lines().zip(b.lines()).filter(|(a, b)| a != b).count();
            assert!(lines <= 6 && a.lines().count() == b.lines().count(), "{name}: {lines} lines");
            differ.push(name);
        }
    }
    differ.sort();
    assert_eq!(differ, ["latency.hlog", "report.html", "result.json", "summary.md"]);
}
