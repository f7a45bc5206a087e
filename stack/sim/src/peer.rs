//! The remote end of a socket, which may vanish: the kernel's keep-alive and retransmissions detect it.

use std::time::Duration;

use skbudget_controller::Instant;

pub(crate) const NEVER: Instant = Instant(u64::MAX);
/// A kernel gives up after this time without an acknowledgement (Linux' tcp_retries2 of 15).
const RETRANSMITS_FOR: Duration = Duration::from_secs(924);
/// Most unanswered keep-alive probes before a kernel gives up (MAX_TCP_KEEPCNT).
const PROBES_MAX: u32 = 127;
/// A peer that sent a segment within this time is not probed on request.
const ASK_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Peer {
    /// From this time on it neither sends nor acknowledges.
    gone_from: Instant,
    /// Round-trip time.
    rtt: Duration,
    heard: Instant,
    /// When the oldest unacknowledged byte was sent.
    owes_since: Option<Instant>,
    every: Option<Duration>,
    answers_at: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(gone_from: Instant, rtt: Duration, now: Instant) -> Self {
        Self { gone_from, rtt, heard: now, owes_since: None, every: None, answers_at: None }
    }

    /// Records a segment or an acknowledgement of the peer.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// Brings the state to `now`. `owes`: there are bytes that the peer has not acknowledged.
    pub(crate) fn advance(&mut self, owes: bool, now: Instant) {
        self.owes_since = if owes { self.owes_since.or(Some(now)) } else { None };
        if let Some(at) = self.answers_at.filter(|&at| at <= now) {
            self.heard(at);
            self.answers_at = None;
        }
        if let Some(every) = self.every {
            // Keep-alive probes since then were answered, up to the time at which the peer vanished.
            let until = now.min(self.gone_from);
            let probes = until.since(self.heard).as_nanos() / every.as_nanos();
            self.heard = self.heard + every * u32::try_from(probes).unwrap_or(u32::MAX);
        }
    }

    pub(crate) fn keep_alive(&mut self, every: Duration) {
        self.every = Some(every);
    }

    /// Probes the peer now; the answer arrives after a round trip, if the probe reaches it in time.
    pub(crate) fn ask(&mut self, now: Instant) {
        let sent = now.since(self.heard) >= ASK_AFTER;
        if sent && now + self.rtt / 2 < self.gone_from {
            self.answers_at = Some(now + self.rtt);
        }
    }

    pub(crate) fn silence(&self, now: Instant) -> Option<Duration> {
        self.owes_since.is_none().then(|| now.since(self.heard))
    }

    /// When the kernel gives the peer up.
    pub(crate) fn given_up_at(&self) -> Instant {
        match (self.gone_from, self.owes_since, self.every) {
            (NEVER, ..) | (_, None, None) => NEVER,
            (_, Some(since), _) => since.max(self.heard) + RETRANSMITS_FOR,
            (_, None, Some(every)) => self.heard + every * PROBES_MAX,
        }
    }
}
