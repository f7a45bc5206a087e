//! Congestion window: slow start, then CUBIC (RFC 9438) or NewReno (RFC 5681). This file decides how far the window
//! shrinks and how it grows; `recovery` decides what is sent after a loss.
//!
//! The link is a device queue on the same machine, so loss is rare and the guest's window is usually the limit. CUBIC
//! is the default of the guest's kernel too, so both directions react alike to the same losses and delays. The same
//! holds for the restart after idle, which costs a guest on this machine a few round trips of microseconds.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::config::Algorithm;
use crate::wire::seq::Seq;

mod cubic;
mod hystart;

use cubic::Cubic;
use hystart::HyStart;

/// Initial window, segments (RFC 6928).
const INITIAL_SEGMENTS: u32 = 10;

/// What an ACK reports to congestion control.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acked {
    /// Bytes newly acknowledged.
    pub(crate) bytes: u32,
    /// FlightSize at the end of the last `output`, at most cwnd, bytes: several ACKs of one turn must not make a full
    /// window appear unused.
    pub(crate) flight: u32,
    /// SND.UNA and SND.NXT after the ACK.
    pub(crate) una: Seq,
    pub(crate) nxt: Seq,
    /// Round trip of data sent only once, and the smoothed one.
    pub(crate) rtt: Option<Duration>,
    pub(crate) srtt: Duration,
    pub(crate) mss: u32,
    /// Largest window, bytes.
    pub(crate) max: u32,
    pub(crate) now: Instant,
}

/// Congestion state of a flow. Copied before a reduction, so that an undo restores all of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Congestion {
    /// Congestion window and slow-start threshold, bytes; `ssthresh` is `u32::MAX` before the first loss.
    pub(crate) cwnd: u32,
    pub(crate) ssthresh: u32,
    hystart: HyStart,
    avoidance: Avoidance,
}

/// Congestion avoidance: growth beyond slow start.
#[derive(Debug, Clone, Copy)]
enum Avoidance {
    /// Bytes acknowledged since cwnd last grew by one segment.
    Reno {
        counted: u32,
    },
    Cubic(Cubic),
}

impl Congestion {
    /// The state of a new flow: the initial window of RFC 6928.
    pub(crate) fn new(algorithm: Algorithm, mss: u32, iss: Seq) -> Self {
        let avoidance = match algorithm {
            Algorithm::Reno => Avoidance::Reno { counted: 0 },
            Algorithm::Cubic => Avoidance::Cubic(Cubic::default()),
        };
        let hystart = HyStart::new(iss);
        Self { cwnd: INITIAL_SEGMENTS * mss, ssthresh: u32::MAX, hystart, avoidance }
    }

    /// New data was acknowledged outside fast recovery. An unused window does not grow (RFC 7661 in its simplest form),
    /// and the time in which it is unused does not count (RFC 9438 section 5.8).
    pub(crate) fn on_ack(&mut self, acked: &Acked) {
        let used = acked.flight >= self.cwnd / 2;
        if let Avoidance::Cubic(cubic) = &mut self.avoidance {
            cubic.tick(acked.now, used);
        }
        if !used {
            return;
        }
        if self.cwnd < self.ssthresh {
            // RFC 9406 section 4.3: only the first slow start; later ones end at a known ssthresh.
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
                    // RFC 5681 section 3.1, equation 3 with byte counting: one segment per window of acknowledged
                    // bytes.
                    *counted = counted.saturating_add(acked.bytes);
                    if *counted >= self.cwnd {
                        *counted -= self.cwnd;
                        self.cwnd = self.cwnd.saturating_add(acked.mss);
                    }
                }
                Avoidance::Cubic(cubic) => self.cwnd = cubic.grow(self.cwnd, acked),
            }
        }
        // The send queue never holds more than `max`, so a larger window would only produce a burst later.
        self.cwnd = self.cwnd.min(acked.max.max(2 * acked.mss));
    }

    /// A loss: sets ssthresh; the caller sets cwnd. `flight`: FlightSize, at most cwnd, bytes.
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

    /// Reduces the window as for a loss, but at once: nothing has to be retransmitted.
    pub(crate) fn reduce(&mut self, flight: u32, mss: u32) {
        self.on_loss(flight, mss, false);
        self.cwnd = self.ssthresh;
    }

    /// No data was sent for `timeouts` RTOs, so the window no longer reflects the path (RFC 5681 section 4.1, RFC
    /// 2861). A guest's kernel does the same unless `tcp_slow_start_after_idle` is 0.
    pub(crate) fn on_idle(&mut self, timeouts: u32, mss: u32) {
        // RFC 2861: remember three quarters of the window, and halve it once per RTO down to the restart window.
        self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
        let restart = self.cwnd.min(INITIAL_SEGMENTS * mss);
        self.cwnd = self.cwnd.checked_shr(timeouts).unwrap_or(0).max(restart);
    }

    /// The loss was spurious: restores `before`, but keeps a larger window (RFC 4015 section 3.2).
    pub(crate) fn undo(&mut self, before: Self) {
        let cwnd = self.cwnd.max(before.cwnd);
        *self = Self { cwnd, ..before };
    }
}

#[cfg(test)]
mod tests;
