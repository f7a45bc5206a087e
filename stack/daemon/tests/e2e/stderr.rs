//! A stderr that accepts no data neither ends nor stops the run.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write, pipe};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::{BINARY, Running, free_port, skbudget, text};

/// Both ends of a full pipe, with the flags that a shell would set.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (from, mut to) = pipe().unwrap();
    fcntl(&to, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let full = loop {
        if let Err(e) = to.write(&[b'.'; 4096]) {
            break e.kind();
        }
    };
    assert_eq!(full, ErrorKind::WouldBlock);
    fcntl(&to, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (from.into(), to.into())
}

/// Targets that accept no data, each with the descriptor that must stay open meanwhile.
fn deaf() -> [(&'static str, Option<OwnedFd>, OwnedFd); 3] {
    let full_disk = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (_, closed) = pipe().unwrap();
    let (from, to) = full_pipe();
    [
        ("a full disk", None, full_disk.into()),
        ("a closed pipe", None, closed.into()),
        ("a full pipe", Some(from), to),
    ]
}

/// Connects and resets. False when no process listens.
fn connect_and_reset(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))) else {
        return false;
    };
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &linger).unwrap();
    true
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn remotes_that_cause_messages_neither_end_nor_stop_a_run() {
    for (what, _reader, stderr) in deaf() {
        let port = free_port();
        let publish = format!("127.0.0.1:{port}:80");
        let mut command = skbudget(&["-vv", "--publish", &publish]);
        // Runs until the device has received more than 40 frames.
        let script = "echo ready; received() { awk '/tap0/ {print $3}' /proc/net/dev; }; \
                      until [ $(received) -gt 40 ]; do sleep 0.02; done; exit 7";
        command.args(["bash", "-c", script]).stderr(stderr);
        let mut running = Running::spawn(&mut command);
        // Repeats until the command has received enough of them and the run has ended.
        while connect_and_reset(port) {
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(running.wait().code(), Some(7), "{what}");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn failures_of_every_process_keep_their_codes() {
    for (command, code) in [("/no/such/command", 127), ("/etc/passwd", 126)] {
        for (what, _reader, stderr) in deaf() {
            let status = skbudget(&[]).arg(command).stderr(stderr).status().unwrap();
            assert_eq!(status.code(), Some(code), "{command}: {what}");
        }
    }
    // Process 1 detects this failure: the interpreter is missing.
    let script = crate::support::TempFile::new("script");
    std::fs::write(&script.0, "#!/no/such/interpreter\n").unwrap();
    Command::new("chmod").args(["755", script.path()]).status().unwrap();
    for (what, _reader, stderr) in deaf() {
        let status = skbudget(&[]).arg(script.path()).stderr(stderr).status().unwrap();
        assert_eq!(status.code(), Some(127), "{what}");
    }
    let output = skbudget(&[]).arg(script.path()).output().unwrap();
    assert!(text(&output.stderr).starts_with("skbudget: /"), "{}", text(&output.stderr));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_flags_of_the_callers_stderr_stay_as_they_are() {
    let (mut from, to) = pipe().unwrap();
    let ours = to.as_fd().try_clone_to_owned().unwrap();
    let status = skbudget(&["-vv"]).arg("true").stderr(to).status().unwrap();
    assert!(status.success());
    let flags = OFlag::from_bits_retain(fcntl(&ours, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK), "{flags:?}");
    drop(ours);
    from.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn help_for_a_full_disk_is_a_failure_and_for_a_closed_pipe_is_none() {
    let help = |stdout: Stdio| Command::new(BINARY).arg("--help").stdout(stdout).output().unwrap();
    let full = help(File::options().write(true).open("/dev/full").unwrap().into());
    assert_eq!(full.status.code(), Some(1));
    assert!(
        text(&full.stderr).starts_with("skbudget: cannot write to stdout: "),
        "{}",
        text(&full.stderr)
    );
    let closed = help(pipe().unwrap().1.into());
    assert_eq!((closed.status.code(), text(&closed.stderr)), (Some(0), String::new()));
}
