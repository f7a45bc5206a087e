//! SIGHUP: what changed in the config is applied while containers run.

use std::fs::{self, File};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Netns, Running, exchange, free_port, unique, until};

/// A daemon with a config that is written again, and with its log in a file.
struct Reloading {
    daemon: Running,
    config: PathBuf,
    log: PathBuf,
}

impl Reloading {
    /// Starts the daemon with a config.
    fn start(config: &str) -> Self {
        let file = |what| std::env::temp_dir().join(unique(what));
        let (path, log) = (file("reload-"), file("reload-log-"));
        fs::write(&path, config).unwrap();
        let socket = file("daemon-").join("skbudget.sock");
        let options = ["-v", "--config", path.to_str().unwrap()];
        let daemon = Running::logging(socket, &options, Stdio::from(File::create(&log).unwrap()));
        Self { daemon, config: path, log }
    }

    /// Writes the config and has it read. Returns what the daemon logged since, up to the line with `last`.
    fn reload(&self, config: &str, last: &str) -> String {
        let before = self.log().len();
        fs::write(&self.config, config).unwrap();
        self.daemon.signal("HUP");
        until(|| self.log()[before..].contains(last));
        self.log()[before..].to_owned()
    }

    /// All that the daemon has logged.
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Names of the groups, sorted, and their hard limits in MiB.
    fn groups(&self) -> Vec<(String, u64)> {
        let groups: Value = serde_json::from_str(&self.daemon.get("/v1/groups")).unwrap();
        let one = |group: &Value| {
            (
                group["name"].as_str().unwrap().to_owned(),
                group["hard_bytes"].as_u64().unwrap() >> 20,
            )
        };
        groups["groups"].as_array().unwrap().iter().map(one).collect()
    }

    /// Hard and soft limit, MiB.
    fn limits(&self, name: &str) -> [u64; 2] {
        let stats = self.daemon.stats(name);
        ["hard_bytes", "soft_bytes"].map(|key| stats[key].as_u64().unwrap() >> 20)
    }

    /// Ends the daemon and removes the two files.
    fn end(self) {
        self.daemon.end();
        fs::remove_file(self.config).unwrap();
        fs::remove_file(self.log).unwrap();
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_changed_in_the_config_is_applied_and_nothing_else() {
    let (one, two, web) = (Netns::new(), Netns::new(), Netns::new());
    let (outside, spec) = free_port();
    let container = |name: &str, netns: &Netns, more: &str| {
        format!("[[container]]\nname = '{name}'\nnetns = '{}'\n{more}", netns.path())
    };
    let test = Reloading::start(&format!(
        "[host]\nhard = '64MiB'\n[[group]]\nname = 'a'\nhard = '16MiB'\n\
         [[template]]\nmatch = 'web-*'\nhard = '8MiB'\ngroup = 'a'\n{}",
        container("one", &one, "hard = '12MiB'\n")
    ));
    test.daemon.run(&["attach", "web-1", "--netns", &web.path()]);
    // A client's change, of a value that the file does not change afterwards.
    test.daemon.run(&["set", "one", "soft=6MiB"]);
    test.daemon.run(&["set", "@host", "hard=48MiB"]);

    let log = test.reload(
        &format!(
            "[daemon]\nworkers = 7\n[host]\nhard = '64MiB'\n[[group]]\nname = 'a'\nhard = '24MiB'\nweight = 7\n\
             [[group]]\nname = 'b'\nhard = '32MiB'\n[[group]]\nname = 'c'\nparent = 'b'\nhard = '20MiB'\n\
             [[template]]\nmatch = 'web-*'\nhard = '10MiB'\ngroup = 'c'\n{}{}",
            container("one", &one, &format!("hard = '14MiB'\nmtu = 1500\npublish = ['{spec}']\n")),
            container("two", &two, "")
        ),
        "read again",
    );
    assert!(
        log.contains("[daemon] workers: not changed: takes effect when the daemon starts again"),
        "{log}"
    );
    assert!(
        log.contains("group a: not moved: parent and weight change when nothing is in the group"),
        "{log}"
    );
    assert!(
        log.contains(
            "container one: mtu: not changed: takes effect when the container is attached again"
        ),
        "{log}"
    );
    // Levels and the containers of a template.
    let groups = [("a", 24), ("b", 32), ("c", 20)].map(|(name, mib)| (name.to_owned(), mib));
    assert_eq!(test.groups(), groups);
    assert_eq!(test.daemon.names(), ["one", "two", "web-1"]);
    assert_eq!(test.limits("web-1")[0], 10);
    assert!(test.daemon.run(&["ls"]).contains("web-1  c"));
    // The file has a new hard limit, the client's soft limit stays.
    assert_eq!(test.limits("one"), [14, 6]);
    // So does the client's limit of the host, which is the same in both files.
    let stats: Value = serde_json::from_str(&test.daemon.run(&["stats", "--json"])).unwrap();
    assert_eq!(stats["host"]["hard_bytes"], 48 << 20);
    // The port is open.
    let inside = one.listen(80);
    let mut remote = TcpStream::connect(outside).unwrap();
    exchange(&mut remote, &mut inside.accept().unwrap().0);

    // A container leaves the file, and so do the groups and the template.
    let log = test.reload(
        &format!("[host]\nhard = '64MiB'\n{}", container("two", &two, "hard = '9MiB'\n")),
        "read again",
    );
    assert!(log.contains("container one: detached"), "{log}");
    assert_eq!(test.daemon.names(), ["two", "web-1"]);
    assert_eq!(one.devices(), ["lo"]);
    assert_eq!(test.groups(), []);
    assert!(test.daemon.run(&["ls"]).contains("web-1  -"));
    assert_eq!((test.limits("two")[0], test.limits("web-1")[0]), (9, 256));
    test.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_file_with_an_error_changes_nothing() {
    let netns = Netns::new();
    let container = format!("[[container]]\nname = 'one'\nnetns = '{}'\n", netns.path());
    let valid = format!("[host]\nhard = '64MiB'\n{container}");
    let test = Reloading::start(&valid);
    for (config, error) in [
        (
            format!("[host]\nhrad = '32MiB'\n{container}"),
            ":2: [host] hrad: unknown key; did you mean hard?",
        ),
        (format!("[host]\nhard = '32MiB'\n{container}mtu = 9"), ":6: [container] mtu 9 is not in"),
        (format!("[host\n{container}"), ":1: "),
        ("\u{0}".repeat(2 << 20), "larger than"),
    ] {
        let log = test.reload(&config, "nothing is changed");
        assert!(log.contains(error), "{log}");
        assert_eq!(test.daemon.names(), ["one"]);
        let stats: Value = serde_json::from_str(&test.daemon.run(&["stats", "--json"])).unwrap();
        assert_eq!(stats["host"]["hard_bytes"], 64 << 20);
    }
    // A guarantee above what the host has: refused with the reason, and tried again with the next signal.
    test.daemon.run(&["set", "one", "min=40MiB"]);
    let smaller = valid.replace("64MiB", "32MiB");
    for _ in 0..2 {
        let log = test.reload(&smaller, "read again");
        assert!(
            log.contains("limits of host: not changed: hard 32MiB is below the guarantees"),
            "{log}"
        );
    }
    test.daemon.run(&["set", "one", "min=default"]);
    test.reload(&smaller, "1 changes, 0 refused");
    test.reload(&smaller, "0 changes, 0 refused");
    // An empty file is valid, and removes everything. A missing one is no such file.
    fs::remove_file(&test.config).unwrap();
    test.daemon.signal("HUP");
    until(|| test.log().contains("no regular file: nothing is changed"));
    assert_eq!(test.daemon.names(), ["one"]);
    fs::write(&test.config, "").unwrap();
    test.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn name_servers_change_with_the_next_question() {
    let netns = Netns::new();
    let servers = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let config = |server: &UdpSocket| {
        format!("[[template]]\nmatch = '*'\ndns = ['{}']\n", server.local_addr().unwrap())
    };
    let test = Reloading::start(&config(&servers[0]));
    test.daemon.run(&["attach", "one", "--netns", &netns.path()]);
    let client = netns.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for (id, server) in servers.iter().enumerate() {
        if id > 0 {
            test.reload(&config(server), "1 changes, 0 refused");
        }
        // A question for the address of `a.`.
        let mut question = vec![0, id as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        question.extend([1, b'a', 0, 0, 1, 0, 1]);
        client.send_to(&question, "10.213.0.3:53").unwrap();
        let mut received = [0; 64];
        // It arrives at the server of the config in force.
        let (n, _) = server.recv_from(&mut received).unwrap();
        assert_eq!(received[12..n], question[12..]);
    }
    test.end();
}
