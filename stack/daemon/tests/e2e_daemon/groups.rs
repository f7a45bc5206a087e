//! Groups: limits of several containers together.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Netns, Running, echo_server, echoed, unique, until};

/// A daemon with two groups below a host limit.
fn start() -> (Running, PathBuf) {
    let file = std::env::temp_dir().join(unique("groups-"));
    fs::write(
        &file,
        "[host]\nhard = '64MiB'\n[[group]]\nname = 'web'\nhard = '16MiB'\n\
         [[group]]\nname = 'db'\nhard = '16MiB'\n[[template]]\nmatch = 'web-*'\ngroup = 'web'\n",
    )
    .unwrap();
    (Running::start(&["--config", file.to_str().unwrap()]), file)
}

/// What `stats --json` reports of a group, and of the host.
fn usage(daemon: &Running, group: &str) -> (u64, u64) {
    let stats: Value = serde_json::from_str(&daemon.run(&["stats", "--json"])).unwrap();
    let groups = stats["groups"].as_array().unwrap();
    let group = groups.iter().find(|found| found["name"] == group).unwrap();
    let bytes = |meter: &Value| meter["usage_bytes"].as_u64().unwrap();
    (bytes(group), bytes(&stats["host"]))
}

/// Connections that no server reads, each full of data.
fn fill(netns: &Netns, listener: &TcpListener, n: usize) -> Vec<TcpStream> {
    let port = listener.local_addr().unwrap().port();
    let connect = |_| {
        let mut client = netns.connect(port).unwrap();
        client.set_nonblocking(true).unwrap();
        let bytes = vec![7; 64 << 10];
        while client.write(&bytes).is_ok_and(|n| n > 0) {}
        client
    };
    (0..n).map(connect).collect()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_group_that_is_full_leaves_the_other_its_memory() {
    let (daemon, file) = start();
    let (first, second, other) = (Netns::new(), Netns::new(), Netns::new());
    daemon.run(&["attach", "web-1", "--netns", &first.path(), "--hard", "12MiB"]);
    daemon.run(&["attach", "web-2", "--netns", &second.path(), "--hard", "12MiB"]);
    daemon.run(&["attach", "db-1", "--netns", &other.path(), "--hard", "12MiB", "--group", "db"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _flows = (fill(&first, &listener, 60), fill(&second, &listener, 60));
    until(|| usage(&daemon, "web").0 > 10 << 20);
    let (web, host) = usage(&daemon, "web");
    assert!(web <= 16 << 20, "{web} in the group");
    assert_eq!(host, web + usage(&daemon, "db").0);
    let (port, server) = echo_server(1);
    echoed(other.connect(port).unwrap(), 8 << 20);
    server.join().unwrap();
    let table = daemon.run(&["stats"]);
    assert!(table.contains("@web") && table.contains("@host"), "{table}");
    daemon.end();
    fs::remove_file(file).unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_container_moves_between_groups_with_its_charge() {
    let (daemon, file) = start();
    let netns = Netns::new();
    daemon.run(&["attach", "web-1", "--netns", &netns.path(), "--hard", "12MiB"]);
    assert!(daemon.run(&["ls"]).contains("web-1  web"));
    let (charged, host) = usage(&daemon, "web");
    assert!(charged > 0 && charged == host);
    daemon.run(&["set", "web-1", "group=db"]);
    assert_eq!((usage(&daemon, "web").0, usage(&daemon, "db")), (0, (charged, host)));
    daemon.run(&["set", "web-1", "group=default"]);
    assert_eq!((usage(&daemon, "db").0, usage(&daemon, "web").1), (0, host));
    // Guarantee and group in one step: the guarantee that it has does not fit the group that it moves to.
    daemon.run(&["set", "web-1", "min=10MiB"]);
    daemon.run(&["set", "@db", "hard=4MiB"]);
    assert!(daemon.refuses(&["set", "web-1", "group=db"], 1).contains("no room"));
    assert!(daemon.refuses(&["set", "web-1", "group=db", "min=5MiB"], 1).contains("no room"));
    assert_eq!(daemon.stats("web-1")["min_bytes"], 10 << 20);
    daemon.run(&["set", "web-1", "group=db", "min=2MiB"]);
    assert_eq!((usage(&daemon, "web").0, usage(&daemon, "db").0), (0, 2 << 20));
    daemon.run(&["set", "web-1", "group=default", "min=default"]);
    // A group without room for what the container holds.
    daemon.run(&["set", "@db", "hard=256KiB"]);
    let message = daemon.refuses(&["set", "web-1", "group=db", "hard=8MiB"], 1);
    assert!(message.contains("no room"), "{message}");
    assert_eq!(daemon.stats("web-1")["hard_bytes"], 12 << 20);
    // Limits of a group and of the host.
    daemon.run(&["set", "web-1", "group=web"]);
    daemon.run(&["set", "web-1", "min=4MiB"]);
    let message = daemon.refuses(&["set", "@web", "hard=2MiB"], 1);
    assert!(message.contains("below the guarantees"), "{message}");
    daemon.run(&["set", "@web", "hard=8MiB"]);
    daemon.run(&["set", "@host", "hard=32MiB"]);
    assert!(daemon.refuses(&["set", "@wweb", "hard=8MiB"], 1).contains("did you mean web?"));
    assert!(daemon.refuses(&["set", "web-1", "group=wweb"], 2).contains("did you mean web?"));
    daemon.end();
    fs::remove_file(file).unwrap();
}
