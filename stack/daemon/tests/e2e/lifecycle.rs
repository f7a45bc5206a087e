//! Exit codes and signals; nothing remains after a run.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use skbudget_stack::ContainerConfig;

use crate::support::{
    BINARY, Running, TempFile, child_of, netns_in_use, process_with, script, signal_pid, skbudget,
    succeed, text, unique, until,
};

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_commands_code_comes_back() {
    for code in [0, 1, 7, 125, 255] {
        let output = script(&[], &format!("exit {code}"));
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    }
    assert_eq!(script(&[], "kill -KILL $$").status.code(), Some(128 + 9));
    assert_eq!(script(&[], "kill -TERM $$").status.code(), Some(128 + 15));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_command_that_deletes_its_device_keeps_its_code() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let upload =
        format!("exec 3<>/dev/tcp/10.0.2.2/{port}; cat /dev/zero >&3 2>/dev/null & sleep 0.2");
    for before in ["true", &upload] {
        let stats = TempFile::new("stats");
        let options = ["--cap-add", "NET_ADMIN", "--stats-file", stats.path()];
        let output = script(&options, &format!("{before}; ip link del tap0; sleep 0.2; exit 7"));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{said}");
        assert!(said.contains("the command deleted its device"), "{said}");
        assert!(fs::read_to_string(&stats.0).unwrap().contains("skbudget.stats/1"));
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_program_whose_path_is_no_text_is_run() {
    let mut path = std::env::temp_dir().join(unique("no-text")).into_os_string().into_vec();
    path.extend(b"-\xff\xfe");
    let path = TempFile(OsString::from_vec(path).into());
    fs::write(&path.0, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&path.0, fs::Permissions::from_mode(0o755)).unwrap();
    let output = skbudget(&[]).arg(&path.0).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    // Found along PATH, in a folder with bytes in its name that are not UTF-8.
    let folder = TempFile(path.0.with_extension("folder"));
    fs::create_dir(&folder.0).unwrap();
    fs::rename(&path.0, folder.0.join("program")).unwrap();
    let mut search = folder.0.clone().into_os_string();
    search.push(":/usr/bin:/bin");
    let output = skbudget(&[]).arg("program").env("PATH", search).output().unwrap();
    fs::remove_dir_all(&folder.0).unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_container_sees_its_network_and_its_processes_only() {
    let output = script(
        &["--mtu", "1500", "--hard", "16MiB"],
        "ip addr; ip route; echo pid $$; ls /proc | grep -c '^[0-9]'",
    );
    let said = succeed(&output);
    for expected in
        ["inet 10.0.2.100/24", "mtu 1500", "default via 10.0.2.2 dev tap0", "inet 127.0.0.1/8"]
    {
        assert!(said.contains(expected), "{expected:?} in {said}");
    }
    let queue = ContainerConfig::new(1500, true, Some(16 << 20), [0; 2]).txqueuelen();
    assert!(said.contains(&format!("qlen {queue}")), "{said}");
    let pid = said.lines().find_map(|line| line.strip_prefix("pid ")).unwrap();
    assert!(pid.parse::<u32>().unwrap() < 10, "{said}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_command_starts_with_the_callers_limits_signals_and_descriptors() {
    // Only the signals that a program can ignore: the C library uses 32 and above.
    let look = "ulimit -n; ulimit -Hn; sed -nE 's/^(Sig(Blk|Ign)):.*(.{7})$/\\1 \\3/p' /proc/self/status; \
                ls /proc/self/fd";
    // Both times in a pipe, so that the shell is started in the same way outside and inside.
    let outer =
        format!("ulimit -n 321; bash -c \"$0\" | cat; echo; {BINARY} run -- bash -c \"$0\" | cat");
    let output = Command::new("bash").args(["-c", &outer, look]).output().unwrap();
    let said = succeed(&output);
    let (outside, inside) = said.trim().split_once("\n\n").unwrap();
    assert!(outside.starts_with("321\n321\n"), "{said}");
    assert_eq!(inside, outside);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn signals_reach_the_command_and_its_code_comes_back() {
    for (signal, code) in [("TERM", 3), ("INT", 4), ("HUP", 5), ("QUIT", 6), ("USR1", 7)] {
        let handler =
            format!("trap 'exit {code}' {signal}; echo ready; while :; do sleep 0.01; done");
        let mut running = Running::start(&[], &handler);
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(code), "{signal}");
    }
    let mut running = Running::start(&[], "echo ready; exec sleep 1000");
    running.signal("TERM");
    assert_eq!(running.wait().code(), Some(128 + 15));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn orphans_are_reaped_and_end_with_the_command() {
    let marker = unique("77777.");
    // An orphan that ends is reaped: no zombie remains. An orphan that runs ends with the command.
    let output = script(
        &[],
        &format!(
            "(sleep 0.01 &); (exec -a {marker} sleep 1000 &); sleep 0.3; ps ax -o stat | grep -c ^Z; exit 9"
        ),
    );
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(text(&output.stdout).trim(), "0");
    assert!(!process_with(&marker));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn sigkill_leaves_nothing() {
    let name = unique("killed");
    let before = devices();
    let line = "readlink /proc/self/ns/net; exec -a MARK sleep 1000".replace("MARK", &name);
    let mut running = Running::start(&["--name", &name], &line);
    assert!(netns_in_use(&running.line) && process_with(&name));
    running.signal("KILL");
    running.wait();
    // The kernel ends the processes one after the other.
    until(|| !process_with(&name) && !netns_in_use(&running.line));
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!sockets.contains(&name));
    assert_eq!(devices(), before);
    succeed(&script(&["--name", &name], "true"));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_sandbox_killed_is_a_failure_and_takes_all_along() {
    let name = unique("sandbox");
    let line = "echo $PPID; exec -a MARK sleep 1000".replace("MARK", &name);
    let mut running = Running::start(&["--name", &name], &line);
    let sandbox = child_of(running.child.id(), "__sandbox");
    signal_pid(sandbox, "KILL");
    assert_eq!(running.wait().code(), Some(1));
    until(|| !process_with(&name));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_name_in_use_is_refused_while_it_is() {
    let name = unique("taken");
    let mut running = Running::start(&["--name", &name], "echo ready; exec sleep 1000");
    let output = script(&["--name", &name], "true");
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("in use"));
    running.signal("TERM");
    running.wait();
    succeed(&script(&["--name", &name], "true"));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_port_in_use_cannot_be_published() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("{}:80", held.local_addr().unwrap());
    let output = script(&["-p", &publish], "true");
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("--publish"));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn stats_file_and_capture_are_written() {
    let (stats, pcap) = (TempFile::new("stats"), TempFile::new("pcap"));
    let options =
        ["--hard", "16MiB", "--stats-file", stats.path(), "--pcap", pcap.path(), "--name", "st"];
    succeed(&script(&options, "exec 3<>/dev/tcp/10.0.2.2/1; true"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&stats.0).unwrap()).unwrap();
    assert_eq!(json["schema"], "skbudget.stats/1");
    let container = &json["containers"][0];
    assert_eq!((&container["name"], &container["hard_bytes"]), (&"st".into(), &(16 << 20).into()));
    let categories =
        ["rmem", "ofo", "credit", "wmem", "fwd", "reserve", "udp", "sock", "host", "dev"];
    let value = |name: &str| container[format!("{name}_bytes")].as_u64().unwrap();
    let sum: u64 = categories.map(value).iter().sum();
    assert!(value("usage") >= sum && value("usage") - sum < 4096 * 64, "{container}");
    assert!(container["counters"]["AdmissionDenied"].is_u64());

    let bytes = fs::read(&pcap.0).unwrap();
    assert_eq!(bytes[8..12], 0x1a2b_3c4d_u32.to_le_bytes());
    if let Ok(output) = Command::new("tcpdump").args(["-nr", pcap.path()]).output() {
        assert!(text(&output.stdout).contains("10.0.2.2.1: Flags [S]"), "{}", text(&output.stdout));
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_file_that_cannot_be_written_is_named() {
    for key in ["--stats-file", "--pcap"] {
        let output = skbudget(&[key, "/no/such/folder/file"]).arg("true").output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains(key));
    }
}

/// The network devices of this namespace.
fn devices() -> Vec<String> {
    let all = fs::read_dir("/sys/class/net").unwrap();
    let mut names: Vec<_> = all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
