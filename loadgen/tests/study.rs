//! `sweep`, `search` and `gate`: what they write, and what they exit with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn loadgen(args: &[&str]) -> Output {
    let out = Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output();
    out.expect("loadgen starts")
}

fn code(out: &Output) -> i32 {
    out.status.code().expect("an exit code")
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("written")).expect("JSON")
}

#[test]
fn a_sweep_has_a_row_and_a_result_for_each_value() {
    let dir = scratch("sweep");
    let out = loadgen(&[
        "sweep",
        "sweep-n",
        "--param",
        "containers=10,20",
        "--out",
        &dir.display().to_string(),
    ]);
    assert_eq!(code(&out), 0, "{}", text(&out));
    let sweep = json(&dir.join("sweep.json"));
    assert_eq!(sweep["schema"], "loadgen.sweep/1");
    let points = sweep["points"].as_array().unwrap();
    let containers: Vec<_> = points.iter().map(|p| p["containers"].as_u64().unwrap()).collect();
    assert_eq!(containers, [10, 20]);
    assert_eq!(json(&dir.join("containers-20/result.json"))["params"]["containers"], 20);
    for word in ["containers", "slowdown", "VERDICT: PASS exit=0"] {
        assert!(text(&out).contains(word), "{}", text(&out));
    }
}

/// The victims' memory is what a shared pool cannot promise: as a subject it fails beyond some load.
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
    let out = loadgen(&[
        "search", &file, "--param", "conns", "--from", "1", "--to", "150", "--steps", "4", "--out",
        &out_dir,
    ]);
    assert_eq!(code(&out), 0, "{}", text(&out));
    let points = json(&dir.join("out/sweep.json"))["points"].as_array().unwrap().clone();
    let passed = |p: &serde_json::Value| p["exit"] == 0;
    let value = |p: &serde_json::Value| p["value"].as_str().unwrap().parse::<u64>().unwrap();
    let best = points.iter().filter(|p| passed(p)).map(value).max().unwrap();
    let fails = points.iter().filter(|p| !passed(p)).map(value).min().unwrap();
    assert!(best >= 1 && best < fails && fails <= 150);
    assert!(text(&out).contains(&format!("conns = {best}; {fails} fails")), "{}", text(&out));

    let none = loadgen(&[
        "search", &file, "--param", "conns", "--from", "149", "--to", "150", "--out", &out_dir,
    ]);
    assert_eq!(code(&none), 3, "{}", text(&none));
    let bad = loadgen(&["search", &file, "--param", "conns", "--from", "9", "--to", "2"]);
    assert_eq!(code(&bad), 2, "{}", text(&bad));
}

#[test]
fn a_saved_result_is_judged_again_and_against_a_baseline() {
    let dir = scratch("gate");
    let run = |name: &str, more: &[&str]| {
        let out = dir.join(name).display().to_string();
        let args = [&["run", "no-hog", "--out", &out][..], more].concat();
        let done = loadgen(&args);
        assert_eq!(code(&done), 0, "{}", text(&done));
        out
    };
    let (a, b) = (run("a", &[]), run("b", &["--set", "probe-rate=2500"]));

    let fine = loadgen(&["gate", &a, "--baseline", &a]);
    assert_eq!(code(&fine), 0, "{}", text(&fine));
    let stricter = loadgen(&["gate", &a, "--expr", "worst(victim.response.p50) <= 1us"]);
    assert_eq!(code(&stricter), 3, "{}", text(&stricter));
    let typo = loadgen(&["gate", &a, "--expr", "worst(victim.respons.p50) <= 1us"]);
    assert_eq!(code(&typo), 2, "{}", text(&typo));
    let missing = loadgen(&["gate", &a, "--baseline", "/nowhere/result.json"]);
    assert_eq!(code(&missing), 6, "{}", text(&missing));
    let other = loadgen(&["gate", &a, "--baseline", &b]);
    assert_eq!(code(&other), 6, "{}", text(&other));
    assert!(text(&other).contains("rate = 2500"), "{}", text(&other));

    // A baseline that was better by a hair: virtual runs are compared exactly.
    let better = dir.join("better");
    std::fs::create_dir_all(&better).unwrap();
    let mut result = json(&Path::new(&a).join("result.json"));
    for arm in result["arms"].as_array_mut().unwrap() {
        let stall = &mut arm["fairness"]["stall_ns"];
        *stall = (stall.as_u64().unwrap() - 1).into();
    }
    std::fs::write(better.join("result.json"), result.to_string()).unwrap();
    let worse = loadgen(&["gate", &a, "--baseline", &better.display().to_string()]);
    assert_eq!(code(&worse), 4, "{}", text(&worse));
    assert!(text(&worse).contains("WORSE  container  longest stall"), "{}", text(&worse));
}

/// A control that starves nobody proves nothing; whoever wants may take it as a warning.
#[test]
fn an_inconclusive_result_fails_unless_it_may_warn() {
    let dir = scratch("inconclusive").display().to_string();
    let run = loadgen(&[
        "run",
        "step",
        "--out",
        &dir,
        "--set",
        "group.hog.stuff.conns=0",
        "--set",
        "group.hog.hoard.conns=0",
    ]);
    assert_eq!(code(&run), 5, "{}", text(&run));
    assert_eq!(code(&loadgen(&["gate", &dir])), 5);
    assert_eq!(code(&loadgen(&["gate", &dir, "--inconclusive", "warn"])), 0);
}

#[test]
fn what_is_shown_can_be_run() {
    let shown = loadgen(&["show", "no-hog"]);
    assert_eq!(code(&shown), 0);
    let dir = scratch("shown");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("mine.toml");
    std::fs::write(&file, &shown.stdout).unwrap();
    let out = dir.join("out").display().to_string();
    let run = loadgen(&["run", &file.display().to_string(), "--out", &out]);
    assert_eq!(code(&run), 0, "{}", text(&run));
    assert_eq!(code(&loadgen(&["show", "no-hgo"])), 2);
}
