//! Charged bytes against what the process really holds.

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
use crate::streams::Streams;

const FLOWS: usize = 300;
const BYTES: u64 = 1 << 20;
const MTU: u16 = 65520;
/// Bytes of free chunks in a worker that rests.
const STOCK_MAX: u64 = 64 << 10;

/// Bytes of one kind, of this process: from the one file that counts exactly.
fn memory(kind: &str) -> i64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix(kind)).unwrap();
    let kib: i64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

/// The process that is measured: a daemon with one container, and the container's client in a process of its own.
pub(crate) fn cold(words: &[&str]) {
    let (port, hard, hold) = (words[0], words[1].parse().unwrap(), words[2]);
    let (netns, daemon) = container(hard, MTU);
    let line = guest::command(&format!("stall {port} {FLOWS} {BYTES} {hold}"));
    // What a process of this size needs to start another one is not the flows'.
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let before = [memory("Rss"), memory("Anonymous")];
    let charged_before = report(&daemon, false).categories;
    let mut client = attach::run_in(netns.as_fd(), || command.spawn().unwrap()).unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines().map(Result::unwrap);
    let tally = said.find(|line| line.contains("guest: ")).unwrap();
    // Flows that stall still move a little now and then; when they rest, what is free goes back within a second.
    let rested = Instant::now() + Duration::from_secs(20);
    let mut stats = daemon.stats(true).unwrap();
    while stats.pool_bytes > STOCK_MAX && Instant::now() < rested {
        thread::sleep(Duration::from_millis(20));
        stats = daemon.stats(true).unwrap();
    }
    let now = &stats.containers[0];
    let after = [memory("Rss"), memory("Anonymous")];
    let used = |c: skbudget::stats::Categories| {
        (c.rmem_bytes + c.ofo_bytes + c.wmem_bytes + c.udp_bytes + c.sock_bytes) as i64
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
    // Pages of the program that are touched for the first time are in its RSS too, and so is the worker's one frame,
    // which is the platform's. They hold nothing of a container.
    let held = (anonymous - stats.platform_bytes as i64) as f64 / charged as f64;
    assert!((0.8..=1.15).contains(&held), "{anonymous} ({rss} with the program) for {charged}");
    assert!(pool <= STOCK_MAX, "{pool} of {charged}");
    // All of it ends: what was used goes back as well, but for what the allocator needs to go on.
    let peak = memory("Anonymous");
    daemon.remove("c").unwrap();
    thread::sleep(Duration::from_secs(1));
    let left = memory("Anonymous") - before[1];
    println!("guest: peak={} left={left} one second after its end", peak - before[1]);
    assert!(left < (peak - before[1]) / 2, "{left} left of {}", peak - before[1]);
}

/// Stalled flows on behalf of which the process holds as much as the budget allows.
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
