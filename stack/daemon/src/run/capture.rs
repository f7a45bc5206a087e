//! `--pcap`: frames on their way to a file, through a thread that nobody waits for.
//!
//! The worker hands whole records to a bounded queue and goes on; one that does not fit is left out and counted. The
//! thread writes them. A disk that is full ends the capture: the file is cut back to its last whole record, so that it
//! stays readable. A reader of a FIFO that stalls costs frames of the capture, never the network.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use skbudget_stack::tap::{PCAP_HEADER_LEN, pcap_record_len};

/// Most bytes that wait in the queue, and most that the thread has in hand beside them. Outside the container's
/// budget: the user who asks for a capture pays for it.
const QUEUE_MAX: usize = 4 << 20;

/// From here on the thread is woken without a flush.
const WAKE_BYTES: usize = 256 << 10;

/// The queue's end at the worker.
#[derive(Debug)]
pub(super) struct Recorder {
    shared: Arc<Shared>,
}

/// The capture as the run sees it.
#[derive(Debug, Clone)]
pub(super) struct Capture {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Frames left out.
    lost: Arc<AtomicU64>,
    /// What the user calls it.
    name: String,
}

#[derive(Debug, Default)]
struct State {
    queue: Vec<u8>,
    /// The file's header was taken.
    begun: bool,
    /// The thread is writing.
    busy: bool,
    /// Bytes written: who waits looks for progress.
    written: u64,
    /// Frames taken into the queue,
    taken: u64,
    /// and those of them that are whole in the file.
    stored: u64,
    /// Nothing more will come.
    closed: bool,
    /// Why nothing more is written.
    failed: Option<String>,
}

/// Where a capture goes.
trait Target: Send + 'static {
    /// Waits as long as it takes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Leaves its first bytes only, where that can be done.
    fn cut(&mut self, len: u64);
}

/// Starts the thread. `name` is for messages.
pub(super) fn start(file: File, name: String) -> io::Result<(Recorder, Capture)> {
    start_with(file, name)
}

fn start_with(target: impl Target, name: String) -> io::Result<(Recorder, Capture)> {
    let shared = Arc::new(Shared { name, ..Shared::default() });
    let (writer, recorder) = (Arc::clone(&shared), Recorder { shared: Arc::clone(&shared) });
    thread::Builder::new().name("skb-pcap".to_owned()).spawn(move || run(&writer, target))?;
    Ok((recorder, Capture { shared }))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, frames: u64) {
        self.lost.fetch_add(frames, Ordering::Relaxed);
    }
}

impl Capture {
    /// Counts the frames that are missing in the file.
    pub(super) fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.lost)
    }

    /// Waits until all that was handed over is written, or until nothing was for `stall`. An error when the capture
    /// ended at one.
    pub(super) fn settle(&self, stall: Duration) -> Result<(), String> {
        let mut state = self.shared.state();
        while state.failed.is_none() && (state.busy || !state.queue.is_empty()) {
            let before = state.written;
            self.shared.changed.notify_all();
            let waited = self.shared.changed.wait_timeout(state, stall);
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = after;
            if timeout.timed_out() && state.written == before {
                break;
            }
        }
        state.failed.clone().map_or(Ok(()), Err)
    }

    /// Ends the capture; `stall` as in `settle`. What is missing in it is reported.
    pub(super) fn end(self, stall: Duration) {
        // A failure was reported when it came.
        let _ = self.settle(stall);
        let mut state = self.shared.state();
        state.closed = true;
        if state.failed.is_none() {
            self.shared.lose(state.taken - state.stored);
        }
        drop(state);
        self.shared.changed.notify_all();
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost > 0 {
            log::warn!("--pcap {}: {lost} frames are missing in it", self.shared.name);
        }
    }
}

impl Write for Recorder {
    /// One record. It is always taken: what cannot be stored is counted.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let mut state = self.shared.state();
        let room = state.queue.len() + record.len() <= QUEUE_MAX;
        if state.failed.is_none() && !state.closed && room {
            state.queue.extend_from_slice(record);
            // The first of all is the file's header.
            state.taken += u64::from(std::mem::replace(&mut state.begun, true));
            if state.queue.len() >= WAKE_BYTES {
                self.shared.changed.notify_all();
            }
        } else {
            let reported = state.failed.is_some() || state.closed;
            self.shared.lose(1);
            drop(state);
            if !reported {
                log::warn!("--pcap {}: written too slowly, frames are left out", self.shared.name);
            }
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let state = self.shared.state();
        if !state.queue.is_empty() {
            self.shared.changed.notify_all();
        }
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
    }
}

fn run(shared: &Shared, mut target: impl Target) {
    let mut bytes = Vec::new();
    // Length of the file up to its last whole record.
    let mut whole = 0;
    loop {
        let mut state = shared.state();
        while state.queue.is_empty() && !state.closed {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.queue.is_empty() {
            return;
        }
        bytes.clear();
        std::mem::swap(&mut bytes, &mut state.queue);
        state.busy = true;
        drop(state);
        let result = store(shared, &mut target, &bytes, &mut whole);
        let mut state = shared.state();
        state.busy = false;
        if let Err(e) = result {
            shared.lose(state.taken - state.stored);
            state.queue = Vec::new();
            state.failed = Some(e.to_string());
            shared.changed.notify_all();
            drop(state);
            log::warn!("--pcap {}: {e}: the capture ends here", shared.name);
            return;
        }
        shared.changed.notify_all();
    }
}

/// Writes the records in `bytes` behind the `whole` bytes before them. After an error whole records remain.
fn store(
    shared: &Shared,
    target: &mut impl Target,
    bytes: &[u8],
    whole: &mut u64,
) -> io::Result<()> {
    let (mut done, mut end) = (0, 0);
    let start = *whole;
    while done < bytes.len() {
        match target.write(&bytes[done..]) {
            Ok(0) => return Err(cut(target, *whole, ErrorKind::WriteZero.into())),
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(cut(target, *whole, e)),
        }
        let mut state = shared.state();
        state.written = start + done as u64;
        loop {
            let header = start == 0 && end == 0;
            let rest = bytes.get(end..).unwrap_or_default();
            let len = if header { Some(PCAP_HEADER_LEN) } else { pcap_record_len(rest) };
            let Some(len) = len.filter(|len| end + len <= done) else { break };
            end += len;
            state.stored += u64::from(!header);
        }
        *whole = start + end as u64;
    }
    Ok(())
}

fn cut(target: &mut impl Target, whole: u64, error: io::Error) -> io::Error {
    target.cut(whole);
    error
}

impl Target for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match Write::write(self, bytes) {
                // A FIFO, opened so that opening it does not wait for a reader.
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                other => return other,
            }
        }
    }

    fn cut(&mut self, len: u64) {
        // Fails for what is no regular file: what is out is out.
        let _ = self.set_len(len);
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
