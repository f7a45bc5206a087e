//! Bulk clients, and the hog's hundreds of connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use skbudget_stack::sim::Pattern;

use super::{LOOK, Shared, locked};
use crate::measure::Meter;

/// Bytes of one read or write.
pub(super) const PIECE: usize = 64 * 1024;
/// The hog is to take memory, not the processor: it opens and fills its connections at an even pace that leaves others
/// theirs. 16 KiB for each of 300 connections in 20 ms are 240 MB/s.
pub(super) const HOG_PIECE: usize = 16 * 1024;
const HOG_ROUND: Duration = Duration::from_millis(20);
/// Steps of one round: a few connections at a time, not all at once.
const HOG_STEPS: usize = 20;
/// Between looks at connections that all took nothing.
const HOG_IDLE: Duration = Duration::from_millis(200);
const DIAL_EVERY: Duration = Duration::from_millis(1);
/// Before another attempt to connect.
const RETRY: Duration = Duration::from_millis(20);

/// Connects as soon as anybody answers. `None`: the run was stopped.
pub(super) fn connect(to: SocketAddr, shared: &Shared) -> Option<TcpStream> {
    while !shared.stopped() {
        match TcpStream::connect_timeout(&to, Duration::from_secs(1)) {
            Ok(stream) => {
                let set = stream
                    .set_read_timeout(Some(LOOK))
                    .and_then(|()| stream.set_write_timeout(Some(LOOK)));
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

pub(super) fn is_wait(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Sends all it can until the run ends.
pub fn send(to: SocketAddr, shared: &Shared) {
    let pattern = Pattern::from_guest(to.port());
    let mut buf = vec![0; PIECE];
    while let Some(mut stream) = connect(to, shared) {
        let mut sent = 0;
        while !shared.stopped() {
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

/// Reads all it gets until the run ends.
pub fn receive(to: SocketAddr, shared: &Shared, meter: &Arc<Mutex<Meter>>) {
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
                Ok(_) | Err(_) => {
                    shared.note_broken();
                    break;
                }
            }
        }
    }
}

/// Opens `connections`, as many as answer; each further one waits for nobody.
fn many(to: SocketAddr, connections: u32, shared: &Shared) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    while streams.len() < connections as usize && !shared.stopped() {
        match TcpStream::connect_timeout(&to, Duration::from_millis(500)) {
            Ok(stream) if stream.set_nonblocking(true).is_ok() => {
                shared.note_connected();
                streams.push(stream);
                thread::sleep(DIAL_EVERY);
            }
            // Admission may be refused for good: a hog that is turned away tries again, slowly.
            Ok(_) | Err(_) => thread::sleep(RETRY),
        }
    }
    streams
}

/// Fills connections into servers that never read, and keeps them full.
pub fn stuff(to: SocketAddr, connections: u32, shared: &Shared) {
    let mut buf = vec![0; HOG_PIECE];
    Pattern::from_guest(to.port()).fill(0, &mut buf);
    let mut filled = Filled { streams: many(to, connections, shared), ..Filled::default() };
    while !shared.stopped() {
        thread::sleep(filled.step(&buf));
    }
}

/// Holds connections from servers that push, and never reads.
pub fn hoard(to: SocketAddr, connections: u32, shared: &Shared) {
    let streams = many(to, connections, shared);
    while !shared.stopped() {
        thread::sleep(LOOK);
    }
    drop(streams);
}

/// Connections that are filled in turn.
#[derive(Debug, Default)]
pub(super) struct Filled {
    pub(super) streams: Vec<TcpStream>,
    next: usize,
    /// Any took anything in this round.
    moved: bool,
}

impl Filled {
    /// One step of a round; how long to wait for the next.
    pub(super) fn step(&mut self, buf: &[u8]) -> Duration {
        let count = self.streams.len().div_ceil(HOG_STEPS);
        for _ in 0..count {
            let Some(stream) = self.streams.get_mut(self.next) else { break };
            match stream.write(buf) {
                Ok(_) => self.moved = true,
                Err(e) if is_wait(e.kind()) => {}
                Err(_) => {
                    self.streams.swap_remove(self.next);
                    continue;
                }
            }
            self.next += 1;
        }
        if self.next < self.streams.len() {
            return HOG_ROUND / HOG_STEPS as u32;
        }
        self.next = 0;
        if std::mem::take(&mut self.moved) { HOG_ROUND / HOG_STEPS as u32 } else { HOG_IDLE }
    }
}
