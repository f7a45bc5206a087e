//! HyStart++ (RFC 9406): slow start ends when round trips grow by what a filling queue adds, before it overflows.
//! Growth is slowed for a few rounds first, in case it was only a hiccup of the guest's.

use std::time::Duration;

use crate::seq::Seq;

use super::Acked;

/// Section 4.3
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u32 = 8;
const SAMPLES: u8 = 8;
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u8 = 5;

/// How slow start goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// By what was acknowledged.
    Full,
    /// By so many bytes.
    Slow(u32),
    /// Not at all: congestion avoidance begins.
    Leave,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct HyStart {
    /// A round is over when this is acknowledged.
    window_end: Seq,
    /// Smallest round trip of the last round and of this one, microseconds; `u32::MAX` before the first.
    last: u32,
    current: u32,
    samples: u8,
    /// In conservative slow start: the round trip that began it, and rounds since.
    baseline: Option<u32>,
    rounds: u8,
}

impl HyStart {
    pub(super) fn new(iss: Seq) -> Self {
        let (last, current) = (u32::MAX, u32::MAX);
        Self { window_end: iss, last, current, samples: 0, baseline: None, rounds: 0 }
    }

    /// Section 4.2
    pub(super) fn on_ack(&mut self, acked: &Acked) -> Step {
        if acked.una.gt(self.window_end) {
            self.window_end = acked.nxt;
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
            None if known && self.last != u32::MAX && self.current >= self.last + self.thresh() => {
                self.baseline = Some(self.current);
                self.rounds = 0;
                Step::Full
            }
            None => Step::Full,
            // The delay went away again: it was none of a queue.
            Some(baseline) if known && self.current < baseline => {
                self.baseline = None;
                Step::Full
            }
            Some(_) if self.rounds >= CSS_ROUNDS => Step::Leave,
            Some(_) => Step::Slow(acked.bytes / CSS_GROWTH_DIVISOR),
        }
    }

    fn thresh(&self) -> u32 {
        let eighth = self.last / MIN_RTT_DIVISOR;
        eighth.clamp(MIN_RTT_THRESH.as_micros() as u32, MAX_RTT_THRESH.as_micros() as u32)
    }
}
