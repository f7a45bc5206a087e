//! The relay of the daemon: its privileges, and its end, which costs connections and nothing else.

use std::fs;
use std::net::TcpStream;

use crate::support::{
    Netns, Process, Running, client, echo_server, echoed, exchange, free_port, unique, until,
};

/// The relay of a daemon, if it has one now.
pub(crate) fn relay_of(daemon: &Running) -> Option<u32> {
    let id = daemon.child.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    let is_relay = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == b"__serve_relay")
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_relay)
}

/// Kills the relay, and waits for the next one.
fn kill_relay(daemon: &Running) {
    let before = relay_of(daemon).unwrap();
    let status = std::process::Command::new("kill").args(["-9", &before.to_string()]).status();
    assert!(status.unwrap().success());
    until(|| relay_of(daemon).is_some_and(|now| now != before));
    // A client that connects meanwhile may be the last one of the killed relay.
    until(|| client(&daemon.socket, &["ls"]).status.success());
}

fn status_of(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn it_has_no_privileges_and_no_files() {
    let daemon = Running::start(&["--workers", "2"]);
    let relay = relay_of(&daemon).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_of(relay, set), "0".repeat(16), "{set}");
    }
    assert_eq!(status_of(relay, "NoNewPrivs"), "1");
    assert_eq!(status_of(relay, "Seccomp"), "2");
    let user: u32 = status_of(relay, "Uid").split_whitespace().next().unwrap().parse().unwrap();
    assert!((61_184..65_520).contains(&user), "{user}");
    assert_eq!(status_of(relay, "Groups"), "");
    let links = fs::read_dir(format!("/proc/{relay}/fd")).unwrap();
    for link in links.map(|link| fs::read_link(link.unwrap().path()).unwrap()) {
        let target = link.to_string_lossy().into_owned();
        let known = ["socket:", "anon_inode:", "/dev/net/tun", "/dev/null", "pipe:"];
        assert!(known.iter().any(|known| target.starts_with(known)), "{target}");
    }
    // The parent has a filter too, and no capability that it does not need: those numbered 0, 1, 3, 5 to 8, 10, 12, 19
    // and 21.
    assert_eq!(status_of(daemon.child.id(), "Seccomp"), "2");
    let effective = u64::from_str_radix(&status_of(daemon.child.id(), "CapEff"), 16).unwrap();
    assert_eq!(effective & !0x28_15eb, 0, "{effective:x}");
    assert!(effective & 1 << 12 != 0, "{effective:x}");
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn without_the_sandbox_it_has_no_filter() {
    let daemon = Running::start(&["--sandbox", "off"]);
    let relay = relay_of(&daemon).unwrap();
    assert_eq!(status_of(relay, "Seccomp"), "0");
    assert_eq!(status_of(relay, "CapEff"), "0".repeat(16));
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_new_one_serves_the_containers_of_a_killed_one_with_their_limits_and_ports() {
    let daemon = Running::start(&[]);
    let (web, db) = (Netns::new(), Process::start());
    let (outside, spec) = free_port();
    let (later, more) = free_port();
    daemon.run(&["attach", "web", "--netns", &web.path(), "--hard", "16MiB", "-p", &spec]);
    daemon.run(&["attach", "db", "--pid", &db.pid()]);
    daemon.run(&["set", "web", "hard=8MiB"]);
    daemon.run(&["publish", "web", &more]);
    let list = daemon.run(&["ls"]);
    let index = || fs::read_link(format!("/proc/{}/ns/net", db.pid())).unwrap();
    let (netns, links) = (index(), web.links());
    for _ in 0..3 {
        kill_relay(&daemon);
        assert_eq!(daemon.run(&["ls"]), list);
        assert_eq!(daemon.stats("web")["hard_bytes"], 8 << 20);
        // The same device: no event reached the container.
        assert_eq!((index(), web.links()), (netns.clone(), links.clone()));
        let (port, server) = echo_server(1);
        echoed(web.connect(port).unwrap(), 1 << 20);
        server.join().unwrap();
        let inside = web.listen(80);
        for addr in [outside, later] {
            let mut remote = TcpStream::connect(addr).unwrap();
            exchange(&mut remote, &mut inside.accept().unwrap().0);
        }
    }
    // What a new relay serves ends as what the first one served.
    daemon.run(&["detach", "web"]);
    assert_eq!(web.devices(), ["lo"]);
    drop(db);
    until(|| daemon.names().is_empty());
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_container_that_was_detached_or_has_ended_does_not_return() {
    let file = std::env::temp_dir().join(unique("config"));
    let (web, old) = (Netns::new(), Netns::new());
    let text = format!("[[container]]\nname = \"web\"\nnetns = \"{}\"\n", web.path());
    fs::write(&file, text).unwrap();
    let daemon = Running::start(&["--config", file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    daemon.run(&["attach", "old", "--netns", &old.path()]);
    assert_eq!(daemon.names(), ["old", "web"]);
    daemon.run(&["detach", "web"]);
    drop(old);
    until(|| daemon.names().is_empty());
    kill_relay(&daemon);
    assert_eq!(daemon.names(), [""; 0]);
    daemon.run(&["attach", "web", "--netns", &web.path()]);
    daemon.end();
    assert_eq!(web.devices(), ["lo"]);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn limits_of_groups_outlive_it_and_its_end_is_counted() {
    let file = std::env::temp_dir().join(unique("config"));
    fs::write(&file, "[host]\nhard = \"1GiB\"\n[[group]]\nname = \"shop\"\nhard = \"64MiB\"\n")
        .unwrap();
    let daemon = Running::start(&["--config", file.to_str().unwrap()]);
    let web = Netns::new();
    daemon.run(&["attach", "web", "--netns", &web.path(), "--group", "shop", "--hard", "16MiB"]);
    daemon.run(&["set", "@shop", "hard=32MiB"]);
    daemon.run(&["set", "@host", "hard=512MiB"]);
    let has = |line: &str| daemon.get("/metrics").lines().any(|found| found == line);
    assert!(has("skbudget_relay_restarts_total 0"));
    kill_relay(&daemon);
    assert!(has("skbudget_relay_restarts_total 1"));
    assert!(has(&format!("skbudget_group_hard_bytes{{group=\"shop\"}} {}", 32 << 20)));
    assert!(has(&format!("skbudget_host_hard_bytes {}", 512 << 20)));
    // The file has other limits now: they replace those of the client.
    fs::write(&file, "[host]\nhard = \"1GiB\"\n[[group]]\nname = \"shop\"\nhard = \"48MiB\"\n")
        .unwrap();
    daemon.signal("HUP");
    until(|| has(&format!("skbudget_group_hard_bytes{{group=\"shop\"}} {}", 48 << 20)));
    kill_relay(&daemon);
    assert!(has(&format!("skbudget_group_hard_bytes{{group=\"shop\"}} {}", 48 << 20)));
    fs::remove_file(&file).unwrap();
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn one_that_ends_again_and_again_ends_the_daemon() {
    let mut daemon = Running::start(&[]);
    let mut last = 0;
    loop {
        if daemon.child.try_wait().unwrap().is_some() {
            break;
        }
        if let Some(relay) = relay_of(&daemon).filter(|relay| *relay != last) {
            let _ = std::process::Command::new("kill").args(["-9", &relay.to_string()]).output();
            last = relay;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(daemon.child.wait().unwrap().code(), Some(1));
    let _ = fs::remove_dir(daemon.socket.parent().unwrap());
}
