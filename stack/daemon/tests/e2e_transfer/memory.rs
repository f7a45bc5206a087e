//! Compares the charged bytes with those that the process really holds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use skbudget::attach;

use crate::guest::{self, LONG, answers};
use crate::hard::{container, report};
use skbudget_testbed::streams::Streams;

const FLOWS: usize = 300;
const BYTES: u64 = 1 << 20;
const MTU: u16 = 65520;
/// Maximum bytes of free chunks in an idle worker.
const STOCK_MAX: u64 = 64 << 10;

/// Memory of this process of one kind, bytes. Read from the only file with exact counts.
fn memory(kind: &str) -> i64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix(kind)).unwrap();
    let kib: i64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

/// The measured process: a daemon with one container. The container's client is a process of its own.
pub(crate) fn cold(words: &[&str]) {
    let (port, hard, hold) = (words[0], words[1].parse().unwrap(), words[2]);
    let (netns, daemon) = container(hard, MTU);
    let line = guest::command(&format!("stall {port} {FLOWS} {BYTES} {hold}"));
    // Spawning a process needs memory that is not the flows': the command is prepared before the first measurement.
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let before = [memory("Rss"), memory("Anonymous")];
    let charged_before = report(&daemon, false).categories;
    let mut client = attach::run_in(netns.as_fd(), || command.spawn().unwrap()).unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines().map(Result::unwrap);
    let tally = said.find(|line| line.contains("guest: ")).unwrap();
    // Stalled flows still move a little now and then. Once they are idle, free memory returns to the system within a
    // second.
    let rested = Instant::now() + Duration::from_secs(20);
    let mut stats = daemon.stats(true).unwrap();
    while stats.pool_bytes > STOCK_MAX && Instant::now() < rested {
        thread::sleep(Duration::from_millis(20));
        stats = daemon.stats(true).unwrap();
    }
    let now = &stats.containers[0];
    let after = [memory("Rss"), memory("Anonymous")];
    let used = |c: skbudget::stats::Categories| {
        (c.rmem_bytes + c.ofo_bytes + c.wmem_bytes + c.udp_bytes + c.frag_bytes + c.sock_bytes)
            as i64
    };
    let charged = used(now.categories) - used(charged_before);
    let [rss, anonymous] = [after[0] - before[0], after[1] - before[1]];
    let pool = stats.pool_bytes;
    println!(
        "guest: flows={} charged={charged} rss={rss} anonymous={anonymous} ratio={:.3} pool_slack={pool} slack_ratio={:.4} \
         platform={} categories=\"{:?}\" tally=\"{tally}\"",
        now.flows,
        rss as f64 / charged as f64,
        pool as f64 / charged as f64,
        stats.platform_bytes,
        now.categories,
    );
    drop(client.stdin.take());
    client.wait().unwrap();
    assert_eq!(now.flows as usize, FLOWS);
    // RSS includes pages of the program that are touched for the first time, and the worker's frame buffer, which is
    // part of the platform. They hold nothing of a container.
    let held = (anonymous - stats.platform_bytes as i64) as f64 / charged as f64;
    assert!((0.8..=1.15).contains(&held), "{anonymous} ({rss} with the program) for {charged}");
    assert!(pool <= STOCK_MAX, "{pool} of {charged}");
    // After the end of the flows their memory is returned, too, except what the allocator keeps.
    let peak = memory("Anonymous");
    daemon.remove("c").unwrap();
    thread::sleep(Duration::from_secs(1));
    let left = memory("Anonymous") - before[1];
    println!("guest: peak={} left={left} one second after its end", peak - before[1]);
    assert!(left < (peak - before[1]) / 2, "{left} left of {}", peak - before[1]);
}

/// Stalls flows until the process holds as much for them as the budget allows.
fn measure(what: &str, hard: u64, servers: (u64, Duration), client_hold: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = Arc::new(AtomicBool::new(false));
    let (send, hold) = servers;
    let serve = {
        let stop = Arc::clone(&stop);
        move || {
            let mut streams = Streams::accept(listener, FLOWS, send, hold);
            while !stop.load(Ordering::Relaxed) {
                streams.run(Duration::from_millis(100));
            }
        }
    };
    let servers = thread::spawn(serve);
    let line = guest::command(&format!("cold {port} {hard} {client_hold}"));
    let output = Command::new(&line[0]).args(&line[1..]).output().unwrap();
    stop.store(true, Ordering::Relaxed);
    servers.join().unwrap();
    for said in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some((_, numbers)) = said.split_once("guest: ") {
            println!("memory: stalled={what} hard={hard} {numbers}");
        }
    }
    answers(&output);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_servers_do_not_read() {
    for hard in [16 << 20, 64 << 20] {
        measure("servers", hard, (8, LONG), 0);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_the_container_does_not_read() {
    for hard in [16 << 20, 64 << 20] {
        measure("container", hard, (BYTES, Duration::ZERO), LONG.as_secs());
    }
}
