//! `compare`: virtual results, folders of results, and runs made now.

use super::*;

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

/// A metric that A lacks decides nothing, and a gate that fails in B only is a regression.
#[test]
fn a_metric_without_a_value_is_unclear_and_a_newly_failed_gate_a_regression() {
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
fn bad_arguments_of_compare_are_exit_2() {
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
