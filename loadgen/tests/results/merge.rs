//! `merge`.

use super::*;

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
