//! Reads every file of a run again by rules independent of the writer: the schemas, and the parsers of the tools that
//! the files are made for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

#[path = "support/program.rs"]
mod program;
#[path = "support/readers.rs"]
mod readers;
#[path = "support/schema.rs"]
mod schema;
#[path = "support/small.rs"]
mod small;

use program::{loadgen, scratch};
use schema::{Schema, published};
use small::SMALL;

/// A small run with both arms, made once. Its name would break any format that does not escape.
fn run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = scratch("run");
        let out = dir.display().to_string();
        let mut args = vec!["repro", "--out", &out];
        SMALL.iter().chain(&["victims=2"]).for_each(|s| args.extend(["--set", s]));
        let (code, said, err) = loadgen(&args);
        assert!(code != 1 && code != 2, "{said}{err}");
        dir
    })
}

fn text(name: &str) -> String {
    std::fs::read_to_string(run().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn json(name: &str) -> Value {
    program::json(&run().join(name))
}

/// Requests intended and completed by the victims of an arm in all phases.
fn probes(result: &Value, arm: &str, name: Option<&str>) -> (u64, u64) {
    let arms = result["arms"].as_array().unwrap().iter().filter(|a| a["name"] == arm);
    let containers = arms.flat_map(|a| a["containers"].as_array().unwrap());
    let chosen = containers.filter(|c| name.is_none_or(|n| c["name"] == n));
    let phases = chosen.flat_map(|c| c["phases"].as_array().unwrap());
    let probes = phases.map(|p| &p["probe"]).filter(|p| !p.is_null());
    let count = |p: &Value, k: &str| p[k].as_u64().unwrap();
    probes.fold((0, 0), |(i, c), p| (i + count(p, "intended"), c + count(p, "completed")))
}

#[test]
fn result_and_verdict_match_their_schemas_exactly() {
    for which in ["result", "verdict"] {
        let schema = published(which);
        let value = json(&format!("{which}.json"));
        let errors = Schema::closed(&schema).errors(&value);
        assert!(errors.is_empty(), "{which}: {:#?}", &errors[..errors.len().min(20)]);
    }
}

/// Every built-in scenario conforms to the schema of scenarios; one with an error does not.
#[test]
fn scenarios_match_their_schema() {
    let schema = published("scenario");
    let (_, list, _) = loadgen(&["list"]);
    // A line with only a name.
    let alone = |l: &&str| !l.starts_with(' ') && l.split_whitespace().count() == 1;
    let names: Vec<&str> = list.lines().filter(alone).collect();
    assert!(names.len() >= 20, "{names:?}");
    for name in names {
        let (code, text, err) = loadgen(&["show", name]);
        assert_eq!(code, 0, "{name}: {err}");
        let value: Value = toml::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let errors = Schema::closed(&schema).errors(&value);
        assert!(errors.is_empty(), "{name}: {errors:#?}");
        let slip: Value = toml::from_str(&text.replace("[[group]]", "[[groop]]")).unwrap();
        assert!(slip == value || !Schema::open(&schema).errors(&slip).is_empty(), "{name}");
    }
}

#[test]
fn the_validator_sees_what_is_wrong() {
    let schema = published("verdict");
    let good = json("verdict.json");
    let wrong = |change: &dyn Fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value);
        Schema::closed(&schema).errors(&value).len()
    };
    assert_eq!(wrong(&|_| {}), 0);
    assert_eq!(wrong(&|v| v["seed"] = Value::from(-1)), 1);
    assert_eq!(wrong(&|v| v["schema"] = Value::from("loadgen.verdict/2")), 1);
    assert_eq!(wrong(&|v| v["gates"][0]["kind"] = Value::from("guess")), 1);
    assert_eq!(wrong(&|v| drop(v.as_object_mut().unwrap().remove("verdict"))), 1);
    assert_eq!(wrong(&|v| v["new"] = Value::from(1)), 1);
    // An added field is allowed: it keeps the version.
    let mut more = good.clone();
    more["new"] = Value::from(1);
    assert_eq!(Schema::open(&schema).errors(&more).len(), 0);
}

/// As Java's HistogramLogReader, which is stricter than the crate that wrote the log.
#[test]
fn the_interval_log_is_read_by_the_rules_of_java() {
    let log = readers::java_log(&text("latency.hlog"));
    assert!(log.version && log.start_time.is_some() && log.base_time == log.start_time);
    let result = json("result.json");
    let mut totals: BTreeMap<Option<String>, u64> = BTreeMap::new();
    for line in &log.lines {
        assert!(line.encoded.starts_with("HISTF"), "deflated V2");
        let histogram = readers::histogram(&line.encoded);
        assert!((histogram.max() as f64 / 1e6 - line.max).abs() < 0.001, "{line:?}");
        *totals.entry(line.tag.clone()).or_default() += histogram.len();
    }
    // Without a tag: all victims of the subject, including requests that did not complete.
    assert_eq!(totals[&None], probes(&result, "container", None).0);
    for (arm, name) in [("shared", "victim1"), ("container", "victim2")] {
        let tag = Some(format!("{arm}.{name}"));
        assert_eq!(totals[&tag], probes(&result, arm, Some(name)).0);
    }
    let starts: Vec<f64> = log.lines.iter().map(|l| l.start).collect();
    assert!(starts.windows(2).all(|w| w[0] <= w[1]), "in order of time");
    assert!(log.lines.iter().all(|l| l.length == 1.0), "seconds");
}

/// Through the crate's own reader, with the legend removed.
#[test]
fn the_interval_log_is_read_by_the_crate() {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let bytes = text("latency.hlog").into_bytes();
    // The crate's reader knows no legend; Java's skips it.
    let bytes: Vec<u8> = bytes
        .split_inclusive(|b| *b == b'\n')
        .filter(|l| !l.starts_with(b"\"StartTimestamp\""))
        .flatten()
        .copied()
        .collect();
    let entries: Vec<_> = IntervalLogIterator::new(&bytes).map(|e| e.expect("an entry")).collect();
    let intervals = entries.iter().filter(|e| matches!(e, LogEntry::Interval(_))).count();
    assert_eq!(intervals, readers::java_log(&text("latency.hlog")).lines.len());
}

#[test]
fn percentile_files_are_read_by_plot_files_and_agree_with_the_result() {
    let result = json("result.json");
    for file in ["shared-victim-contended.hgrm", "container-victim1-solo.hgrm"] {
        let rows = readers::plot_files(&text(file));
        assert!(rows.len() > 10, "{file}");
        assert!(rows.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1), "{file}");
    }
    // In the shared arm many requests did not complete.
    for (file, arm) in
        [("shared-victim1-contended.hgrm", 0), ("container-victim1-contended.hgrm", 1)]
    {
        let probe = &result["arms"][arm]["containers"][1]["phases"][1]["probe"];
        let rows = readers::plot_files(&text(file));
        for (name, axis) in [("p50", 2.0), ("p99", 100.0), ("p999", 1000.0)] {
            let row = rows.iter().find(|r| (r.1 - axis).abs() < 0.01).expect("a row");
            let want = probe[name]["ns"].as_u64().unwrap() as f64 / 1e6;
            assert!((row.0 - want).abs() < 0.001, "{file} {name}: {row:?} {want}");
        }
    }
    let solo = &result["arms"][1]["containers"][1]["phases"][0]["probe"];
    let rows = readers::plot_files(&text("container-victim1-solo.hgrm"));
    // The row at p99, or the first beyond it.
    let p99 = rows.iter().find(|r| r.1 >= 100.0).unwrap().0;
    let want = solo["p99"]["ns"].as_u64().unwrap() as f64 / 1e6;
    assert!(p99 >= want * 0.999 && p99 < want * 1.2, "{p99} {want}");
}

#[test]
fn junit_counts_match_the_verdict() {
    let verdict = json("verdict.json");
    let gates = verdict["gates"].as_array().unwrap();
    let suites = readers::junit(&text("junit.xml"));
    let cases: Vec<_> = suites.iter().flat_map(|s| &s.cases).collect();
    assert_eq!(cases.len(), gates.len());
    for gate in gates {
        let case = cases.iter().find(|c| {
            c.name == gate["name"].as_str().unwrap()
                && c.class.ends_with(&format!(".{}", gate["arm"].as_str().unwrap()))
        });
        let case = case.unwrap_or_else(|| panic!("no case for {gate}"));
        let outcome = match (gate["passed"].as_bool().unwrap(), gate["kind"].as_str().unwrap()) {
            (true, _) => None,
            (false, "subject") => Some("failure"),
            (false, _) => Some("error"),
        };
        assert_eq!(case.outcome.as_deref(), outcome, "{gate}");
    }
}

/// The shapes that github-action-benchmark's extractor and Bencher's JSON adapter require.
#[test]
fn benchmark_trackers_find_their_shapes() {
    for file in ["gab.json", "gab-bigger.json"] {
        let entries = json(file);
        let entries = entries.as_array().unwrap();
        assert!(entries.len() >= 4, "{file}");
        let mut names = std::collections::BTreeSet::new();
        for e in entries {
            assert!(e["value"].is_number() && e["unit"].is_string(), "{e}");
            assert!(names.insert(e["name"].as_str().unwrap()), "twice: {e}");
            for key in e.as_object().unwrap().keys() {
                assert!(
                    ["name", "unit", "value", "range", "extra"].contains(&key.as_str()),
                    "{key}"
                );
            }
        }
    }
    let smaller = text("gab.json");
    assert!(smaller.contains("unfairness") && !smaller.contains("goodput-up\""));
    assert!(text("gab-bigger.json").contains("goodput-up"));
    for (bench, measures) in json("bmf.json").as_object().unwrap() {
        assert!(!bench.is_empty() && bench.len() <= 1024);
        for (measure, m) in measures.as_object().unwrap() {
            assert!(measure.len() <= 64, "{measure}");
            let value = m["value"].as_f64().unwrap();
            let bound = |k: &str| m.get(k).map_or(value, |v| v.as_f64().unwrap());
            assert!(bound("lower_value") <= value && value <= bound("upper_value"), "{m}");
            for key in m.as_object().unwrap().keys() {
                assert!(["value", "lower_value", "upper_value"].contains(&key.as_str()), "{key}");
            }
        }
    }
}

#[test]
fn openmetrics_follows_its_grammar() {
    let families = readers::openmetrics(&text("metrics.prom"));
    let kinds: Vec<&str> = families.values().map(|f| f.kind.as_str()).collect();
    assert!(kinds.contains(&"gauge") && kinds.contains(&"histogram"));
    let result = json("result.json");
    let total: f64 = families["loadgen_response_seconds"]
        .samples
        .iter()
        .filter(|s| s.name.ends_with("_count") && s.labels["arm"] == "container")
        .map(|s| s.value)
        .sum();
    // Includes requests that did not complete, as in every other file.
    assert_eq!(total as u64, probes(&result, "container", None).0);
}

#[test]
fn windows_are_whole_and_agree_in_both_forms() {
    let result = json("result.json");
    let mut from_lines: BTreeMap<(String, String, String), u64> = BTreeMap::new();
    let lines = text("windows.ndjson");
    for line in lines.lines() {
        let v: Value = serde_json::from_str(line).unwrap();
        let s = |k: &str| v[k].as_str().unwrap().to_owned();
        *from_lines.entry((s("arm"), s("name"), s("metric"))).or_default() +=
            v["value"].as_u64().unwrap();
    }
    let mut from_csv: BTreeMap<(String, String, String), u64> = BTreeMap::new();
    let csv = readers::csv(&text("windows.csv"));
    assert_eq!(csv[0], ["t_ns", "length_ns", "arm", "name", "metric", "value"]);
    for row in &csv[1..] {
        let key = (row[2].clone(), row[3].clone(), row[4].clone());
        *from_csv.entry(key).or_default() += row[5].parse::<u64>().unwrap();
    }
    assert_eq!(from_lines, from_csv);
    assert_eq!(lines.lines().count(), csv.len() - 1);
    for arm in result["arms"].as_array().unwrap() {
        for c in arm["containers"].as_array().unwrap() {
            for way in ["up", "down"] {
                let s = |v: &Value| v.as_str().unwrap().to_owned();
                let key = (s(&arm["name"]), s(&c["name"]), format!("{way}_bytes"));
                assert_eq!(from_csv[&key], c[format!("{way}_total_bytes")].as_u64().unwrap());
            }
        }
    }
    let containers = readers::csv(&text("containers.csv"));
    assert!(containers.iter().all(|row| row.len() == containers[0].len()));
    assert_eq!(containers.len(), 1 + 2 * 3 * 3);
}

#[test]
fn the_summary_is_markdown_tables_of_one_width() {
    let text = text("summary.md");
    assert!(text.len() < 200 << 10);
    let mut width = None;
    for line in text.lines() {
        let cells = line.replace("\\|", "").matches('|').count();
        if !line.starts_with('|') {
            width = None;
        } else {
            assert_eq!(*width.get_or_insert(cells), cells, "{line}");
        }
    }
    assert_eq!(text.matches("<details>").count(), text.matches("</details>").count());
}

/// Every file is made from the result, so `report` reproduces the same files.
#[test]
fn a_report_made_again_is_the_same_files() {
    let again = scratch("again");
    let (from, to) = (run().display().to_string(), again.display().to_string());
    let (code, out, err) = loadgen(&["report", &from, "--out", &to]);
    assert_eq!(code, 0, "{out}{err}");
    let names = |dir: &Path| -> Vec<String> {
        let all = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<_> = all.map(|n| n.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(run()), names(&again));
    for name in names(&again) {
        let same =
            std::fs::read(run().join(&name)).unwrap() == std::fs::read(again.join(&name)).unwrap();
        assert!(same, "{name} differs");
    }
    let only = again.join("only");
    let (code, ..) =
        loadgen(&["report", &from, "--out", &only.display().to_string(), "--format", "md,junit"]);
    assert_eq!(code, 0);
    assert_eq!(names(&only), ["junit.xml", "summary.md"]);
}

#[test]
fn an_argument_that_is_no_result_is_a_usage_error_that_names_the_fault() {
    let dir = scratch("bad");
    std::fs::create_dir_all(&dir).unwrap();
    for (content, says) in [
        ("{\"schema\":\"loadgen.result/9\"}", "loadgen.result/9"),
        ("{\"schema\":\"loadgen.result/1\"}", "missing field"),
        ("not json", "not JSON"),
        ("{}", "schema none"),
    ] {
        let file = dir.join("result.json");
        std::fs::write(&file, content).unwrap();
        let (code, _, err) = loadgen(&["report", &file.display().to_string()]);
        assert_eq!(code, 2, "{content}: {err}");
        assert!(err.contains(says), "{content}: {err}");
    }
    let (code, _, err) = loadgen(&["report", "/nonexistent/result.json"]);
    assert_eq!(code, 2);
    assert!(err.contains("no such file"), "{err}");
    let (code, _, err) = loadgen(&["report", &run().display().to_string(), "--format", "htlm"]);
    assert_eq!(code, 2);
    assert!(err.contains("html"), "{err}");
}
