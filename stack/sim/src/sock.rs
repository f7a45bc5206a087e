//! One host socket and the server behind it.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_stack::{HostCaps, HostError};

use crate::pattern::Pattern;
use crate::peer::{NEVER, Peer};
use crate::server::{Accept, End, Server, Source};

mod ending;
mod reading;
mod timing;

/// Counters of one server port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortStats {
    /// Connects to the port.
    pub connects: u64,
    /// Bytes that the stack wrote; of these, bytes that the server read.
    pub written: u64,
    /// Bytes that the server read.
    pub consumed: u64,
    /// Bytes that the stack read.
    pub read: u64,
    /// The guest's end of stream reached the server.
    pub eofs: u64,
    /// Sockets closed.
    pub closed: u64,
    /// Flows that the stack ended with a reset.
    pub resets: u64,
    /// Wrong bytes that the server read.
    pub corrupt: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting {
        until: Instant,
    },
    Open,
    /// The connect failed.
    Failed(HostError),
    /// The connection broke. One operation returns the error: the first write, or the read after the last byte.
    Broken {
        error: Option<HostError>,
    },
}

#[derive(Debug)]
pub(crate) struct Sock {
    port: u16,
    server: Server,
    caps: HostCaps,
    state: State,
    peer: Peer,
    timer: Option<Instant>,

    // Towards the server.
    written: u64,
    consumed: u64,
    /// When the server will read further bytes, and their number.
    reading: VecDeque<(Instant, u64)>,
    read_until: Instant,
    write_closed: bool,
    eof_seen: bool,

    // Towards the stack.
    /// Bytes that the server still has to send; `u64::MAX`: without end.
    owed: u64,
    /// Bytes in flight, with their arrival time.
    flying: VecDeque<(Instant, u64)>,
    flying_bytes: u64,
    available: u64,
    read: u64,
    /// The stream ends after `owed`.
    ending: bool,
    /// A reset follows after `owed`.
    resetting: bool,
    /// The break was not reported yet.
    broke: bool,

    /// The stack must receive the next edge, because its last operation returned `WouldBlock`.
    want_read: bool,
    want_write: bool,
}

impl Sock {
    pub(crate) fn connecting(port: u16, server: Server, caps: HostCaps, now: Instant) -> Self {
        let mut sock = Self::open(port, server, caps, now);
        let until = match sock.server.accept {
            Accept::Silent => NEVER,
            // A round trip.
            Accept::Accepts | Accept::Fails(_) => sock.server.awake(now + 2 * sock.server.delay),
        };
        sock.state = State::Connecting { until };
        sock
    }

    pub(crate) fn open(port: u16, server: Server, caps: HostCaps, now: Instant) -> Self {
        let (owed, ending, resetting) = match server.source {
            Source::Push(Some(n)) => (n, server.end != End::Reset, server.end != End::Fin),
            Source::Push(None) => (u64::MAX, false, false),
            Source::Nothing | Source::Respond { .. } | Source::Echo => (0, false, false),
        };
        let peer = Peer::new(server.gone_from, 2 * server.delay, now);
        Self {
            port,
            server,
            peer,
            caps,
            state: State::Open,
            timer: None,
            written: 0,
            consumed: 0,
            reading: VecDeque::new(),
            read_until: now,
            write_closed: false,
            eof_seen: false,
            owed,
            flying: VecDeque::new(),
            flying_bytes: 0,
            available: 0,
            read: 0,
            ending,
            resetting,
            broke: false,
            want_read: true,
            want_write: true,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
    pub(crate) fn caps_bytes(&self) -> u64 {
        u64::from(self.caps.sndbuf) + u64::from(self.caps.rcvbuf)
    }
    pub(crate) fn set_caps(&mut self, caps: HostCaps) {
        self.caps = caps;
    }

    /// Bytes in the send and the receive buffer.
    pub(crate) fn held(&self) -> (u32, u32) {
        let held = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        (held(self.written - self.consumed), held(self.available + self.flying_bytes))
    }

    // ---- what the stack does ----

    /// The remote end, brought to `now`.
    pub(crate) fn peer(&mut self, now: Instant) -> &mut Peer {
        self.peer.advance(self.consumed < self.written, now);
        &mut self.peer
    }

    pub(crate) fn outcome(&mut self) -> Option<Result<(), HostError>> {
        match self.state {
            State::Connecting { .. } => None,
            State::Open => Some(Ok(())),
            State::Failed(e) => Some(Err(e)),
            State::Broken { ref mut error } => Some(error.take().map_or(Ok(()), Err)),
        }
    }

    pub(crate) fn write(
        &mut self,
        now: Instant,
        parts: &[IoSlice<'_>],
        stats: &mut PortStats,
    ) -> Result<usize, HostError> {
        match self.state {
            State::Failed(e) => return Err(e),
            State::Broken { ref mut error } => {
                return Err(error.take().unwrap_or(HostError::ResetAfterEnd));
            }
            State::Connecting { .. } => {
                self.want_write = true;
                return Err(HostError::WouldBlock);
            }
            // The stack must not write after its shutdown(2).
            State::Open => assert!(!self.write_closed, "write after shutdown"),
        }
        let mut room = self.write_room();
        if room == 0 {
            self.want_write = true;
            return Err(HostError::WouldBlock);
        }
        let pattern = if self.server.at_guest {
            Pattern::from_host(self.port)
        } else {
            Pattern::from_guest(self.port)
        };
        let before = self.written;
        for part in parts {
            let n = (part.len() as u64).min(room);
            if let Err(at) = pattern.check(self.written, &part[..n as usize]) {
                stats.corrupt += 1;
                if let Some(w) = &self.server.watch {
                    w.borrow_mut().corrupt(now, at);
                }
            }
            self.written += n;
            room -= n;
            if room == 0 {
                break;
            }
        }
        let n = self.written - before;
        stats.written += n;
        // The server reads the bytes when they have arrived and it is awake.
        self.plan_reading(now, n);
        Ok(n as usize)
    }

    pub(crate) fn read(
        &mut self,
        parts: &mut [IoSliceMut<'_>],
        stats: &mut PortStats,
    ) -> Result<usize, HostError> {
        match self.state {
            State::Failed(e) => return Err(e),
            State::Connecting { .. } => return Err(HostError::WouldBlock),
            State::Open | State::Broken { .. } => {}
        }
        if self.available == 0 {
            if self.ended() {
                return Ok(0);
            }
            if let State::Broken { error } = &mut self.state {
                return error.take().map_or(Ok(0), Err);
            }
            self.want_read = true;
            return Err(HostError::WouldBlock);
        }
        let pattern = match self.server.source {
            _ if self.server.at_guest => Pattern::from_guest(self.port),
            // An echo carries the guest's own bytes.
            Source::Echo => Pattern::from_guest(self.port),
            Source::Nothing | Source::Push(_) | Source::Respond { .. } => {
                Pattern::from_host(self.port)
            }
        };
        let before = self.read;
        for part in parts {
            let n = (part.len() as u64).min(self.available);
            pattern.fill(self.read, &mut part[..n as usize]);
            self.read += n;
            self.available -= n;
        }
        stats.read += self.read - before;
        Ok((self.read - before) as usize)
    }

    pub(crate) fn shutdown_write(&mut self) {
        self.write_closed = true;
    }

    // ---- what the server does ----

    /// The server reads `n` bytes, which may make it answer or reset.
    fn consume(&mut self, now: Instant, n: u64, stats: &mut PortStats) {
        if n == 0 {
            return;
        }
        let before = self.consumed;
        self.consumed += n;
        stats.consumed += n;
        if let Some(w) = &self.server.watch {
            w.borrow_mut().bytes(now, n);
        }
        match self.server.source {
            Source::Nothing | Source::Push(_) => {}
            Source::Echo => self.owed += n,
            Source::Respond { request, response, .. } => {
                let each = u64::from(request.max(1));
                self.owed += (self.consumed / each - before / each) * u64::from(response);
            }
        }
        if self.server.resets_after.is_some_and(|limit| self.consumed >= limit) {
            self.resetting = true;
            if self.owed == u64::MAX {
                self.owed = 0;
            }
        }
    }

    /// Sends as much as the receive buffer has room for.
    fn send_more(&mut self, now: Instant) {
        let cap = u64::from(self.caps.rcvbuf / 2);
        let n = self.owed.min(cap.saturating_sub(self.available + self.flying_bytes));
        if n == 0 {
            return;
        }
        if self.owed != u64::MAX {
            self.owed -= n;
        }
        // The think time passes before the reply leaves the server.
        let think = match self.server.source {
            Source::Respond { think, .. } => think,
            Source::Nothing | Source::Push(_) | Source::Echo => Duration::ZERO,
        };
        let at = self.server.awake(now + think) + self.server.delay;
        // Later data does not overtake earlier data of the stream.
        let at = self.flying.back().map_or(at, |(last, _)| at.max(*last));
        self.flying.push_back((at, n));
        self.flying_bytes += n;
    }

    fn ended(&self) -> bool {
        self.ending && self.owed == 0 && self.flying.is_empty()
    }
    fn write_room(&self) -> u64 {
        self.write_cap().saturating_sub(self.written - self.consumed)
    }
    fn write_cap(&self) -> u64 {
        u64::from(self.caps.sndbuf / 2) + self.server.rcvbuf
    }
}
