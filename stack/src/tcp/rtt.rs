//! Round-trip time and retransmission timeout (RFC 6298), in whole nanoseconds: every ACK comes by here, and shifts are
//! what a `Duration` cannot do.

use std::time::Duration;

/// Linux' TCP_RTO_MIN: RFC 6298 (2.4) says one second, every stack in use says 200 ms.
const RTO_MIN: Duration = Duration::from_millis(200);
const RTO_MAX: Duration = Duration::from_secs(120);
const RTO_INITIAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rtt {
    /// None before the first sample.
    srtt: Option<u64>,
    rttvar: u64,
    /// The timeout that follows from both.
    base: Duration,
    /// Doublings since the last sample or new ACK (5.5).
    backoff: u32,
}

impl Default for Rtt {
    fn default() -> Self {
        Self { srtt: None, rttvar: 0, base: RTO_INITIAL, backoff: 0 }
    }
}

impl Rtt {
    pub(crate) fn on_sample(&mut self, r: Duration) {
        let r = u64::try_from(r.as_nanos()).unwrap_or(u64::MAX).min(RTO_MAX.as_nanos() as u64);
        let srtt = match self.srtt {
            None => {
                self.rttvar = r / 2;
                r
            }
            Some(srtt) => {
                self.rttvar = (self.rttvar * 3 + srtt.abs_diff(r)) / 4;
                (srtt * 7 + r) / 8
            }
        };
        self.srtt = Some(srtt);
        let spread = (self.rttvar * 4).max(RTO_MIN.as_nanos() as u64);
        self.base = Duration::from_nanos(srtt + spread);
    }

    pub(crate) fn srtt(&self) -> Option<Duration> {
        self.srtt.map(Duration::from_nanos)
    }

    pub(crate) fn rto(&self) -> Duration {
        if self.backoff == 0 {
            return self.base.min(RTO_MAX);
        }
        (self.base * (1 << self.backoff.min(16))).min(RTO_MAX)
    }

    pub(crate) fn back_off(&mut self) {
        self.backoff += 1;
    }

    pub(crate) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }
}
