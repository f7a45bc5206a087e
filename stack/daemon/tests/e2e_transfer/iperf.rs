//! iperf3 in the container against its server on the host.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{free_port, skbudget, text};
use crate::{LINKS, lacks, length};

/// Maximum bytes in the buffers of one stream: those of sender and receiver at the kernel's maximum, and those of our
/// stack with its host socket.
fn under_way() -> u64 {
    let most = |name: &str| {
        let triple = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
        triple.split_whitespace().last().unwrap().parse::<u64>().unwrap()
    };
    most("tcp_rmem") + most("tcp_wmem") + (16 << 20)
}

/// A process that is killed at the end of the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server(port: u16) -> Server {
    let mut command = Command::new("iperf3");
    command.args(["-s", "-1", "-B", "127.0.0.1", "-p", &port.to_string()]);
    let server = Server(command.stdout(Stdio::null()).spawn().unwrap());
    // iperf3 buffers the line that reports the listener, so this checks the kernel's table.
    let wanted = format!("0100007F:{port:04X} 00000000:0000 0A");
    crate::support::until(|| std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&wanted));
    server
}

fn bytes(report: &Value, side: &str) -> u64 {
    report["end"][side]["bytes"].as_u64().unwrap_or(0)
}

/// The minimum that a stream moved in one whole interval after the second. With the number of intervals.
fn least_interval(report: &Value) -> (usize, u64) {
    let intervals = report["intervals"].as_array().unwrap();
    let whole = |stream: &&Value| stream["seconds"].as_f64().unwrap() > 0.5;
    let streams = intervals.iter().skip(2).flat_map(|i| i["streams"].as_array().unwrap());
    let moved: Vec<u64> = streams.filter(whole).map(|s| s["bytes"].as_u64().unwrap()).collect();
    (moved.len(), moved.iter().copied().min().unwrap_or(0))
}

fn run(mode: &[&str]) {
    if lacks("iperf", "iperf3") {
        return;
    }
    let seconds = length("SECONDS", 3).max(3).to_string();
    for link in LINKS {
        let port = free_port();
        let mut server = server(port);
        let port = port.to_string();
        let line = ["iperf3", "-c", "10.0.2.2", "-p", &port, "-t", &seconds, "-J"];
        let output = skbudget(&link).args(line).args(mode).output().unwrap();
        assert!(output.status.success(), "{link:?} {}", text(&output.stdout));
        assert!(server.0.wait().unwrap().success());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (intervals, least) = least_interval(&report);
        let gbits =
            |side: &str| report["end"][side]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e9;
        println!(
            "iperf: mode={} mtu={} offload={} seconds={seconds} gbit_s={:.2} reverse_gbit_s={:.2} sent={} received={} \
             reverse_sent={} reverse_received={} intervals={intervals} least_interval_bytes={least}",
            mode.concat(),
            link[1],
            link[3],
            gbits("sum_received"),
            gbits("sum_received_bidir_reverse"),
            bytes(&report, "sum_sent"),
            bytes(&report, "sum_received"),
            bytes(&report, "sum_sent_bidir_reverse"),
            bytes(&report, "sum_received_bidir_reverse"),
        );
        // At its end iperf3 discards the bytes under way, with or without our stack: only so many may be missing. Other
        // tests show that every byte arrives.
        for direction in ["", "_bidir_reverse"] {
            let [sent, received] = ["sum_sent", "sum_received"]
                .map(|side| bytes(&report, &format!("{side}{direction}")));
            let streams = if mode == ["-P", "16"] { 16 } else { 1 };
            assert!(received <= sent && sent - received <= streams * under_way(), "{link:?}");
        }
        assert!(intervals > 0 && least > 0, "{link:?}: an interval at zero");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn up() {
    run(&[]);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn down() {
    run(&["-R"]);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn both_ways() {
    run(&["--bidir"]);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn sixteen() {
    run(&["-P", "16"]);
}
