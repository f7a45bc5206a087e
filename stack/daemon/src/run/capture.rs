//! `--pcap`: writes frames to a file, through a thread that no other thread waits for.
//!
//! The worker appends whole blocks to a bounded queue; a block that does not fit is dropped and counted. The thread
//! writes the queue to the file, and at the end the number of dropped frames. A full disk ends the capture: the file is
//! truncated to its last whole block, so that it stays readable. A stalled reader of a FIFO costs frames of the
//! capture, never the network.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use skbudget_stack::tap::{block_len, is_packet, statistics_block};

use crate::clock;

/// Maximum size of the queue, bytes; the thread holds at most as much again. It is outside the container's budget: the
/// user that requests a capture provides the memory.
const QUEUE_MAX: usize = 4 << 20;

/// Queue size, bytes, at which the thread is woken without a flush.
const WAKE_BYTES: usize = 256 << 10;

/// The worker's end of the queue.
#[derive(Debug)]
pub(super) struct Recorder {
    shared: Arc<Shared>,
}

/// The run's handle of the capture.
#[derive(Debug, Clone)]
pub(super) struct Capture {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Frames dropped.
    lost: Arc<AtomicU64>,
    /// The file's name in messages.
    name: String,
}

#[derive(Debug, Default)]
struct State {
    queue: Vec<u8>,
    /// The queue has had the head of the capture, which is no frame.
    has_head: bool,
    /// The thread is writing.
    busy: bool,
    /// Bytes written; `settle` detects progress by it.
    written: u64,
    /// Frames appended to the queue.
    taken: u64,
    /// Frames that are whole in the file.
    stored: u64,
    /// No more blocks will be appended.
    closed: bool,
    /// Why the capture ended early.
    failed: Option<String>,
    /// The thread has written all that it will write.
    finished: bool,
}

/// Target of a capture.
trait Target: Send + 'static {
    /// Writes some bytes; blocks as long as necessary.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Truncates to the first `len` bytes, if the target can be truncated.
    fn cut(&mut self, len: u64);
}

/// Starts the thread. `name` is used in messages.
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
    /// Counter of the frames that are missing in the file.
    pub(super) fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.lost)
    }

    /// Waits until the queue is written, or until no byte is written for `stall`. An error when the capture has failed.
    pub(super) fn settle(&self, stall: Duration) -> Result<(), String> {
        let mut state = self.shared.state();
        while state.failed.is_none() && (state.busy || !state.queue.is_empty()) {
            let before = state.written;
            // The thread may still wait for `WAKE_BYTES`.
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

    /// Ends the capture after a `settle`, and reports the number of missing frames.
    pub(super) fn end(self, stall: Duration) {
        // A failure was reported when it occurred.
        let _ = self.settle(stall);
        let mut state = self.shared.state();
        state.closed = true;
        if state.failed.is_none() {
            // The thread counted its losses itself if it failed.
            self.shared.lose(state.taken - state.stored);
        }
        self.shared.changed.notify_all();
        if state.failed.is_none() && state.taken == state.stored {
            // The target takes data: wait for the last block.
            let wait = |state: &mut State| !state.finished;
            drop(self.shared.changed.wait_timeout_while(state, stall, wait));
        } else {
            drop(state);
        }
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!("--pcap {}: {lost} frames were not captured", self.shared.name);
        }
    }
}

impl Write for Recorder {
    /// Appends one block. Always succeeds: a block that cannot be stored is counted as lost.
    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        let mut state = self.shared.state();
        let room = state.queue.len() + block.len() <= QUEUE_MAX;
        if state.failed.is_none() && !state.closed && room {
            state.queue.extend_from_slice(block);
            // The first write is the head of the capture.
            state.taken += u64::from(std::mem::replace(&mut state.has_head, true));
            if state.queue.len() >= WAKE_BYTES {
                self.shared.changed.notify_all();
            }
        } else {
            let reported = state.failed.is_some() || state.closed;
            self.shared.lose(1);
            // The lock is released before the log makes a system call.
            drop(state);
            if !reported {
                tracing::warn!(
                    "--pcap {}: writes are too slow: frames are dropped from the capture",
                    self.shared.name
                );
            }
        }
        Ok(block.len())
    }

    /// Wakes the thread. The worker flushes before each wait.
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

/// The thread: writes what is queued until the recorder is closed or a write fails.
fn run(shared: &Shared, mut target: impl Target) {
    let mut bytes = Vec::new();
    // Length of the file up to its last whole block.
    let mut whole = 0;
    loop {
        let mut state = shared.state();
        while state.queue.is_empty() && !state.closed {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.queue.is_empty() {
            let (taken, lost) = (state.taken, shared.lost.load(Ordering::Relaxed));
            drop(state);
            let at_ns = clock::now().as_nanos() + clock::epoch_offset_ns();
            // The last block: without it the capture is as readable, and its loss was reported.
            let last = statistics_block(taken + lost, lost, at_ns);
            let _ = store(shared, &mut target, &last, &mut whole);
            shared.state().finished = true;
            shared.changed.notify_all();
            return;
        }
        bytes.clear();
        // Swapped, not copied: the worker appends to the other buffer while this one is written.
        std::mem::swap(&mut bytes, &mut state.queue);
        state.busy = true;
        drop(state);
        let result = store(shared, &mut target, &bytes, &mut whole);
        let mut state = shared.state();
        state.busy = false;
        if let Err(e) = result {
            // The blocks of this buffer and of the queue are lost.
            shared.lose(state.taken - state.stored);
            state.queue = Vec::new();
            state.failed = Some(e.to_string());
            shared.changed.notify_all();
            drop(state);
            tracing::warn!("--pcap {}: {e}: the capture ends here", shared.name);
            return;
        }
        shared.changed.notify_all();
    }
}

/// Writes the blocks in `bytes` after the first `whole` bytes of the file. After an error only whole blocks remain.
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
        // Advances `end` over the blocks that are whole in what was written so far.
        while let Some(rest) = bytes.get(end..)
            && let Some(len) = block_len(rest).filter(|len| end + len <= done)
        {
            end += len;
            state.stored += u64::from(is_packet(rest));
        }
        *whole = start + end as u64;
    }
    Ok(())
}

/// Truncates the target to its whole blocks and returns the error.
fn cut(target: &mut impl Target, whole: u64, error: io::Error) -> io::Error {
    target.cut(whole);
    error
}

impl Target for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match Write::write(self, bytes) {
                // A FIFO: opened with O_NONBLOCK, so that the open does not wait for a reader.
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
        // Fails for anything but a regular file, where written bytes cannot be withdrawn.
        let _ = self.set_len(len);
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
