//! How much may be on its way: slow start, then CUBIC (RFC 9438) or NewReno (RFC 5681). What goes out after a loss is
//! `recovery`'s; this file knows how far the window goes down and how it grows.
//!
//! The link is a device queue on the same machine, so loss is rare and the guest's window usually decides. CUBIC is
//! what the guest's own kernel does by default: with the same losses and delays both directions are then alike. So is a
//! restart after idle, which costs a guest next door a few round trips of microseconds.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::seq::Seq;

mod cubic;
mod hystart;

use cubic::Cubic;
use hystart::HyStart;

/// RFC 6928.
const INITIAL_SEGMENTS: u32 = 10;

/// Congestion control of what is sent to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    #[default]
    Cubic,
    Reno,
}

/// What an ACK says to congestion control.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acked {
    pub(crate) bytes: u32,
    /// Outstanding when we last spoke, within the window: what a burst of ACKs takes off before we speak again was
    /// used.
    pub(crate) flight: u32,
    /// SND.UNA and SND.NXT after it.
    pub(crate) una: Seq,
    pub(crate) nxt: Seq,
    /// A round trip that is not ambiguous, and the smoothed one.
    pub(crate) rtt: Option<Duration>,
    pub(crate) srtt: Duration,
    pub(crate) mss: u32,
    /// Largest window, bytes.
    pub(crate) max: u32,
    pub(crate) now: Instant,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Congestion {
    /// Bytes.
    pub(crate) cwnd: u32,
    pub(crate) ssthresh: u32,
    hystart: HyStart,
    avoidance: Avoidance,
}

/// Beyond slow start.
#[derive(Debug, Clone, Copy)]
enum Avoidance {
    /// Bytes acknowledged since cwnd grew by one segment.
    Reno {
        counted: u32,
    },
    Cubic(Cubic),
}

impl Congestion {
    pub(crate) fn new(algorithm: Algorithm, mss: u32, iss: Seq) -> Self {
        let avoidance = match algorithm {
            Algorithm::Reno => Avoidance::Reno { counted: 0 },
            Algorithm::Cubic => Avoidance::Cubic(Cubic::default()),
        };
        let hystart = HyStart::new(iss);
        Self { cwnd: INITIAL_SEGMENTS * mss, ssthresh: u32::MAX, hystart, avoidance }
    }

    /// New data was acknowledged outside fast recovery. A window that was not used does not grow (RFC 7661's point, in
    /// its simplest form), and the time does not count (RFC 9438 section 5.8).
    pub(crate) fn on_ack(&mut self, acked: &Acked) {
        let used = acked.flight >= self.cwnd / 2;
        if let Avoidance::Cubic(cubic) = &mut self.avoidance {
            cubic.tick(acked.now, used);
        }
        if !used {
            return;
        }
        if self.cwnd < self.ssthresh {
            // RFC 9406 is for the first slow start: later ones know where to end.
            let first = self.ssthresh == u32::MAX;
            let step = if first { self.hystart.on_ack(acked) } else { hystart::Step::Full };
            match step {
                hystart::Step::Full => self.cwnd = self.cwnd.saturating_add(acked.bytes),
                hystart::Step::Slow(bytes) => self.cwnd = self.cwnd.saturating_add(bytes),
                hystart::Step::Leave => self.ssthresh = self.cwnd,
            }
        } else {
            match &mut self.avoidance {
                Avoidance::Reno { counted } => {
                    *counted = counted.saturating_add(acked.bytes);
                    if *counted >= self.cwnd {
                        *counted -= self.cwnd;
                        self.cwnd = self.cwnd.saturating_add(acked.mss);
                    }
                }
                Avoidance::Cubic(cubic) => self.cwnd = cubic.grow(self.cwnd, acked),
            }
        }
        self.cwnd = self.cwnd.min(acked.max.max(2 * acked.mss));
    }

    /// Something was lost: how far the window goes down. `flight`: what was outstanding, within the window.
    pub(crate) fn on_loss(&mut self, flight: u32, mss: u32, timeout: bool) {
        let down = match &mut self.avoidance {
            // RFC 5681 section 3.1, equation 4.
            Avoidance::Reno { counted } => {
                *counted = 0;
                flight / 2
            }
            Avoidance::Cubic(cubic) => cubic.on_loss(self.cwnd, flight, timeout),
        };
        self.ssthresh = down.max(2 * mss);
    }

    /// As for a loss, with nothing to send again: the window goes down at once.
    pub(crate) fn reduce(&mut self, flight: u32, mss: u32) {
        self.on_loss(flight, mss, false);
        self.cwnd = self.ssthresh;
    }

    /// Nothing was sent for so many timeouts: what the window says of the path is old (RFC 5681 section 4.1, RFC 2861;
    /// a guest's kernel does the same unless tcp_slow_start_after_idle says otherwise).
    pub(crate) fn on_idle(&mut self, timeouts: u32, mss: u32) {
        self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
        let restart = self.cwnd.min(INITIAL_SEGMENTS * mss);
        self.cwnd = self.cwnd.checked_shr(timeouts).unwrap_or(0).max(restart);
    }

    /// There was no loss: back to `before`, but not below what came since (RFC 4015 section 3.2).
    pub(crate) fn undo(&mut self, before: Self) {
        let cwnd = self.cwnd.max(before.cwnd);
        *self = Self { cwnd, ..before };
    }
}

#[cfg(test)]
mod tests;
