//! The effect of a flood on a neighbour, in real time: its p99, its longest stall and its throughput, alone and while
//! another container of the same daemon floods, compared with thresholds. Both phases belong to one run, so that their
//! ratio depends as little as possible on the machine. On two cores the flood's sender, the neighbour's ends and the
//! servers share the CPU with the daemon: so each round is also run *apart*, with the attacker under another daemon.
//! The effect of that run is the machine's; only what exceeds it is the daemon's.
//!
//! `cargo bench -p skbudget-benches --bench floods` as root. `-- --kinds syn --rounds 1` gives a quick result;
//! `--seconds 20` makes a flood of a million segments.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use skbudget_sim::flood::{Attack, Kind};
use skbudget_testbed::flood_rig::{FloodRig, HARD};
use skbudget_testbed::neighbour::Stretch;

const PER_SECOND: u64 = 50_000;
const CONNECTIONS: u16 = 50;
/// By then slow start is over and windows have grown.
const WARM: Duration = Duration::from_secs(1);

/// Thresholds for a shared machine; those of the virtual world are exact, and tighter.
const P99_INFLATION: f64 = 2.0;
const P99_DELTA: Duration = Duration::from_micros(500);
const STALL: Duration = Duration::from_millis(50);
const DELIVERED: f64 = 0.999;
const SLOWDOWN: f64 = 1.15;

#[derive(Debug, Parser)]
struct Args {
    #[arg(
        long,
        value_delimiter = ',',
        default_values = ["syn", "refused", "out-of-order", "one-byte", "ack-lie"]
    )]
    kinds: Vec<KindArg>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of each phase
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    #[arg(long, default_value_t = PER_SECOND)]
    rate: u64,
    /// Workers of the daemon: by default one a core, with the two containers on two of them
    #[arg(long, default_value_t = thread::available_parallelism().map_or(1, usize::from))]
    workers: usize,
    /// Set by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    Syn,
    Refused,
    OutOfOrder,
    OneByte,
    AckLie,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Syn => Self::Syn,
            KindArg::Refused => Self::Refused,
            KindArg::OutOfOrder => Self::OutOfOrder,
            KindArg::OneByte => Self::OneByte,
            KindArg::AckLie => Self::AckLie,
        }
    }
}

/// One run of one flood.
#[derive(Debug)]
struct Round {
    alone: Stretch,
    beside: Stretch,
    per_second: f64,
    lost: u64,
    /// The daemon's CPU time for the attacker, in cores.
    cpu: f64,
    /// Traffic to the attacker, Mbit/s.
    sent: f64,
    peak: u64,
}

fn main() {
    let args = Args::parse();
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    // A flood opens many sockets: raise the limit of descriptors to its maximum.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    println!(
        "flood        frames/s    lost  cpu Mbit/s   peak  p50 us          p99 us          ratio  stall ms     \
         delivered"
    );
    for &kind in &args.kinds {
        // `together`: both containers in one daemon. `apart`: the attacker in a second one.
        let [mut together, mut apart] = [Vec::new(), Vec::new()];
        for _ in 0..args.rounds {
            // Alternating, so that drift of the machine affects both alike.
            apart.push(round(&args, kind.into(), true));
            line("apart", apart.last());
            together.push(round(&args, kind.into(), false));
            line(&format!("{:?}", Kind::from(kind)), together.last());
        }
        verdict(kind.into(), &together, &apart);
    }
}

/// One round: the neighbour alone, then beside the flood. `apart`: the attacker has its own daemon.
fn round(args: &Args, kind: Kind, apart: bool) -> Round {
    let phase = Duration::from_secs(args.seconds);
    let mut rig = FloodRig::new(args.workers);
    // The attacker's container exists during the phase alone too, but is silent.
    rig.add_attacker(apart);
    thread::sleep(WARM);
    let alone_from = rig.now();
    thread::sleep(phase);
    let alone_to = rig.now();
    // As many segments as the phase holds at this rate.
    let mut attack = Attack::new(kind, args.seconds * args.rate, args.rate, CONNECTIONS);
    let from = rig.now();
    let sent = rig.attack(&mut attack, &AtomicBool::new(false));
    let to = rig.now();
    // Read before the container is removed: its counters go with it.
    let report = rig.attacker();
    rig.remove_attacker();
    let (seen, left) = rig.end();
    // After both containers nothing may stay charged at the host level.
    assert_eq!(left, 0, "bytes that nobody has");
    Round {
        alone: seen.between(alone_from, alone_to),
        beside: seen.between(from, to),
        per_second: sent.frames as f64 / sent.took.as_secs_f64(),
        // Frames that the device refused, on either side.
        lost: sent.lost + report.counters.get("DeviceFull").copied().unwrap_or(0),
        cpu: report.cpu_ns as f64 / sent.took.as_nanos() as f64,
        sent: report.bytes_to_guest as f64 * 8e-6 / sent.took.as_secs_f64(),
        peak: report.meter.max_usage_bytes,
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Prints one row of the table.
fn line(name: &str, round: Option<&Round>) {
    let Some(Round { alone, beside, per_second, lost, cpu, sent, peak }) = round else { return };
    println!(
        "{name:12} {per_second:8.0} {lost:7} {cpu:5.2} {sent:6.0} {:6.3} {:6.0} {:6.0} {:8.0} {:8.0} {:6.2} \
         {:5.1} {:6.1} {:7.4} {:7.4}",
        *peak as f64 / HARD as f64,
        micros(alone.p50),
        micros(beside.p50),
        micros(alone.p99),
        micros(beside.p99),
        beside.p99.div_duration_f64(alone.p99),
        micros(alone.stall) / 1e3,
        micros(beside.stall) / 1e3,
        alone.delivered,
        beside.delivered,
    );
}

/// Prints the medians of the rounds beside their thresholds.
fn verdict(kind: Kind, rounds: &[Round], apart: &[Round]) {
    let of = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value).collect());
    let inflation = of(&|r| r.beside.p99.div_duration_f64(r.alone.p99));
    let delta = of(&|r| micros(r.beside.p99) - micros(r.alone.p99));
    let stall = of(&|r| micros(r.beside.stall));
    let delivered = of(&|r| r.beside.delivered);
    let slowdown = of(&|r| r.alone.delivered / r.beside.delivered);
    let p99s = |rounds: &[Round]| median(rounds.iter().map(|r| micros(r.beside.p99)).collect());
    // What the daemon adds to the machine's own interference.
    let over_apart = p99s(rounds) / p99s(apart);
    // Not a median: the limit must hold in every round.
    let overshoot = rounds.iter().map(|r| r.peak.saturating_sub(HARD)).max().unwrap_or(0);
    let checks = [
        ("p99 inflation", inflation, inflation <= P99_INFLATION),
        ("the same over apart", over_apart, over_apart <= P99_INFLATION),
        ("p99 delta us", delta, delta <= micros(P99_DELTA)),
        ("stall us", stall, stall <= micros(STALL)),
        ("delivered", delivered, delivered >= DELIVERED),
        ("slowdown", slowdown, slowdown <= SLOWDOWN),
        ("overshoot bytes", overshoot as f64, overshoot == 0),
    ];
    let words = checks.map(|(name, value, holds)| {
        format!("{name} {value:.3} {}", if holds { "holds" } else { "DOES NOT HOLD" })
    });
    println!("{:12} medians of {}: {}", format!("{kind:?}"), rounds.len(), words.join(", "));
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
