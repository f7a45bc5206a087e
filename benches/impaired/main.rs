//! Goodput through a cable that loses frames: our stack against the guest's kernel, and two kernels with each other,
//! with the same congestion control, the same cable and the same fate of the n-th frame.
//!
//! `cargo bench -p skbudget-benches --bench impaired` as root: 10 seeds of 30 s for each cable and direction, which
//! takes 40 minutes. `-- --seeds 3 --seconds 8 --at-once` gives a quick result. `--explain` samples the sender's
//! congestion window; `--capture DIR` keeps the guest's frames.

mod flow;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use flow::{Reading, Run, Toward};
use skbudget_sim::Faults;
use skbudget_testbed::cable::{Cable, Far};

#[derive(Debug, Parser)]
struct Args {
    /// Loss in percent of frames each way, and round-trip delay in milliseconds: LOSS:DELAY
    #[arg(long, value_delimiter = ',', default_values = ["1:20", "0.1:100"])]
    cables: Vec<CableArg>,
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Congestion control of the kernel's senders; our stack has its own
    #[arg(long, default_value = "cubic")]
    congestion: String,
    /// Up: the guest sends. Down: it receives
    #[arg(long, value_delimiter = ',', default_values = ["up", "down"])]
    toward: Vec<Toward>,
    /// Rate of the cable, Mbit/s
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Both arrangements of a pair at the same time: twice as fast, but each disturbs the other
    #[arg(long)]
    at_once: bool,
    /// Sample the sender's congestion window
    #[arg(long)]
    explain: bool,
    /// Directory for captures, one per run
    #[arg(long)]
    capture: Option<PathBuf>,
    /// Set by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy)]
struct CableArg {
    loss_ppm: u32,
    round_trip: Duration,
}

impl FromStr for CableArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (loss, delay) = text.split_once(':').ok_or("LOSS:DELAY, as 1:20")?;
        let loss: f64 = loss.parse().map_err(|e| format!("loss: {e}"))?;
        let ms: f64 = delay.parse().map_err(|e| format!("delay: {e}"))?;
        // Written as a negation, so that NaN is refused too.
        if !(0.0..=100.0).contains(&loss) || !(0.0..=10_000.0).contains(&ms) {
            return Err("a loss of 0..100 percent, a delay of 0..10000 ms".to_owned());
        }
        let loss_ppm = (loss * 10_000.0).round() as u32;
        Ok(Self { loss_ppm, round_trip: Duration::from_secs_f64(ms / 1000.0) })
    }
}

fn main() {
    let args = Args::parse();
    println!("loss% rtt_ms toward seed   ours kernel  ratio   Mbit/s of the receiver");
    for cable in &args.cables {
        for &toward in &args.toward {
            series(&args, cable, toward);
        }
    }
}

/// Runs all seeds of one cable and direction, and prints the median of their ratios.
fn series(args: &Args, cable: &CableArg, toward: Toward) {
    let loss = f64::from(cable.loss_ppm) / 10_000.0;
    let name = format!("{loss:5} {:6} {:6}", cable.round_trip.as_millis(), toward.name());
    let mut pairs = Vec::new();
    for seed in args.first_seed..args.first_seed + args.seeds {
        let run = Run {
            cable: Cable {
                round_trip: cable.round_trip,
                bits_per_second: Some(args.rate * 1_000_000),
                // Loss alone: reordering and duplicates are the tests' matter.
                faults: Faults { loss: cable.loss_ppm, ..Faults::default() },
                seed,
            },
            toward,
            length: Duration::from_secs(args.seconds),
            congestion: &args.congestion,
            explain: args.explain,
            capture: args.capture.as_deref(),
        };
        let (ours, kernel) = pair(args, &run);
        let ratio = ours.mbit / kernel.mbit;
        println!("{name} {seed:4} {:6.2} {:6.2} {ratio:6.3}", ours.mbit, kernel.mbit);
        for (far, reading) in [("ours", &ours), ("kernel", &kernel)] {
            if !reading.explained.is_empty() {
                println!("  {far:6} {}", reading.explained);
            }
        }
        pairs.push((ours.mbit, kernel.mbit));
    }
    let ratio = median(pairs.iter().map(|(ours, kernel)| ours / kernel).collect());
    let ours = median(pairs.iter().map(|pair| pair.0).collect());
    let kernel = median(pairs.iter().map(|pair| pair.1).collect());
    println!("{name}  all {ours:6.2} {kernel:6.2} {ratio:6.3}   medians");
}

/// Measures our stack and the kernel, in alternating order, or both at once.
fn pair(args: &Args, run: &Run<'_>) -> (Reading, Reading) {
    if args.at_once {
        return std::thread::scope(|scope| {
            let ours = scope.spawn(|| run.measure(Far::Ours));
            let kernel = run.measure(Far::Kernel);
            (ours.join().expect("a run that ends"), kernel)
        });
    }
    // Alternating, so that drift of the machine affects both alike.
    if run.cable.seed.is_multiple_of(2) {
        let kernel = run.measure(Far::Kernel);
        (run.measure(Far::Ours), kernel)
    } else {
        (run.measure(Far::Ours), run.measure(Far::Kernel))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
