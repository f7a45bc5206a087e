//! The commands that read results: compare, merge, selftest, explain, schema.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

mod compare;
mod gate;
mod merge;
#[path = "../support/program.rs"]
mod program;
#[path = "../support/schema.rs"]
mod schema;
#[path = "../support/small.rs"]
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

/// Neither an endless device nor a FIFO without a writer is read.
#[test]
fn only_regular_files_are_read() {
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
fn selftest_knows_its_answers() {
    let (code, out, _) = loadgen(&["selftest"]);
    // 5: a machine too busy to wake up in time, which is not a fault of the binary.
    assert!(code == 0 || code == 5, "{out}");
    assert!(out.matches("ok  ").count() >= 6, "{out}");
}

/// Every metric, gate and exit code has an explanation.
#[test]
fn explain_knows_every_topic() {
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
