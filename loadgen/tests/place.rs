//! The content of the folder after a run that fails, is killed, or writes fewer files than the run before it.

use std::path::Path;
use std::process::{Command, Stdio};

#[path = "support/program.rs"]
mod program;
#[path = "support/small.rs"]
mod small;

use program::{json, loadgen, scratch};
use small::SMALL;

fn arguments(dir: &Path, more: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = ["repro", "--out"].map(str::to_owned).into();
    args.push(dir.display().to_string());
    SMALL.iter().for_each(|s| args.extend(["--set".to_owned(), (*s).to_owned()]));
    args.extend(more.iter().map(|s| (*s).to_owned()));
    args
}

fn run(dir: &Path, more: &[&str]) -> i32 {
    let args = arguments(dir, more);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    loadgen(&args).0
}

fn names(dir: &Path) -> Vec<String> {
    let all = std::fs::read_dir(dir).expect("a folder").map(|e| e.expect("an entry").file_name());
    let mut names: Vec<String> = all.map(|n| n.into_string().expect("ASCII")).collect();
    names.sort();
    names
}

#[test]
fn nothing_of_an_earlier_run_stays_beside_a_later_one() {
    let dir = scratch("stale");
    assert_eq!(run(&dir, &["--set", "victims=2"]), 0);
    std::fs::write(dir.join("theirs.hgrm"), "not ours").expect("written");
    let hgrm = |victim: &str| dir.join(format!("container-{victim}-solo.hgrm")).exists();
    assert!(hgrm("victim2") && dir.join("junit.xml").exists());

    assert_eq!(run(&dir, &["--format", "html,hgrm"]), 0);
    assert!(hgrm("victim1") && !hgrm("victim2"), "there is one victim now");
    assert_eq!(run(&dir, &["--format", "html"]), 0);
    assert_eq!(names(&dir), ["report.html", "result.json", "theirs.hgrm", "verdict.json"]);

    // Rewritten beside the result, one file leaves the others in place.
    let beside = dir.display().to_string();
    assert_eq!(loadgen(&["report", &beside, "--format", "junit"]).0, 0);
    let all = ["junit.xml", "report.html", "result.json", "theirs.hgrm", "verdict.json"];
    assert_eq!(names(&dir), all);
    // A usage error measures nothing: no older verdict remains, but older measurements do.
    assert_eq!(run(&dir, &["--set", "victms=2"]), 2);
    assert_eq!(names(&dir), ["report.html", "result.json", "theirs.hgrm"]);
}

#[test]
fn a_run_that_is_killed_leaves_no_verdict() {
    let dir = scratch("killed");
    assert_eq!(run(&dir, &[]), 0);
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(arguments(&dir, &["--set", "solo=600s"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("loadgen starts");
    let cleared = (0..600).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        names(&dir).is_empty()
    });
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert!(cleared);
    assert_eq!(names(&dir), Vec::<String>::new());
}

/// Exit 1: the run could not print its outcome. It writes no verdict, which another program might read.
#[test]
fn no_verdict_beside_an_output_that_is_full() {
    let dir = scratch("full-output");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
    let status = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(arguments(&dir, &[]))
        .stdout(full)
        .stderr(Stdio::null())
        .status()
        .expect("loadgen starts");
    assert_eq!(status.code(), Some(1));
    assert!(dir.join("result.json").exists() && !dir.join("verdict.json").exists());
    assert!(!dir.join("junit.xml").exists() && !dir.join("summary.md").exists());

    // `gate` replaces the files of an earlier judgement; `selftest` writes none.
    let judged = scratch("full-gate");
    let (from, to) = (dir.display().to_string(), judged.display().to_string());
    let gate = ["gate", &from, "--out", &to];
    assert_eq!(loadgen(&gate).0, 0);
    assert_eq!(names(&judged), ["junit.xml", "summary.md"]);
    for args in [&gate[..], &["selftest"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        let status = command.args(args).stdout(full).stderr(Stdio::null()).status();
        let code = status.expect("loadgen starts").code();
        // 5: a machine too busy to wake up in time.
        assert!(code == Some(1) || args == ["selftest"] && code == Some(5), "{args:?}: {code:?}");
    }
    assert_eq!(names(&judged), Vec::<String>::new());

    // The same for the summary on the page of a CI job.
    let full = scratch("full-summary");
    let out = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(arguments(&full, &["--github"]))
        .env("GITHUB_STEP_SUMMARY", "/dev/full")
        .output()
        .expect("loadgen starts");
    assert_eq!(out.status.code(), Some(1));
    assert!(full.join("result.json").exists() && !full.join("verdict.json").exists());
}

/// Disks of different sizes run full at different files. None has a verdict beside exit 1, and one that is large enough
/// has a verdict.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn no_verdict_beside_a_full_disk() {
    let mount = scratch("disk");
    std::fs::create_dir_all(&mount).expect("a folder");
    let mut exits = Vec::new();
    for size in ["16k", "64k", "256k", "1m", "64m"] {
        // In its own mount namespace: nothing stays mounted, whatever happens.
        let script = "mount -t tmpfs -o size=$1 tmpfs $2; cd $2; echo '{}' >verdict.json; shift 2; \
                      \"$@\" >/dev/null 2>&1; echo $?; cat verdict.json 2>/dev/null; ls -A | wc -l";
        let out = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh", size])
            .arg(&mount)
            .arg(env!("CARGO_BIN_EXE_loadgen"))
            .args(arguments(Path::new("."), &[]))
            .output()
            .expect("unshare starts");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let exit = said.lines().next().unwrap_or_default().to_owned();
        match exit.as_str() {
            "1" => assert_eq!(said.lines().collect::<Vec<_>>(), ["1", "0"], "{size}: {said}"),
            "0" => assert!(said.contains("\"PASS\""), "{size}: {said}"),
            _ => panic!("{size}: {said}"),
        }
        exits.push(exit);
    }
    assert_eq!((exits[0].as_str(), exits[4].as_str()), ("1", "0"), "{exits:?}");
}

/// A killed sweep leaves no verdict of an earlier one, for any of its values.
#[test]
fn a_sweep_begins_with_empty_folders() {
    let dir = scratch("sweep");
    let point = dir.join("probe-rate-2500");
    std::fs::create_dir_all(&point).expect("a folder");
    std::fs::write(dir.join("sweep.json"), "{\"schema\": \"loadgen.sweep/1\"}").expect("written");
    std::fs::write(point.join("verdict.json"), "{}").expect("written");
    let out = dir.display().to_string();
    let mut args = vec!["sweep", "no-hog", "--param", "probe-rate=2000,2500", "--out", &out];
    args.extend(["--set", "solo=600s"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(&args)
        .stdout(Stdio::null())
        .spawn()
        .expect("loadgen starts");
    let gone = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        !point.join("verdict.json").exists() && !dir.join("sweep.json").exists()
    });
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert!(gone);
    let (code, said, err) = loadgen(&args[..args.len() - 2]);
    assert_eq!(code, 0, "{said}{err}");
    assert_eq!(json(&point.join("verdict.json"))["verdict"]["word"], "PASS");
}

/// The files by which a CI server judges, as every command writes them.
fn judged(dir: &Path) {
    std::fs::create_dir_all(dir).expect("a folder");
    for (name, text) in [
        ("verdict.json", "{\"schema\": \"loadgen.verdict/1\"}"),
        ("junit.xml", "<!-- loadgen.junit -->"),
        ("summary.md", "<!-- loadgen.summary -->"),
        ("compare.json", "{\"schema\": \"loadgen.compare/1\"}"),
        ("sweep.json", "{\"schema\": \"loadgen.sweep/1\"}"),
        ("report.html", "<meta name=\"generator\" content=\"loadgen\">"),
    ] {
        std::fs::write(dir.join(name), text).expect("written");
    }
}

/// A command that fails before it starts judges nothing; the files of an earlier one would still be green.
#[test]
fn no_earlier_verdict_stays_beside_an_error() {
    let dir = scratch("errors");
    let out = dir.display().to_string();
    let none = scratch("no-result").display().to_string();
    for (code, args) in [
        (6, &["compare", &none, &none][..]),
        (2, &["compare", &none, &none, "--rounds", "7"]),
        (2, &["compare", "--exec", "--scenario", "step", "--set-b", "nope=1"]),
        (2, &["sweep", "step", "--param", "nope=1"]),
        (2, &["sweep", "step", "--param", "rtt=1ms", "--target", "nope"]),
        (2, &["sweep", "step", "--param", "rtt=1ms", "--repeat", "3"]),
        (2, &["search", "step", "--param", "nope", "--from", "1", "--to", "2"]),
        (6, &["merge", &none, &none]),
        (6, &["report", &none]),
        (6, &["gate", &none]),
    ] {
        judged(&dir);
        let (exit, _, err) = loadgen(&[args, &["--out", &out]].concat());
        // A missing result may be an error of usage too.
        assert!(exit == code || code == 6 && exit == 2, "{args:?}: {exit} {err}");
        assert_eq!(names(&dir), ["report.html"], "{args:?}");
    }
    // Refused because of the folder: its files are those of the input.
    judged(&dir);
    let before = names(&dir);
    assert_eq!(loadgen(&["gate", &out, "--out", &out]).0, 2);
    assert_eq!(loadgen(&["compare", &out, &out, "--out", &out, "--rounds", "7"]).0, 2);
    assert_eq!(names(&dir), before);
}

/// The default folder has the name that the file sets, not that of the file.
#[test]
fn the_default_folder_of_a_file_loses_its_verdict_too() {
    let home = scratch("home");
    std::fs::create_dir_all(&home).expect("a folder");
    std::fs::write(home.join("file.toml"), "name = \"mine\"\nextends = \"builtin:aa\"\n")
        .expect("written");
    for (folder, args) in [
        ("out/mine-1", &["run", "file.toml", "--set", "nope=1"][..]),
        ("out/mine-4", &["run", "file.toml", "--seed", "4", "--target", "nope"]),
        ("out/sweep-mine-1", &["sweep", "file.toml", "--param", "nope=1"]),
        (
            "out/search-mine-1",
            &["search", "file.toml", "--param", "nope", "--from", "1", "--to", "2"],
        ),
    ] {
        let dir = home.join(folder);
        judged(&dir);
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        let done = command.args(args).current_dir(&home).output().expect("loadgen starts");
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        assert_eq!(names(&dir), ["report.html"], "{args:?}");
    }
}

/// Before the run, which may take minutes.
#[test]
fn a_file_of_another_program_is_not_overwritten() {
    let dir = scratch("foreign");
    std::fs::create_dir_all(dir.join("junit.xml")).expect("a folder");
    let out = dir.display().to_string();
    for args in [
        &["run", "aa"][..],
        &["sweep", "aa", "--param", "run.solo=1s"],
        &["compare", "--exec", "--scenario", "aa"],
    ] {
        let (code, said, err) = loadgen(&[args, &["--out", &out]].concat());
        assert_eq!(code, 2, "{args:?}: {said}{err}");
        assert!(err.contains("junit.xml: loadgen did not write this"), "{args:?}: {err}");
        assert_eq!(names(&dir), ["junit.xml"], "{args:?}");
    }
}
