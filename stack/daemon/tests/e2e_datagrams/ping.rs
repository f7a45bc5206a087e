//! `ping` and `traceroute -I` in a container.

use std::fs;
use std::process::Output;

use crate::lacks;
use crate::network::{HOST, Path, ROUTER};
use crate::support::{script, succeed, text};

/// The groups that may open ping sockets in this namespace.
struct PingGroups(String);

const GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";

impl PingGroups {
    fn set(range: &str) -> Self {
        let before = fs::read_to_string(GROUPS).unwrap();
        fs::write(GROUPS, range).unwrap();
        Self(before)
    }
}

impl Drop for PingGroups {
    fn drop(&mut self) {
        let _ = fs::write(GROUPS, &self.0);
    }
}

fn ping(args: &str) -> Output {
    script(&[], &format!("ping -n {args}"))
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn hosts_beyond_a_router_answer() {
    let _path = Path::new();
    let _groups = PingGroups::set("0 4294967294");
    for args in [
        "-c 3 -i 0.05",
        "-c 1 -s 0",
        "-c 2 -i 0.05 -s 1372",
        "-c 1 -M dont -s 8000",
        "-c 1 -M dont -s 65000",
    ] {
        let output = succeed(&ping(&format!("-W 5 {args} {HOST}")));
        assert!(output.contains(" 0% packet loss"), "{args}: {output}");
    }
    // The gateway answers itself.
    assert!(succeed(&ping("-c 1 10.0.2.2")).contains(" 0% packet loss"));
    assert!(succeed(&ping("-6 -c 1 fd00::2")).contains(" 0% packet loss"));
    // No host there, behind the router.
    let output = ping("-c 1 -W 5 203.0.113.77");
    let out = text(&output.stdout);
    assert!(out.contains("Unreachable") || out.contains("100% packet loss"), "{out}");
    if lacks("traceroute") {
        return;
    }
    let output = succeed(&script(&[], &format!("traceroute -I -n -q 1 -w 2 -m 5 {HOST}")));
    let hops: Vec<&str> =
        output.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(hops, ["10.0.2.2", ROUTER, HOST], "{output}");
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn without_ping_sockets_the_command_is_told() {
    let _path = Path::new();
    let _groups = PingGroups::set("1 0");
    let output = ping(&format!("-c 1 -W 5 {HOST}"));
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(out.contains("Packet filtered") || out.contains("prohibited"), "{out}{err}");
    assert!(err.contains("ping_group_range"), "{err}");
}
