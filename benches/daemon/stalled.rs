//! Stalled downloads of one container: what the stack and the kernel hold for it, and its neighbours.

use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use skbudget::attach;
use skbudget::stats::ContainerReport;
use skbudget_sim::packet::GATEWAY;
use skbudget_testbed::neighbour::{Neighbour, Stretch};
use skbudget_testbed::network::{Network, container, report};

use crate::Outcome;
use crate::loads::{Pusher, start_connections};

#[derive(Debug, Args)]
pub(crate) struct StalledArgs {
    /// Downloads that are tried
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Hard limit, MiB
    #[arg(long, default_value_t = 16)]
    hard: u64,
    /// Length of each phase
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

impl Default for StalledArgs {
    fn default() -> Self {
        Self { connections: 1000, hard: 16, seconds: 8 }
    }
}

/// Interval of the samples.
const EVERY: Duration = Duration::from_millis(10);
/// Slow start of the neighbours is over by then.
const WARM: Duration = Duration::from_secs(1);
const NEIGHBOUR_HARD: u64 = 8 << 20;

/// The largest values of the samples, bytes.
#[derive(Debug, Default)]
struct Peaks {
    samples: u64,
    usage: u64,
    /// Of the host sockets, in the kernel.
    kernel: u64,
    /// Usage with the kernel's memory in place of what is charged for it.
    held: u64,
    flows: u32,
}

pub(crate) fn run(args: &StalledArgs) -> Outcome {
    // One neighbour at a time: each needs the same ports.
    round(args, "other")?;
    round(args, "same")
}

/// One run, with a neighbour on the hog's worker (`same`) or on the other one.
fn round(args: &StalledArgs, worker: &str) -> Outcome {
    let (hard, phase) = (args.hard << 20, Duration::from_secs(args.seconds));
    let network = Network::create();
    let daemon = network.daemon_of(2, hard + 2 * NEIGHBOUR_HARD);
    // Containers go to the worker with the fewest: the first and the third share one.
    let netns = container(&daemon, "hog", hard, None, true);
    let second = container(&daemon, "second", NEIGHBOUR_HARD, None, true);
    let third = container(&daemon, "third", NEIGHBOUR_HARD, None, true);
    let neighbour = Neighbour::start(&network, if worker == "same" { &third } else { &second });
    sleep(WARM);
    let alone_from = neighbour.now();
    sleep(phase);
    let alone_to = neighbour.now();

    // The hog starts when the neighbour has had a phase alone.
    let own = network.within(attach_own)?;
    let pusher = Pusher::start(&own)?;
    let from = neighbour.now();
    let to = SocketAddrV4::new(GATEWAY, pusher.port);
    let open = start_connections(&netns, to, args.connections)?;
    let (mut peaks, start) = (Peaks::default(), Instant::now());
    while start.elapsed() < phase {
        // From the start of the sample: reading it takes a part of the interval.
        let next = Instant::now() + EVERY;
        peaks.add(&report(&daemon, "hog"), kernel_bytes(&own, pusher.port)?);
        sleep(next.saturating_duration_since(Instant::now()));
    }
    let to = neighbour.now();
    drop((open, pusher));
    println!(
        "stalled: {} downloads tried, {} open at most, {} samples; peaks in MiB: charged {:.2}, sockets of the kernel \
         {:.2}, held {:.2} of hard {} ({:.3} x)",
        args.connections,
        peaks.flows,
        peaks.samples,
        mib(peaks.usage),
        mib(peaks.kernel),
        mib(peaks.held),
        args.hard,
        peaks.held as f64 / hard as f64
    );
    let seen = neighbour.end();
    print_neighbour(worker, seen.between(alone_from, alone_to), seen.between(from, to));
    daemon.shutdown()?;
    Ok(())
}

/// The namespace of the calling thread.
fn attach_own() -> std::io::Result<std::os::fd::OwnedFd> {
    attach::open_netns("/proc/thread-self/ns/net".as_ref())
}

impl Peaks {
    fn add(&mut self, hog: &ContainerReport, kernel: u64) {
        self.samples += 1;
        self.usage = self.usage.max(hog.meter.usage_bytes);
        self.kernel = self.kernel.max(kernel);
        // What is charged for host sockets is the cap of the kernel's memory, not the memory.
        self.held = self.held.max(hog.meter.usage_bytes - hog.categories.host_bytes + kernel);
        self.flows = self.flows.max(hog.flows);
    }
}

/// Memory of the daemon's sockets to that port, from sock_diag(7): queues, reserved pages, options, backlog.
fn kernel_bytes(
    netns: &std::os::fd::OwnedFd,
    port: u16,
) -> Result<u64, Box<dyn std::error::Error>> {
    let list = || {
        let filter = format!("dport = :{port}");
        Command::new("ss").args(["-t", "-m", "-H", "-n", &filter]).output()
    };
    let output = attach::run_in(netns.as_fd(), list)??;
    let text = String::from_utf8_lossy(&output.stdout);
    // `skmem:(r0,rb131072,t0,tb87040,f0,w0,o0,bl0,d0)`
    let sockets = text.split("skmem:(").skip(1);
    let of = |socket: &str| -> u64 {
        let fields = socket.split(')').next().unwrap_or_default().split(',');
        let held = fields.filter_map(|field| {
            ["bl", "r", "f", "w", "o"]
                .iter()
                .find_map(|name| field.strip_prefix(name)?.parse::<u64>().ok())
        });
        held.sum()
    };
    Ok(sockets.map(of).sum())
}

fn print_neighbour(name: &str, alone: Stretch, beside: Stretch) {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "stalled: neighbour on the {name} worker: p50 {:.0} to {:.0} us, p99 {:.0} to {:.0} us ({:.2} x), stall {:.1} to \
         {:.1} ms, delivered {:.4} to {:.4}",
        micros(alone.p50),
        micros(beside.p50),
        micros(alone.p99),
        micros(beside.p99),
        beside.p99.div_duration_f64(alone.p99),
        micros(alone.stall) / 1e3,
        micros(beside.stall) / 1e3,
        alone.delivered,
        beside.delivered
    );
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
