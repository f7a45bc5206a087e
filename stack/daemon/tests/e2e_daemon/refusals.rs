//! Requests that cannot be carried out: the message names why, and nothing changes.

use crate::support::{Netns, Running, free_port};

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_cannot_be_attached_is_refused_and_leaves_nothing() {
    let daemon = Running::start(&[]);
    let web = Netns::new();
    daemon.run(&["attach", "web", "--netns", &web.path()]);

    let other = Netns::new();
    let path = other.path();
    let refused = |args: &[&str], code, expected: &str| {
        let command: Vec<&str> = ["attach"].iter().chain(args).copied().collect();
        let message = daemon.refuses(&command, code);
        assert!(message.contains(expected), "{args:?}: {message}");
    };
    refused(&["web", "--netns", &path], 1, "in use");
    refused(&["two", "--netns", &web.path()], 1, "attached as container \"web\"");
    refused(&["two", "--netns", "/proc/self/ns/net"], 2, "that of the daemon");
    refused(&["two", "--netns", "/etc/passwd"], 2, "not a network namespace");
    refused(&["two", "--netns", "/proc/self/ns/mnt"], 2, "not a network namespace");
    refused(&["two", "--netns", "/run/netns/none"], 1, "/run/netns/none");
    refused(&["two", "--pid", "2147483647"], 1, "no such process");
    refused(&["two", "--netns", &path, "--hard", "64KiB"], 2, "hard 64KiB is too small");
    refused(&["two", "--netns", &path, "--min", "1MiB"], 2, "[host]");
    // A port in use, after which the other one is free again.
    let (addr, spec) = free_port();
    let (taken, taken_spec) = free_port();
    let _holder = std::net::TcpListener::bind(taken).unwrap();
    refused(&["two", "--netns", &path, "-p", &spec, "-p", &taken_spec], 1, &taken.to_string());
    assert!(std::net::TcpListener::bind(addr).is_ok());
    assert_eq!(other.devices(), ["lo"]);

    // What the namespace has already.
    other.ip(&["tuntap", "add", "dev", "eth0", "mode", "tap"]);
    refused(&["two", "--netns", &path], 1, "device of that name");
    other.ip(&["link", "del", "eth0"]);
    other.ip(&["route", "add", "default", "dev", "lo"]);
    refused(&["two", "--netns", &path], 1, "default route");
    assert_eq!(other.devices(), ["lo"]);
    assert_eq!(daemon.names(), ["web"]);
    other.ip(&["route", "del", "default"]);
    daemon.run(&["attach", "two", "--netns", &path]);
    daemon.end();
}
