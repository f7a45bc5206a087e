//! Behaviour of a simulated server on the host side, as independent properties.

use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_stack::HostError;

use crate::observer::Watch;

/// Outcome of a connection attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// The connect succeeds.
    Accepts,
    /// The connect fails with this error.
    Fails(HostError),
    /// Never answers.
    Silent,
}

/// Source of the bytes that a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It sends nothing.
    Nothing,
    /// Always has data; `Some(n)` ends the stream after `n` bytes.
    Push(Option<u64>),
    /// `response` bytes for every `request` bytes read, `think` later.
    Respond {
        /// Length of a request, bytes.
        request: u32,
        /// Length of a response, bytes.
        response: u32,
        /// Time from the last byte of a request to the first of its response.
        think: Duration,
    },
    /// Everything that it read.
    Echo,
}

/// How a server ends its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// shutdown(SHUT_WR), or close(2) with all bytes read.
    Fin,
    /// close(2) with SO_LINGER 0, or with bytes unread.
    Reset,
    /// shutdown(SHUT_WR), then a reset.
    FinThenReset,
}

/// One kind of server. Start from a constructor and change the fields that differ.
#[derive(Debug, Clone)]
pub struct Server {
    /// What happens to a connect.
    pub accept: Accept,
    /// What the server sends.
    pub source: Source,
    /// Does not read before this time; `u64::MAX` nanoseconds: never.
    pub reads_from: Instant,
    /// Read rate, bytes per second; `None`: unlimited.
    pub read_rate: Option<u64>,
    /// One-way delay between the host socket and the server.
    pub delay: Duration,
    /// Bytes that the server's own socket takes while the server does not read.
    pub rcvbuf: u64,
    /// Intervals in which it neither reads nor writes.
    pub frozen: Vec<(Instant, Instant)>,
    /// The server vanishes at this time without closing: from then on it reads, sends and acknowledges nothing.
    pub gone_from: Instant,
    /// Resets the connection after reading this many bytes and sending all bytes that are due by then.
    pub resets_after: Option<u64>,
    /// How it ends after the last byte of `Source::Push(Some(_))`.
    pub end: End,
    /// Observer of the bytes that it reads.
    pub watch: Option<Watch>,
    /// True for a server at the guest's end, behind a [`crate::PeerStack`]: it sends the guest's pattern.
    pub at_guest: bool,
}

const NEVER: Instant = Instant(u64::MAX);

impl Server {
    /// Reads everything, sends nothing, closes after the guest.
    pub fn sink() -> Self {
        Self {
            accept: Accept::Accepts,
            source: Source::Nothing,
            reads_from: Instant::default(),
            read_rate: None,
            delay: Duration::from_micros(10),
            rcvbuf: 65_536,
            frozen: Vec::new(),
            gone_from: NEVER,
            resets_after: None,
            end: End::Fin,
            watch: None,
            at_guest: false,
        }
    }
    /// Accepts and reads nothing.
    pub fn never_reads() -> Self {
        Self { reads_from: NEVER, ..Self::sink() }
    }
    /// Sends this number of bytes, or without end.
    pub fn pusher(bytes: Option<u64>) -> Self {
        Self { source: Source::Push(bytes), ..Self::sink() }
    }
    /// Sends its bytes, then resets right after the last one.
    pub fn pusher_that_resets(bytes: u64, end: End) -> Self {
        Self { end, ..Self::pusher(Some(bytes)) }
    }
    /// Answers each request of this length with a response of that length, bytes.
    pub fn responder(request: u32, response: u32) -> Self {
        let source = Source::Respond { request, response, think: Duration::ZERO };
        Self { source, ..Self::sink() }
    }
    /// Sends everything back.
    pub fn echo() -> Self {
        Self { source: Source::Echo, ..Self::sink() }
    }
    /// Fails every connect.
    pub fn fails(how: HostError) -> Self {
        Self { accept: Accept::Fails(how), ..Self::sink() }
    }
    /// Never answers a connect.
    pub fn silent() -> Self {
        Self { accept: Accept::Silent, ..Self::sink() }
    }
    /// Reports what it receives to an observer.
    pub fn watched(self, watch: Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }
    /// Sends the guest's pattern: for a server behind a [`crate::PeerStack`].
    pub fn at_guest(self) -> Self {
        Self { at_guest: true, ..self }
    }
    /// Works for this time before each response.
    pub fn with_delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// The first time at or after `t` at which the server is neither frozen nor gone.
    pub(crate) fn awake(&self, t: Instant) -> Instant {
        let mut t = t;
        for (from, until) in &self.frozen {
            if t >= *from && t < *until {
                t = *until;
            }
        }
        if t < self.gone_from { t } else { NEVER }
    }
}
