//! One flow for a fixed time, and its goodput.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use skbudget_stack::tap::{CaptureHead, CaptureWriter};
use skbudget_testbed::cable::{Bench, Cable, Far};

const PIECE: usize = 128 << 10;
const SAMPLE: Duration = Duration::from_millis(50);
/// Bytes captured of each frame: the headers suffice.
const SNAPLEN: u32 = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Toward {
    Up,
    Down,
}

impl Toward {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) cable: Cable,
    pub(crate) toward: Toward,
    pub(crate) length: Duration,
    pub(crate) congestion: &'a str,
    pub(crate) explain: bool,
    pub(crate) capture: Option<&'a Path>,
}

#[derive(Debug)]
pub(crate) struct Reading {
    /// Goodput at the receiving program.
    pub(crate) mbit: f64,
    pub(crate) explained: String,
}

impl Run<'_> {
    /// Runs the flow between the guest and the `far` end.
    pub(crate) fn measure(&self, far: Far) -> Reading {
        let bench = Bench::new(far, self.cable, self.capture.map(|dir| self.writer(dir, far)));
        let (client, server) = bench.connect(self.congestion);
        let (sender, receiver) = match self.toward {
            Toward::Up => (client, server),
            Toward::Down => (server, client),
        };
        let ends = Instant::now() + self.length;
        let (bytes, windows) = thread::scope(|scope| {
            scope.spawn(|| send(&sender, ends));
            // Sampled in a thread of its own, so that the receiver never waits for a command.
            let windows = scope.spawn(|| self.windows(&bench, far, ends));
            let bytes = receive(&receiver, ends);
            // The sender may be blocked on a full socket.
            let _ = receiver.shutdown(Shutdown::Both);
            let _ = sender.shutdown(Shutdown::Both);
            (bytes, windows.join().unwrap_or_default())
        });
        let mbit = bytes as f64 * 8e-6 / self.length.as_secs_f64();
        // Read before the bench ends: the devices' counters go with them.
        let drops = bench.device_drops();
        let counters = self.counters(&bench, far);
        let report = bench.end();
        let mut explained = String::new();
        if self.explain {
            let mean = windows.iter().sum::<f64>() / windows.len().max(1) as f64;
            explained = format!(
                "cwnd mean {mean:.1} segments; lost {}/{} up, {}/{} down; {counters}",
                report.up.lost, report.up.frames, report.down.lost, report.down.frames
            );
        }
        // The cable's own queue overflowed: congestion of this machine, not seeded loss.
        let asked = report.up.dropped_full + report.down.dropped_full;
        // Losses that the seed did not decide make the run worthless for a comparison.
        if drops + report.full + report.oversized + asked > 0 {
            explained += &format!(
                " NOT BY THE SEED: device {drops}, queue {asked}, receiver {}, oversized {}",
                report.full, report.oversized
            );
        }
        Reading { mbit, explained }
    }

    /// A capture file with the run's name.
    fn writer(&self, dir: &Path, far: Far) -> CaptureWriter {
        let loss = self.cable.faults.loss;
        let name = format!("{far:?}-{}-{loss}ppm-{}.pcapng", self.toward.name(), self.cable.seed);
        let file = std::fs::File::create(dir.join(name)).expect("a file for the capture");
        let head = CaptureHead { snaplen: SNAPLEN, ..CaptureHead::default() };
        CaptureWriter::new(Box::new(std::io::BufWriter::new(file)), &head).expect("a capture")
    }

    /// Samples of the sender's congestion window, in segments.
    fn windows(&self, bench: &Bench, far: Far, ends: Instant) -> Vec<f64> {
        let mut windows = Vec::new();
        while self.explain && Instant::now() < ends {
            thread::sleep(SAMPLE);
            windows.extend(match (self.toward, far, bench.daemon()) {
                // Our stack is the sender: its window is in the daemon's flow table.
                (Toward::Down, Far::Ours, Some(daemon)) => {
                    let flows = daemon.flows("impaired").unwrap_or_default();
                    flows.first().map(|flow| f64::from(flow.cwnd) / f64::from(flow.mss.max(1)))
                }
                // Otherwise a kernel sends, from the namespace of that direction.
                (Toward::Down, ..) => bench.far(kernel_window),
                (Toward::Up, ..) => bench.in_guest(kernel_window),
            });
        }
        windows
    }

    /// Counters of our stack, or of the sender's namespace in the kernel's runs.
    fn counters(&self, bench: &Bench, far: Far) -> String {
        if !self.explain {
            return String::new();
        }
        if let (Toward::Down, Far::Ours, Some(daemon)) = (self.toward, far, bench.daemon()) {
            let stats = daemon.stats(false).map(|stats| stats.containers);
            let counters = stats.ok().and_then(|mut all| all.pop()).map(|one| one.counters);
            let told = ["RetransSegs", "TCPTimeouts", "TCPFastRetrans", "TCPLossProbes"];
            let counters = counters.unwrap_or_default();
            let value = |name: &str| counters.get(name).copied().unwrap_or(0);
            return told.map(|name| format!("{name} {}", value(name))).join(", ");
        }
        // `nstat -as` prints absolute values and leaves its history file alone.
        let names = ["TcpRetransSegs", "TcpExtTCPTimeouts", "TcpExtTCPLossProbes"];
        let read = || {
            let output = Command::new("nstat").args(["-asz"]).args(names).output();
            output.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default()
        };
        let text = if self.toward == Toward::Up { bench.in_guest(read) } else { bench.far(read) };
        let lines = text.lines().filter(|line| line.starts_with("Tcp"));
        let words = lines.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
        words.collect::<Vec<_>>().join(", ")
    }
}

/// Writes as much as the socket takes until `ends`.
fn send(mut to: &TcpStream, ends: Instant) {
    let _ = to.set_write_timeout(Some(Duration::from_millis(200)));
    let piece = vec![0x5a; PIECE];
    while Instant::now() < ends {
        match to.write(&piece) {
            Ok(1..) => {}
            // The timeout only lets the loop check the end of the run.
            Err(e) if passes(&e) => {}
            _ => break,
        }
    }
}

/// Bytes read until `ends`.
fn receive(mut from: &TcpStream, ends: Instant) -> u64 {
    let _ = from.set_read_timeout(Some(Duration::from_millis(20)));
    let (mut piece, mut bytes) = (vec![0; PIECE], 0);
    while Instant::now() < ends {
        match from.read(&mut piece) {
            Ok(n @ 1..) => bytes += n as u64,
            Err(e) if passes(&e) => {}
            _ => break,
        }
    }
    bytes
}

/// With a timeout set, a call ends early for a timeout, or for a signal when a child was started.
fn passes(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Congestion window of the only sending flow in the calling thread's namespace.
fn kernel_window() -> Option<f64> {
    let output = Command::new("ss").args(["-tinH"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().find_map(|word| word.strip_prefix("cwnd:")?.parse().ok())
}
