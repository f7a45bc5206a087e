//! Baselines and pairs of results that cannot be compared, and their exit codes.

use super::*;

#[test]
fn incomparable_results_are_exit_6_with_the_difference() {
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
