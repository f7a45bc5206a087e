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
            }
            // Admission may be refused for good: a hog that is turned away tries again, slowly.
            Ok(_) | Err(_) => thread::sleep(RETRY),
        }
    }
    streams
}

/// Fills connections into servers that never read, and keeps them full.
pub fn stuff(to: SocketAddr, connections: u32, shared: &Shared) {
    let mut buf = vec![0; PIECE];
    Pattern::from_guest(to.port()).fill(0, &mut buf);
    let mut streams = many(to, connections, shared);
    fill(&mut streams, &buf, shared);
}

/// Holds connections from servers that push, and never reads.
pub fn hoard(to: SocketAddr, connections: u32, shared: &Shared) {
    let streams = many(to, connections, shared);
    while !shared.stopped() {
        thread::sleep(LOOK);
    }
    drop(streams);
}

/// Writes round after round into whatever takes anything; slower while nothing does.
pub(super) fn fill(streams: &mut Vec<TcpStream>, buf: &[u8], shared: &Shared) {
    let mut pause = Duration::from_millis(1);
    while !shared.stopped() {
        let mut moved = false;
        streams.retain_mut(|stream| {
            loop {
                match stream.write(buf) {
                    Ok(_) => moved = true,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return e.kind() == ErrorKind::WouldBlock,
                }
            }
        });
        pause = if moved { Duration::from_millis(1) } else { (pause * 2).min(LOOK) };
        thread::sleep(pause);
    }
}
