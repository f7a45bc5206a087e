//! Many connections, driven by one thread. Every byte is checked.
//!
//! The first 8 bytes of each sender are its number. The bytes after them are a function of that number and of the
//! position, so a byte of another connection or of another position is detected.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, connect, listen, socket,
};
use skbudget_sim::Rng;

/// Period of the pattern: a prime, which no buffer size divides.
const PERIOD: usize = 1_000_003;
const HEADER: usize = 8;

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut rng = Rng::new(1);
        let once: Vec<u8> = (0..PERIOD).map(|_| rng.next_u64() as u8).collect();
        [&once[..], &once[..]].concat()
    })
}

/// The bytes of sender `sender` from position `at` on: at most `len`, at least one.
fn bytes_of(sender: &[u8; HEADER], at: u64, len: usize) -> &[u8] {
    if at < HEADER as u64 {
        let rest = &sender[at as usize..];
        return &rest[..len.min(rest.len())];
    }
    let from = (u64::from_le_bytes(*sender) * 7919 + at) % PERIOD as u64;
    &table()[from as usize..][..len.min(PERIOD)]
}

/// Compares the bytes received from one sender.
#[derive(Debug, Default)]
pub struct Checker {
    sender: [u8; HEADER],
    pub got: u64,
    pub wrong: u64,
}

impl Checker {
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = if let Some(slot) =
                self.sender.get_mut(self.got as usize..).filter(|s| !s.is_empty())
            {
                let n = slot.len().min(bytes.len());
                slot[..n].copy_from_slice(&bytes[..n]);
                n
            } else {
                let expected = bytes_of(&self.sender, self.got, bytes.len());
                self.wrong += u64::from(expected != &bytes[..expected.len()]);
                expected.len()
            };
            self.got += n as u64;
            bytes = &bytes[n..];
        }
    }

    pub fn sender(&self) -> u64 {
        u64::from_le_bytes(self.sender)
    }
}

/// Sends the first `len` bytes of sender `sender`.
pub fn send_all(to: &mut impl Write, sender: u64, len: u64) -> std::io::Result<()> {
    let sender = sender.to_le_bytes();
    let mut at = 0;
    while at < len {
        let part = bytes_of(&sender, at, (len - at).min(256 << 10) as usize);
        to.write_all(part)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Receives until the end of the stream.
pub fn receive_all(from: &mut impl Read) -> std::io::Result<Checker> {
    let mut checker = Checker::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(checker),
            n => checker.take(&buffer[..n]),
        }
    }
}

#[derive(Debug)]
struct Stream {
    socket: TcpStream,
    open: bool,
    sender: [u8; HEADER],
    sent: u64,
    shut: bool,
    received: Checker,
    eof: bool,
    failed: Option<ErrorKind>,
}

impl Stream {
    fn new(socket: TcpStream, sender: u64, open: bool) -> Self {
        Self {
            socket,
            open,
            sender: sender.to_le_bytes(),
            sent: 0,
            shut: false,
            received: Checker::default(),
            eof: false,
            failed: None,
        }
    }

    fn over(&self) -> bool {
        self.failed.is_some() || self.shut && self.eof
    }
}

/// The connections of one side of a test.
#[derive(Debug)]
pub struct Streams {
    listener: Option<TcpListener>,
    all: Vec<Stream>,
    /// Number of bytes that each sends before it closes its half.
    send: u64,
    /// Reads start at this time.
    read_from: Option<Instant>,
    /// Sends start only after everything was received.
    quiet: bool,
    started: Instant,
    wanted: usize,
    all_open_after: Option<Duration>,
}

/// The state of all connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub open: usize,
    pub complete: usize,
    pub resets: usize,
    pub errors: usize,
    pub wrong: u64,
    pub sent: u64,
    pub received: u64,
    pub least: u64,
    pub most: u64,
    /// Number of different senders received from.
    pub peers: usize,
}

impl Streams {
    fn new(wanted: usize, send: u64, hold: Duration) -> Self {
        let started = Instant::now();
        let read_from = Some(started + hold);
        Self {
            listener: None,
            all: Vec::new(),
            send,
            read_from,
            quiet: !hold.is_zero(),
            started,
            wanted,
            all_open_after: None,
        }
    }

    /// Opens `n` connections at once, in the network namespace of the calling thread. With a `hold` reads start after
    /// that time, and sends only after everything was received.
    pub fn connect(to: SocketAddrV4, n: usize, send: u64, hold: Duration) -> Self {
        let mut streams = Self::new(n, send, hold);
        for sender in 0..n {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
            match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
                Ok(()) | Err(Errno::EINPROGRESS) => {}
                Err(e) => panic!("connect: {e}"),
            }
            streams.all.push(Stream::new(fd.into(), sender as u64, false));
        }
        streams
    }

    /// Accepts `n` connections.
    pub fn accept(listener: TcpListener, n: usize, send: u64, hold: Duration) -> Self {
        let mut streams = Self::new(n, send, hold);
        listen(&listener, Backlog::new(2048).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        streams.listener = Some(listener);
        streams
    }

    /// Runs until all connections have sent and received everything, or until the deadline.
    pub fn run(&mut self, deadline: Duration) -> Tally {
        self.run_until(deadline, |streams| {
            streams.all.len() == streams.wanted && streams.all.iter().all(Stream::over)
        });
        self.tally()
    }

    /// Runs until every connect has succeeded or failed.
    pub fn run_until_open(&mut self, deadline: Duration) -> Option<Duration> {
        self.run_until(deadline, |streams| streams.all_open_after.is_some());
        self.all_open_after
    }

    pub fn all_open_after(&self) -> Option<Duration> {
        self.all_open_after
    }

    fn run_until(&mut self, deadline: Duration, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + deadline;
        let mut buffer = vec![0; 256 << 10];
        while !done(self) && Instant::now() < until {
            self.step(&mut buffer);
        }
    }

    fn step(&mut self, buffer: &mut [u8]) {
        let now = Instant::now();
        if self.read_from.is_some_and(|at| at <= now) {
            self.read_from = None;
        }
        let reading = self.read_from.is_none();
        let quiet = self.quiet;
        let wanted = |stream: &Stream| {
            let mut flags = PollFlags::empty();
            if !stream.open || !stream.shut && (!quiet || stream.eof) {
                flags |= PollFlags::POLLOUT;
            }
            if stream.open && !stream.eof && reading {
                flags |= PollFlags::POLLIN;
            }
            flags
        };
        let mut which = Vec::new();
        let mut fds = Vec::new();
        if let Some(listener) = &self.listener {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        for (index, stream) in self.all.iter().enumerate() {
            // poll(2) reports a reset whatever is polled for, so connections without interest are not polled.
            if !stream.over() && !wanted(stream).is_empty() {
                which.push(index);
                fds.push(PollFd::new(stream.socket.as_fd(), wanted(stream)));
            }
        }
        let timeout = self
            .read_from
            .map_or(Duration::from_millis(100), |at| (at - now).min(Duration::from_millis(100)));
        let timeout = PollTimeout::try_from(timeout.as_millis() as i32).unwrap();
        poll(&mut fds, timeout).unwrap();
        let events: Vec<_> = fds.iter().map(|fd| fd.revents().unwrap()).collect();
        drop(fds);
        let (accepts, events) = events.split_at(usize::from(self.listener.is_some()));
        for (index, event) in which.into_iter().zip(events) {
            let stream = &mut self.all[index];
            if let Err(e) = stream.step(*event, self.send, quiet, reading, buffer) {
                stream.failed = Some(e.kind());
            }
        }
        if accepts.iter().any(|event| !event.is_empty()) {
            self.accept_waiting();
        }
        let open = self.all.iter().filter(|s| s.open || s.failed.is_some()).count();
        if open == self.wanted && self.all_open_after.is_none() {
            self.all_open_after = Some(self.started.elapsed());
        }
    }

    fn accept_waiting(&mut self) {
        let Some(listener) = &self.listener else { return };
        loop {
            match listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(true).unwrap();
                    self.all.push(Stream::new(socket, 1_000_000 + self.all.len() as u64, true));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("accept: {e}"),
            }
        }
        if self.all.len() >= self.wanted {
            self.listener = None;
        }
    }

    pub fn tally(&self) -> Tally {
        let count = |holds: &dyn Fn(&Stream) -> bool| self.all.iter().filter(|s| holds(s)).count();
        let received = || self.all.iter().map(|s| s.received.got);
        let heard = self.all.iter().filter(|s| s.received.got >= HEADER as u64);
        Tally {
            open: count(&|s| s.open),
            complete: count(&|s| s.shut && s.eof && s.failed.is_none()),
            resets: count(&|s| s.failed == Some(ErrorKind::ConnectionReset)),
            errors: count(&|s| s.failed.is_some_and(|e| e != ErrorKind::ConnectionReset)),
            wrong: self.all.iter().map(|s| s.received.wrong).sum(),
            sent: self.all.iter().map(|s| s.sent).sum(),
            received: received().sum(),
            least: received().min().unwrap_or(0),
            most: received().max().unwrap_or(0),
            peers: heard.map(|s| s.received.sender()).collect::<BTreeSet<_>>().len(),
        }
    }
}

impl Stream {
    fn step(
        &mut self,
        event: PollFlags,
        send: u64,
        quiet: bool,
        reading: bool,
        buffer: &mut [u8],
    ) -> std::io::Result<()> {
        if !self.open && !event.is_empty() {
            if let Some(e) = self.socket.take_error()? {
                return Err(e);
            }
            self.open = true;
        }
        if self.open && !self.eof && reading && !event.is_empty() {
            self.receive(buffer)?;
        }
        if self.open && !self.shut && !event.is_empty() && (!quiet || self.eof) {
            self.send(send)?;
        }
        Ok(())
    }

    fn send(&mut self, len: u64) -> std::io::Result<()> {
        while self.sent < len {
            let part = bytes_of(&self.sender, self.sent, (len - self.sent).min(64 << 10) as usize);
            match self.socket.write(part) {
                Ok(n) => self.sent += n as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.shut = true;
        self.socket.shutdown(Shutdown::Write)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        match self.socket.read(buffer) {
            Ok(0) => self.eof = true,
            Ok(n) => self.received.take(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}
