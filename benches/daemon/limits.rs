//! Limits that change while the container is under load: the time from the request to its effect.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use skbudget::attach;
use skbudget::settings::ContainerOptions;
use skbudget::stats::ContainerReport;
use skbudget::units::Bytes;

use crate::loads::{Pusher, start_connections};
use crate::process::Serve;
use crate::{Outcome, median, quantile};

#[derive(Debug, Args)]
pub(crate) struct LimitsArgs {
    /// Changes in each direction
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// Stalled downloads, more than fit
    #[arg(long, default_value_t = 1000)]
    connections: usize,
}

impl Default for LimitsArgs {
    fn default() -> Self {
        Self { changes: 20, connections: 1000 }
    }
}

/// The limit at the start, and what each change adds: room for several flows.
const HARD: u64 = 8 << 20;
const MORE: u64 = 256 << 10;
/// Time in which the state settles between two changes.
const SETTLE: Duration = Duration::from_millis(300);

pub(crate) fn run(args: &LimitsArgs) -> Outcome {
    let serve = Serve::start(2)?;
    let netns = attach::create_netns()?;
    let options = ContainerOptions { hard: Some(Bytes(HARD)), ..ContainerOptions::default() };
    serve.attach("hog", &netns, options)?;
    let pusher = Pusher::start(&serve.netns)?;
    let to = SocketAddrV4::new(gateway(&netns)?, pusher.port);
    let open = start_connections(&netns, to, args.connections)?;
    // Every flow that fits is open and full by then, and the others wait.
    sleep(Duration::from_secs(3));
    let (mut raised, mut lowered) = (Vec::new(), Vec::new());
    for change in 1..=args.changes as u64 {
        let waiting = waiting(&open)?;
        let start = Instant::now();
        serve.remote.set_hard("hog", HARD + change * MORE)?;
        // The effect: a connection that had no room is established.
        wait_for_one(&waiting)?;
        raised.push(start.elapsed().as_secs_f64() * 1e3);
        // More connections may fit; all of them are admitted before the next change.
        sleep(SETTLE);
    }
    for change in (0..args.changes as u64).rev() {
        let start = Instant::now();
        serve.remote.set_hard("hog", HARD + change * MORE)?;
        lowered.push(start.elapsed().as_secs_f64() * 1e3);
        let at = hog(&serve)?;
        // Below the usage: nothing is dropped, and the usage does not rise any more.
        sleep(SETTLE);
        let later = hog(&serve)?;
        if at.meter.hard_bytes != Some(HARD + change * MORE) {
            return Err(io::Error::other("the limit is not in force").into());
        }
        if later.meter.usage_bytes > at.meter.usage_bytes.max(HARD + change * MORE) {
            return Err(io::Error::other("the usage rose above a lowered limit").into());
        }
        if later.flows != at.flows {
            return Err(io::Error::other("a flow was closed by a lowered limit").into());
        }
    }
    println!(
        "limits: raised to the first connection that it admits: median {:.2} ms, worst {:.2} ms; lowered to in force: \
         median {:.2} ms, worst {:.2} ms; {} changes each, {} flows open",
        median(&mut raised),
        quantile(&mut raised, 1.0),
        median(&mut lowered),
        quantile(&mut lowered, 1.0),
        args.changes,
        hog(&serve)?.flows
    );
    Ok(())
}

fn hog(serve: &Serve) -> Result<ContainerReport, Box<dyn std::error::Error>> {
    let all = serve.remote.stats()?.containers;
    all.into_iter().find(|c| c.name == "hog").ok_or_else(|| "the container ended".into())
}

/// The default gateway of the namespace, which leads to the daemon's loopback.
fn gateway(netns: &OwnedFd) -> io::Result<Ipv4Addr> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/route");
    let table = attach::run_in(netns.as_fd(), read).map_err(io::Error::other)??;
    let gateway = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let default = fields.get(1) == Some(&"00000000");
        default.then(|| u32::from_str_radix(fields[2], 16).ok()).flatten()
    });
    let gateway = gateway.ok_or_else(|| io::Error::other("no default route"))?;
    Ok(Ipv4Addr::from(gateway.to_ne_bytes()))
}

/// The connections that are not established.
fn waiting(open: &[OwnedFd]) -> io::Result<Vec<&OwnedFd>> {
    let mut fds: Vec<PollFd<'_>> =
        open.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)).collect();
    poll(&mut fds, PollTimeout::ZERO)?;
    let pending = |fd: &PollFd<'_>| fd.revents().is_none_or(|events| events.is_empty());
    Ok(open.iter().zip(&fds).filter(|(_, fd)| pending(fd)).map(|(open, _)| open).collect())
}

/// Waits until one of them is established.
fn wait_for_one(waiting: &[&OwnedFd]) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> =
        waiting.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)).collect();
    match poll(&mut fds, PollTimeout::from(10_000_u16))? {
        0 => Err(io::Error::other(format!("none of {} connections is admitted", waiting.len()))),
        _ => Ok(()),
    }
}
