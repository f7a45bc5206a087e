//! `loadgen selftest`: checks this binary against oracles with known answers, in seconds and without privileges, and
//! measures how late this machine wakes up a generator.

mod formats;
mod percentiles;
mod world;

#[cfg(test)]
pub(crate) use formats::sample;
pub use world::probe;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use skbudget_sim::Server;

use crate::exit::Exit;
use crate::judge::stats::rank;
use crate::measure::ProbeRecorder;
use crate::scenario::plan::Phase;
use crate::units::time;

const SECOND: u64 = 1_000_000_000;
/// A generator later than this measures its own lag; wall-clock runs report that and are inconclusive.
const LATE_NS: u64 = 5_000_000;

/// The observation, as an error if it is wrong.
type Check = fn() -> Result<String, String>;

/// The observation of a check, and whether it is right.
struct CheckResult {
    name: &'static str,
    ok: Result<String, String>,
}

/// Prints one line per finished check. Exit code: 1 for a wrong answer, 5 for a machine that wakes up too late.
pub fn run(mut each: impl FnMut(&str)) -> u8 {
    let checks: [(&'static str, Check); 7] = [
        ("a frozen server delays every request", freeze),
        ("a server that never answers gives no good percentile", silence),
        ("percentiles of a known histogram", known_histogram),
        ("percentiles rise and agree in every file, with missing requests too", percentiles::all),
        ("every file parses", formats::all),
        ("exact probabilities of small samples", ranks),
        ("the same seed gives the same run", twice),
    ];
    let mut wrong = 0;
    for (name, check) in checks {
        let found = CheckResult { name, ok: check() };
        wrong += u32::from(found.ok.is_err());
        each(&line(&found));
    }
    // Apart from the checks: it measures the machine, not the binary.
    let late = wake_ups();
    each(&line(&late));
    // A wrong answer outweighs a late machine.
    match (wrong, late.ok.is_ok()) {
        (0, true) => Exit::Passed.code(),
        (0, false) => Exit::Inconclusive.code(),
        _ => Exit::Io.code(),
    }
}

fn line(f: &CheckResult) -> String {
    let mut s = String::new();
    let (mark, text) = match &f.ok {
        Ok(text) => ("ok  ", text),
        Err(text) => ("FAIL", text),
    };
    let _ = writeln!(s, "{mark}  {}: {text}", f.name);
    s
}

fn near(what: &str, ns: Option<u64>, want: u64) -> Result<String, String> {
    let ns = ns.ok_or_else(|| format!("{what}: no samples"))?;
    let text = format!("{what} {} (known: {})", time(ns), time(want));
    // Tolerance: a bucket of three digits, and a millisecond of the probes' interval.
    if ns.abs_diff(want) <= want / 500 + 1_000_000 { Ok(text) } else { Err(text) }
}

/// A server frozen for F = 1 s of T = 10 s: the q quantile of the response is F - (1 - q) T. Through the whole stack,
/// in virtual time.
fn freeze() -> Result<String, String> {
    let frozen =
        (skbudget_controller::Instant(4 * SECOND), skbudget_controller::Instant(5 * SECOND));
    let p = probe(Server { frozen: vec![frozen], ..Server::responder(64, 512) }, 10);
    let at = |q: Option<crate::measure::result::Quantile>| q.map(|q| q.ns);
    let p99 = near("p99", at(p.p99), 900_000_000)?;
    let p999 = near("p99.9", at(p.p999), 990_000_000)?;
    Ok(format!("{p99}, {p999}"))
}

fn silence() -> Result<String, String> {
    let p = probe(Server::silent(), 2);
    let at_least = p.p50.is_some_and(|q| q.at_least && q.ns >= SECOND - 5_000_000);
    let text = format!("{} of {} answered", p.completed, p.intended);
    let right = at_least && p.completed == 0 && p.delivered_ppm == Some(0);
    if right { Ok(text) } else { Err(text) }
}

/// Latencies of 1..=10,000 microseconds, one each; the last 50 requests do not complete.
fn known_histogram() -> Result<String, String> {
    let phase = Phase { name: "all".to_owned(), start_ns: 0, end_ns: SECOND };
    let mut log = ProbeRecorder::new(&[phase], SECOND);
    for i in 1..=10_000u64 {
        log.intend(i, 0);
        if i <= 9950 {
            log.complete(i, i * 1000);
        }
    }
    log.close(0, SECOND);
    let p = log.latencies()[0].summary();
    let p99 = p.p99.filter(|q| !q.at_least).map(|q| q.ns).ok_or("p99 is not known")?;
    if p99.abs_diff(9_900_000) > 9_900_000 / 900 {
        return Err(format!("p99 {}", time(p99)));
    }
    match p.p999 {
        Some(q) if q.at_least => Ok(format!("p99 {}, p99.9 >= {}", time(p99), time(q.ns))),
        other => Err(format!("p99.9 is {other:?}, although its requests did not complete")),
    }
}

fn ranks() -> Result<String, String> {
    let (six, five) = (rank::least_p(6), rank::signed_rank(&[1.0, 2.0, 3.0, 4.0, 5.0]));
    let text = format!("6 pairs reach p = {six:.4}, 5 pairs {five:.4}");
    let right = (six - 0.03125).abs() < 1e-12 && (five - 0.0625).abs() < 1e-12;
    if right { Ok(text) } else { Err(text) }
}

fn twice() -> Result<String, String> {
    let run = || probe(Server::responder(64, 512), 2);
    let (a, b) = (run(), run());
    if a == b { Ok(format!("{} responses", a.completed)) } else { Err("they differ".to_owned()) }
}

/// A thousand wake-ups, a millisecond apart: the delay that this machine adds to every request on the wall clock.
fn wake_ups() -> CheckResult {
    let name = "this machine wakes the generator in time";
    let Ok(mut lag) = Histogram::<u32>::new_with_bounds(1, 60 * SECOND, 3) else {
        return CheckResult { name, ok: Err("no histogram".to_owned()) };
    };
    let start = Instant::now();
    for i in 1..=1000u32 {
        let due = start + Duration::from_millis(u64::from(i));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        lag.saturating_record(due.elapsed().as_nanos() as u64);
    }
    let (p50, p99) = (lag.value_at_quantile(0.5), lag.value_at_quantile(0.99));
    let text = format!("p50 {}, p99 {}, max {} late", time(p50), time(p99), time(lag.max()));
    CheckResult { name, ok: if p99 <= LATE_NS { Ok(text) } else { Err(text) } }
}
