//! Captures that a client follows while a container runs.
//!
//! ```text
//! worker ── CaptureWriter ── Feed ──▶ bounded queue ──▶ Stream ── client
//! ```
//! The worker appends whole blocks to the queue and never waits: a block that does not fit is dropped and counted. The
//! stream passes the count on in a statistics block. Either end can end the capture.

mod filter;
mod packet;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use skbudget_stack::tap::{
    CaptureHead, CaptureWriter, STATISTICS_BYTES, is_packet, statistics_block,
};

use crate::clock;
pub use filter::Filter;

/// Size of the queue, bytes; as much again may be on its way to the client. It is outside the container's budget.
const QUEUE_MAX: usize = 2 << 20;

/// Queue size, bytes, at which the client is woken before the worker's turn ends.
const WAKE_BYTES: usize = 256 << 10;

/// Most captures at the same time, of all containers.
pub(crate) const CAPTURES_MAX: usize = 16;

/// Least bound of the length of a capture, bytes: its head always fits.
pub(crate) const CAPTURE_BYTES_MIN: u64 = 4096;

/// What a capture keeps and when it ends.
#[derive(Debug, Default)]
pub(crate) struct CaptureSpec {
    /// Head of the capture.
    pub(crate) head: CaptureHead,
    /// Frames that are left out otherwise.
    pub(crate) filter: Option<Filter>,
    /// The capture ends before it is longer than this, bytes.
    pub(crate) bytes_max: Option<u64>,
}

/// The captures under way.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    /// Weak: a capture ends without a word to this list.
    all: Mutex<Vec<Weak<Shared>>>,
}

/// The worker's end.
///
/// Dropping it ends the capture: the worker drops it with the container's device.
#[derive(Debug)]
struct Feed {
    /// Also held by the stream.
    shared: Arc<Shared>,
}

/// The client's end. Dropping it ends the capture.
#[derive(Debug)]
pub(crate) struct Stream {
    shared: Arc<Shared>,
    /// Lost frames that the client has been notified of.
    lost_reported: u64,
    /// The last block was passed on.
    finished: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Frames dropped.
    lost: Arc<AtomicU64>,
    /// No block is needed any more.
    ended: Arc<AtomicBool>,
}

#[derive(Debug)]
struct State {
    /// Whole blocks that the client has not taken.
    queue: Vec<u8>,
    /// Frames appended to the queue.
    taken: u64,
    /// Bytes that may still be appended.
    bytes_left: u64,
    /// The task that waits for the queue.
    waiting: Option<Waker>,
}

impl Captures {
    /// Starts a capture; `None`: as many as allowed are under way.
    ///
    /// The writer is for the worker of the container, the stream for the client.
    pub(crate) fn start(&self, spec: CaptureSpec) -> Option<(CaptureWriter, Stream)> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        // The worker of an idle container may keep its end of one that has ended.
        let lasts = |capture: Arc<Shared>| !capture.ended.load(Ordering::Relaxed);
        all.retain(|capture| capture.upgrade().is_some_and(lasts));
        if all.len() >= CAPTURES_MAX {
            return None;
        }
        // Room for the last block.
        let bytes_left =
            spec.bytes_max.map_or(u64::MAX, |max| max.saturating_sub(STATISTICS_BYTES as u64));
        let state = State { queue: Vec::new(), taken: 0, bytes_left, waiting: None };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            lost: Arc::default(),
            ended: Arc::default(),
        });
        let feed = Feed { shared: Arc::clone(&shared) };
        // The feed accepts every write.
        let mut writer = CaptureWriter::new(Box::new(feed), &spec.head)
            .ok()?
            .with_later_losses(Arc::clone(&shared.lost))
            .until(Arc::clone(&shared.ended));
        if let Some(filter) = spec.filter {
            writer = writer.with_filter(Box::new(move |parts| filter.selects(parts)));
        }
        all.push(Arc::downgrade(&shared));
        Some((writer, Stream { shared, lost_reported: 0, finished: false }))
    }

    /// Ends all captures: their clients get the rest, and then the end.
    pub(crate) fn end_all(&self) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).for_each(|capture| capture.end());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No block is appended from now on.
    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        wake(self.state());
    }
}

/// Wakes the task that waits for the queue, after the lock is released: a wake-up may be a system call.
fn wake(mut state: MutexGuard<'_, State>) {
    let waiting = state.waiting.take();
    drop(state);
    waiting.into_iter().for_each(Waker::wake);
}

impl Write for Feed {
    /// Appends one block. Always succeeds: a frame that cannot be stored is counted as lost.
    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        let mut state = self.shared.state();
        let len = block.len() as u64;
        if len > state.bytes_left {
            // `end` locks again.
            drop(state);
            self.shared.end();
        } else if state.queue.len() + block.len() > QUEUE_MAX {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        } else {
            // Under the lock, which the stream holds only to take the buffer as it is.
            state.queue.extend_from_slice(block);
            state.bytes_left -= len;
            state.taken += u64::from(is_packet(block));
            if state.queue.len() >= WAKE_BYTES {
                wake(state);
            }
        }
        Ok(block.len())
    }

    /// Wakes the client. The worker flushes before each wait.
    fn flush(&mut self) -> io::Result<()> {
        let state = self.shared.state();
        if !state.queue.is_empty() {
            wake(state);
        }
        Ok(())
    }
}

impl Drop for Feed {
    /// The container has ended.
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Stream {
    /// The next blocks, whole; `None`: the capture has ended, and so has the stream.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        if self.finished {
            return Poll::Ready(None);
        }
        // Read before the queue: what was appended before the end is in the queue.
        let ended = self.shared.ended.load(Ordering::Acquire);
        let mut state = self.shared.state();
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if state.queue.is_empty() && !ended {
            // The last task that polled is the one to wake.
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // Taken whole, so that the worker finds an empty queue.
        let mut bytes = std::mem::take(&mut state.queue);
        let taken = state.taken;
        // The last block states the losses too. Others count against the bound of the capture's length.
        let is_new = lost > self.lost_reported && state.bytes_left >= STATISTICS_BYTES as u64;
        if is_new && !ended {
            state.bytes_left -= STATISTICS_BYTES as u64;
        }
        // The clocks are system calls.
        drop(state);
        if is_new || ended {
            let at_ns = clock::now().as_nanos() + clock::epoch_offset_ns();
            bytes.extend(statistics_block(taken + lost, lost, at_ns));
            self.lost_reported = lost;
        }
        self.finished = ended;
        Poll::Ready(Some(bytes))
    }

    /// Ends the capture: what is queued is still passed on.
    pub(crate) fn end(&self) {
        self.shared.end();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // The worker removes its end when it flushes next, which may be much later.
        self.shared.state().queue = Vec::new();
    }
}

#[cfg(test)]
#[path = "capture/stream_tests.rs"]
mod tests;
