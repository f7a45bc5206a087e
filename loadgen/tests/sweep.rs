//! `sweep`, `search` and `gate`: their files and their exit codes.

use std::path::Path;

#[path = "support/program.rs"]
mod program;
#[path = "support/schema.rs"]
mod schema;

use program::{json, scratch};
use schema::{Schema, published};
use serde_json::Value;

/// The file conforms to its schema exactly, and the schema detects an error.
fn is_a_sweep(sweep: &Value) {
    let schema = published("sweep");
    let errors = Schema::closed(&schema).errors(sweep);
    assert!(errors.is_empty(), "{errors:#?}");
    let mut slip = sweep.clone();
    slip["points"][0]["arms"][0]["stall_ns"] = Value::Null;
    assert_eq!(Schema::closed(&schema).errors(&slip).len(), 1);
    slip = sweep.clone();
    slip["points"][0]["new"] = Value::from(1);
    assert_eq!(Schema::closed(&schema).errors(&slip).len(), 1);
    assert_eq!(Schema::open(&schema).errors(&slip).len(), 0, "an addition keeps the version");
}

/// The exit code and all output.
fn loadgen(args: &[&str]) -> (i32, String) {
    let (code, out, err) = program::loadgen(args);
    (code, out + &err)
}

#[test]
fn a_sweep_has_a_row_and_a_result_for_each_value() {
    let dir = scratch("sweep");
    let (code, said) = loadgen(&[
        "sweep",
        "sweep-n",
        "--param",
        "containers=10,20",
        "--out",
        &dir.display().to_string(),
    ]);
    assert_eq!(code, 0, "{said}");
    let sweep = json(&dir.join("sweep.json"));
    is_a_sweep(&sweep);
    let points = sweep["points"].as_array().unwrap();
    let containers: Vec<_> = points.iter().map(|p| p["containers"].as_u64().unwrap()).collect();
    assert_eq!(containers, [10, 20]);
    assert_eq!(json(&dir.join("containers-20/result.json"))["params"]["containers"], 20);
    for word in ["containers", "slowdown", "VERDICT: PASS exit=0"] {
        assert!(said.contains(word), "{said}");
    }
}

/// A shared pool cannot guarantee the victims' memory: as a subject it fails beyond some load.
#[test]
fn a_search_brackets_the_largest_that_passes() {
    let dir = scratch("search");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("pool.toml");
    let scenario = r#"
name = "pool"
extends = "builtin:step"
[[arm]]
name = "shared"
role = "subject"
[[arm]]
name = "container"
role = "baseline"
[params]
conns = ["group.hog.stuff.conns", "group.hog.hoard.conns"]
"#;
    std::fs::write(&file, scenario).unwrap();
    let (file, out_dir) = (file.display().to_string(), dir.join("out").display().to_string());
    let (code, said) = loadgen(&[
        "search", &file, "--param", "conns", "--from", "1", "--to", "150", "--steps", "4", "--out",
        &out_dir,
    ]);
    assert_eq!(code, 0, "{said}");
    let sweep = json(&dir.join("out/sweep.json"));
    is_a_sweep(&sweep);
    let points = sweep["points"].as_array().unwrap().clone();
    let passed = |p: &Value| p["exit"] == 0;
    let value = |p: &Value| p["value"].as_str().unwrap().parse::<u64>().unwrap();
    let best = points.iter().filter(|p| passed(p)).map(value).max().unwrap();
    let fails = points.iter().filter(|p| !passed(p)).map(value).min().unwrap();
    assert!(best >= 1 && best < fails && fails <= 150);
    assert!(said.contains(&format!("conns = {best}; {fails} fails")), "{said}");

    let (code, said) = loadgen(&[
        "search", &file, "--param", "conns", "--from", "149", "--to", "150", "--out", &out_dir,
    ]);
    assert_eq!(code, 3, "{said}");
    // There is no value between a value and itself.
    let (code, said) = loadgen(&[
        "search", &file, "--param", "conns", "--from", "9", "--to", "9", "--out", &out_dir,
    ]);
    assert_eq!(code, 2, "{said}");
}

/// How small may the victims' budget be? An inconclusive value does not count as failing.
#[test]
fn a_search_goes_down_and_knows_doubt_from_failure() {
    let dir = scratch("down").display().to_string();
    let search = |to: &str| {
        let args = ["search", "no-hog", "--param", "victim-hard", "--from", "2MiB", "--to", to];
        loadgen(&[&args[..], &["--steps", "3", "--out", &dir]].concat())
    };
    let (code, said) = search("512KiB");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the smallest victim-hard that passes"), "{said}");
    assert!(said.contains("victim-hard = 512KiB, the end of the range"), "{said}");
    // With this little the victims do not use their links even alone, which is no failure.
    let (code, said) = search("256KiB");
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("256KiB is inconclusive: goodput alone"), "{said}");
    let sweep = json(&Path::new(&dir).join("sweep.json"));
    is_a_sweep(&sweep);
    let values: Vec<&str> =
        sweep["points"].as_array().unwrap().iter().map(|p| p["value"].as_str().unwrap()).collect();
    assert_eq!(values[..3], ["2MiB", "256KiB", "1152KiB"]);

    let args = ["search", "no-hog", "--param", "probe-rate", "--from", "2000", "--to", "100"];
    let (code, said) = loadgen(&[&args[..], &["--steps", "2", "--out", &dir]].concat());
    assert_eq!(code, 5, "{said}");
    // Two victims with a thousand requests each, which is enough together.
    let line = "probe-rate = 1000; 500 is inconclusive: probes a phase 1000 (>= 2000 for a p99)";
    assert!(said.contains(line) && !said.contains("fails"), "{said}");
}

#[test]
fn a_saved_result_is_judged_again_and_against_a_baseline() {
    let dir = scratch("gate");
    let run = |name: &str, more: &[&str]| {
        let out = dir.join(name).display().to_string();
        let args = [&["run", "no-hog", "--out", &out][..], more].concat();
        let (code, said) = loadgen(&args);
        assert_eq!(code, 0, "{said}");
        out
    };
    let (a, b) = (run("a", &[]), run("b", &["--set", "probe-rate=2500"]));

    let (code, said) = loadgen(&["gate", &a, "--baseline", &a]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = loadgen(&["gate", &a, "--expr", "worst(victim.response.p50) <= 1us"]);
    assert_eq!(code, 3, "{said}");
    let (code, said) = loadgen(&["gate", &a, "--expr", "worst(victim.respons.p50) <= 1us"]);
    assert_eq!(code, 2, "{said}");
    // Only equal kinds are compared, and observed values have units.
    for (expr, says) in [
        ("worst(victim.stall) <= 4KiB", "is a time and '4KiB' is a size"),
        ("max(victim.held) <= 5s", "is a size and '5s' is a time"),
        ("worst(victim.response.p99) <= 5", "a time needs a unit"),
    ] {
        let (code, said) = loadgen(&["gate", &a, "--expr", expr]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(says), "{said}");
    }
    let expr = "worst(victim.response.p50) <= 1s && max(victim.held) <= 1GiB";
    let (code, said) = loadgen(&["gate", &a, "--expr", expr]);
    assert_eq!(code, 0, "{said}");
    let line = said.lines().find(|l| l.contains(expr)).expect("a line");
    assert!(line.contains(" ms, ") && line.contains("iB ("), "{line}");
    let (code, said) = loadgen(&["gate", &a, "--baseline", "/nowhere/result.json"]);
    assert_eq!(code, 6, "{said}");
    let (code, said) = loadgen(&["gate", &a, "--baseline", &b]);
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("rate = 2500"), "{said}");

    // A baseline that is slightly better: virtual runs are compared exactly.
    let better = dir.join("better");
    std::fs::create_dir_all(&better).unwrap();
    let mut result = json(&Path::new(&a).join("result.json"));
    for arm in result["arms"].as_array_mut().unwrap() {
        let stall = &mut arm["fairness"]["stall_ns"];
        *stall = (stall.as_u64().unwrap() - 1).into();
    }
    std::fs::write(better.join("result.json"), result.to_string()).unwrap();
    let (code, said) = loadgen(&["gate", &a, "--baseline", &better.display().to_string()]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("WORSE  container  longest stall: "), "{said}");
    assert!(said.contains("(1 more)"), "{said}");
}

/// A control that does not starve proves nothing; the user may reduce that to a warning.
#[test]
fn an_inconclusive_result_fails_unless_it_may_warn() {
    let dir = scratch("inconclusive").display().to_string();
    let (code, said) = loadgen(&[
        "run",
        "step",
        "--out",
        &dir,
        "--set",
        "group.hog.stuff.conns=0",
        "--set",
        "group.hog.hoard.conns=0",
    ]);
    assert_eq!(code, 5, "{said}");
    assert_eq!(loadgen(&["gate", &dir]).0, 5);
    let warn = ["gate", &dir, "--inconclusive", "warn"];
    assert_eq!(loadgen(&warn).0, 0);
    // A missing baseline is no doubt about the run.
    let missing = ["--baseline", "/nowhere/result.json"];
    assert_eq!(loadgen(&[&warn[..], &missing].concat()).0, 6);
    assert_eq!(loadgen(&[&["gate", &dir][..], &missing].concat()).0, 5);
}

#[test]
fn a_scenario_that_show_prints_runs() {
    let (code, shown, _) = program::loadgen(&["show", "no-hog"]);
    assert_eq!(code, 0);
    let dir = scratch("shown");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("mine.toml");
    std::fs::write(&file, &shown).unwrap();
    let out = dir.join("out").display().to_string();
    let (code, said) = loadgen(&["run", &file.display().to_string(), "--out", &out]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(loadgen(&["show", "no-hgo"]).0, 2);
}

/// A sweep locks the folders of all its values, and a shell may permit fewer open files.
#[test]
fn a_sweep_has_more_values_than_a_shell_has_open_files() {
    let dir = scratch("many");
    let values: Vec<String> = (1..=60).map(|ms| format!("{ms}ms")).collect();
    // The last folder in the order of names is in use, so the sweep ends before its first run.
    let last = dir.join("rtt-9ms");
    std::fs::create_dir_all(&last).unwrap();
    let lock = std::fs::File::open(&last).unwrap();
    lock.try_lock().unwrap();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -Sn 40 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_loadgen")]);
    shell.args(["sweep", "starvation", "--param", &format!("rtt={}", values.join(","))]);
    let out = shell.arg("--out").arg(&dir).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("another loadgen uses this folder"), "{text}");
    assert_eq!(out.status.code(), Some(1));
}
