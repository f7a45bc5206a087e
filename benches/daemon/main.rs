//! What a daemon with many containers costs, in real time: attaching them, an idle one, a thousand stalled downloads in
//! one, two workers, and limits that change under load. Needs root.
//!
//! `cargo bench -p skbudget-benches --bench daemon` runs all parts, `-- idle --containers 100` one of them. All of it
//! runs in network namespaces of its own. Times depend on the other processes of the machine; sizes and CPU times do so
//! much less.

mod idle;
mod limits;
mod loads;
mod process;
mod stalled;
mod workers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a bench returns: an error is printed.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Measure a daemon with many containers
#[derive(Debug, Parser)]
#[command(name = "daemon")]
struct Args {
    /// Set by `cargo bench`; without it this is a test run, which measures nothing
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Time to attach containers; CPU and memory of idle ones; attach and detach over and over
    Idle(idle::IdleArgs),
    /// Memory while one container tries stalled downloads, and its neighbours on both workers
    Stalled(stalled::StalledArgs),
    /// CPU time of two workers with a bulk flow each, against one worker with both
    Workers(workers::WorkersArgs),
    /// Time from a request to its effect, while the container is under load
    Limits(limits::LimitsArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    // `cargo test --benches` runs the executable without `--bench`.
    if !args.bench {
        println!("skipped: measures with --bench, as `cargo bench` says");
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return ExitCode::SUCCESS;
    }
    // Both ends of each connection belong to this process: raise the limit of descriptors to its maximum.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    let parts = match args.part {
        Some(part) => vec![part],
        None => vec![
            Part::Idle(idle::IdleArgs::default()),
            Part::Stalled(stalled::StalledArgs::default()),
            Part::Workers(workers::WorkersArgs::default()),
            Part::Limits(limits::LimitsArgs::default()),
        ],
    };
    for part in parts {
        let done = match &part {
            Part::Idle(args) => idle::run(args),
            Part::Stalled(args) => stalled::run(args),
            Part::Workers(args) => workers::run(args),
            Part::Limits(args) => limits::run(args),
        };
        if let Err(e) = done {
            eprintln!("daemon: {part:?}: {e}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The value below which this part of the sorted values is.
fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * part) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// The middle value.
fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}
