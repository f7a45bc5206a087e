//! The servers behind the containers' connections, on the host's loopback.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, SndBuf, TcpMaxSeg};
use skbudget_sim::Pattern;

use super::bulk::{Filled, HOG_PIECE, PIECE, is_wait};
use super::pace::Pacer;
use super::{STOP_CHECK_EVERY, Shared, locked};
use crate::measure::Meter;

/// Bytes per piece of a paced stream: 4 ms of data, so that a thread wakes up 250 times a second and windows are even.
fn piece(bits_per_second: u64) -> usize {
    (bits_per_second / 8 / 250).clamp(4 * 1024, PIECE as u64) as usize
}
/// Makes a server behave as on a network, not as on the loopback with its segments of 64 KiB: with those, the sender
/// does not send into a smaller window of a slow reader, and waits for its own 200 ms persist timer. That delay is not
/// due to the stack.
const MSS: u32 = 1460;
/// Send and receive buffer of a hog's server, before the kernel doubles them. Bytes in them are not charged to any
/// budget, and a hog with peers that take megabytes would spend half of its time filling those.
const HOG_BUFFER: usize = 4 * 1024;
const ACCEPT_EVERY: Duration = Duration::from_millis(1);

/// The servers of one run. All end with `Shared::end`.
#[derive(Debug)]
pub(crate) struct Servers {
    shared: Arc<Shared>,
    ip: Ipv4Addr,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self::on(shared, Ipv4Addr::LOCALHOST)
    }
    /// The same on another address than the loopback's.
    pub(crate) fn on(shared: Arc<Shared>, ip: Ipv4Addr) -> Self {
        Self { shared, ip, threads: Vec::new() }
    }

    /// A server that reads at a rate and meters the bytes.
    pub(crate) fn sink(
        &mut self,
        bits_per_second: u64,
        meter: Arc<Mutex<Meter>>,
    ) -> io::Result<u16> {
        self.one_by_one(move |port, stream, shared| {
            sink(port, stream, shared, bits_per_second, &meter);
        })
    }
    /// A server that sends at a rate.
    pub(crate) fn pusher(&mut self, bits_per_second: u64) -> io::Result<u16> {
        self.one_by_one(move |port, stream, shared| push(port, stream, shared, bits_per_second))
    }
    pub(crate) fn responder(&mut self, request: u32, response: u32) -> io::Result<u16> {
        self.one_by_one(move |port, stream, shared| {
            respond(port, stream, shared, request as usize, response as usize);
        })
    }
    /// A server that accepts all connections and never reads.
    pub(crate) fn never_reads(&mut self) -> io::Result<u16> {
        self.all_at_once(|_, streams, shared| {
            while !shared.stopped() {
                streams.accept();
                thread::sleep(ACCEPT_EVERY);
            }
        })
    }
    /// A server that accepts all connections and sends each as much as possible, or `bytes`.
    pub(crate) fn pushers(&mut self, bytes: Option<u64>) -> io::Result<u16> {
        self.all_at_once(move |port, streams, shared| {
            streams.open = Filled::limited(bytes);
            let mut buf = vec![0; HOG_PIECE];
            Pattern::from_host(port).fill(0, &mut buf);
            while !shared.stopped() {
                streams.accept();
                thread::sleep(streams.open.step(&buf));
            }
        })
    }

    fn listen(&self) -> io::Result<(TcpListener, u16)> {
        let listener = TcpListener::bind(SocketAddr::from((self.ip, 0)))?;
        listener.set_nonblocking(true)?;
        // Before the first connection: accepted sockets inherit it, and it is advertised in the SYN-ACK.
        setsockopt(&listener, TcpMaxSeg, &MSS)?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    }

    /// A server with one connection at a time: for measured streams.
    fn one_by_one(
        &mut self,
        serve: impl Fn(u16, TcpStream, &Shared) + Send + 'static,
    ) -> io::Result<u16> {
        let (listener, port) = self.listen()?;
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || {
            while !shared.stopped() {
                // The listener is non-blocking, so that the stop flag is checked while no connection arrives.
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(ACCEPT_EVERY);
                    continue;
                };
                let ready = stream
                    // Blocking with timeouts: the thread serves one connection and must notice the stop.
                    .set_nonblocking(false)
                    .and_then(|()| stream.set_nodelay(true))
                    .and_then(|()| stream.set_read_timeout(Some(STOP_CHECK_EVERY)))
                    .and_then(|()| stream.set_write_timeout(Some(STOP_CHECK_EVERY)));
                if ready.is_ok() {
                    serve(port, stream, &shared);
                }
            }
        }));
        Ok(port)
    }

    /// A server with all connections at once: for the hog.
    fn all_at_once(
        &mut self,
        serve: impl Fn(u16, &mut Streams, &Shared) + Send + 'static,
    ) -> io::Result<u16> {
        let (listener, port) = self.listen()?;
        // Set on the listener: accepted sockets inherit the sizes before their windows are advertised.
        setsockopt(&listener, RcvBuf, &HOG_BUFFER)?;
        setsockopt(&listener, SndBuf, &HOG_BUFFER)?;
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || {
            serve(port, &mut Streams { listener, open: Filled::default() }, &shared);
        }));
        Ok(port)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.shared.end();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The accepted connections of one port.
#[derive(Debug)]
struct Streams {
    listener: TcpListener,
    open: Filled,
}

impl Streams {
    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.open.add(stream);
            }
        }
    }
}

fn sink(port: u16, mut stream: TcpStream, shared: &Shared, rate: u64, meter: &Mutex<Meter>) {
    let pattern = Pattern::from_guest(port);
    let mut pacer = Pacer::new(rate, shared.clock.now());
    let mut buf = vec![0; piece(rate)];
    let mut received = 0;
    while !shared.stopped() {
        match stream.read(&mut buf) {
            Ok(0) => return,
            Ok(n) => {
                let now = shared.clock.now();
                if pattern.check(received, &buf[..n]).is_err() {
                    shared.note_corrupt();
                }
                received += n as u64;
                // Counted when read: what is still queued has not arrived.
                locked(meter).add(now, n as u64);
                // The pause is what limits the rate: an unread socket closes the client's window.
                let _ = shared.clock.sleep_until(pacer.moved(n, now), &shared.stop);
            }
            Err(e) if is_wait(e.kind()) => {}
            Err(_) => return,
        }
    }
}

fn push(port: u16, mut stream: TcpStream, shared: &Shared, rate: u64) {
    let pattern = Pattern::from_host(port);
    let mut pacer = Pacer::new(rate, shared.clock.now());
    let mut buf = vec![0; piece(rate)];
    let mut sent = 0;
    while !shared.stopped() {
        pattern.fill(sent, &mut buf);
        match stream.write(&buf) {
            Ok(n) => {
                // A full socket takes a part only; the pattern continues where it stopped.
                sent += n as u64;
                let due = pacer.moved(n, shared.clock.now());
                let _ = shared.clock.sleep_until(due, &shared.stop);
            }
            Err(e) if is_wait(e.kind()) => {}
            Err(_) => return,
        }
    }
}

/// Reads requests and writes responses until the connection ends.
fn respond(port: u16, mut stream: TcpStream, shared: &Shared, request: usize, response: usize) {
    let pattern = Pattern::from_host(port);
    let check = Pattern::from_guest(port);
    let (mut received, mut sent) = (0u64, 0u64);
    let (mut due_bytes, mut part) = (0usize, 0usize);
    let mut buf = vec![0; PIECE];
    while !shared.stopped() {
        // Finish the due responses before the next read: a slow client blocks only itself.
        if due_bytes > 0 {
            let n = due_bytes.min(buf.len());
            pattern.fill(sent, &mut buf[..n]);
            match stream.write(&buf[..n]) {
                Ok(n) => {
                    sent += n as u64;
                    due_bytes -= n;
                }
                Err(e) if is_wait(e.kind()) => {}
                Err(_) => return,
            }
            continue;
        }
        match stream.read(&mut buf) {
            // The client has closed: all of its requests were answered above.
            Ok(0) => return,
            Ok(n) => {
                if check.check(received, &buf[..n]).is_err() {
                    shared.note_corrupt();
                }
                received += n as u64;
                part += n;
                // One response for every complete request in the stream.
                due_bytes += part / request * response;
                part %= request;
            }
            Err(e) if is_wait(e.kind()) => {}
            Err(_) => return,
        }
    }
}
