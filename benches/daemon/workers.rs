//! Two containers with a bulk flow each, on one worker and on two.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::Args;
use skbudget_sim::packet::GATEWAY;
use skbudget_testbed::network::{Network, container};

use crate::loads::upload;
use crate::process::cpu_of;
use crate::{Outcome, median};

#[derive(Debug, Args)]
pub(crate) struct WorkersArgs {
    /// Pairs of measurements
    #[arg(long, default_value_t = 6)]
    pairs: usize,
    /// Length of one measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

impl Default for WorkersArgs {
    fn default() -> Self {
        Self { pairs: 6, seconds: 4 }
    }
}

const HARD: u64 = 64 << 20;

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Reading {
    bytes: u64,
    /// CPU time of all workers.
    cpu: Duration,
    /// That of the busiest over that of the least busy.
    imbalance: f64,
}

pub(crate) fn run(args: &WorkersArgs) -> Outcome {
    let time = Duration::from_secs(args.seconds);
    let (mut ratios, mut imbalances) = (Vec::new(), Vec::new());
    for pair in 0..args.pairs {
        // In turns, so that a machine that warms up or is disturbed affects both alike.
        let order = if pair % 2 == 0 { [1, 2] } else { [2, 1] };
        let mut cost = [0.0; 2];
        for workers in order {
            let reading = measure(workers, time)?;
            let per_byte = reading.cpu.as_nanos() as f64 / reading.bytes.max(1) as f64;
            cost[workers - 1] = per_byte;
            if workers == 2 {
                imbalances.push(reading.imbalance);
            }
            println!(
                "workers: {workers}: {:.1} Gbit/s, {per_byte:.4} ns of CPU a byte, busiest over least {:.3}",
                reading.bytes as f64 * 8e-9 / time.as_secs_f64(),
                reading.imbalance
            );
        }
        ratios.push(cost[1] / cost[0]);
    }
    println!(
        "workers: medians of {} pairs: CPU a byte of two over one {:.3} x, busiest over least {:.3}",
        args.pairs,
        median(&mut ratios),
        median(&mut imbalances)
    );
    Ok(())
}

fn measure(workers: usize, time: Duration) -> Result<Reading, Box<dyn std::error::Error>> {
    let network = Network::create();
    let daemon = network.daemon_of(workers, 2 * HARD);
    let guests: Vec<OwnedFd> =
        ["a", "b"].iter().map(|name| container(&daemon, name, HARD, None, true)).collect();
    // The servers are where the daemon's host sockets are.
    let host =
        network.within(|| skbudget::attach::open_netns(Path::new("/proc/thread-self/ns/net")))?;
    let before = cpu_of_workers();
    let bytes = thread::scope(|scope| {
        let flows: Vec<_> = guests
            .iter()
            .map(|guest| scope.spawn(|| upload(guest, &host, GATEWAY, time)))
            .collect();
        let bytes = flows.into_iter().map(|flow| match flow.join() {
            Ok(bytes) => bytes,
            Err(_) => Err(std::io::Error::other("a sender panicked")),
        });
        bytes.sum::<std::io::Result<u64>>()
    })?;
    let spent: Vec<Duration> = cpu_of_workers()
        .iter()
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before))
        .collect();
    daemon.shutdown()?;
    // With one worker they are the same.
    let busiest = spent.iter().max().copied().unwrap_or_default();
    let least = spent.iter().min().copied().unwrap_or_default();
    let imbalance = busiest.div_duration_f64(least.max(Duration::from_millis(1)));
    Ok(Reading { bytes, cpu: spent.iter().sum(), imbalance })
}

/// CPU time of the workers' threads of this process, which has one daemon at a time.
fn cpu_of_workers() -> Vec<Duration> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let mut workers: Vec<_> = tasks
        .map(|task| task.path())
        .filter_map(|task| {
            let name = fs::read_to_string(task.join("comm")).ok()?;
            name.starts_with("skb-worker-").then_some((name, cpu_of(&task.join("stat"))))
        })
        .collect();
    workers.sort();
    workers.into_iter().map(|(_, cpu)| cpu).collect()
}
