//! A careless or hostile user, file or terminal: names that lead outside the folder, control characters, two commands
//! in one folder, results merged with themselves, signals.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "support/program.rs"]
mod program;
#[path = "support/small.rs"]
mod small;

use program::{json, loadgen};
use small::SMALL;

fn scratch(name: &str) -> PathBuf {
    let dir = program::scratch(name);
    fs::create_dir_all(&dir).expect("a folder");
    dir
}

/// Runs in the folder `dir`, because a scenario without `--out` writes below the current folder.
fn loadgen_in(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).current_dir(dir).output();
    let out = out.expect("loadgen starts");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (out.status.code().expect("an exit code"), text(&out.stdout), text(&out.stderr))
}

fn sets() -> Vec<&'static str> {
    SMALL.iter().flat_map(|s| ["--set", s]).collect()
}

#[test]
fn a_scenarios_name_leads_to_no_other_folder() {
    let dir = scratch("names");
    let file = dir.join("mine.toml");
    let (path, home) = (file.display().to_string(), dir.join("home"));
    fs::create_dir_all(&home).unwrap();
    for name in ["../../evil", "/tmp/evil", "..", "a/b", "\\u001b[31mred", "with space", ""] {
        fs::write(&file, format!("name = \"{name}\"\nextends = \"builtin:aa\"\n")).unwrap();
        for command in [&["run", &path][..], &["sweep", &path, "--param", "run.solo=1s"]] {
            let (code, out, err) = loadgen_in(&home, command);
            assert_eq!(code, 2, "{name}: {out}{err}");
            assert!(err.contains("a scenario's name is 1 to 64 letters"), "{name}: {err}");
            assert!(!err.contains('\x1b'), "{name}");
        }
    }
    // Built-in scenarios keep their folders, whatever name a file sets.
    for (name, command) in [("step", "run"), ("repro", "run"), ("aa", "sweep")] {
        fs::write(&file, format!("name = \"{name}\"\nextends = \"builtin:aa\"\n")).unwrap();
        let more: &[&str] = if command == "sweep" { &["--param", "run.solo=1s"] } else { &[] };
        let (code, _, err) = loadgen_in(&home, &[&[command, path.as_str()], more].concat());
        assert_eq!(code, 2, "{name}: {err}");
        assert!(err.contains("--out") && err.contains(name), "{err}");
    }
    let arm = "name = \"mine\"\nextends = \"builtin:aa\"\n[[arm]]\nname = \"../x\"\n";
    fs::write(&file, arm).unwrap();
    let (code, _, err) = loadgen_in(&home, &["run", &path]);
    assert!(code == 2 && err.contains("an arm's name"), "{err}");
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0, "nothing was written");
}

/// From every source: the command line, a file, a result.
#[test]
fn control_characters_do_not_reach_the_terminal() {
    let dir = scratch("controls");
    let out = dir.join("run").display().to_string();
    let (code, said, err) = loadgen(&[&["repro", "--out", &out][..], &sets()].concat());
    assert_eq!(code, 0, "{said}{err}");
    let mut result = json(&dir.join("run/result.json"));
    let bad = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}";
    result["scenario"] = bad.into();
    result["about"] = bad.into();
    result["arms"][0]["name"] = bad.into();
    result["gates"][0]["observed"] = bad.into();
    let forged = dir.join("forged");
    fs::create_dir_all(&forged).unwrap();
    fs::write(forged.join("result.json"), result.to_string()).unwrap();
    let (forged, other) = (forged.display().to_string(), dir.join("other").display().to_string());
    let set = format!("{bad}=1");
    let file = dir.join("bad.toml");
    fs::write(&file, format!("{}=1\n", bad.escape_default())).unwrap();
    let file = file.display().to_string();
    for args in [
        &["report", &forged, "--out", &other][..],
        &["gate", &forged],
        &["gate", &out, "--baseline", &forged],
        &["gate", &out, "--expr", bad],
        &["compare", &forged, &out],
        &["compare", &forged, &forged, "--json"],
        &["merge", &forged, &out, "--out", &other],
        &["run", bad],
        &["run", &file],
        &["run", "aa", "--set", &set],
        &["run", "aa", "--out", bad, "--target", bad],
        &["explain", bad],
        &["show", bad],
        &[bad],
        &["run", bad, bad],
    ] {
        let (_, said, err) = loadgen(args);
        let all = format!("{said}{err}");
        let shown = all.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
        assert_eq!(shown, None, "{args:?}: {all}");
        assert!(!all.contains('\u{202e}'), "{args:?}: {all}");
    }
    let (_, text, _) = loadgen(&["report", &forged, "--out", &other, "--github"]);
    assert!(!text.contains('\x1b'), "{text}");
}

fn start(args: &[&str]) -> Child {
    // `env` becomes loadgen, so the process is the same. loadgen keeps ignoring a hang-up that its caller ignores, as
    // under `nohup`, and the caller of these tests may do so.
    Command::new("env")
        .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_loadgen")])
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("loadgen starts")
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it is there");
}

/// Waits until a process has locked the folder.
fn wait_for_lock(dir: &Path) {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        if File::open(dir).is_ok_and(|f| matches!(f.try_lock(), Err(fs::TryLockError::WouldBlock)))
        {
            return;
        }
        sleep(Duration::from_millis(5));
    }
    panic!("nobody locks {}", dir.display());
}

#[test]
fn a_folder_is_written_by_one_command_at_a_time() {
    let dir = program::scratch("two");
    let out = dir.display().to_string();
    let mut first = start(&["repro", "--out", &out, "--set", "solo=600s"]);
    wait_for_lock(&dir);
    for args in [
        &["run", "aa", "--out", &out][..],
        &["sweep", "aa", "--param", "run.solo=1s", "--out", &out],
        &["compare", "--exec", "--scenario", "aa", "--out", &out],
    ] {
        let (code, _, err) = loadgen(args);
        assert_eq!(code, 1, "{args:?}: {err}");
        assert!(err.contains("another loadgen uses this folder"), "{args:?}: {err}");
    }
    signal(&first, Signal::SIGINT);
    assert_eq!(first.wait().expect("it ends").code(), Some(130));
    assert_eq!(json(&dir.join("result.json"))["scenario"], "starvation");
}

/// A terminal that hangs up must not discard the measurements; its two signals count as one.
#[test]
fn hang_up_and_term_write_the_measurements() {
    for (name, signals) in [
        ("hup", &[Signal::SIGHUP, Signal::SIGHUP][..]),
        ("term", &[Signal::SIGTERM]),
        ("int-then-hup", &[Signal::SIGINT, Signal::SIGHUP]),
    ] {
        let dir = program::scratch(name);
        let out = dir.display().to_string();
        let mut child = start(&["repro", "--out", &out, "--set", "solo=600s"]);
        wait_for_lock(&dir);
        sleep(Duration::from_millis(300));
        for s in signals {
            signal(&child, *s);
            sleep(Duration::from_millis(5));
        }
        assert_eq!(child.wait().expect("it ends").code(), Some(130), "{name}");
        let result = json(&dir.join("result.json"));
        assert_eq!(result["interrupted"], true, "{name}");
        assert_eq!(json(&dir.join("verdict.json"))["verdict"]["exit"], 130, "{name}");
        assert!(dir.join("junit.xml").exists() && dir.join("report.html").exists(), "{name}");
    }
}

/// As under `nohup`.
#[test]
fn a_hang_up_that_is_ignored_stays_ignored() {
    let dir = program::scratch("nohup");
    let out = dir.display().to_string();
    let mut child = Command::new("nohup")
        .arg(env!("CARGO_BIN_EXE_loadgen"))
        .args(["repro", "--out", &out, "--set", "solo=600s"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nohup starts");
    wait_for_lock(&dir);
    signal(&child, Signal::SIGHUP);
    sleep(Duration::from_millis(500));
    assert_eq!(child.try_wait().expect("a child"), None, "it goes on");
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
}

/// A command with several runs forwards the signal once, and the result of its run is written.
#[test]
fn a_comparison_that_is_stopped_stops_its_run() {
    let dir = program::scratch("compare");
    let out = dir.display().to_string();
    let mut child = start(&["compare", "--exec", "--out", &out, "--set", "solo=600s"]);
    let run = dir.join("a/01");
    let other = dir.join("b/01");
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until && !run.exists() && !other.exists() {
        sleep(Duration::from_millis(5));
    }
    let run = if run.exists() { run } else { other };
    wait_for_lock(&run);
    sleep(Duration::from_millis(300));
    let asked = Instant::now();
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(60));
    assert_eq!(json(&run.join("result.json"))["interrupted"], true);
}

/// Stopped while the namespaces are created: nothing was measured, and the result reports that.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_tap_run_stopped_in_its_first_second_is_interrupted() {
    for wait in [0, 100, 400] {
        let dir = program::scratch("early");
        let out = dir.display().to_string();
        let child = start(&["run", "stalled-sender", "--target", "tap", "--out", &out]);
        wait_for_lock(&dir);
        sleep(Duration::from_millis(wait));
        signal(&child, Signal::SIGINT);
        let done = child.wait_with_output().expect("it ends");
        assert_eq!(done.status.code(), Some(130), "{done:?}");
        let result = json(&dir.join("result.json"));
        assert_eq!(result["interrupted"], true);
        assert_eq!(result["arms"].as_array().unwrap().len(), 0);
        for file in ["verdict.json", "junit.xml", "report.html", "summary.md"] {
            assert!(dir.join(file).exists(), "{file}");
        }
    }
}

#[test]
fn a_merge_takes_every_run_once_and_keeps_its_inputs() {
    let dir = scratch("merge");
    let at = |name: &str| dir.join(name).display().to_string();
    for seed in ["1", "2", "3"] {
        let (code, said, err) =
            loadgen(&[&["repro", "--seed", seed, "--out", &at(seed)][..], &sets()].concat());
        assert_eq!(code, 0, "{said}{err}");
    }
    let before = fs::read(dir.join("1/result.json")).unwrap();
    let merge =
        |args: &[&str], out: &str| loadgen(&[&["merge"], args, &["--out", &at(out)]].concat());
    for out in ["1", "2/../1", "2"] {
        let (code, _, err) = merge(&[&at("1"), &at("2")], out);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("would overwrite the input"), "{err}");
    }
    assert_eq!(fs::read(dir.join("1/result.json")).unwrap(), before);
    // A copy with another time stamp is the same run.
    fs::create_dir_all(dir.join("copy")).unwrap();
    let mut copy = json(&dir.join("1/result.json"));
    copy["meta"]["started_unix_ms"] = 1.into();
    fs::write(dir.join("copy/result.json"), copy.to_string()).unwrap();
    for twice in [[at("1"), at("1")], [at("1"), at("1/result.json")], [at("1"), at("copy")]] {
        let (code, _, err) = merge(&[&twice[0], &twice[1]], "none");
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("the same run"), "{err}");
    }
    assert!(!dir.join("none").exists());
    // Also within a merged result.
    assert_eq!(merge(&[&at("1"), &at("2")], "sum").0, 0);
    let (code, _, err) = merge(&[&at("3"), &at("sum"), &at("2")], "none");
    assert!(code == 2 && err.contains("results 2 and 3"), "{err}");
    assert_eq!(merge(&[&at("3"), &at("sum")], "all").0, 0);
    assert_eq!(json(&dir.join("all/result.json"))["merged_of"].as_array().unwrap().len(), 3);
}
