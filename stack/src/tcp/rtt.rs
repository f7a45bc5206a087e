//! Round-trip time and retransmission timeout (RFC 6298), in whole nanoseconds: this runs for every ACK, and integers
//! allow shifts, which `Duration` does not.

use std::time::Duration;

/// Lower bound of the RTO (Linux TCP_RTO_MIN). RFC 6298 (2.4) requires one second; common stacks use 200 ms.
const RTO_MIN: Duration = Duration::from_millis(200);
/// Upper bound of the RTO (Linux TCP_RTO_MAX).
const RTO_MAX: Duration = Duration::from_secs(120);
/// RTO before the first sample (RFC 6298 2.1).
const RTO_INITIAL: Duration = Duration::from_secs(1);

/// RTT estimator of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rtt {
    /// SRTT, ns; `None` before the first sample.
    srtt: Option<u64>,
    /// RTTVAR, ns.
    rttvar: u64,
    /// RTO that follows from both, without backoff.
    base: Duration,
    /// Doublings since the last sample or new ACK (RFC 6298 5.5).
    backoff: u32,
}

impl Default for Rtt {
    fn default() -> Self {
        Self { srtt: None, rttvar: 0, base: RTO_INITIAL, backoff: 0 }
    }
}

impl Rtt {
    /// Takes the round trip `r` of data sent only once (RFC 6298 2.2, 2.3).
    pub(crate) fn on_sample(&mut self, r: Duration) {
        // Bounded, so that a long sleep of the machine cannot overflow the sums below.
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
        // As the kernel: the lower bound applies to the variance term, not to the sum (`tcp_rtt_estimator`).
        let spread = (self.rttvar * 4).max(RTO_MIN.as_nanos() as u64);
        self.base = Duration::from_nanos(srtt + spread);
    }

    /// Smoothed round-trip time.
    pub(crate) fn srtt(&self) -> Option<Duration> {
        self.srtt.map(Duration::from_nanos)
    }

    /// Variation of the round-trip time; zero before the first sample.
    pub(crate) fn rttvar(&self) -> Duration {
        Duration::from_nanos(self.rttvar)
    }

    /// Retransmission timeout with backoff.
    pub(crate) fn rto(&self) -> Duration {
        // The common case without the multiplication.
        if self.backoff == 0 {
            return self.base.min(RTO_MAX);
        }
        (self.base * (1 << self.backoff.min(16))).min(RTO_MAX)
    }

    /// A timeout: doubles the RTO.
    pub(crate) fn back_off(&mut self) {
        self.backoff += 1;
    }

    /// New data was acknowledged: the RTO without backoff applies again.
    pub(crate) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }
}
