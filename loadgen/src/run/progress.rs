//! A progress line on standard error during a run: only on a terminal, and never in CI, where it would add thousands of
//! lines to a log.

use std::io::IsTerminal as _;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::output::terminal;

const EVERY: Duration = Duration::from_millis(200);

/// The progress line, shown until this value is dropped.
#[derive(Debug)]
pub(crate) struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Starts the display. `expected`: the expected duration, if known.
    pub(crate) fn start(what: &str, expected: Option<Duration>) -> Self {
        if !std::io::stderr().is_terminal() || std::env::var_os("CI").is_some() {
            return Self(None);
        }
        let (end, ended) = channel();
        let (what, began) = (what.to_owned(), Instant::now());
        let shown = thread::spawn(move || {
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                terminal::progress(&line(&what, began.elapsed(), expected));
            }
            terminal::progress("");
        });
        Self(Some((end, shown)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, shown)) = self.0.take() {
            // Closing the channel ends the thread.
            drop(end);
            let _ = shown.join();
        }
    }
}

/// The text of the progress line.
fn line(what: &str, elapsed: Duration, expected: Option<Duration>) -> String {
    let seconds = elapsed.as_secs_f64();
    match expected.filter(|e| !e.is_zero()) {
        // A run may take longer than expected: cap the bar at full.
        Some(e) => {
            let part = (seconds / e.as_secs_f64()).min(1.0);
            let full = (part * 20.0) as usize;
            let bar: String = (0..20).map(|i| if i < full { '#' } else { '.' }).collect();
            format!("{what} [{bar}] {:.0} of {:.0} s", seconds, e.as_secs_f64())
        }
        None => format!("{what} {seconds:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shows_the_time_and_the_expected_time() {
        let s = Duration::from_secs;
        assert_eq!(line("x", s(5), Some(s(10))), "x [##########..........] 5 of 10 s");
        assert_eq!(line("x", s(50), Some(s(10))), "x [####################] 50 of 10 s");
        assert_eq!(line("x", s(3), None), "x 3 s");
        // A duration of 0 counts as unknown.
        assert_eq!(line("x", s(3), Some(s(0))), "x 3 s");
    }
}
