//! Bulk clients, and the hundreds of connections of the hog.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::socket::sockopt::{RcvBuf, SendTimeout, SndBuf};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect as connect_socket, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use skbudget_sim::Pattern;

use super::{STOP_CHECK_EVERY, Shared, locked};
use crate::measure::Meter;
use crate::scenario::plan::Fill;

/// Bytes of one read or write.
pub(super) const PIECE: usize = 64 * 1024;
/// The hog is to use memory, not CPU: it opens and fills its connections at an even pace that leaves CPU for the
/// others. 16 KiB for each of 300 connections in 20 ms is 240 MB/s.
pub(super) const HOG_PIECE: usize = 16 * 1024;
const HOG_ROUND: Duration = Duration::from_millis(20);
/// Steps of one round: a few connections at a time instead of all at once.
const HOG_STEPS: usize = 20;
/// Pause after a round in which no connection accepted any byte.
const HOG_IDLE: Duration = Duration::from_millis(200);
const DIAL_EVERY: Duration = Duration::from_millis(1);
/// Pause before another attempt to connect.
const RETRY: Duration = Duration::from_millis(20);

/// Connects as soon as a server answers. `None`: the run was stopped.
pub(super) fn connect(to: SocketAddr, shared: &Shared) -> Option<TcpStream> {
    while !shared.stopped() {
        match TcpStream::connect_timeout(&to, Duration::from_secs(1)) {
            Ok(stream) => {
                let set = stream
                    .set_read_timeout(Some(STOP_CHECK_EVERY))
                    .and_then(|()| stream.set_write_timeout(Some(STOP_CHECK_EVERY)));
                if set.is_ok() {
                    shared.note_connected();
                    return Some(stream);
                }
            }
            Err(_) => thread::sleep(RETRY),
        }
    }
    None
}

/// Whether an error means that the call should be repeated.
pub(super) fn is_wait(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Sends as much as possible until the run ends.
pub(crate) fn send(to: SocketAddr, shared: &Shared) {
    let pattern = Pattern::from_guest(to.port());
    let mut buf = vec![0; PIECE];
    while let Some(mut stream) = connect(to, shared) {
        let mut sent = 0;
        while !shared.stopped() {
            // Filled again after each write, because a partial write continues at `sent`.
            pattern.fill(sent, &mut buf);
            match stream.write(&buf) {
                Ok(n) => sent += n as u64,
                Err(e) if is_wait(e.kind()) => {}
                Err(_) => {
                    shared.note_broken();
                    break;
                }
            }
        }
    }
}

/// Reads everything until the run ends.
pub(crate) fn receive(to: SocketAddr, shared: &Shared, meter: &Arc<Mutex<Meter>>) {
    let pattern = Pattern::from_host(to.port());
    let mut buf = vec![0; PIECE];
    while let Some(mut stream) = connect(to, shared) {
        let mut received = 0;
        while !shared.stopped() {
            match stream.read(&mut buf) {
                Ok(n) if n > 0 => {
                    if pattern.check(received, &buf[..n]).is_err() {
                        shared.note_corrupt();
                    }
                    received += n as u64;
                    locked(meter).add(shared.clock.now(), n as u64);
                }
                Err(e) if is_wait(e.kind()) => {}
                // The end of the stream is unexpected too: the server sends until the run ends.
                Ok(_) | Err(_) => {
                    shared.note_broken();
                    break;
                }
            }
        }
    }
}

/// Opens connections and hands each over at once, so that one that is not admitted does not delay the others. Buffer
/// sizes are set before the connect, because the window scale is fixed by the SYN (RFC 7323 section 2.2).
fn many(
    to: SocketAddr,
    fill: Fill,
    option: BufferOption,
    shared: &Shared,
    out: &Sender<TcpStream>,
) {
    let mut opened = 0;
    while opened < fill.connections && !shared.stopped() {
        match open(to, fill.buffer_bytes.map(|b| b as usize), option) {
            Ok(stream) => {
                shared.note_connected();
                // The thread that fills the connections has ended.
                if out.send(stream).is_err() {
                    return;
                }
                opened += 1;
                // A burst of SYNs would be dropped by the backlog, and their retransmission takes a second.
                thread::sleep(DIAL_EVERY);
            }
            // Admission may be refused permanently: the hog retries slowly.
            Err(_) => thread::sleep(RETRY),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BufferOption {
    Send,
    Receive,
}

/// Connects a non-blocking socket, with a buffer size if one is given.
fn open(to: SocketAddr, buffer: Option<usize>, option: BufferOption) -> io::Result<TcpStream> {
    let Some(bytes) = buffer else {
        let stream = TcpStream::connect_timeout(&to, Duration::from_millis(500))?;
        stream.set_nonblocking(true)?;
        return Ok(stream);
    };
    let SocketAddr::V4(to) = to else { return Err(ErrorKind::Unsupported.into()) };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    match option {
        BufferOption::Send => setsockopt(&socket, SndBuf, &bytes)?,
        BufferOption::Receive => setsockopt(&socket, RcvBuf, &bytes)?,
    }
    // SO_SNDTIMEO limits the time of a connect as well.
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(500))?;
    connect_socket(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Fills connections to servers that never read, and keeps them full; or sends each a fixed number of bytes.
pub(crate) fn stuff(to: SocketAddr, fill: Fill, shared: &Shared) {
    let mut buf = vec![0; HOG_PIECE];
    Pattern::from_guest(to.port()).fill(0, &mut buf);
    let (dialed, streams) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || many(to, fill, BufferOption::Send, shared, &dialed));
        let mut filled = Filled::limited(fill.bytes);
        while !shared.stopped() {
            streams.try_iter().for_each(|stream| filled.add(stream));
            thread::sleep(filled.step(&buf));
        }
    });
}

/// Interval between two rounds of a slow reader.
const SLOW_EVERY: Duration = Duration::from_millis(20);

/// Holds connections from servers that send, and reads slowly or never.
pub(crate) fn hoard(to: SocketAddr, fill: Fill, shared: &Shared) {
    let rate = fill.reads_bits_per_second.unwrap_or(0);
    // Bytes per round at this rate.
    let each = u128::from(rate / 8) * SLOW_EVERY.as_nanos() / 1_000_000_000;
    let mut buf = vec![0; usize::try_from(each).unwrap_or(PIECE).clamp(1, PIECE)];
    let (dialed, new) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || many(to, fill, BufferOption::Receive, shared, &dialed));
        let mut streams: Vec<TcpStream> = Vec::new();
        while !shared.stopped() {
            streams.extend(new.try_iter());
            if rate > 0 {
                streams.retain_mut(|stream| match stream.read(&mut buf) {
                    Ok(n) => n > 0,
                    Err(e) => is_wait(e.kind()),
                });
            }
            thread::sleep(SLOW_EVERY);
        }
    });
}

/// Connections that are filled in turn.
#[derive(Debug, Default)]
pub(super) struct Filled {
    pub(super) streams: Vec<TcpStream>,
    next: usize,
    /// A connection accepted bytes in this round.
    moved: bool,
    /// Bytes for each connection, and bytes sent so far; `None`: unlimited.
    limit: Option<u64>,
    sent: Vec<u64>,
}

impl Filled {
    pub(super) fn add(&mut self, stream: TcpStream) {
        self.streams.push(stream);
        self.sent.push(0);
        // A new connection accepts bytes: do not go idle.
        self.moved = true;
    }

    pub(super) fn limited(limit: Option<u64>) -> Self {
        Self { limit, ..Self::default() }
    }

    /// One step of a round; returns the pause before the next.
    pub(super) fn step(&mut self, buf: &[u8]) -> Duration {
        let count = self.streams.len().div_ceil(HOG_STEPS);
        for _ in 0..count {
            let Some(stream) = self.streams.get_mut(self.next) else { break };
            let left = self.limit.map_or(u64::MAX, |l| l - self.sent[self.next]);
            let piece = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match stream.write(&buf[..piece]) {
                Ok(n) => {
                    self.sent[self.next] += n as u64;
                    self.moved |= n > 0;
                }
                Err(e) if is_wait(e.kind()) => {}
                Err(_) => {
                    self.streams.swap_remove(self.next);
                    self.sent.swap_remove(self.next);
                    // The swapped-in connection is at this index now: do not advance.
                    continue;
                }
            }
            self.next += 1;
        }
        if self.next < self.streams.len() {
            return HOG_ROUND / HOG_STEPS as u32;
        }
        self.next = 0;
        // A round without any progress means that all buffers are full.
        if std::mem::take(&mut self.moved) { HOG_ROUND / HOG_STEPS as u32 } else { HOG_IDLE }
    }
}
