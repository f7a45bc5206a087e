//! HyStart++ (RFC 9406): ends slow start when round trips grow as they do when a queue fills, before the queue
//! overflows. Growth is first slowed for a few rounds, in case the guest was only slow for a moment.

use std::time::Duration;

use crate::wire::seq::Seq;

use super::Acked;

/// Bounds of the increase that ends slow start, and its share of the round trip (RFC 9406 section 4.3).
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u32 = 8;
/// Samples of a round before its minimum counts (N_RTT_SAMPLE).
const SAMPLES: u8 = 8;
/// Growth in conservative slow start, as a part of normal growth, and its length in rounds.
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u8 = 5;

/// How slow start continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Grow by the acknowledged bytes.
    Full,
    /// Grow by this number of bytes.
    Slow(u32),
    /// Do not grow: congestion avoidance starts.
    Leave,
}

/// HyStart++ state of a flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct HyStart {
    /// The round ends when this is acknowledged.
    window_end: Seq,
    /// Smallest round trip of the last round and of this one, microseconds; `u32::MAX` before the first sample.
    last: u32,
    current: u32,
    /// RTT samples in this round.
    samples: u8,
    /// In conservative slow start: the round trip at its start, and rounds since.
    baseline: Option<u32>,
    rounds: u8,
}

impl HyStart {
    pub(super) fn new(iss: Seq) -> Self {
        let (last, current) = (u32::MAX, u32::MAX);
        Self { window_end: iss, last, current, samples: 0, baseline: None, rounds: 0 }
    }

    /// Takes an ACK of slow start (RFC 9406 section 4.2).
    pub(super) fn on_ack(&mut self, acked: &Acked) -> Step {
        if acked.una.gt(self.window_end) {
            self.window_end = acked.nxt;
            // A new round: its minimum is compared with that of the last one.
            (self.last, self.current, self.samples) = (self.current, u32::MAX, 0);
            if self.baseline.is_some() {
                self.rounds += 1;
            }
        }
        if let Some(rtt) = acked.rtt {
            self.current = self.current.min(u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX));
            self.samples = self.samples.saturating_add(1);
        }
        let known = self.samples >= SAMPLES && self.current != u32::MAX;
        match self.baseline {
            // The delay grew: enter conservative slow start.
            None if known && self.last != u32::MAX && self.current >= self.last + self.thresh() => {
                self.baseline = Some(self.current);
                self.rounds = 0;
                Step::Full
            }
            None => Step::Full,
            // The delay shrank again, so no queue caused it: back to normal slow start.
            Some(baseline) if known && self.current < baseline => {
                self.baseline = None;
                Step::Full
            }
            Some(_) if self.rounds >= CSS_ROUNDS => Step::Leave,
            Some(_) => Step::Slow(acked.bytes / CSS_GROWTH_DIVISOR),
        }
    }

    /// RttThresh: an eighth of the last round's minimum, within bounds, microseconds.
    fn thresh(&self) -> u32 {
        let eighth = self.last / MIN_RTT_DIVISOR;
        eighth.clamp(MIN_RTT_THRESH.as_micros() as u32, MAX_RTT_THRESH.as_micros() as u32)
    }
}
