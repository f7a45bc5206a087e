//! Signals: each reaches the command exactly once, whichever process or group it is sent to.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::support::{BINARY, child_of, script, skbudget, succeed, text};
use skbudget_testbed::pty::Session;

/// All signals except SIGKILL, SIGSTOP, SIGCHLD and the two of the C library; of the real-time ones only some.
fn numbers() -> Vec<i32> {
    (1..32).filter(|n| ![9, 17, 19].contains(n)).chain([34, 35, 50, 64]).collect()
}

/// Prints the number of each signal at its arrival.
const PRINTS: &str = "import os, signal, sys
if 'leave' in sys.argv: os.setpgid(0, 0)
every = signal.valid_signals()
signal.pthread_sigmask(signal.SIG_BLOCK, every)
print('ready', flush=True)
while True: print(int(signal.sigwaitinfo(every).si_signo), flush=True)
";

/// Long enough for a duplicate to arrive.
const SETTLE: Duration = Duration::from_millis(80);

/// A run in a process group of its own. Its command prints the signals that it receives.
struct Printing {
    child: Child,
    lines: Receiver<String>,
}

impl Printing {
    fn start(args: &[&str]) -> Self {
        let mut command = skbudget(&[]);
        command.args(["python3", "-c", PRINTS]).args(args).process_group(0);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(BufReader::new(child.stdout.take().unwrap()));
        assert_eq!(lines.recv().unwrap(), "ready");
        Self { child, lines }
    }

    /// Sends each signal in turn. The command must receive it exactly once.
    #[track_caller]
    fn each_arrives_once(&self, to: &str) {
        for number in numbers() {
            send(number, to);
            let first = self.lines.recv_timeout(Duration::from_secs(10)).ok();
            thread::sleep(SETTLE);
            let more: Vec<_> = self.lines.try_iter().collect();
            let expected = (Some(number.to_string()), Vec::new());
            assert_eq!((first, more), expected, "signal {number} to {to}");
        }
    }
}

impl Drop for Printing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(from: impl BufRead + Send + 'static) -> Receiver<String> {
    let (to, lines) = mpsc::channel();
    thread::spawn(move || from.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
    lines
}

/// Sends a signal to all targets with one call of kill.
fn send(number: i32, to: &str) {
    let status = Command::new("bash").args(["-c", &format!("kill -{number} -- {to}")]).status();
    assert!(status.unwrap().success());
}

fn children(of: u32) -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
    let is_child = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{of}"))
    };
    pids.filter_map(|pid| pid.parse().ok()).filter(is_child).collect()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn each_signal_to_us_reaches_the_command_once() {
    let run = Printing::start(&[]);
    run.each_arrives_once(&run.child.id().to_string());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn each_signal_to_the_process_group_reaches_the_command_once() {
    let run = Printing::start(&[]);
    run.each_arrives_once(&format!("-{}", run.child.id()));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn each_signal_to_the_process_group_reaches_a_command_that_left_it_once() {
    let run = Printing::start(&["leave"]);
    run.each_arrives_once(&format!("-{}", run.child.id()));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_signal_to_each_of_our_processes_reaches_the_command_once() {
    let run = Printing::start(&[]);
    let us = run.child.id();
    let sandbox = child_of(us, "__sandbox");
    let init = children(sandbox)[0];
    for order in [[us, sandbox, init], [init, sandbox, us], [init, us, sandbox]] {
        let to = order.map(|pid| pid.to_string()).join(" ");
        run.each_arrives_once(&to);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_signal_within_the_container_to_process_1_or_to_the_group_reaches_the_command_once() {
    for to in ["1", "0"] {
        let script = format!(
            "n=0; trap 'n=$((n+1))' USR1; (trap '' USR1; sleep 0.1; kill -USR1 {to}) & \
             for i in {{1..20}}; do sleep 0.05; done; echo $n"
        );
        let mut command = skbudget(&[]);
        // Without a group of its own the run would share the tests' group.
        let output = command.args(["bash", "-c", &script]).process_group(0).output().unwrap();
        assert_eq!(text(&output.stdout).trim(), "1", "{to}: {}", text(&output.stderr));
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn real_time_signals_end_no_more_than_they_should() {
    // The signal ends an orphan, which does not concern the command.
    let output = script(&[], "(bash -c 'kill -RTMIN+3 $$' &); sleep 0.3; exit 5");
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    for (signal, code) in [("RTMIN", 128 + 34), ("RTMIN+3", 128 + 37), ("RTMAX", 128 + 64)] {
        let output = script(&[], &format!("kill -{signal} $$"));
        assert_eq!(output.status.code(), Some(code), "{signal}: {}", text(&output.stderr));
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_alarm_set_before_we_were_executed_ends_the_command() {
    let alarm = "import os, signal, sys; signal.alarm(1); os.execv(sys.argv[1], sys.argv[1:])";
    let mut command = Command::new("python3");
    command.args(["-c", alarm, BINARY, "run", "--", "sleep", "1000"]);
    assert_eq!(command.status().unwrap().code(), Some(128 + 14));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_signal_that_the_caller_ignores_ends_nothing() {
    for signal in [1, 2] {
        // The same during the set-up.
        let run = format!(
            "trap '' HUP INT; (sleep 0.02; kill -{signal} $$) & \
             exec {BINARY} run -- bash -c 'echo ready; sleep 0.5; exit 8'"
        );
        let mut command = Command::new("bash");
        let mut child = command.args(["-c", &run]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(BufReader::new(child.stdout.take().unwrap()));
        assert_eq!(lines.recv().unwrap(), "ready");
        send(signal, &child.id().to_string());
        assert_eq!(child.wait().unwrap().code(), Some(8));
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_caller_that_ignores_its_children_gets_the_commands_code() {
    let ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); \
                  os.execv(sys.argv[1], sys.argv[1:])";
    let mut command = Command::new("python3");
    command.args(["-c", ignore, BINARY, "run", "--", "bash", "-c", "exit 6"]);
    assert_eq!(command.status().unwrap().code(), Some(6));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_new_window_size_reaches_the_command_once() {
    let args = [BINARY, "run", "--", "python3", "-c", PRINTS];
    let mut session = Session::start(&args, &[]);
    session.expect("ready");
    // Changes one dimension only: stty sets rows and columns one after the other, with a signal for each change.
    session.beside("stty", &["rows", "33"]);
    session.expect("28");
    thread::sleep(SETTLE);
    session.type_in("\u{3}");
    session.expect("2\r\n");
    thread::sleep(SETTLE);
    let lines: Vec<_> = session.shown().split_whitespace().map(str::to_owned).collect();
    assert_eq!(lines, ["ready", "28", "^C2"]);
    session.type_in("\u{1c}");
}

/// Signals that the caller ignores are ignored by the command, whatever our processes need for themselves.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn ignored_signals_are_inherited_from_the_caller() {
    let caller = "
import os, signal, sys
names = sys.argv[1].split()
for name in ('SIGPIPE', 'SIGXFSZ', 'SIGHUP', 'SIGCHLD', 'SIGRTMIN'):
    signal.signal(getattr(signal, name), signal.SIG_IGN if name in names else signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
";
    let ignored = |run: &[&str]| {
        ["", "SIGHUP SIGPIPE SIGCHLD SIGRTMIN"].map(|names| {
            let look = ["grep", "SigIgn", "/proc/self/status"];
            let args = [&["-c", caller, names][..], run, &look].concat();
            let said = succeed(&Command::new("python3").args(args).output().unwrap());
            let set = u64::from_str_radix(said.trim().rsplit('\t').next().unwrap(), 16).unwrap();
            // Signals 32 and 33 belong to the C library, which installs handlers for them.
            set & !(0b11 << 31)
        })
    };
    let alone = ignored(&[]);
    assert_ne!(alone[0], alone[1]);
    assert_eq!(ignored(&[BINARY, "run", "--"]), alone);
}
