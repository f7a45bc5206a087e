//! The relay, the process that handles outside data: its privileges, and the consequences of its end.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::rootless::copy_for_users;
use crate::support::{
    BINARY, Running, TempFile, child_of, echo, free_port, process_with, serve, signal_pid, succeed,
    unique, until,
};

fn status_of(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

/// Open files of a process, without sockets, the device and descriptors of the event loop.
fn files_of(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = links.map(|link| fs::read_link(link.unwrap().path()).unwrap());
    let texts = targets.map(|target| target.to_string_lossy().into_owned());
    let ours = ["socket:", "anon_inode:", "/dev/net/tun", "/dev/null", "pipe:"];
    let mut files: Vec<_> =
        texts.filter(|target| !ours.iter().any(|own| target.starts_with(own))).collect();
    files.sort();
    files
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn it_has_no_privileges_and_no_files_but_those_it_was_given() {
    let (pcap, stats, open) =
        (TempFile::new("pcap"), TempFile::new("stats"), TempFile::new("open"));
    let publish = format!("127.0.0.1:{}:80", free_port());
    let line = format!(
        "exec 9>{}; exec {BINARY} run -p {publish} --pcap {} --stats-file {} -- sh -c 'echo ready; exec sleep 1000'",
        open.path(),
        pcap.path(),
        stats.path()
    );
    let mut command = Command::new("bash");
    let mut running = Running::spawn(command.args(["-c", &line]));
    let relay = child_of(running.child.id(), "__relay");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_of(relay, set), "0".repeat(16), "{set}");
    }
    assert_eq!(status_of(relay, "NoNewPrivs"), "1");
    assert_eq!(status_of(relay, "Seccomp"), "2");
    let users: Vec<u32> =
        status_of(relay, "Uid").split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert!(users.iter().all(|id| (61_184..65_520).contains(id)), "{users:?}");
    assert_eq!(status_of(relay, "Groups"), "");
    // /proc entries of a process that is not dumpable belong to root, whatever its user is.
    assert_eq!(owner(&format!("/proc/{relay}/mem")), 0);
    assert_eq!(files_of(relay), [pcap.path()]);
    assert_eq!(fs::read_link(format!("/proc/{relay}/cwd")).unwrap(), Path::new("/"));
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(128 + 15));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn without_the_sandbox_it_has_no_filter_and_the_run_says_so() {
    let mut command = crate::support::skbudget(&["--sandbox", "off"]);
    command.args(["sh", "-c", "echo ready; exec sleep 1000"]).stderr(std::process::Stdio::piped());
    let mut running = Running::spawn(&mut command);
    let relay = child_of(running.child.id(), "__relay");
    assert_eq!(status_of(relay, "Seccomp"), "0");
    assert_eq!(status_of(relay, "CapEff"), "0".repeat(16));
    running.signal("TERM");
    let mut said = String::new();
    let mut stderr = running.child.stderr.take().unwrap();
    std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
    assert_eq!(running.wait().code(), Some(128 + 15));
    assert!(said.contains("--sandbox off"), "{said}");
}

fn owner(path: &str) -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().uid()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn its_end_is_a_failure_and_takes_all_along() {
    let name = unique("relay");
    let line = "echo ready; exec -a MARK sleep 1000".replace("MARK", &name);
    let mut running = Running::start(&["--name", &name], &line);
    signal_pid(child_of(running.child.id(), "__relay"), "KILL");
    assert_eq!(running.wait().code(), Some(1));
    until(|| !process_with(&name));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn it_ends_with_skbudget() {
    let name = unique("parent");
    let mut running = Running::start(&["--name", &name], "echo ready; exec sleep 1000");
    let relay = child_of(running.child.id(), "__relay");
    // Also if the relay is stopped.
    signal_pid(relay, "STOP");
    running.signal("KILL");
    running.wait();
    until(|| !Path::new(&format!("/proc/{relay}")).exists());
}

/// Only root may bind this port.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_low_port_is_published_though_the_relay_may_not_bind_it() {
    let taken = || TcpListener::bind("127.0.0.1:81").is_err();
    assert!(!taken());
    let serve = "
import socket
s = socket.create_server(('', 80))
print('ready', flush=True)
c, _ = s.accept()
c.sendall(b'hello')
";
    let mut command = crate::support::skbudget(&["-p", "127.0.0.1:81:80"]);
    let mut running = Running::spawn(command.args(["python3", "-c", serve]));
    assert_eq!(crate::support::fetch("127.0.0.1:81".parse().unwrap()).unwrap(), b"hello");
    assert!(running.wait().success());
    assert!(!taken());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_ordinary_users_relay_has_no_privileges_either() {
    let (port, server) = serve(1, echo);
    let line = format!(
        "exec 3<>/dev/tcp/10.0.2.2/{port}; echo hello >&3; head -n1 <&3; exec 3>&-; exec sleep 1000"
    );
    let copy = copy_for_users();
    let mut command = copy.command(&["run", "--", "bash", "-c", &line]);
    let mut running = Running::spawn(&mut command);
    assert_eq!(running.line, "hello");
    server.join().unwrap();
    let relay = child_of(running.child.id(), "__relay");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status_of(relay, set), "0".repeat(16), "{set}");
    }
    assert_eq!(status_of(relay, "NoNewPrivs"), "1");
    assert_eq!(status_of(relay, "Seccomp"), "2");
    assert_eq!(owner(&format!("/proc/{relay}/mem")), 0);
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(128 + 15));
}

#[test]
fn it_is_not_for_people() {
    let output = Command::new(BINARY).args(["__relay", "-", "9"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(succeed(&Command::new(BINARY).arg("--version").output().unwrap()).contains("skbudget"));
}
