//! Applications of hogs, and of victims that open a connection for every request.

use std::collections::VecDeque;
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_sim::smoltcp::socket::tcp::{self, State};
use skbudget_sim::{App, Next, Pattern, ProbePlan, Watch};

use crate::scenario::plan::Span;

fn port(socket: &tcp::Socket<'_>) -> Option<u16> {
    socket.remote_endpoint().map(|e| e.port)
}

/// Sends a number of bytes, then keeps the connection idle.
#[derive(Debug)]
pub(super) struct SendSome {
    left: u64,
    sent: u64,
}

impl SendSome {
    pub(super) fn new(bytes: u64) -> Self {
        Self { left: bytes, sent: 0 }
    }
}

impl App for SendSome {
    fn poll(&mut self, _now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        // Not connected yet.
        let Some(port) = port(socket) else { return Next::Wait { wake: None, busy: false } };
        let before = self.sent;
        while self.left > 0 && socket.can_send() {
            let n = socket.send(|buf| {
                let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
                Pattern::from_guest(port).fill(self.sent, &mut buf[..n]);
                (n, n as u64)
            });
            let n = n.unwrap_or(0);
            self.sent += n;
            self.left -= n;
        }
        Next::Wait { wake: None, busy: self.sent > before }
    }
}

/// Sends one request of one byte, and never reads the response.
#[derive(Debug, Default)]
pub(super) struct HoardSome {
    request_sent: bool,
}

impl App for HoardSome {
    fn poll(&mut self, _now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        let Some(port) = port(socket).filter(|_| !self.request_sent && socket.can_send()) else {
            return Next::Wait { wake: None, busy: false };
        };
        let mut byte = [0];
        Pattern::from_guest(port).fill(0, &mut byte);
        self.request_sent = socket.send_slice(&byte).is_ok_and(|n| n == 1);
        Next::Wait { wake: None, busy: self.request_sent }
    }
}

/// Reads at a given rate.
#[derive(Debug)]
pub(super) struct SlowRead {
    bytes_per_second: u64,
    since: Option<Instant>,
    read: u64,
}

/// Interval between two reads of a slow reader.
const SLOW_EVERY: Duration = Duration::from_millis(10);

impl SlowRead {
    pub(super) fn new(bits_per_second: u64) -> Self {
        Self { bytes_per_second: bits_per_second / 8, since: None, read: 0 }
    }
}

impl App for SlowRead {
    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        if socket.state() != State::Established {
            return Next::Wait { wake: None, busy: false };
        }
        let since = *self.since.get_or_insert(now);
        let elapsed_ns = now.since(since).as_nanos();
        // On an absolute schedule, so that late reads are caught up.
        let due = (u128::from(self.bytes_per_second) * elapsed_ns / 1_000_000_000) as u64;
        let before = self.read;
        while self.read < due && socket.can_recv() {
            let most = due - self.read;
            let n = socket.recv(|buf| {
                let n = usize::try_from(most).unwrap_or(usize::MAX).min(buf.len());
                (n, n as u64)
            });
            self.read += n.unwrap_or(0);
        }
        Next::Wait { wake: Some(now + SLOW_EVERY), busy: self.read > before }
    }
}

/// Creates the application for each span.
pub(super) type Make = Box<dyn Fn() -> Box<dyn App>>;

/// An application that runs in some spans of time only; at the end of each its connection is reset.
pub(super) struct Timed {
    make: Make,
    inner: Box<dyn App>,
    spans: VecDeque<Span>,
    /// Delay after the start of each span.
    offset_ns: u64,
    ending: bool,
}

impl std::fmt::Debug for Timed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timed").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Timed {
    pub(super) fn new(make: Make, spans: &[Span], offset_ns: u64) -> Self {
        let inner = make();
        Self { make, inner, spans: spans.iter().copied().collect(), offset_ns, ending: false }
    }
}

impl App for Timed {
    fn configure(&mut self, socket: &mut tcp::Socket<'static>) {
        self.inner.configure(socket);
    }

    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        let Some(span) = self.spans.front().copied() else { return Next::Finished };
        // The reset has been sent: connect again for the next span, or finish.
        if std::mem::take(&mut self.ending) {
            self.spans.pop_front();
            self.inner = (self.make)();
            return match self.spans.front() {
                Some(next) => Next::Again { at: Instant(next.from_ns + self.offset_ns) },
                None => Next::Finished,
            };
        }
        if now.0 >= span.to_ns {
            socket.abort();
            self.ending = true;
            // Keep the socket until smoltcp has sent the reset.
            return Next::Wait { wake: Some(now + Duration::from_micros(10)), busy: true };
        }
        let end = Instant(span.to_ns);
        match self.inner.poll(now, socket) {
            Next::Wait { wake, busy } => {
                let wake = wake.map_or(end, |w| w.min(end));
                // A span without an end needs no wake-up.
                let wake = (wake.0 < u64::MAX).then_some(wake);
                Next::Wait { wake, busy }
            }
            other => other,
        }
    }
}

/// One of several slots that open a connection for every request. Requests are due at fixed times, whatever happens to
/// earlier ones (open loop).
#[derive(Debug)]
pub(super) struct FreshProbe {
    plan: ProbePlan,
    watch: Watch,
    /// Next of this slot's requests: `slot`, `slot + slots`, ...
    next_id: u64,
    slots: u64,
    /// Requests that are due and not completed, oldest first; the first one uses the connection.
    outstanding: VecDeque<u64>,
    to_send: u64,
    sent: u64,
    received: u64,
    closing: bool,
}

impl FreshProbe {
    pub(super) fn new(plan: ProbePlan, watch: Watch, slot: u64, slots: u64) -> Self {
        let to_send = u64::from(plan.request);
        Self {
            plan,
            watch,
            next_id: slot,
            slots,
            outstanding: VecDeque::new(),
            to_send,
            sent: 0,
            received: 0,
            closing: false,
        }
    }

    /// Time at which the slot's next request is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let every = self.plan.every.as_nanos() as u64;
        let at = Instant(self.plan.start.0 + self.next_id * every);
        (at < self.plan.until).then_some(at)
    }

    fn issue(&mut self, now: Instant) {
        while let Some(at) = self.due().filter(|at| *at <= now) {
            let id = self.next_id;
            self.next_id += self.slots;
            let mut watch = self.watch.borrow_mut();
            // Counted here even if it is shed: a request that is due and cannot be sent is lost service.
            watch.intended(id, at);
            watch.looked(id, now);
            if self.outstanding.len() >= self.plan.outstanding_max {
                watch.shed(id);
            } else {
                self.outstanding.push_back(id);
            }
        }
    }

    /// Opens a connection for the next request that is or will be due.
    fn again(&mut self, now: Instant) -> Next {
        (self.to_send, self.sent, self.received) = (u64::from(self.plan.request), 0, 0);
        self.closing = false;
        // Overdue requests: connect at once.
        if !self.outstanding.is_empty() {
            return Next::Again { at: now + Duration::from_micros(1) };
        }
        self.due().map_or(Next::Finished, |at| Next::Again { at })
    }

    fn work(&mut self, now: Instant, socket: &mut tcp::Socket<'static>, id: u64) -> bool {
        let Some(port) = port(socket) else { return false };
        let (sent, received) = (self.sent, self.received);
        while self.to_send > 0 && socket.can_send() {
            let n = socket.send(|buf| {
                let n = usize::try_from(self.to_send).unwrap_or(usize::MAX).min(buf.len());
                Pattern::from_guest(port).fill(self.sent, &mut buf[..n]);
                (n, n as u64)
            });
            let n = n.unwrap_or(0);
            // The first accepted byte starts the service time.
            if self.sent == 0 && n > 0 {
                self.watch.borrow_mut().sent(id, now);
            }
            self.sent += n;
            self.to_send -= n;
        }
        while socket.can_recv() {
            let got = socket.recv(|buf| {
                let check = Pattern::from_host(port).check(self.received, buf);
                (buf.len(), (buf.len(), check))
            });
            let Ok((n, check)) = got else { break };
            self.received += n as u64;
            self.watch.borrow_mut().bytes(now, n as u64);
            if let Err(at) = check {
                self.watch.borrow_mut().corrupt(now, at);
            }
        }
        if self.received >= u64::from(self.plan.response) {
            self.outstanding.pop_front();
            self.watch.borrow_mut().completed(id, now);
            socket.close();
            self.closing = true;
        }
        (self.sent, self.received) != (sent, received)
    }
}

impl App for FreshProbe {
    fn configure(&mut self, socket: &mut tcp::Socket<'static>) {
        // Neither delayed ACKs nor Nagle's algorithm may add to the latency.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
    }

    fn poll(&mut self, now: Instant, socket: &mut tcp::Socket<'static>) -> Next {
        self.issue(now);
        if self.closing {
            // Wait until both directions are closed.
            let over = matches!(socket.state(), State::TimeWait | State::Closed);
            return if over {
                self.again(now)
            } else {
                Next::Wait { wake: self.due(), busy: false }
            };
        }
        let Some(id) = self.outstanding.front().copied() else {
            return self.again(now);
        };
        if matches!(socket.state(), State::Closed | State::CloseWait | State::TimeWait) {
            // Refused or reset: count the request as failed and continue with the next.
            self.outstanding.pop_front();
            self.watch.borrow_mut().failed(id);
            return self.again(now + Duration::from_millis(1));
        }
        let busy = self.work(now, socket, id);
        Next::Wait { wake: self.due(), busy }
    }
}
