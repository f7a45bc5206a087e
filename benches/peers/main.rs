//! Compares ways to give a container a network, in interleaved rounds. Needs root.
//!
//! `cargo bench -p skbudget-benches --bench peers -- [OPTIONS]`
//!
//! Everything runs between namespaces that the bench creates: a private host and one container at a time, both with
//! Reno as default congestion control. Under BBR the senders' pacing timers would be measured instead of the path. The
//! order of the peers is reversed in every other round, so that a machine that warms up or is disturbed affects all
//! alike; ratios are taken within a round.

mod lab;
mod measure;
mod peer;
mod small;
mod table;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;

use crate::lab::Lab;
use crate::measure::{Plan, Test};
use crate::peer::{Peer, Programs};
use crate::table::Table;

/// Measure ways to give a container a network, side by side
#[derive(Debug, Parser)]
#[command(name = "peers", subcommand_negates_reqs = true)]
struct Args {
    /// Peers, in the order of the first round
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "veth,slirp4netns,pasta,skbudget"
    )]
    peers: Vec<Peer>,
    /// MTUs of the container's device
    #[arg(long, value_delimiter = ',', default_value = "1500,65520")]
    mtu: Vec<u16>,
    /// up and down: one flow, Gbit/s. rr, crr: round trips and connections a second. resume, resume-down: microseconds
    /// from a reader's first empty read to its next byte, after it had let the flow fill up
    #[arg(long, value_enum, value_delimiter = ',', default_value = "up,down,rr,crr")]
    tests: Vec<Test>,
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of one measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Stalls of one resume measurement
    #[arg(long, default_value_t = 100)]
    cycles: u32,
    /// Write all cells and ratios to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Built and found beside this bench if not given
    #[arg(long, value_name = "PATH", env = "SKBUDGET")]
    skbudget: Option<PathBuf>,
    /// More options of `skbudget run`, e.g. "--hard 16MiB"
    #[arg(long, value_name = "OPTIONS", default_value = "", allow_hyphen_values = true)]
    skbudget_args: String,
    /// A newer build than the distribution's is a harder peer
    #[arg(long, value_name = "PATH", default_value = "pasta")]
    pasta: PathBuf,
    /// Set by `cargo bench`; without it this is a test run, which measures nothing
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    small: Option<small::Small>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(small) = args.small {
        return report(small::run(small).map_err(|e| format!("{small:?}: {e}")));
    }
    // `cargo test --benches` runs the executable without `--bench`.
    if !args.bench {
        println!("skipped: measures with --bench, as `cargo bench` says");
        return ExitCode::SUCCESS;
    }
    if let Err(why) = able(&args) {
        println!("skipped: {why}");
        return ExitCode::SUCCESS;
    }
    report(compare(args))
}

fn report(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("peers: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Checks whether this machine can run the bench.
fn able(args: &Args) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("namespaces are made as root".to_owned());
    }
    let has = |peer| args.peers.contains(&peer);
    let iperf3 = args.tests.iter().any(|test| matches!(test, Test::Up | Test::Down));
    let needed = [
        ("ip", "iproute2", true),
        ("sysctl", "procps", true),
        ("iperf3", "iperf3", iperf3),
        ("slirp4netns", "slirp4netns", has(Peer::Slirp4netns)),
        ("pasta", "passt", has(Peer::Pasta) && args.pasta.as_os_str() == "pasta"),
    ];
    for (program, package, _) in needed.iter().filter(|(_, _, needed)| *needed) {
        // Each program spells `--version` in its own way: only whether it starts matters.
        if Command::new(program).arg("-V").output().is_err() {
            return Err(format!("{program} is missing (package {package})"));
        }
    }
    Ok(())
}

fn compare(args: Args) -> Result<(), String> {
    let skbudget = match args.skbudget {
        _ if !args.peers.contains(&Peer::Skbudget) => PathBuf::new(),
        Some(path) => path,
        None => built()?,
    };
    let skbudget_args = args.skbudget_args.split_whitespace().map(str::to_owned).collect();
    let programs = Programs { skbudget, skbudget_args, pasta: args.pasta };
    let plan = Plan { seconds: args.seconds, cycles: args.cycles };
    let mut table = Table::default();
    {
        // In a block of its own: the namespaces are gone before the table is printed.
        let lab = Lab::new()?;
        for round in 0..args.rounds {
            for &mtu in &args.mtu {
                let mut peers = args.peers.clone();
                // Every other round in reverse order.
                if round % 2 == 1 {
                    peers.reverse();
                }
                for peer in peers {
                    // A fresh container for each peer and MTU; all tests of that pair share it.
                    let container = peer.start(&lab, &programs, mtu)?;
                    for &test in &args.tests {
                        let readings = measure::measure(&lab, &container, test, &plan);
                        lab::check_stop()?;
                        // A failed test is reported and leaves a gap in the table; the others go on.
                        if let Err(e) = &readings {
                            eprintln!("peers: {} {mtu} {test:?}: {e}", peer.name());
                        }
                        table.add(peer, mtu, test, readings.ok());
                    }
                }
            }
            eprintln!("peers: round {} of {} done", round + 1, args.rounds);
        }
    }
    print!("{}", table.render());
    if let Some(path) = args.json {
        let text = format!("{:#}\n", table.json());
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Builds the skbudget of this source tree: `cargo bench` builds benches, not other packages' binaries.
fn built() -> Result<PathBuf, String> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        let status = Command::new(cargo).args(["build", "--release", "-p", "skbudget"]).status();
        if !status.map_err(|e| format!("cargo build: {e}"))?.success() {
            return Err("skbudget does not build".to_owned());
        }
    }
    // target/release/deps/peers-0123 -> target/release/skbudget
    let exe = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
    let beside = exe.parent().and_then(|deps| deps.parent()).map(|dir| dir.join("skbudget"));
    match beside {
        Some(path) if path.exists() => Ok(path),
        _ => Err(format!(
            "no skbudget beside {}: cargo build --release -p skbudget, or --skbudget PATH",
            exe.display()
        )),
    }
}
