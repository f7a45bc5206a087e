//! What the daemon exchanges with a supervisor such as systemd.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::support::{BINARY, client, text, unique, until};

/// A supervisor's sockets, in a folder of their own.
struct Supervisor {
    folder: PathBuf,
}

impl Supervisor {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(unique("supervisor-"));
        fs::create_dir(&folder).unwrap();
        Self { folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("skbudget.sock")
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn signal(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_supervisor_is_notified_of_readiness_life_reload_and_end() {
    let supervisor = Supervisor::new();
    let path = supervisor.folder.join("notify");
    let notified = UnixDatagram::bind(&path).unwrap();
    let mut command = Command::new(BINARY);
    command.arg("serve").arg("--socket").arg(supervisor.socket()).stdin(Stdio::null());
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut child = command.spawn().unwrap();
    let next = || {
        let mut bytes = [0; 4096];
        let len = notified.recv(&mut bytes).unwrap();
        text(&bytes[..len])
    };
    // Signs of life arrive in between.
    let next_state = || std::iter::repeat_with(next).find(|state| state != "WATCHDOG=1").unwrap();
    let ready = next();
    assert!(ready.starts_with("READY=1\nSTATUS=serving on "), "{ready}");
    // Clients are served already.
    assert!(client(&supervisor.socket(), &["ls"]).status.success());
    assert_eq!([next(), next(), next()], ["WATCHDOG=1"; 3]);
    signal(&child, "HUP");
    let reloading = next_state();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").map(str::parse::<u64>);
    assert!(matches!(time, Some(Ok(1..))), "{reloading}");
    assert_eq!(next_state(), ready);
    signal(&child, "TERM");
    assert_eq!(next_state(), "STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Runs the rest of the arguments with the socket as descriptor 3, as a supervisor does.
const PASS: &str = "
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
";

fn passing(socket: &Path, count: &str, option: &Path) -> Command {
    let mut command = Command::new("python3");
    command.arg("-c").arg(PASS).arg(socket).arg(count).arg(BINARY);
    command.args(["serve", "--socket"]).arg(option).stdin(Stdio::null());
    command
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_socket_that_the_supervisor_passes_is_served_and_stays() {
    let supervisor = Supervisor::new();
    let socket = supervisor.socket();
    let mut child = passing(&socket, "1", &socket).spawn().unwrap();
    until(|| client(&socket, &["ls"]).status.success());
    // Another daemon does not replace it.
    let output = Command::new(BINARY).args(["serve", "--socket"]).arg(&socket).output().unwrap();
    let message = text(&output.stderr);
    assert!(message.contains(&format!("process id {}", child.id())), "{message}");
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let left: Vec<_> = fs::read_dir(&supervisor.folder).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(socket.exists());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_socket_that_does_not_fit_is_refused() {
    let supervisor = Supervisor::new();
    let refused = |count: &str, option: &Path, code: i32| {
        let _ = fs::remove_file(supervisor.socket());
        let Output { status, stderr, .. } =
            passing(&supervisor.socket(), count, option).output().unwrap();
        assert_eq!(status.code(), Some(code), "{}", text(&stderr));
        text(&stderr)
    };
    let message = refused("2", &supervisor.socket(), 1);
    assert!(message.contains("2 descriptors were passed; one is allowed"), "{message}");
    let message = refused("1", &supervisor.folder.join("other.sock"), 2);
    assert!(message.contains("the supervisor passed the socket"), "{message}");
}
