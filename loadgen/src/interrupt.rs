//! Ctrl-C and SIGTERM: the run ends what it started, then exits 130.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

static STOP: AtomicBool = AtomicBool::new(false);

/// Takes the signals off every thread made from here on and gives them to one that waits for them. The first asks the
/// run to stop; the second does not wait for it.
pub(crate) fn watch() -> &'static AtomicBool {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    if set.thread_block().is_ok() {
        thread::spawn(move || {
            while set.wait().is_ok() {
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    }
    &STOP
}
