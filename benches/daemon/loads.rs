//! Connections of a container: servers on the loopback of the daemon's namespace, clients in the container's.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::TcpCongestion;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket,
};
use skbudget::attach;

/// Length of a read or a write, bytes.
const PIECE: usize = 64 << 10;
/// Pause of a thread that has nothing to do.
const PAUSE: Duration = Duration::from_millis(1);

/// A server that sends as much as possible on every connection. It ends with this value.
#[derive(Debug)]
pub(crate) struct Pusher {
    pub(crate) port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pusher {
    pub(crate) fn start(netns: &OwnedFd) -> io::Result<Self> {
        let listener = listen(netns)?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (bytes, mut open) = (vec![7; PIECE], Vec::<TcpStream>::new());
            while !stopped.load(Ordering::Relaxed) {
                while let Ok((stream, _)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok() {
                        open.push(stream);
                    }
                }
                // An error means that the client has closed the connection.
                let more = |mut stream: &TcpStream| match stream.write(&bytes) {
                    Ok(_) => true,
                    Err(e) => e.kind() == ErrorKind::WouldBlock,
                };
                open.retain(more);
                // Every connection is full most of the time.
                thread::sleep(PAUSE);
            }
        });
        Ok(Self { port, stop, thread: Some(thread) })
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn listen(netns: &OwnedFd) -> io::Result<TcpListener> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    attach::run_in(netns.as_fd(), listen).map_err(io::Error::other)?
}

/// Starts `n` connections from the namespace without waiting for any. None of them is read.
pub(crate) fn start_connections(
    netns: &OwnedFd,
    to: SocketAddrV4,
    n: usize,
) -> io::Result<Vec<OwnedFd>> {
    let one = |_| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
            // The handshake continues without this thread.
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
            Err(errno) => Err(io::Error::from(errno)),
        }
    };
    let all = || (0..n).map(one).collect();
    attach::run_in(netns.as_fd(), all).map_err(io::Error::other)?
}

/// One bulk flow, container to host, for this time. Returns the bytes that arrived. Unpaced: a sender under BBR would
/// measure its timers.
pub(crate) fn upload(
    guest: &OwnedFd,
    host: &OwnedFd,
    gateway: Ipv4Addr,
    time: Duration,
) -> io::Result<u64> {
    let listener = listen(host)?;
    let to = SocketAddrV4::new(gateway, listener.local_addr()?.port());
    let connect = || TcpStream::connect(to);
    let mut stream = attach::run_in(guest.as_fd(), connect).map_err(io::Error::other)??;
    setsockopt(&stream, TcpCongestion, &"reno".into())?;
    let receiver = thread::spawn(move || {
        let (mut received, mut bytes) = (0, vec![0; PIECE]);
        let mut stream = listener.accept()?.0;
        loop {
            match stream.read(&mut bytes)? {
                0 => return Ok::<u64, io::Error>(received),
                n => received += n as u64,
            }
        }
    });
    let (bytes, start) = (vec![7; PIECE], Instant::now());
    while start.elapsed() < time {
        stream.write_all(&bytes)?;
    }
    // The end of the stream ends the receiver, after the last byte.
    drop(stream);
    receiver.join().map_err(|_| io::Error::other("the receiver panicked"))?
}
