//! A daemon that was killed: the next one attaches the containers that still exist.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{
    Netns, Process, Running, echo_server, echoed, exchange, free_port, text, unique, until,
};

/// Containers and restarts of the long test: `SKBUDGET_RESTARTS=50x20` for 50 containers and 20 restarts.
const RESTARTS: &str = "8x3";

/// Ends the daemon at once, and starts the next one with its log in a file.
fn killed(mut daemon: Running, options: &[&str], log: &Path) -> Running {
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    next(daemon.socket, options, log)
}

fn next(socket: PathBuf, options: &[&str], log: &Path) -> Running {
    let options: Vec<&str> = ["-v"].iter().chain(options).copied().collect();
    Running::logging(socket, &options, Stdio::from(File::create(log).unwrap()))
}

/// Hardware address, addresses and routes of a container's device.
fn network(netns: &Netns) -> [Value; 3] {
    let shown = |args: &[&str]| {
        let output = Command::new("ip").args(["-n", netns.name(), "-j"]).args(args).output();
        serde_json::from_slice::<Value>(&output.unwrap().stdout).unwrap()
    };
    let link = shown(&["link", "show", "eth0"])[0]["address"].clone();
    let addresses = shown(&["addr", "show", "eth0"])[0]["addr_info"].clone();
    // Without the addresses that the kernel makes itself, which are not there at once.
    let is_global = |info: &&Value| info["scope"] == "global";
    let addresses = addresses.as_array().unwrap().iter().filter(is_global);
    let addresses = addresses.map(|info| info["local"].clone()).collect();
    [link, addresses, shown(&["route"])]
}

/// The container as listed, with its limits.
fn listed(daemon: &Running, name: &str) -> [Value; 2] {
    let one: Value = serde_json::from_str(&daemon.get(&format!("/v1/containers/{name}"))).unwrap();
    let limits = ["hard_bytes", "soft_bytes", "low_bytes", "min_bytes"];
    let limits = limits.map(|key| one["stats"][key].clone()).to_vec().into();
    let mut one = one;
    one["stats"] = Value::Null;
    [one, limits]
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_containers_of_a_killed_daemon_are_attached_again_as_they_were() {
    let config = std::env::temp_dir().join(unique("restart-"));
    let groups = "[host]\nhard = '256MiB'\n[[group]]\nname = 'web'\nhard = '64MiB'\n";
    fs::write(&config, groups).unwrap();
    let log = std::env::temp_dir().join(unique("restart-log-"));
    let options = ["--config", config.to_str().unwrap()];
    let (web, db, gone, replaced) = (Netns::new(), Process::start(), Netns::new(), Netns::new());
    let (first, spec) = free_port();
    let (second, later) = free_port();
    let daemon = Running::start(&options);
    daemon.run(&["attach", "gone", "--netns", &gone.path()]);
    daemon.run(&["attach", "web", "--netns", &web.path(), "-p", &spec, "--mtu", "1500"]);
    daemon.run(&["attach", "db", "--pid", &db.pid(), "--min", "4MiB", "--ifname", "net0"]);
    daemon.run(&["attach", "replaced", "--netns", &replaced.path()]);
    // Changes since the attach are kept, too.
    daemon.run(&["set", "web", "hard=32MiB", "group=web", "min=2MiB"]);
    daemon.run(&["publish", "web", &later]);
    let before = [listed(&daemon, "web"), listed(&daemon, "db")];
    let network_before = network(&web);
    let (name, path) = (replaced.name().to_owned(), replaced.path());

    let socket = daemon.socket.clone();
    let state = socket.with_file_name("state");
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    // Before the namespaces end: the daemon notices the end of a container.
    let mut daemon = daemon;
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    drop(gone);
    // Another namespace at the same path.
    drop(replaced);
    assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
    let daemon = next(socket.clone(), &options, &log);
    assert_eq!(daemon.names(), ["db", "web"]);
    assert_eq!([listed(&daemon, "web"), listed(&daemon, "db")], before);
    assert_eq!(network(&web), network_before);
    for addr in [first, second] {
        let inside = web.listen(80);
        let mut remote = TcpStream::connect(addr).unwrap();
        exchange(&mut remote, &mut inside.accept().unwrap().0);
    }
    let (port, server) = echo_server(1);
    echoed(web.connect(port).unwrap(), 1 << 20);
    server.join().unwrap();
    let lines = fs::read_to_string(&log).unwrap();
    assert!(lines.contains("container gone: gone: netns"), "{lines}");
    assert!(lines.contains("container replaced: gone: another network namespace"), "{lines}");
    assert!(lines.contains("container web: attached again"), "{lines}");
    let mut files: Vec<_> = fs::read_dir(&state).unwrap().map(|f| f.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["db.json", "lock", "web.json"]);

    // A group that the config has no more, and a port that another process has taken: without them.
    fs::write(&config, "[host]\nhard = '256MiB'\n").unwrap();
    daemon.run(&["detach", "db"]);
    daemon.signal("TERM");
    let mut daemon = daemon;
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    let daemon = next(socket, &options, &log);
    assert_eq!(daemon.names(), ["web"]);
    assert!(daemon.run(&["ls"]).contains("web   -"), "{}", daemon.run(&["ls"]));
    assert_eq!(daemon.stats("web")["min_bytes"], 2 << 20);
    let lines = fs::read_to_string(&log).unwrap();
    assert!(lines.contains("attached again without its group: group \"web\""), "{lines}");
    daemon.run(&["detach", "web"]);
    assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    daemon.end();
    assert!(Command::new("ip").args(["netns", "del", &name]).status().unwrap().success());
    assert!(!Path::new(&path).exists());
    fs::remove_file(config).unwrap();
    fs::remove_file(log).unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_state_that_cannot_be_used_is_named_and_the_others_are_attached() {
    let log = std::env::temp_dir().join(unique("restart-log-"));
    let netns = Netns::new();
    let daemon = Running::start(&[]);
    daemon.run(&["attach", "web", "--netns", &netns.path()]);
    let state = daemon.socket.with_file_name("state");
    let good = fs::read(state.join("web.json")).unwrap();
    for (name, bytes) in [
        ("cut", &good[..good.len() / 2]),
        ("other", b"{\"schema\": \"skbudget.state/9\"}"),
        ("huge", &vec![b'['; 4 << 20]),
        ("copy", &good),
    ] {
        fs::write(state.join(name).with_extension("json"), bytes).unwrap();
    }
    let daemon = killed(daemon, &[], &log);
    assert_eq!(daemon.names(), ["web"]);
    let lines = fs::read_to_string(&log).unwrap();
    for (name, why) in [
        ("cut", "EOF"),
        ("other", "skbudget.state/9"),
        ("huge", "larger than"),
        ("copy", "that of container \"web\""),
    ] {
        let line = lines.lines().find(|line| line.contains(&format!("{name}.json: not used")));
        assert!(line.is_some_and(|line| line.contains(why)), "{name}: {lines}");
        // It can be examined, and a container of that name replaces it.
        assert!(state.join(name).with_extension("json").exists());
    }
    let other = Netns::new();
    daemon.run(&["attach", "cut", "--netns", &other.path()]);
    let daemon = killed(daemon, &[], &log);
    assert_eq!(daemon.names(), ["cut", "web"]);
    // A second daemon with this state and another socket.
    let second = std::env::temp_dir().join(unique("daemon-"));
    let socket = second.join("skbudget.sock");
    let options = ["--socket", socket.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
    let refused = crate::support::serve(&options);
    assert_eq!(refused.status.code(), Some(1));
    let pid = format!("in use by the daemon with process id {}\n", daemon.child.id());
    assert!(text(&refused.stderr).ends_with(&pid), "{}", text(&refused.stderr));
    daemon.end();
    fs::remove_dir(second).unwrap();
    fs::remove_file(log).unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn many_restarts_leave_nothing_behind() {
    let plan = std::env::var("SKBUDGET_RESTARTS").unwrap_or_else(|_| RESTARTS.to_owned());
    let (containers, restarts) = plan.split_once('x').unwrap();
    let (containers, restarts): (usize, usize) =
        (containers.parse().unwrap(), restarts.parse().unwrap());
    let log = std::env::temp_dir().join(unique("restart-log-"));
    let all: Vec<Netns> = (0..containers).map(|_| Netns::new()).collect();
    let mut daemon = Running::start(&[]);
    for netns in &all {
        daemon.run(&["attach", netns.name(), "--netns", &netns.path()]);
    }
    let names = daemon.names();
    let addresses: Vec<_> = all.iter().map(network).collect();
    let descriptors =
        |daemon: &Running| fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count();
    // After a request, as below.
    let before = descriptors(&daemon);
    for _ in 0..restarts {
        daemon = killed(daemon, &[], &log);
        assert_eq!(daemon.names(), names, "{}", fs::read_to_string(&log).unwrap());
        assert!(all.iter().all(|netns| netns.devices() == ["lo", "eth0"]));
        until(|| descriptors(&daemon) <= before);
    }
    assert_eq!(all.iter().map(network).collect::<Vec<_>>(), addresses);
    daemon.end();
    until(|| all.iter().all(|netns| netns.devices() == ["lo"]));
    fs::remove_file(log).unwrap();
}
