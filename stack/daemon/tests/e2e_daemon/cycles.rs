//! Many containers come and go: nothing of them stays.

use std::fs;

use crate::relay::relay_of;
use crate::support::{Netns, Running, free_port, until};

/// Cycles of the test: `SKBUDGET_CYCLES=500` for the long form.
const CYCLES: usize = 60;

/// Memory that a process may use more after many cycles, of 100 parts, and in any case, KiB: a page table, a buffer.
const GROWTH_PERCENT: u64 = 2;
const GROWTH_KIB: u64 = 1024;

/// Resident memory of a process, KiB.
fn rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn cycles_of_attach_and_detach_leave_no_memory_and_no_descriptor() {
    let cycles = std::env::var("SKBUDGET_CYCLES").map_or(CYCLES, |n| n.parse().unwrap());
    let daemon = Running::start(&["--workers", "2"]);
    let others: Vec<Netns> = (0..10).map(|_| Netns::new()).collect();
    for netns in &others {
        daemon.run(&["attach", netns.name(), "--netns", &netns.path()]);
    }
    let netns = Netns::new();
    let (path, (_, spec)) = (netns.path(), free_port());
    let run = |n: usize| {
        for cycle in 0..n {
            daemon.run(&["attach", "web", "--netns", &path, "-p", &spec]);
            daemon.run(&["detach", "web"]);
            if cycle % 5 == 0 {
                daemon.get("/metrics");
            }
        }
    };
    let processes = [daemon.child.id(), relay_of(&daemon).unwrap()];
    // Every thread that serves requests has made some of each answer by then.
    run(80);
    let before = processes.map(|pid| (rss(pid), descriptors(pid)));
    run(cycles);
    for (pid, (memory, open)) in processes.into_iter().zip(before) {
        until(|| descriptors(pid) <= open);
        let most = memory + (memory * GROWTH_PERCENT / 100).max(GROWTH_KIB);
        let now = rss(pid);
        assert!(now <= most, "{now} KiB after {cycles} cycles, {memory} KiB before");
    }
    assert_eq!(netns.devices(), ["lo"]);
    daemon.end();
}
