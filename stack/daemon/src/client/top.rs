//! `skbudget top`: the containers on the terminal, refreshed every second.
//!
//! One thread requests the stats; this one waits for keys, signals and results, and draws. What is drawn is a pure
//! function of the model (`screen`), and so is the model of stats and keys (`model`).

mod keys;
mod model;
mod screen;
mod terminal;
#[cfg(test)]
mod tests;

use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::Value;

use super::{ClientArgs, path_of, send, try_send};
use crate::cli::TopArgs;
use crate::exit::{Failure, SIGNAL_BASE};
use crate::flows::{FlowList, FlowReport};
use keys::Keys;
use model::{Outcome, Sample, Top};
use terminal::Terminal;

/// Interval of the requests.
const INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for a key: results of requests are checked at least that often.
const STEP_MS: u16 = 100;

/// Flows in the details, at most: more than a terminal has lines.
const FLOWS_MAX: u32 = 200;

/// Answer to one request: the stats, and the flows of the container in the details.
type Fetched = Result<(Sample, Vec<FlowReport>), Failure>;

/// Shows the containers until a key or a signal ends it.
pub fn top(args: TopArgs) -> Result<u8, Failure> {
    if !crate::stdout::is_terminal() || !terminal::stdin_is_terminal() {
        return Err(Failure::usage(
            "top: stdin and stdout must be a terminal: `skbudget stats` prints the same values once",
        ));
    }
    // Before the terminal changes: without a daemon there is nothing to show.
    let first = fetch(&args.client, None)?;
    let failed = |e: &dyn std::fmt::Display| Failure::other(format!("top: {e}"));
    // Before the thread starts: it inherits the mask, and the signals are for this one.
    let signals = signals().map_err(|e| failed(&e))?;
    let (requests, results) = start(args.client).map_err(|e| failed(&e))?;
    let mut terminal = Terminal::open().map_err(|e| failed(&e))?;
    let mut top = Top::default();
    top.update(first.0, first.1);
    let code = watch(&mut top, &mut terminal, &signals, &requests, &results);
    // Back to the caller's screen, before any message.
    drop(terminal);
    code.map_err(|e| failed(&e))
}

/// Blocks the signals that end the command or change the terminal's size.
fn signals() -> nix::Result<SignalFd> {
    let set = SigSet::from_iter([SIGINT, SIGTERM, SIGHUP, SIGWINCH]);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Starts the thread that requests. It ends when the sender is dropped.
fn start(client: ClientArgs) -> std::io::Result<(Sender<Option<String>>, Receiver<Fetched>)> {
    let (requests, inbox) = mpsc::channel::<Option<String>>();
    let (outbox, results) = mpsc::channel();
    let serve = move || {
        for details in inbox {
            // The receiver is gone when the command has ended meanwhile.
            if outbox.send(fetch(&client, details.as_deref())).is_err() {
                break;
            }
        }
    };
    thread::Builder::new().name("skb-top".to_owned()).spawn(serve)?;
    Ok((requests, results))
}

/// Requests the stats, and the flows of one container.
fn fetch(client: &ClientArgs, details: Option<&str>) -> Fetched {
    let stats: Value = send(client, "GET", "/v1/stats", None::<&()>)?;
    let flows = match details {
        None => Vec::new(),
        Some(name) => {
            let path = path_of("containers", name, &format!("/flows?limit={FLOWS_MAX}"))?;
            // A container that has ended since has no flows.
            try_send::<FlowList>(client, &path)?.map(|list| list.flows).unwrap_or_default()
        }
    };
    Ok((Sample::parse(&stats), flows))
}

/// Draws, and waits for keys, signals and results. Returns the exit code.
fn watch(
    top: &mut Top,
    terminal: &mut Terminal,
    signals: &SignalFd,
    requests: &Sender<Option<String>>,
    results: &Receiver<Fetched>,
) -> std::io::Result<u8> {
    let mut keys = Keys::default();
    // The first result is shown already. Its rates are known after the second.
    let mut due = Instant::now() + INTERVAL;
    let mut waiting = false;
    let mut changed = true;
    loop {
        if std::mem::take(&mut changed) {
            terminal.draw(|buffer| screen::draw(buffer, top))?;
        }
        if let Some(signal) = wait(terminal, signals)? {
            // The next drawing has the new size. Any other signal ends the command.
            if signal != SIGWINCH as u32 {
                return Ok(SIGNAL_BASE.saturating_add(signal as u8));
            }
            changed = true;
        }
        for key in terminal.keys(&mut keys)? {
            match top.on_key(key) {
                Outcome::Quit => return Ok(0),
                // The details are of another container: at once, not with the next interval.
                Outcome::Refresh => due = Instant::now(),
                Outcome::Stay => {}
            }
            changed = true;
        }
        if let Ok(result) = results.try_recv() {
            (waiting, changed) = (false, true);
            match result {
                Ok((sample, flows)) => top.update(sample, flows),
                // The daemon may be started again: the next request connects to it.
                Err(failure) => top.lost(failure.message),
            }
        }
        // One request at a time: a daemon that is slow to answer gets no more requests.
        if !waiting && Instant::now() >= due {
            // The thread ends only with the sender.
            waiting = requests.send(top.details().map(str::to_owned)).is_ok();
            due = Instant::now() + INTERVAL;
        }
    }
}

/// Waits a bounded time for keys and signals. Returns a signal that arrived.
fn wait(terminal: &Terminal, signals: &SignalFd) -> std::io::Result<Option<u32>> {
    let mut fds = [
        PollFd::new(terminal.input(), PollFlags::POLLIN),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::from(STEP_MS)) {
        Ok(_) | Err(Errno::EINTR) => Ok(signals.read_signal()?.map(|signal| signal.ssi_signo)),
        Err(errno) => Err(errno.into()),
    }
}
