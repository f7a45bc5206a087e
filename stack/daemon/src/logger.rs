//! Messages of all processes of a run on stderr: one writer, which nothing can block or end.
//!
//! The process that the user started has a writer thread, and only that thread uses descriptor 2. Every process, this
//! one included, sends its messages to the thread over a socket that never blocks the sender. So a full pipe, a stopped
//! terminal or a full disk delays only that thread, and the socket's buffer bounds the messages that wait for it.
//! Messages that do not fit or cannot be written are counted; the count is reported when there is room again, and at
//! the end. The flags of descriptor 2 stay unchanged, because the caller's shell shares them.

mod entry;
mod limit;
mod writer;

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::socket::{self, MsgFlags, Shutdown};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::exit::FAILURE;
use crate::{clock, packets, sys};
use entry::Entry;
pub use entry::LogFormat;
use limit::{Admitted, Limiter};

/// How long the end of a process waits until all messages are written. It must be bounded: stderr may be a pipe without
/// an active reader.
const FINISH_WAIT: Duration = Duration::from_secs(1);

/// Head of every packet on the socket: the number of messages that the sender lost before it.
const LOST_BYTES: usize = size_of::<u64>();

/// Sends messages to the writer.
#[derive(Debug)]
struct Reporter {
    socket: OwnedFd,
    /// Messages that did not fit the socket and are not reported yet.
    lost: AtomicU64,
    /// Suppresses repetitions.
    limiter: Mutex<Limiter>,
    /// Signals that the writer has finished. `None` where the writer is a thread of another process.
    done: Mutex<Option<Receiver<()>>>,
}

static REPORTER: OnceLock<Reporter> = OnceLock::new();

/// The least important level that is reported, as an index of [`LEVELS`].
static LEVEL: AtomicU8 = AtomicU8::new(2);

/// By importance.
const LEVELS: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// Starts the writer in this process. From now on messages and panics of this process go to it.
///
/// # Errors
/// When the kernel grants no socket or thread. Nothing is reported then.
pub fn start() -> io::Result<()> {
    let (ours, theirs) = packets::pair()?;
    let done = writer::spawn(theirs)?;
    install(ours, Some(done));
    Ok(())
}

/// How a child process reaches the writer: the descriptor that it must keep, and the argument for [`join`].
pub(crate) fn handover() -> (Option<RawFd>, String) {
    REPORTER.get().map_or_else(
        || (None, String::from("-")),
        |reporter| {
            let fd = reporter.socket.as_raw_fd();
            let json = u8::from(LogFormat::current() == LogFormat::Json);
            (Some(fd), format!("{fd}:{}:{json}", LEVEL.load(Ordering::Relaxed)))
        },
    )
}

/// The socket to the writer, for a signal handler. `None`: no logger has been started.
pub(crate) fn raw_fd() -> Option<RawFd> {
    REPORTER.get().map(|reporter| reporter.socket.as_raw_fd())
}

/// Sends the messages of this process to the writer of the process that started it.
///
/// # Errors
/// When the argument is not one from [`handover`].
pub(crate) fn join(argument: &OsStr) -> io::Result<()> {
    if argument == "-" {
        return Ok(());
    }
    let bad = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut numbers = argument.to_str().ok_or_else(bad)?.split(':').map(str::parse::<RawFd>);
    let mut number = || numbers.next().and_then(Result::ok).ok_or_else(bad);
    let (fd, level, json) = (number()?, number()?, number()?);
    let level = u8::try_from(level).ok().filter(|level| usize::from(*level) < LEVELS.len());
    LEVEL.store(level.ok_or_else(bad)?, Ordering::Relaxed);
    set_format(if json == 1 { LogFormat::Json } else { LogFormat::Text });
    let fd = sys::inherited_fd(fd)?;
    install(fd, None);
    Ok(())
}

/// Sets the least important level that is reported.
pub fn set_level(level: LevelFilter) {
    let index = LEVELS.iter().position(|known| *known == level).unwrap_or_default();
    LEVEL.store(index as u8, Ordering::Relaxed);
    // Each place in the code remembers whether it is enabled.
    tracing::callsite::rebuild_interest_cache();
}

/// Sets how messages of this process, and of those that it starts later, are written.
pub fn set_format(format: LogFormat) {
    format.set();
}

/// The least important level that is reported.
fn level() -> LevelFilter {
    LEVELS[usize::from(LEVEL.load(Ordering::Relaxed))]
}

/// Reports why the process ends. This message is never suppressed as a repetition.
pub fn report(message: impl fmt::Display) {
    if let Some(reporter) = REPORTER.get() {
        reporter.send(&Entry::new(None, message).line());
    }
}

/// Must be the last call of a process: reports what was lost and waits, for a bounded time, until all is written.
pub fn finish() {
    let Some(reporter) = REPORTER.get() else { return };
    let left_out = locked(&reporter.limiter).take_left_out();
    if left_out > 0 {
        let message = format!("{left_out} repeated messages were suppressed");
        reporter.send(&Entry::new(Some(Level::WARN), message).line());
    } else if reporter.lost.load(Ordering::Relaxed) > 0 {
        // An empty message carries only the count.
        reporter.send("");
    }
    if let Some(done) = locked(&reporter.done).take() {
        // Ends the socket for all processes that use it. They have ended by now; what they would still send is lost.
        let _ = socket::shutdown(reporter.socket.as_raw_fd(), Shutdown::Write);
        let _ = done.recv_timeout(FINISH_WAIT);
    }
}

/// Makes this the reporter of the process, once.
fn install(socket: OwnedFd, done: Option<Receiver<()>>) {
    let reporter = Reporter {
        socket,
        lost: AtomicU64::new(0),
        limiter: Mutex::default(),
        done: Mutex::new(done),
    };
    if REPORTER.set(reporter).is_ok() {
        // Fails only when a subscriber is installed already.
        let _ = tracing::subscriber::set_global_default(ToReporter);
        std::panic::set_hook(Box::new(end_after_panic));
    }
}

/// Ends the process after a panic in any thread. With one thread missing, containers would silently have no network.
fn end_after_panic(panic: &PanicHookInfo<'_>) {
    report(panic);
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        backtrace.to_string().lines().for_each(report);
    }
    finish();
    std::process::exit(FAILURE.into());
}

impl Reporter {
    /// Sends one message, or only the count of lost ones if `text` is empty. Never blocks.
    fn send(&self, text: &str) {
        // Taken off first, so that two threads do not report the same losses.
        let before = self.lost.swap(0, Ordering::Relaxed);
        let head = before.to_ne_bytes();
        let parts = [IoSlice::new(&head), IoSlice::new(text.as_bytes())];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if socket::sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], flags, None).is_err() {
            // Not sent: the losses stay to be reported, and this message is one of them.
            self.lost.fetch_add(before + u64::from(!text.is_empty()), Ordering::Relaxed);
        }
    }
}

/// Connects the `tracing` crate to the writer. Spans are not used.
struct ToReporter;

impl Subscriber for ToReporter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates log details of their own, which no user of this program needs.
        metadata.target().starts_with("skbudget") && *metadata.level() <= level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(level())
    }

    fn event(&self, event: &Event<'_>) {
        let Some(reporter) = REPORTER.get() else { return };
        let metadata = event.metadata();
        // Levels below info come from -vv, which requests every message.
        let left_out = if *metadata.level() > Level::INFO {
            0
        } else {
            let kind = (metadata.file(), metadata.line());
            match locked(&reporter.limiter).admit(kind, clock::now()) {
                Admitted::Yes { left_out } => left_out,
                Admitted::No => return,
            }
        };
        reporter.send(&Entry::of(event, left_out).line());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Locks the mutex, also after a panic of another thread: that thread's report must not fail here.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reporter() -> (Reporter, OwnedFd) {
        let (ours, theirs) = packets::pair().unwrap();
        let reporter = Reporter {
            socket: ours,
            lost: AtomicU64::new(0),
            limiter: Mutex::default(),
            done: Mutex::default(),
        };
        (reporter, theirs)
    }

    /// The next message: the number of lost ones before it, and its text.
    fn receive(socket: &OwnedFd) -> Option<(u64, String)> {
        let mut buf = [0; 4096];
        let n = socket::recv(socket.as_raw_fd(), &mut buf, MsgFlags::MSG_DONTWAIT).ok()?;
        let (lost, text) = buf[..n].split_first_chunk::<LOST_BYTES>()?;
        Some((u64::from_ne_bytes(*lost), String::from_utf8(text.to_vec()).unwrap()))
    }

    #[test]
    fn a_writer_that_takes_nothing_blocks_nobody_and_the_loss_is_counted() {
        let (reporter, socket) = reporter();
        // Far more than the socket's buffer holds: this ends only if no send blocks.
        let sent = 50_000;
        (0..sent).for_each(|i| reporter.send(&format!("{i}\n")));
        let lost = reporter.lost.load(Ordering::Relaxed);
        let queued = sent - lost;
        assert!(queued > 10 && lost > 0, "{queued} queued, {lost} lost");
        for i in 0..queued {
            assert_eq!(receive(&socket), Some((0, format!("{i}\n"))));
        }
        reporter.send("room again\n");
        assert_eq!(receive(&socket), Some((lost, "room again\n".to_owned())));
        assert_eq!(reporter.lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_writer_that_is_gone_is_a_loss_and_no_more() {
        let (reporter, socket) = reporter();
        drop(socket);
        reporter.send("one\n");
        reporter.send("");
        reporter.send("two\n");
        assert_eq!(reporter.lost.load(Ordering::Relaxed), 2);
    }
}
