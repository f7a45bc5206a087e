//! Applications inside a simulated guest. Each drives one TCP socket.

use std::collections::VecDeque;
use std::time::Duration;

use skbudget_controller::Instant;
use smoltcp::socket::tcp::{self, State};

use crate::observer::Watch;
use crate::pattern::Pattern;

/// What an application wants after a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Poll when the socket changed, or at this time.
    Wait {
        /// Time of the next poll.
        wake: Option<Instant>,
        /// The application sent or received, so the stack has work.
        busy: bool,
    },
    /// Drop the socket and open a new one.
    Again {
        /// Time of the next connect or listen.
        at: Instant,
    },
    /// Drop the socket (a reset, if it was still open).
    Finished,
}

impl Next {
    const IDLE: Self = Self::Wait { wake: None, busy: false };
}

/// One application on one socket.
pub trait App: std::fmt::Debug {
    /// Sets the options of a new socket, before it connects or listens.
    fn configure(&mut self, socket: &mut tcp::Socket<'static>) {
        socket.set_ack_delay(None);
    }
    /// Does the application's work for now.
    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next;
}

/// The server's port, which is the key of a guest socket's pattern, at whichever end the server is.
fn server_port(socket: &tcp::Socket<'_>, listening: Option<u16>) -> Option<u16> {
    listening.or_else(|| socket.remote_endpoint().map(|e| e.port))
}

/// Sends without pause, or `limit` bytes, then closes. Never reads.
#[derive(Debug)]
pub struct BulkSend {
    limit: Option<u64>,
    sent: u64,
    watch: Watch,
    broken: bool,
}

impl BulkSend {
    /// Sends this number of bytes, or without end.
    pub fn new(limit: Option<u64>, watch: Watch) -> Self {
        Self { limit, sent: 0, watch, broken: false }
    }
    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

impl App for BulkSend {
    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        if ended(socket, now, &self.watch, &mut self.broken, self.limit == Some(self.sent)) {
            return Next::IDLE;
        }
        let Some(port) = server_port(socket, None) else { return Next::IDLE };
        let (pattern, before) = (Pattern::from_guest(port), self.sent);
        while socket.can_send() && self.limit.is_none_or(|l| self.sent < l) {
            let left = self.limit.map_or(u64::MAX, |l| l - self.sent);
            let n = socket.send(|buf| {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                pattern.fill(self.sent, &mut buf[..n]);
                (n, n)
            });
            self.sent += n.unwrap_or(0) as u64;
        }
        let mut busy = self.sent > before;
        if self.limit == Some(self.sent) && socket.may_send() {
            socket.close();
            busy = true;
        }
        Next::Wait { wake: None, busy }
    }
}

/// Reads and checks all data; closes after its peer.
#[derive(Debug)]
pub struct BulkRecv {
    received: u64,
    watch: Watch,
    broken: bool,
    /// Does not read before this time.
    from: Instant,
    listening: Option<u16>,
}

impl BulkRecv {
    /// Receives until the end of the stream and compares every byte.
    pub fn new(watch: Watch) -> Self {
        Self { received: 0, watch, broken: false, from: Instant::default(), listening: None }
    }
    /// Does not read before `at`.
    pub fn starting(watch: Watch, at: Instant) -> Self {
        Self { from: at, ..Self::new(watch) }
    }
    /// For a connection opened with `Open::Listen(port)`.
    pub fn listening(watch: Watch, port: u16) -> Self {
        Self { listening: Some(port), ..Self::new(watch) }
    }
    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }
}

impl App for BulkRecv {
    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        if ended(socket, now, &self.watch, &mut self.broken, !socket.can_recv()) {
            return Next::IDLE;
        }
        if now < self.from {
            return Next::Wait { wake: Some(self.from), busy: false };
        }
        let Some(port) = server_port(socket, self.listening) else { return Next::IDLE };
        let before = self.received;
        drain(socket, Pattern::from_host(port), &mut self.received, now, &self.watch);
        let mut busy = self.received > before;
        if socket.state() == State::CloseWait && !socket.can_recv() {
            socket.close();
            busy = true;
        }
        Next::Wait { wake: None, busy }
    }
}

/// Connects and never reads, so that all buffers towards it fill up.
#[derive(Debug)]
pub struct NeverRead;

impl App for NeverRead {
    fn poll(&mut self, _now: Instant, _socket: &mut tcp::Socket<'static>) -> Next {
        Next::IDLE
    }
}

/// True when the connection is over. Reports a break once, unless `done`: then the end is expected.
fn ended(
    socket: &tcp::Socket<'_>,
    now: Instant,
    watch: &Watch,
    broken: &mut bool,
    done: bool,
) -> bool {
    // Data may still be unread after the peer closed.
    let over = matches!(socket.state(), State::Closed | State::TimeWait);
    if over && !done && !*broken && !socket.can_recv() {
        *broken = true;
        watch.borrow_mut().broken(now);
    }
    over && !socket.can_recv()
}

/// Reads and checks all received data.
fn drain(
    socket: &mut tcp::Socket<'static>,
    pattern: Pattern,
    received: &mut u64,
    now: Instant,
    watch: &Watch,
) {
    while socket.can_recv() {
        let got = socket.recv(|buf| (buf.len(), (buf.len(), pattern.check(*received, buf))));
        let Ok((n, check)) = got else { return };
        *received += n as u64;
        let mut watch = watch.borrow_mut();
        watch.bytes(now, n as u64);
        if let Err(at) = check {
            watch.corrupt(now, at);
        }
    }
}

/// An open-loop request/response client: request `i` is due at `start + i * every`, independent of the others.
#[derive(Debug, Clone, Copy)]
pub struct ProbePlan {
    /// Time of the first request.
    pub start: Instant,
    /// Time between two requests.
    pub every: Duration,
    /// No request is due at this time or later.
    pub until: Instant,
    /// Length of a request, bytes.
    pub request: u32,
    /// Length of a response, bytes.
    pub response: u32,
    /// Requests without a response at one time, at most; more are shed.
    pub outstanding_max: usize,
}

/// Sends requests at times fixed in advance and waits for their responses.
#[derive(Debug)]
pub struct Probe {
    plan: ProbePlan,
    watch: Watch,
    next_id: u64,
    /// Requests that were issued and not answered, oldest first.
    outstanding: VecDeque<u64>,
    /// Issued requests of which no byte was sent.
    unsent: VecDeque<u64>,
    to_send: u64,
    sent: u64,
    received: u64,
    answered_bytes: u64,
}

impl Probe {
    /// An application that has sent nothing yet.
    pub fn new(plan: ProbePlan, watch: Watch) -> Self {
        Self {
            plan,
            watch,
            next_id: 0,
            outstanding: VecDeque::new(),
            unsent: VecDeque::new(),
            to_send: 0,
            sent: 0,
            received: 0,
            answered_bytes: 0,
        }
    }

    /// When the next request is due; `None` after the last.
    fn due(&self) -> Option<Instant> {
        let at = Instant(
            self.plan
                .start
                .0
                .saturating_add(self.next_id.saturating_mul(self.plan.every.as_nanos() as u64)),
        );
        (at < self.plan.until).then_some(at)
    }

    /// Issues the requests that are due, and sheds those above the limit.
    fn issue(&mut self, now: Instant) {
        while let Some(at) = self.due().filter(|at| *at <= now) {
            let id = self.next_id;
            self.next_id += 1;
            let mut watch = self.watch.borrow_mut();
            watch.intended(id, at);
            watch.looked(id, now);
            // Open loop: a request above the limit is counted and never sent later.
            if self.outstanding.len() >= self.plan.outstanding_max {
                watch.shed(id);
                continue;
            }
            self.outstanding.push_back(id);
            self.unsent.push_back(id);
            self.to_send += u64::from(self.plan.request);
        }
    }

    fn send(&mut self, now: Instant, socket: &mut tcp::Socket<'static>, p: Pattern) -> bool {
        let before = self.to_send;
        while self.to_send > 0 && socket.can_send() {
            let n = socket.send(|buf| {
                let n = usize::try_from(self.to_send).unwrap_or(usize::MAX).min(buf.len());
                p.fill(self.sent, &mut buf[..n]);
                (n, n as u64)
            });
            let n = n.unwrap_or(0);
            self.sent += n;
            self.to_send -= n;
        }
        // The remaining bytes are the request in progress and whole requests behind it.
        let untouched = self.to_send / u64::from(self.plan.request.max(1));
        while self.unsent.len() as u64 > untouched {
            let Some(id) = self.unsent.pop_front() else { break };
            self.watch.borrow_mut().sent(id, now);
        }
        self.to_send < before
    }

    fn receive(&mut self, now: Instant, socket: &mut tcp::Socket<'static>, p: Pattern) -> bool {
        let before = self.received;
        drain(socket, p, &mut self.received, now, &self.watch);
        self.answered_bytes += self.received - before;
        while self.answered_bytes >= u64::from(self.plan.response) {
            let Some(id) = self.outstanding.pop_front() else { break };
            self.answered_bytes -= u64::from(self.plan.response);
            self.watch.borrow_mut().completed(id, now);
        }
        self.received > before
    }

    /// The connection broke: all outstanding requests failed; reconnects.
    fn start_over(&mut self, now: Instant) -> Next {
        let mut watch = self.watch.borrow_mut();
        watch.broken(now);
        for id in self.outstanding.drain(..) {
            watch.failed(id);
        }
        self.unsent.clear();
        // Patterns start at position 0 on each connection.
        (self.to_send, self.sent, self.received, self.answered_bytes) = (0, 0, 0, 0);
        Next::Again { at: now + Duration::from_millis(1) }
    }
}

impl App for Probe {
    fn configure(&mut self, socket: &mut tcp::Socket<'static>) {
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
    }

    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        self.issue(now);
        if matches!(socket.state(), State::Closed | State::CloseWait | State::TimeWait) {
            return self.start_over(now);
        }
        let Some(port) = server_port(socket, None) else { return Next::IDLE };
        let received = self.receive(now, socket, Pattern::from_host(port));
        let sent = self.send(now, socket, Pattern::from_guest(port));
        Next::Wait { wake: self.due(), busy: received || sent }
    }
}
