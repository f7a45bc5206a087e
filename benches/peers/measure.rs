//! Runs one test in one container.

use std::ffi::OsString;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::Value;

use crate::lab::{Lab, Process};
use crate::peer::Container;

const PORT: &str = "5201";
/// Time until a started server listens.
const SERVER_STARTS: Duration = Duration::from_millis(400);
/// Extra time beyond a measurement: start, end, and a peer that hardly moves.
const SLACK: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Test {
    /// One flow from the container to the host.
    Up,
    /// One flow from the host to the container.
    Down,
    /// One byte in each direction, repeated on one connection.
    Rr,
    /// Connect, one byte in each direction, close.
    Crr,
    /// The host stops reading until the flow is full, then reads until nothing is left.
    Resume,
    /// The same with the reader in the container.
    ResumeDown,
}

/// Length of the measurements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seconds: u64,
    pub(crate) cycles: u32,
}

/// Named numbers of one measurement.
pub(crate) type Readings = Vec<(&'static str, f64)>;

/// Names of a test's readings; the first one is compared.
pub(crate) const fn readings_of(test: Test) -> &'static [&'static str] {
    match test {
        Test::Up | Test::Down => &["Gbit/s"],
        Test::Rr | Test::Crr => &["per_second", "p50_us", "p99_us", "errors"],
        Test::Resume | Test::ResumeDown => &["p99_us", "p50_us", "max_us", "drained_bytes"],
    }
}

pub(crate) fn measure(
    lab: &Lab,
    container: &Container,
    test: Test,
    plan: &Plan,
) -> Result<Readings, String> {
    let seconds = plan.seconds.to_string();
    let cycles = plan.cycles.to_string();
    let (to, length) = (container.servers, Duration::from_secs(plan.seconds) + SLACK);
    // A cycle sleeps at most 391 ms before it reads.
    let stalls = Duration::from_millis(400 * u64::from(plan.cycles)) + SLACK;
    match test {
        Test::Up | Test::Down => {
            let _server = server(lab, "iperf3".into(), &["-s", "-1", "-p", PORT])?;
            let mut args = vec!["iperf3", "-c", to, "-p", PORT, "-t", &seconds, "-J"];
            // iperf3's reverse mode: the server sends.
            args.extend((test == Test::Down).then_some("-R"));
            let timers_before = hrtimer_softirqs()?;
            let said = inside(container, None, &args)?.finish(length)?;
            let timers = (hrtimer_softirqs()? - timers_before) / plan.seconds.max(1);
            if timers > UNPACED_HRTIMERS_MAX {
                return Err(format!("the senders are paced: {timers} HRTIMER softirqs a second"));
            }
            let said: Value = serde_json::from_str(&said).map_err(|e| format!("iperf3: {e}"))?;
            // What the receiver got, not what the sender queued.
            let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
            let bits = bits.ok_or_else(|| format!("iperf3: {}", said["error"]))?;
            Ok(vec![("Gbit/s", bits / 1e9)])
        }
        Test::Rr | Test::Crr => {
            let _server = server(lab, own()?, &["echo", PORT])?;
            let mode = if test == Test::Rr { "rr" } else { "crr" };
            let client = inside(container, Some(own()?), &[mode, to, PORT, &seconds])?;
            read(test, &client.finish(length)?)
        }
        Test::Resume => {
            let server = server(lab, own()?, &["drain-at", PORT, &cycles])?;
            let _client = inside(container, Some(own()?), &["flood-to", to, PORT])?;
            read(test, &server.finish(stalls)?)
        }
        Test::ResumeDown => {
            let _server = server(lab, own()?, &["flood-at", PORT])?;
            let client = inside(container, Some(own()?), &["drain-from", to, PORT, &cycles])?;
            read(test, &client.finish(stalls)?)
        }
    }
}

/// A paced sender sets a timer every few segments: tens of thousands a second, where an unpaced path has a few hundred.
/// Then the pacing is measured, not the path.
const UNPACED_HRTIMERS_MAX: u64 = 1000;

/// HRTIMER softirqs of all cores since the machine started.
fn hrtimer_softirqs() -> Result<u64, String> {
    let table = std::fs::read_to_string("/proc/softirqs").map_err(|e| format!("softirqs: {e}"))?;
    let row = table.lines().find_map(|line| line.trim_start().strip_prefix("HRTIMER:"));
    let row = row.ok_or("softirqs: no HRTIMER row")?;
    Ok(row.split_whitespace().filter_map(|core| core.parse::<u64>().ok()).sum())
}

/// The programs at both ends are this executable.
fn own() -> Result<OsString, String> {
    let path = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
    Ok(path.into_os_string())
}

fn server(lab: &Lab, program: OsString, args: &[&str]) -> Result<Process, String> {
    let server = lab.in_host(program, args)?;
    std::thread::sleep(SERVER_STARTS);
    Ok(server)
}

fn inside(
    container: &Container,
    program: Option<OsString>,
    args: &[&str],
) -> Result<Process, String> {
    let mut line = container.inside.clone();
    line.extend(program);
    line.extend(args.iter().map(OsString::from));
    Process::spawn(&line)
}

fn read(test: Test, said: &str) -> Result<Readings, String> {
    let said: Value = serde_json::from_str(said).map_err(|e| format!("{said:?}: {e}"))?;
    let number = |name: &&'static str| {
        let value = said[name].as_f64().ok_or_else(|| format!("no {name} in {said}"))?;
        Ok((*name, value))
    };
    readings_of(test).iter().map(number).collect()
}
