//! Ctrl-C, SIGTERM and a hangup of the terminal: the run stops its processes, writes what it measured and exits with
//! 130.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::exit::Exit;

static STOP: AtomicBool = AtomicBool::new(false);

/// Blocks the signals in this thread and in every thread created later; a separate thread waits for them. The first
/// signal requests a stop; a second SIGINT or SIGTERM exits at once. A SIGHUP never forces the exit: when a session
/// ends, both the shell and the kernel may send one, and pending signals are delivered in no defined order.
pub(crate) fn watch() -> &'static AtomicBool {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    if !is_ignored(Signal::SIGHUP) {
        set.add(Signal::SIGHUP);
    }
    // Called before any other thread exists: threads inherit the mask.
    if set.thread_block().is_ok() {
        thread::spawn(move || {
            let mut requests = 0;
            while let Ok(signal) = set.wait() {
                STOP.store(true, Ordering::Relaxed);
                requests += u32::from(signal != Signal::SIGHUP);
                if requests > 1 {
                    std::process::exit(i32::from(Exit::Interrupted.code()));
                }
            }
        });
    }
    &STOP
}

/// `nohup` ignores SIGHUP. `sigwait` would receive an ignored signal nevertheless, so it is left out of the set.
fn is_ignored(signal: Signal) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|text| ignores(&text, signal))
}

/// Whether the mask `SigIgn` of /proc/self/status contains the signal.
fn ignores(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal as i32 - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_left_out() {
        // Bit n-1 is signal n: here 1 (SIGHUP) and 13 (SIGPIPE).
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, Signal::SIGHUP) && ignores(status, Signal::SIGPIPE));
        assert!(!ignores(status, Signal::SIGINT) && !ignores("", Signal::SIGHUP));
    }
}
