//! The commands that read results: compare, merge, selftest, explain, schema.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

#[path = "support/program.rs"]
mod program;
#[path = "support/schema.rs"]
mod schema;
#[path = "support/small.rs"]
mod small;

use program::{json, loadgen};
use schema::{Schema, published};
use small::SMALL;

fn scratch(name: &str) -> PathBuf {
    let dir = program::scratch(name);
    std::fs::create_dir_all(&dir).expect("a folder");
    dir
}

/// A small virtual run, made once.
fn run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = scratch("run");
        let out = dir.display().to_string();
        let mut args = vec!["run", "starvation", "--out", &out, "--format", "result"];
        SMALL.iter().for_each(|s| args.extend(["--set", s]));
        let (code, _, err) = loadgen(&args);
        assert!(code != 1 && code != 2, "{err}");
        dir
    })
}

fn result(dir: &Path) -> Value {
    json(&dir.join("result.json"))
}

/// A changed copy of the run, in its own folder.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut value = result(run());
    change(&mut value);
    let dir = scratch(name);
    std::fs::write(dir.join("result.json"), value.to_string()).expect("written");
    dir
}

fn compare(a: &Path, b: &Path, more: &[&str]) -> (i32, String, String) {
    let (a, b) = (a.display().to_string(), b.display().to_string());
    loadgen(&[&["compare", &a, &b], more].concat())
}

/// Printed or written, it conforms to its schema exactly.
fn is_a_comparison(value: &Value, kind: &str) {
    let schema = published("compare");
    let errors = Schema::closed(&schema).errors(value);
    assert!(errors.is_empty(), "{errors:#?}");
    assert_eq!(value["kind"], kind);
    let mut slip = value.clone();
    slip["exit"] = Value::from("4");
    assert_eq!(Schema::closed(&schema).errors(&slip).len(), 1);
    slip["exit"] = value["exit"].clone();
    slip["new"] = Value::from(1);
    assert_eq!(Schema::open(&schema).errors(&slip).len(), 0, "an addition keeps the version");
}

#[test]
fn a_virtual_run_is_compared_exactly() {
    let (code, out, _) = compare(run(), run(), &[]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("identical in every byte"), "{out}");

    let arm = |v: &mut Value, f: &dyn Fn(&mut Value)| f(&mut v["arms"][1]["fairness"]);
    let slower = changed("slower", |v| arm(v, &|f| f["stall_ns"] = Value::from(999_000_000)));
    let (code, out, _) = compare(run(), &slower, &[]);
    assert_eq!(code, 4, "{out}");
    assert!(out.contains("WORSE") && out.contains("/arms/container/fairness/stall_ns"), "{out}");
    let (_, out, _) = compare(run(), &slower, &["--json"]);
    is_a_comparison(&serde_json::from_str(&out).expect("JSON"), "exact");
    // In the other direction it is better, which fails only with `--both`.
    assert_eq!(compare(&slower, run(), &[]).0, 0);
    assert_eq!(compare(&slower, run(), &["--both"]).0, 4);
    // A control arm is expected to be bad.
    let control = changed("control", |v| {
        v["arms"][0]["fairness"]["stall_ns"] = Value::from(9_999_000_000_u64);
    });
    assert_eq!(compare(run(), &control, &[]).0, 0);
    // A metric that is not selected is listed, but is no regression.
    assert_eq!(compare(run(), &slower, &["--metrics", "goodput-up"]).0, 0);
}

/// Virtual time has no noise, but a run may still be in doubt.
#[test]
fn a_virtual_run_that_proves_nothing_is_left_out() {
    let interrupted = changed("interrupted", |v| {
        v["interrupted"] = Value::from(true);
        v["gates"] = Value::Array(Vec::new());
        v["arms"][1]["fairness"]["stall_ns"] = Value::from(999_000_000);
    });
    let few = changed("few-probes", |v| {
        let gates = v["gates"].as_array_mut().expect("gates");
        let probes = gates.iter_mut().find(|g| g["name"] == "probes a phase").expect("a gate");
        probes["passed"] = Value::from(false);
        probes["observed"] = Value::from("7");
    });
    for (bad, why) in [(&interrupted, "interrupted"), (&few, "probes a phase: 7")] {
        for (a, b) in [(run(), bad.as_path()), (bad, run()), (bad, bad)] {
            let (code, out, _) = compare(a, b, &["--both"]);
            assert!(code == 5 && out.contains("VERDICT: INCONCLUSIVE exit=5"), "{out}");
            assert!(out.contains("discarded: ") && out.contains(why), "{out}");
            assert!(!out.contains("no metric differs") && !out.contains("WORSE"), "{out}");
        }
        let dir = scratch("left-out");
        let out = dir.display().to_string();
        let (code, said, _) = compare(run(), bad, &["--json", "--out", &out]);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        is_a_comparison(&said, "exact");
        assert!(code == 5 && said["discarded"][0].as_str().unwrap().contains(why), "{said}");
        assert!(std::fs::read_to_string(dir.join("junit.xml")).unwrap().contains(why));
    }
}

/// Too few requests for a p99: neither side is better.
#[test]
fn runs_made_now_that_prove_nothing_are_left_out() {
    let out = scratch("now-short").display().to_string();
    let short = ["--set", "solo=10ms", "--set", "contended=10ms", "--set", "recovery=10ms"];
    let (code, said, err) = loadgen(&[&["compare", "--exec", "--out", &out][..], &short].concat());
    assert!(code == 5 && said.contains("discarded: "), "{said}{err}");
}

#[test]
fn what_cannot_be_compared_is_exit_6_with_the_difference() {
    let other = changed("other", |v| v["params"]["victims"] = Value::from(7));
    let (code, _, err) = compare(run(), &other, &[]);
    assert_eq!(code, 6, "{err}");
    assert!(err.contains("victims: 1 against 7"), "{err}");
    assert_ne!(compare(run(), &other, &["--any-params"]).0, 6);
    let target = changed("target", |v| v["target"] = Value::from("tap"));
    assert_eq!(compare(run(), &target, &["--any-params"]).0, 6);
    // A change that is no parameter: `--set group.victim.probe.fresh=true`.
    let load = changed("load", |v| {
        let toml = v["scenario_toml"].as_str().unwrap();
        v["scenario_toml"] =
            toml.replace("[group.probe]\n", "[group.probe]\nfresh = true\n").into();
        v["seed"] = Value::from(77);
    });
    let (code, _, err) = compare(run(), &load, &[]);
    assert!(
        code == 6 && err.contains("scenario file: ") && err.contains("'fresh = true'"),
        "{err}"
    );
    assert_eq!(compare(run(), &load, &["--any-params"]).0, 0);
    let parts = [run(), load.as_path()].map(|p| p.display().to_string());
    let out = scratch("not-merged").display().to_string();
    let (code, _, err) = loadgen(&["merge", &parts[0], &parts[1], "--out", &out]);
    assert!(code == 6 && err.contains("'fresh = true'"), "{err}");
    // In virtual time another seed is another run.
    let seed = changed("seed", |v| v["seed"] = Value::from(77));
    let (code, _, err) = compare(run(), &seed, &[]);
    assert!(code == 6 && err.contains("seed: 1 against 77"), "{err}");
    assert_eq!(compare(run(), &seed, &["--any-params"]).0, 0);
}

/// A baseline may be missing; a result that is to be judged may not.
#[test]
fn only_a_baseline_may_be_missing() {
    let (nowhere, empty) = (Path::new("/nowhere"), scratch("empty"));
    let binary = scratch("binary");
    std::fs::write(binary.join("result.json"), b"\xff\xfe").unwrap();
    let text = scratch("text");
    std::fs::write(text.join("result.json"), b"{}").unwrap();
    let here = run().display().to_string();
    for bad in [nowhere, &empty, &binary, &text] {
        assert_eq!(compare(bad, run(), &[]).0, 6, "{bad:?}");
        assert_eq!(compare(run(), bad, &[]).0, 2, "{bad:?}");
        let bad = bad.display().to_string();
        let (code, said, err) = loadgen(&["gate", &here, "--baseline", &bad]);
        assert!(code == 6 && said.contains("no baseline"), "{said}{err}");
        let out = scratch("out-of-nothing").display().to_string();
        for args in [
            &["gate", &bad][..],
            &["gate", &bad, "--baseline", &here],
            &["report", &bad, "--out", &out],
            &["merge", &here, &bad, "--out", &out],
        ] {
            let (code, _, err) = loadgen(args);
            assert!(code == 2 && err.contains(&bad), "{args:?}: {err}");
        }
    }
}

/// Without a subject nothing is compared and no condition applies.
#[test]
fn a_result_without_a_subject_does_not_pass() {
    let none = changed("no-subject", |v| v["arms"][1]["role"] = Value::from("baseline"));
    let (code, said, _) = compare(&none, &none, &[]);
    assert!(code == 5 && said.contains("no arm of A is a subject"), "{said}");
    let (none, here) = (none.display().to_string(), run().display().to_string());
    let (code, _, err) = loadgen(&["gate", &none, "--expr", "1 == 2"]);
    assert!(
        code == 2 && err.contains("--expr: the result has no arm with the role subject"),
        "{err}"
    );
    let (code, said, _) = loadgen(&["gate", &none, "--baseline", &here]);
    assert!(code == 6 && said.contains("no arm with the role subject"), "{said}");
    let renamed = changed("renamed", |v| v["arms"][1]["name"] = Value::from("other"));
    let (code, said, _) = loadgen(&["gate", &here, "--baseline", &renamed.display().to_string()]);
    assert!(code == 6 && said.contains("it has no arm 'container'"), "{said}");
}

/// A doubtful baseline proves nothing, and neither does a doubtful result, even where its numbers are worse.
#[test]
fn a_doubtful_side_of_a_baseline_decides_nothing() {
    let doubtful = changed("doubtful", |v| {
        let gates = v["gates"].as_array_mut().expect("gates");
        let gate = gates.iter_mut().find(|g| g["name"] == "probes a phase").expect("a gate");
        gate["passed"] = Value::from(false);
    });
    let (here, doubtful) = (run().display().to_string(), doubtful.display().to_string());
    let (code, said, _) = loadgen(&["gate", &here, "--baseline", &doubtful]);
    assert!(code == 6 && said.contains("the baseline is inconclusive: "), "{said}");
    // The control does not starve, and the subject is slower than in the baseline.
    let worse = changed("doubtful-worse", |v| {
        for name in ["stall_ns", "throughput_slowdown_milli"] {
            v["arms"][0]["fairness"][name] = Value::from(1);
        }
        let stall = &mut v["arms"][1]["fairness"]["stall_ns"];
        *stall = Value::from(stall.as_u64().unwrap() + 1);
    });
    let (code, said, _) = loadgen(&["gate", &worse.display().to_string(), "--baseline", &here]);
    assert!(code == 5 && said.contains("WORSE"), "{said}");
}

/// A metric that A lacks decides nothing, and a gate that fails in B only is a regression.
#[test]
fn a_metric_without_a_value_and_a_gate_that_fails_anew() {
    let (code, said, _) = compare(run(), run(), &["--metrics", "victim-cpu,stall"]);
    assert!(code == 5 && said.contains("A has no value of this metric"), "{said}");
    let failed = changed("gate-fails", |v| {
        let gates = v["gates"].as_array_mut().expect("gates");
        let gate = gates.iter_mut().find(|g| g["kind"] == "subject").expect("a gate");
        gate["passed"] = Value::from(false);
    });
    let dir = scratch("newly-failed");
    let (code, said, _) = compare(run(), &failed, &["--out", &dir.display().to_string()]);
    assert!(code == 4 && said.contains("fails in B only: container "), "{said}");
    assert!(said.contains("newly failed gates: 1"), "{said}");
    is_a_comparison(&json(&dir.join("compare.json")), "exact");
    assert!(std::fs::read_to_string(dir.join("junit.xml")).unwrap().contains("<failure"));
    assert_eq!(compare(&failed, &failed, &[]).0, 0);
    assert_eq!(compare(&failed, run(), &[]).0, 0);
}

#[test]
fn bad_words_to_compare_are_exit_2() {
    let (code, _, err) = compare(run(), run(), &["--metrics", "gudput-up"]);
    assert_eq!(code, 2);
    assert!(err.contains("did you mean 'goodput-up'"), "{err}");
    let here = run().display().to_string();
    assert_eq!(loadgen(&["compare", &here]).0, 2);
    assert_eq!(compare(run(), run(), &["--margin", "-3"]).0, 2);
    // No option is ignored: those for runs made now are refused for results, and the reverse.
    for (option, value) in [
        ("--rounds", "8"),
        ("--set", "victims=2"),
        ("--set-b", "victims=2"),
        ("--scenario", "step"),
        ("--target", "virtual"),
        ("--seed", "1"),
    ] {
        let (code, _, err) = compare(run(), run(), &[option, value]);
        assert_eq!(code, 2, "{option}: {err}");
        assert!(err.contains(&format!("{option} requires --exec")), "{err}");
    }
    let (code, _, err) = loadgen(&["compare", "--exec", "--paired"]);
    assert!(code == 2 && err.contains("--paired applies to saved results"), "{err}");
    let (code, _, err) = loadgen(&["compare", "--exec", "--set-b", "victms=3"]);
    assert!(code == 2 && err.contains("--set-b victms=3"), "{err}");
}

/// Wall-clock runs in two folders: eight pairs detect a slowdown of a tenth; two single results prove nothing.
#[test]
fn folders_of_runs_are_compared_by_statistics() {
    let (a, b) = (scratch("a"), scratch("b"));
    for i in 0..8_u64 {
        for (dir, percent) in [(&a, 100), (&b, 90)] {
            let run = changed(&format!("{}-{i}", dir.file_name().unwrap().display()), |v| {
                v["target"] = Value::from("tap");
                for phase in 0..3 {
                    for way in ["up_bytes", "down_bytes"] {
                        let bytes = &mut v["arms"][1]["containers"][1]["phases"][phase][way];
                        // A percent of noise that differs between the two sides.
                        let noise = 995 + (i * 37 + percent) % 11;
                        *bytes = Value::from(bytes.as_u64().unwrap() * percent * noise / 100_000);
                    }
                }
            });
            std::fs::rename(run, dir.join(format!("{i}"))).expect("moved");
        }
    }
    let metrics = ["--metrics", "goodput-up,goodput-down"];
    for paired in [&["--paired"][..], &[]] {
        let (code, out, err) = compare(&a, &b, &[&metrics, paired].concat());
        assert_eq!(code, 4, "{out}{err}");
        assert_eq!(compare(&a, &a, &[&metrics, paired].concat()).0, 0);
    }
    // A copy of a run is no further run.
    let copies = scratch("copies");
    for i in 0..8 {
        let to = copies.join(i.to_string());
        std::fs::create_dir_all(&to).unwrap();
        std::fs::copy(a.join("0/result.json"), to.join("result.json")).unwrap();
    }
    let (code, _, err) = compare(&copies, &b, &metrics);
    assert!(code == 2 && err.contains("results 1 and 2 contain the same run"), "{err}");
    let (code, out, _) = compare(&a.join("0"), &b.join("0"), &metrics);
    assert_eq!(code, 5, "{out}");
    assert!(out.contains("at least 6"), "{out}");
    for (more, kind) in [(&["--json"][..], "unpaired"), (&["--json", "--paired"], "paired")] {
        let (_, json, _) = compare(&a, &b, more);
        is_a_comparison(&serde_json::from_str(&json).expect("JSON"), kind);
    }
    // An inconclusive comparison is valid JSON too.
    let (_, json, _) = compare(&a.join("0"), &b.join("0"), &["--json"]);
    is_a_comparison(&serde_json::from_str(&json).expect("JSON"), "unpaired");
}

/// Runs of this binary against itself, and against itself on a longer path, as subprocesses.
#[test]
fn binaries_and_configurations_are_run_and_compared() {
    let out = scratch("exec").display().to_string();
    let mut args = vec!["compare", "--exec", "--out", &out];
    SMALL.iter().for_each(|s| args.extend(["--set", s]));
    let (code, said, err) = loadgen(&args);
    assert_eq!(code, 0, "{said}{err}");
    assert!(said.contains("identical in every byte"), "{said}");
    is_a_comparison(&json(&Path::new(&out).join("compare.json")), "exact");

    args.extend(["--set-a", "rtt=400us", "--metrics", "p50-contended"]);
    let (code, said, err) = loadgen(&args);
    assert_eq!(code, 4, "{said}{err}");

    let bad = [&args[..], &["--set-b", "victms=3"]].concat();
    let (code, _, err) = loadgen(&bad);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("did you mean 'victims'"), "{err}");
    for (target, rounds) in [("tap", "5"), ("virtual", "3")] {
        let args = ["compare", "--exec", "--target", target, "--rounds", rounds];
        let (code, _, err) = loadgen(&args);
        assert!(code == 2 && err.contains(&format!("--rounds {rounds}: ")), "{err}");
    }
    let (code, ..) =
        loadgen(&["compare", "--exec", "/nonexistent/a", "/nonexistent/b", "--out", &out]);
    assert_eq!(code, 1);
}

/// A program that exits with 0 but is not loadgen proves nothing.
#[test]
fn a_binary_that_writes_no_result_is_named() {
    let out = scratch("exec-other").display().to_string();
    for (binary, ended) in
        [("true", "exited with 0"), ("false", "exited with 1"), ("cat", "exited with")]
    {
        let binary = Path::new("/bin").join(binary).display().to_string();
        let (code, _, err) = loadgen(&["compare", "--exec", &binary, &binary, "--out", &out]);
        assert_eq!(code, 2, "{err}");
        assert!(
            err.contains("is not loadgen: it wrote no result.json") && err.contains(ended),
            "{err}"
        );
    }
}

/// Neither an endless device nor a FIFO without a writer is read.
#[test]
fn what_is_no_file_is_not_read() {
    let dir = scratch("odd");
    let (fifo, big) = (dir.join("fifo"), dir.join("big.toml"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    std::fs::write(&big, "# ".repeat(600 << 10)).expect("written");
    let (fifo, big) = (fifo.display().to_string(), big.display().to_string());
    let extends = |base: &str| {
        let file = dir.join("extends.toml");
        std::fs::write(&file, format!("name = \"mine\"\nextends = \"{base}\"\n")).expect("written");
        file.display().to_string()
    };
    let odd = "not a regular file";
    for (what, says) in [("/dev/zero", odd), (fifo.as_str(), odd), (big.as_str(), "1048576 bytes")]
    {
        for args in [&["run", what][..], &["show", what], &["run", &extends(what)]] {
            let (code, _, err) = loadgen(args);
            assert!(code == 2 && err.contains(says), "{args:?}: {code} {err}");
        }
    }
    for what in ["/dev/zero", fifo.as_str()] {
        for args in [&["gate", what][..], &["compare", what, what], &["report", what]] {
            let (code, _, err) = loadgen(args);
            assert!(code == 2 && err.contains(odd), "{args:?}: {code} {err}");
        }
    }
    std::fs::remove_file(&fifo).expect("removed");
}

#[test]
fn merging_adds_histograms_and_loses_nothing() {
    let (here, out) = (run().display().to_string(), scratch("merged"));
    let to = out.display().to_string();
    // Another run with the same samples.
    let twin = changed("twin", |v| v["seed"] = Value::from(77)).display().to_string();
    let (code, said, err) = loadgen(&["merge", &here, &twin, "--out", &to]);
    assert!(code == 0 || code == 5, "{said}{err}");
    let (one, two) = (result(run()), result(&out));
    let probe = |v: &Value| v["arms"][0]["containers"][1]["phases"][1]["probe"].clone();
    for count in ["intended", "completed", "outstanding"] {
        assert_eq!(
            probe(&two)[count],
            Value::from(2 * probe(&one)[count].as_u64().unwrap()),
            "{count}"
        );
    }
    // The same samples twice have the same percentiles.
    for percentile in ["p50", "p99", "p999", "max"] {
        assert_eq!(probe(&two)[percentile], probe(&one)[percentile], "{percentile}");
    }
    let (code, ..) = loadgen(&["merge", &here, &twin, "--how", "hosts", "--out", &to]);
    assert!(code == 0 || code == 5);
    let arms = &result(&out)["arms"];
    let names: Vec<_> =
        arms[1]["containers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["hog", "victim1", "hog@2", "victim1@2"]);
    // A merged part has a second container of that name already.
    let third = changed("third", |v| v["seed"] = Value::from(78)).display().to_string();
    let again = scratch("merged-again").display().to_string();
    loadgen(&["merge", &to, &third, "--how", "hosts", "--out", &again]);
    let arms = &result(Path::new(&again))["arms"];
    let names: Vec<_> =
        arms[1]["containers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["hog", "victim1", "hog@2", "victim1@2", "hog@3", "victim1@3"]);
    let other = changed("merge-other", |v| v["params"]["victims"] = Value::from(7));
    let (code, _, err) = loadgen(&["merge", &here, &other.display().to_string(), "--out", &to]);
    assert_eq!(code, 6, "{err}");
    assert_eq!(loadgen(&["merge", &here]).0, 2);
}

/// The worse part decides, in either order, and `gate` judges the sum as `merge` does.
#[test]
fn a_merged_result_keeps_the_worse_part() {
    let bad = changed("bad-part", |v| {
        v["seed"] = Value::from(77);
        let gates = v["gates"].as_array_mut().expect("gates");
        let gate = gates
            .iter_mut()
            .find(|g| g["name"] == "worst throughput slowdown" && g["arm"] == "container");
        gate.expect("a gate")["passed"] = Value::from(false);
        v["verdict"]["exit"] = Value::from(3);
        let victim = &mut v["arms"][1]["containers"][1];
        victim["cost"]["throughput_slowdown_milli"] = Value::from(10_000);
        let bytes = &mut victim["phases"][1]["up_bytes"];
        *bytes = Value::from(bytes.as_u64().unwrap() / 10);
    });
    let (good, bad) = (run().display().to_string(), bad.display().to_string());
    let out = scratch("merged-bad").display().to_string();
    for parts in [[&good, &bad], [&bad, &good]] {
        let (code, said, err) = loadgen(&["merge", parts[0], parts[1], "--out", &out]);
        assert_eq!(code, 3, "{said}{err}");
        let fairness = &result(Path::new(&out))["arms"][1]["fairness"];
        let slower = fairness["throughput_slowdown_milli"].as_u64().unwrap();
        assert!(slower > 9000, "{slower}");
        let (code, said, _) = loadgen(&["gate", &out]);
        assert!(code == 3 && said.contains("(part "), "{said}");
        // A condition is judged by the sum.
        let expr = "worst(victim.throughput-slowdown) <= 2";
        let (_, said, _) = loadgen(&["gate", &out, "--expr", expr]);
        assert!(said.lines().any(|l| l.starts_with("FAIL") && l.contains(expr)), "{said}");
    }
}

#[test]
fn selftest_knows_its_answers() {
    let (code, out, _) = loadgen(&["selftest"]);
    // 5: a machine too busy to wake up in time, which is not a fault of the binary.
    assert!(code == 0 || code == 5, "{out}");
    assert!(out.matches("ok  ").count() >= 6, "{out}");
}

/// Every metric, gate and exit code has an explanation.
#[test]
fn explain_knows_every_word_it_is_asked() {
    let (code, topics, _) = loadgen(&["explain"]);
    assert_eq!(code, 0);
    let lines: Vec<&str> = topics.lines().take_while(|l| !l.is_empty()).collect();
    let words = || lines.iter().filter_map(|l| l.split_whitespace().next());
    assert_eq!(words().collect::<std::collections::BTreeSet<_>>().len(), lines.len(), "each once");
    assert!(
        lines.len() > 25 && lines.iter().all(|l| l.len() > 35),
        "a line says something: {topics}"
    );
    for topic in words() {
        let (code, out, err) = loadgen(&["explain", topic]);
        assert!(code == 0 && out.len() > 20, "{topic}: {out}{err}");
    }
    for gate in result(run())["gates"].as_array().unwrap() {
        let name = gate["name"].as_str().unwrap();
        let (code, out, err) = loadgen(&["explain", name]);
        assert!(code == 0 && out.len() > 20, "{name}: {out}{err}");
    }
    let (_, expressions, _) = loadgen(&["explain", "expression"]);
    for word in ["worst", "mmr", "p99-contended", "held-mean", "overshoot", "&&", "4KiB"] {
        assert!(expressions.contains(word), "{word}: {expressions}");
    }
    for exit in ["0", "3", "5", "130", "exit"] {
        assert_eq!(loadgen(&["explain", exit]).0, 0, "{exit}");
    }
    for metric in ["p99-contended", "unfairness"] {
        assert_eq!(loadgen(&["explain", metric]).0, 0, "{metric}");
    }
    let (code, _, err) = loadgen(&["explain", "p99-contendet"]);
    assert_eq!(code, 2);
    assert!(err.contains("p99-contended"), "{err}");
}
