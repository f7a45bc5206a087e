//! Many containers that do nothing.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use skbudget::attach::{self, GuestNet};
use skbudget::settings::ContainerOptions;
use skbudget::units::Bytes;
use skbudget_stack::{ContainerConfig, Tap};

use crate::process::Serve;
use crate::{Outcome, median, quantile};

#[derive(Debug, Args)]
pub(crate) struct IdleArgs {
    /// Containers attached at the same time
    #[arg(long, default_value_t = 1000)]
    containers: usize,
    /// Times that one namespace is attached and detached
    #[arg(long, default_value_t = 500)]
    cycles: usize,
    /// Length of the measurement of CPU time
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Workers of the daemon
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

impl Default for IdleArgs {
    fn default() -> Self {
        Self { containers: 1000, cycles: 500, seconds: 10, workers: 2 }
    }
}

/// Devices made in each way, without a daemon.
const DEVICES: usize = 100;
/// Cycles before the memory is compared: the allocator has its pools by then.
const WARM_CYCLES: usize = 50;
/// Requests for stats.
const REQUESTS: usize = 20;

pub(crate) fn run(args: &IdleArgs) -> Outcome {
    many(args)?;
    cycles(args)?;
    devices()
}

fn options() -> ContainerOptions {
    ContainerOptions { hard: Some(Bytes(16 << 20)), ..ContainerOptions::default() }
}

/// All containers at once.
fn many(args: &IdleArgs) -> Outcome {
    let serve = Serve::start(args.workers)?;
    let before = serve.rss();
    let netns = (0..args.containers).map(|_| attach::create_netns());
    let netns: Vec<OwnedFd> = netns.collect::<Result<_, _>>()?;
    let start = Instant::now();
    let mut each = Vec::new();
    for (i, netns) in netns.iter().enumerate() {
        let start = Instant::now();
        serve.attach(&format!("c{i}"), netns, options())?;
        each.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let n = args.containers;
    println!(
        "attach: {n} containers in {:.1} s, each median {:.1} ms, p99 {:.1} ms",
        start.elapsed().as_secs_f64(),
        median(&mut each),
        quantile(&mut each, 0.99)
    );
    // The kernels of new namespaces announce themselves.
    sleep(Duration::from_secs(5));
    let rss = serve.rss();
    println!(
        "memory: {:.1} KiB resident per idle container ({:.1} MiB in all)",
        rss.saturating_sub(before) as f64 / 1024.0 / n as f64,
        rss as f64 / f64::from(1 << 20)
    );
    let (cpu, start) = (serve.cpu(), Instant::now());
    sleep(Duration::from_secs(args.seconds));
    let part = (serve.cpu() - cpu).div_duration_f64(start.elapsed());
    println!("idle: {:.2} % of a core over {} s", part * 100.0, args.seconds);
    let mut took = Vec::new();
    for _ in 0..REQUESTS {
        let start = Instant::now();
        let stats = serve.remote.stats()?;
        took.push(start.elapsed().as_secs_f64() * 1e3);
        assert_eq!(stats.containers.len(), n);
    }
    println!("stats of all: median {:.1} ms, with the client", median(&mut took));
    let start = Instant::now();
    // One by one, as an engine does.
    for i in 0..n {
        serve.remote.detach(&format!("c{i}"))?;
    }
    println!("detach: {n} containers in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// One namespace, attached and detached.
fn cycles(args: &IdleArgs) -> Outcome {
    let serve = Serve::start(args.workers)?;
    let netns = attach::create_netns()?;
    let state = |serve: &Serve| (serve.rss(), serve.descriptors());
    // Taken again after the first cycles.
    let mut before = state(&serve);
    for i in 0..WARM_CYCLES + args.cycles {
        if i == WARM_CYCLES {
            before = state(&serve);
        }
        serve.attach("c", &netns, options())?;
        serve.remote.detach("c")?;
    }
    let after = state(&serve);
    let devices =
        attach::run_in(netns.as_fd(), || fs::read_to_string("/proc/thread-self/net/dev"))??;
    // Two lines of head, and the loopback.
    let devices = devices.lines().count().saturating_sub(3);
    let kib = |(rss, _): (u64, usize)| rss >> 10;
    println!(
        "cycles: {}; resident {} KiB before, {} KiB after ({:+.1} %); descriptors {} before, {} after; {devices} \
         devices and {} containers left",
        args.cycles,
        kib(before),
        kib(after),
        (after.0 as f64 / before.0 as f64 - 1.0) * 100.0,
        before.1,
        after.1,
        serve.remote.stats()?.containers.len()
    );
    Ok(())
}

/// The kernel's part: a device that is moved into the namespace, and one that is created inside.
fn devices() -> Outcome {
    let config = ContainerConfig::new(1500, true, Some(16 << 20), [1, 2]);
    let guest = GuestNet::from(&config);
    let (mut moved, mut inside) = (Vec::new(), Vec::new());
    for _ in 0..DEVICES {
        let netns = attach::create_netns()?;
        let start = Instant::now();
        let tap = attach::tap_into(netns.as_fd(), &guest)?;
        moved.push(start.elapsed().as_secs_f64() * 1e3);
        // The kernel removes both before the next device is timed.
        drop((tap, netns));
        let netns = attach::create_netns()?;
        let start = Instant::now();
        let tap = attach::run_in(netns.as_fd(), || Tap::open("tap0", true))??;
        inside.push(start.elapsed().as_secs_f64() * 1e3);
        drop((tap, netns));
    }
    println!(
        "device: moved and configured median {:.1} ms; opened inside, not configured, median {:.1} ms",
        median(&mut moved),
        median(&mut inside)
    );
    Ok(())
}
