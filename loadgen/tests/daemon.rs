//! Scenarios on containers of a running daemon. What depends on how quiet the machine is, is judged by `loadgen run
//! --target daemon`; these tests judge what must hold on any machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skbudget_loadgen::measure::result::{ArmResult, RunResult};
use skbudget_loadgen::output::export;
use skbudget_loadgen::scenario::plan::Role;

#[path = "support/program.rs"]
mod program;

use program::{json, loadgen, scratch};

/// A daemon on a socket of its own. It ends with this value.
#[derive(Debug)]
struct Daemon {
    child: Child,
    folder: PathBuf,
}

impl Daemon {
    fn start(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("loadgen-{name}"));
        let mut command = Command::new(skbudget());
        command.args(["serve", "--workers", "2", "--socket"]).arg(folder.join("socket"));
        let mut daemon = Self { child: command.stdin(Stdio::null()).spawn().unwrap(), folder };
        while !daemon.client(&["ls"]).status.success() {
            assert_eq!(daemon.child.try_wait().unwrap(), None, "the daemon ended");
            sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn client(&self, args: &[&str]) -> Output {
        let mut client = Command::new(skbudget());
        client.args(args).arg("--socket").arg(self.socket()).output().unwrap()
    }

    /// Names of the containers.
    fn names(&self) -> Vec<String> {
        let list = self.client(&["ls", "--json"]);
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
        let all = list["containers"].as_array().unwrap().iter();
        all.map(|container| container["name"].as_str().unwrap().to_owned()).collect()
    }

    /// `loadgen run` on this daemon, by the variable that all of its clients read.
    fn loadgen(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        command.args(["run", "stalled-sender", "--target", "daemon", "--repeat", "1", "--out"]);
        command.arg(dir).args(args).env("SKBUDGET_SOCKET", self.socket());
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(pid(&self.child), Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The program, built with the tests of its package.
fn skbudget() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_loadgen")).with_file_name("skbudget");
    assert!(path.exists(), "{} is missing: cargo build -p skbudget", path.display());
    path
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn arm<'a>(result: &'a RunResult, name: &str) -> &'a ArmResult {
    result.arms.iter().find(|a| a.name == name).expect("the arm")
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_scenario_runs_on_containers_of_a_daemon_and_leaves_none() {
    let (daemon, dir) = (Daemon::start("runs"), scratch("runs"));
    let sets = ["run.warmup=500ms", "run.solo=2s", "run.contended=2s", "run.recovery=500ms"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let child = daemon.loadgen(&dir, &sets).stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
    let child = child.unwrap();
    let prefix = format!("loadgen-{}-", child.id());
    // The control runs in loadgen itself: the daemon has the containers of the other arm only.
    let mut seen = Vec::new();
    while seen.is_empty() {
        seen = daemon.names();
        sleep(Duration::from_millis(20));
    }
    assert!(seen.iter().all(|name| name.starts_with(&prefix)), "{seen:?}");
    let out = child.wait_with_output().unwrap();
    let result = export::json::read(&dir).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stderr)));
    assert_eq!(daemon.names(), Vec::<String>::new());

    assert_eq!(result.target, "daemon");
    for gate in &result.gates {
        if ["conservation", "every byte arrives intact"].contains(&gate.name.as_str()) {
            assert!(gate.passed, "{gate:?}");
        }
    }
    let container = arm(&result, "container");
    assert_eq!(container.fairness.overshoot_bytes, 0);
    assert_eq!((container.fairness.corrupt, container.fairness.broken), (0, 0));
    // Names and budgets are those of the scenario.
    assert_eq!(container.budgets.len(), container.containers.len());
    assert!(container.budgets.iter().all(|b| !b.name.starts_with("loadgen")), "{prefix}");
    let hog = container.containers.iter().find(|c| c.role == Role::Hog).expect("a hog");
    assert!(hog.flows_total > 0 && hog.peak_held_bytes <= hog.hard_bytes);
    for victim in container.containers.iter().filter(|c| c.role == Role::Victim) {
        assert_eq!(container.budgets[victim.budget].hard_bytes, Some(victim.hard_bytes));
        let probe = victim.phases[1].probe.as_ref().expect("a probe");
        assert!(probe.completed > 0, "{}: no response", victim.name);
        assert!(victim.stack_cpu_ns.is_some_and(|ns| ns > 0));
    }
    assert_eq!(arm(&result, "shared").budgets[0].name, "pool");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_interrupted_and_a_killed_run_leave_no_container() {
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let (daemon, dir) = (Daemon::start("interrupted"), scratch("interrupted"));
        // Only the arm on the daemon is long.
        let sets = ["--set", "arm.shared.isolation=off", "--set", "run.solo=60s"];
        let mut command = daemon.loadgen(&dir, &sets);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while daemon.names().len() < 3 {
            assert_eq!(child.try_wait().unwrap(), None, "loadgen ended");
            sleep(Duration::from_millis(20));
        }
        sleep(Duration::from_secs(2));
        kill(pid(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), code);
        // The kernel removes the namespaces of a killed run, and the daemon notices it.
        while signal == Signal::SIGKILL && !daemon.names().is_empty() {
            sleep(Duration::from_millis(20));
        }
        assert_eq!(daemon.names(), Vec::<String>::new());
        assert!(daemon.client(&["stats"]).status.success());
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_is_in_the_way_is_named() {
    let (daemon, dir) = (Daemon::start("refused"), scratch("refused"));
    // The shell has the process id that loadgen has afterwards.
    let script =
        "exec 9<$1; $0 attach loadgen-$$-hog --netns /proc/$$/fd/9 && shift && exec \"$@\"";
    let netns = format!("/run/netns/{}", "lg-taken");
    assert!(Command::new("ip").args(["netns", "add", "lg-taken"]).status().unwrap().success());
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(skbudget()).arg(&netns).arg(env!("CARGO_BIN_EXE_loadgen"));
    shell.args(["run", "stalled-sender", "--target", "daemon", "--set", "run.solo=1s"]);
    shell.args(["--set", "arm.shared.isolation=off", "--repeat", "1", "--out"]).arg(&dir);
    let out = shell.env("SKBUDGET_SOCKET", daemon.socket()).output().unwrap();
    assert!(Command::new("ip").args(["netns", "del", "lg-taken"]).status().unwrap().success());
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(5), "{said}");
    assert!(said.contains("is in use: skbudget detach loadgen-"), "{said}");

    // A process namespace in which the daemon does not find the namespaces of loadgen.
    let mut apart = Command::new("unshare");
    apart.args(["--pid", "--fork", "--mount-proc"]).arg(env!("CARGO_BIN_EXE_loadgen"));
    apart.args(["run", "stalled-sender", "--target", "daemon", "--set", "run.solo=1s"]);
    apart.args(["--set", "arm.shared.isolation=off", "--repeat", "1", "--out"]).arg(&dir);
    let out = apart.env("SKBUDGET_SOCKET", daemon.socket()).output().unwrap();
    assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("process namespace"), "{}", text(&out.stderr));

    // Another network: the servers of loadgen are out of reach.
    let mut apart = Command::new("unshare");
    apart.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
    apart.arg(env!("CARGO_BIN_EXE_loadgen")).args(["run", "stalled-sender", "--target", "daemon"]);
    let out = apart.arg("--out").arg(&dir).env("SKBUDGET_SOCKET", daemon.socket()).output();
    let out = out.unwrap();
    assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("nsenter --net"), "{}", text(&out.stderr));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn without_a_daemon_the_verdict_names_the_socket() {
    let dir = scratch("gone");
    let out = dir.display().to_string();
    let run = ["run", "step", "--target", "daemon", "--socket", "/nowhere/socket", "--out", &out];
    let (code, _, said) = loadgen(&run);
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("/nowhere/socket: no daemon serves this socket"), "{said}");
    let verdict = json(&dir.join("verdict.json")).to_string();
    assert!(verdict.contains("/nowhere/socket"), "{verdict}");
}

#[test]
fn what_the_target_does_not_have_is_refused() {
    let out = scratch("usage").display().to_string();
    let (code, _, said) = loadgen(&["run", "step", "--socket", "/x", "--out", &out]);
    assert_eq!((code, said.contains("only target daemon has one")), (2, true), "{said}");
    let flood = ["run", "ooo-flood", "--target", "daemon", "--out", &out];
    let (code, _, said) = loadgen(&flood);
    assert_eq!((code, said.contains("'flood' is supported on")), (2, true), "{said}");
}
