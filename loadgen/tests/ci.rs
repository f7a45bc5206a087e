//! The output for CI of every command that judges: annotations that leave JSON intact, a summary of the job, JUnit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

#[path = "support/program.rs"]
mod program;
#[path = "support/readers.rs"]
#[allow(dead_code, reason = "readers of other files are for other tests")]
mod readers;
#[path = "support/small.rs"]
mod small;

use program::{json, loadgen};
use small::SMALL;

fn scratch(name: &str) -> PathBuf {
    let dir = program::scratch(name);
    fs::create_dir_all(&dir).expect("a folder");
    dir
}

/// On GitHub: exit code, standard output, standard error, and the job's page.
fn on_github(name: &str, args: &[&str]) -> (i32, String, String, String) {
    let page = scratch(&format!("page-{name}")).join("summary.md");
    let out = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(args)
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", &page)
        .output()
        .expect("loadgen starts");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let page = fs::read_to_string(&page).unwrap_or_default();
    (out.status.code().expect("an exit code"), text(&out.stdout), text(&out.stderr), page)
}

fn with_small<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().copied().chain(SMALL.iter().flat_map(|s| ["--set", s])).collect()
}

/// A run in which all gates pass.
fn run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = scratch("run");
        let out = dir.display().to_string();
        let (code, _, err) = loadgen(&with_small(&["repro", "--out", &out, "--format", "result"]));
        assert_eq!(code, 0, "{err}");
        dir
    })
}

fn changed(name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut value = json(&run().join("result.json"));
    change(&mut value);
    let dir = scratch(name);
    fs::write(dir.join("result.json"), value.to_string()).expect("written");
    dir
}

/// The files in a folder: tests, failures and errors, and the summary.
fn files(dir: &Path) -> ([usize; 3], String) {
    let text =
        |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let suites = readers::junit(&text("junit.xml"));
    let cases: Vec<_> = suites.iter().flat_map(|s| &s.cases).collect();
    let of = |o: &str| cases.iter().filter(|c| c.outcome.as_deref() == Some(o)).count();
    ([cases.len(), of("failure"), of("error")], text("summary.md"))
}

#[test]
fn annotations_do_not_mix_with_json() {
    let dir = scratch("json");
    let out = dir.display().to_string();
    // Too few probes, no hog: the run is in doubt.
    let args = with_small(&["repro", "--out", &out, "--json"]);
    let more = ["--set", "stuff=0", "--set", "hoard=0"];
    let (code, said, err, page) = on_github("json", &[&args[..], &more].concat());
    assert_eq!(code, 5, "{err}");
    let value: Value = serde_json::from_str(&said).expect("JSON and nothing else");
    assert_eq!(value["schema"], "loadgen.result/1");
    assert!(err.contains("::warning title=starvation / shared::"), "{err}");
    assert!(page.contains("INCONCLUSIVE"), "{page}");

    let slower = changed("slower", |v| v["arms"][1]["fairness"]["stall_ns"] = 999_000_000.into());
    let (a, b) = (run().display().to_string(), slower.display().to_string());
    let (code, said, err, page) = on_github("compare-json", &["compare", &a, &b, "--json"]);
    assert_eq!(code, 4);
    let value: Value = serde_json::from_str(&said).expect("JSON and nothing else");
    assert_eq!(value["exit"], 4);
    assert!(err.contains("::error title=compare / container::stall: "), "{err}");
    assert!(page.contains("REGRESSION") && page.contains("| stall |"), "{page}");
    // Annotations come before the table; the verdict is the last line.
    let (_, said, err, _) = on_github("compare", &["compare", &a, &b]);
    assert!(said.starts_with("::error ") && err.is_empty(), "{said}{err}");
    assert!(said.lines().last().unwrap().starts_with("VERDICT: REGRESSION exit=4"), "{said}");
}

#[test]
fn compare_gate_and_sweep_write_the_files_of_a_run() {
    let slower = changed("slow", |v| {
        v["arms"][1]["fairness"]["stall_ns"] = 999_000_000.into();
        v["arms"][1]["containers"][1]["cost"]["stall_ns"] = 999_000_000.into();
    });
    let (a, b) = (run().display().to_string(), slower.display().to_string());
    let dir = scratch("compared");
    let to = dir.display().to_string();
    assert_eq!(loadgen(&["compare", &a, &b, "--out", &to]).0, 4);
    let ([tests, failures, errors], summary) = files(&dir);
    assert!(
        tests >= 1 && failures == 1 && errors == 0 && summary.contains("**FAIL**"),
        "{summary}"
    );
    assert_eq!(json(&dir.join("compare.json"))["exit"], 4);
    assert_eq!(loadgen(&["compare", &a, &a, "--out", &to]).0, 0);
    let ([tests, failures, errors], summary) = files(&dir);
    assert!(tests == 1 && failures + errors == 0 && summary.contains("identical"), "{summary}");
    // Refuses to overwrite its input.
    assert_eq!(loadgen(&["compare", &a, &b, "--out", &a]).0, 2);

    let (code, said, err, page) = on_github("gate", &["gate", &b, "--baseline", &a, "--out", &to]);
    assert_eq!(code, 3, "{said}{err}");
    let ([tests, failures, _], summary) = files(&dir);
    assert!(tests > 10 && failures == 2, "a gate and the baseline: {summary}");
    assert!(said.contains("::error title=starvation / container::longest stall: "), "{said}");
    assert!(
        said.contains("::error title=starvation / baseline::container  longest stall"),
        "{said}"
    );
    assert_eq!(page.trim(), summary.trim());
    assert_eq!(loadgen(&["gate", &b, "--out", &b]).0, 2);

    let args = with_small(&["sweep", "starvation", "--param", "stuff=0,60", "--out", &to]);
    let (code, said, err, page) = on_github("sweep", &[&args[..], &["--set", "hoard=0"]].concat());
    assert_eq!(code, 5, "{said}{err}");
    let ([tests, failures, errors], summary) = files(&dir);
    assert!(tests > 20 && failures == 0 && errors >= 1, "{summary}");
    assert!(said.contains("::warning title=starvation stuff=0 / shared::"), "{said}");
    assert!(page.trim() == summary.trim() && page.contains("stuff=60"), "{page}");
}

/// A stopped run is neither green nor empty.
#[test]
fn an_interrupted_run_has_its_tests() {
    let dir = program::scratch("stopped");
    let out = dir.display().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["repro", "--out", &out, "--set", "solo=600s"])
        .stdout(Stdio::null())
        .spawn()
        .expect("loadgen starts");
    std::thread::sleep(Duration::from_millis(1500));
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let suites = readers::junit(&fs::read_to_string(dir.join("junit.xml")).unwrap());
    let cases: Vec<_> = suites.iter().flat_map(|s| &s.cases).collect();
    let of = |o: Option<&str>| cases.iter().filter(|c| c.outcome.as_deref() == o).count();
    assert!(of(Some("skipped")) > 10, "{cases:?}");
    assert_eq!((of(Some("error")), of(None)), (1, 0), "{cases:?}");
    let (_, summary) = files(&dir);
    assert!(summary.contains("Interrupted ") && summary.contains("No gate was judged"));
}

/// A victim that got nothing has a number in the file of every tracker.
#[test]
fn trackers_keep_a_metric_that_has_no_bound() {
    let dead = changed("dead", |v| {
        let f = &mut v["arms"][1]["fairness"];
        f["throughput_slowdown_milli"] = Value::Null;
        f["recovery_ns"] = Value::Null;
        let victim = &mut v["arms"][1]["containers"][1];
        victim["cost"]["throughput_slowdown_milli"] = Value::Null;
        victim["phases"][1]["up_bytes"] = 0.into();
    });
    let (from, to) = (dead.display().to_string(), scratch("dead-files"));
    let out = to.display().to_string();
    assert_eq!(loadgen(&["report", &from, "--out", &out, "--format", "gab,bmf,openmetrics"]).0, 0);
    let gab = json(&to.join("gab.json"));
    for key in ["throughput-slowdown", "recovery"] {
        let name = format!("starvation / container / {key}");
        let entry = gab.as_array().unwrap().iter().find(|e| e["name"] == name.as_str());
        let entry = entry.unwrap_or_else(|| panic!("no {name}"));
        assert!(entry["value"].as_f64().unwrap() > 100.0, "{entry}");
        assert!(entry["extra"].as_str().unwrap().contains("at least"), "{entry}");
        let measure = &json(&to.join("bmf.json"))["starvation/container"][key];
        assert_eq!(measure["value"], measure["lower_value"], "{measure}");
        assert!(measure.get("upper_value").is_none(), "{measure}");
    }
    let families = readers::openmetrics(&fs::read_to_string(to.join("metrics.prom")).unwrap());
    let flags: Vec<&str> = families["loadgen_at_least"]
        .samples
        .iter()
        .filter(|s| s.labels["arm"] == "container")
        .map(|s| s.labels["metric"].as_str())
        .collect();
    assert_eq!(flags, ["throughput-slowdown", "recovery"]);
    let slow = &families["loadgen_throughput_slowdown_ratio"].samples;
    assert!(slow.iter().any(|s| s.labels["arm"] == "container" && s.value > 1000.0));
}

/// A runner may set the variable of the page to nothing; a page that cannot be written is named with its variable.
#[test]
fn the_page_of_the_job_may_be_missing() {
    let result = run().display().to_string();
    let gate = |page: &str| {
        Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["gate", &result, "--github"])
            .env("GITHUB_STEP_SUMMARY", page)
            .output()
            .expect("loadgen starts")
    };
    let none = gate("");
    assert_eq!(none.status.code(), Some(0), "{none:?}");
    let bad = gate("/nonexistent/page.md");
    assert_eq!(bad.status.code(), Some(1));
    let err = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(err.contains("GITHUB_STEP_SUMMARY=/nonexistent/page.md: "), "{err}");
}
