//! The addresses of containers: one subnet for the daemon.

use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::Value;

use crate::support::{Netns, Running, echo_server, echoed, serve, text};

/// Addresses of a container, as the daemon lists them.
fn addresses(daemon: &Running, name: &str) -> [String; 2] {
    let list: Value = serde_json::from_str(&daemon.run(&["ls", "--json"])).unwrap();
    let all = list["containers"].as_array().unwrap();
    let container = all.iter().find(|container| container["name"] == name).unwrap();
    ["ip", "ipv6"].map(|key| container[key].as_str().unwrap().to_owned())
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn containers_get_addresses_of_one_subnet_in_turns() {
    let daemon = Running::start(&[]);
    let [one, two, three] = [Netns::new(), Netns::new(), Netns::new()];
    daemon.run(&["attach", "one", "--netns", &one.path()]);
    daemon.run(&["attach", "two", "--netns", &two.path(), "--address", "10.213.1.7"]);
    assert_eq!(addresses(&daemon, "one"), ["10.213.0.4", "fd00:0:0:213::4"]);
    assert_eq!(addresses(&daemon, "two"), ["10.213.1.7", "fd00:0:0:213::107"]);
    // What the container itself has.
    let output = Command::new("ip").args(["-n", two.name(), "-br", "addr"]).output().unwrap();
    let own = text(&output.stdout);
    assert!(own.contains("10.213.1.7/16") && own.contains("fd00:0:0:213::107/64"), "{own}");
    // The gateway leads to the host, from an address of either kind.
    let (port, server) = echo_server(2);
    echoed(one.connect(port).unwrap(), 1 << 20);
    echoed(two.connect(port).unwrap(), 1 << 20);
    server.join().unwrap();

    let attach = |address: &str, code| {
        let args = ["attach", "three", "--netns", &three.path(), "--address", address];
        daemon.refuses(&args, code)
    };
    assert!(attach("10.213.1.7", 1).contains("in use by container \"two\""));
    assert!(attach("10.213.0.2", 2).contains("10.213.0.4 to 10.213.255.254"));
    assert!(attach("10.0.2.100", 2).contains("10.213.0.4 to 10.213.255.254"));
    // A free address is not given again at once.
    daemon.run(&["detach", "one"]);
    daemon.run(&["attach", "three", "--netns", &three.path()]);
    assert_eq!(addresses(&daemon, "three"), ["10.213.0.5", "fd00:0:0:213::5"]);
    daemon.run(&["attach", "one", "--netns", &one.path(), "--address", "10.213.0.4"]);
    assert_eq!(addresses(&daemon, "one")[0], Ipv4Addr::new(10, 213, 0, 4).to_string());
    daemon.end();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_subnet_that_the_host_has_a_route_to_is_refused() {
    let route = |action: &str| {
        let args = ["route", action, "10.213.7.0/24", "dev", "lo"];
        assert!(Command::new("ip").args(args).status().unwrap().success());
    };
    route("add");
    let refused = serve(&["--socket", "/nowhere/skbudget.sock"]);
    route("del");
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(
        message.contains("subnet 10.213.0.0/16 overlaps the host's route 10.213.7.0/24"),
        "{message}"
    );
}
