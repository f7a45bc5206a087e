//! Round-trip time and retransmission timeout (RFC 6298), in nanoseconds.

use std::time::Duration;

/// Linux' TCP_RTO_MIN: RFC 6298 (2.4) says one second, every stack in use says 200 ms.
const RTO_MIN: Duration = Duration::from_millis(200);
const RTO_MAX: Duration = Duration::from_secs(120);
const RTO_INITIAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rtt {
    /// None before the first sample.
    srtt: Option<Duration>,
    rttvar: Duration,
    /// Doublings since the last sample or new ACK (5.5).
    backoff: u32,
}

impl Default for Rtt {
    fn default() -> Self {
        Self { srtt: None, rttvar: Duration::ZERO, backoff: 0 }
    }
}

impl Rtt {
    pub(crate) fn on_sample(&mut self, r: Duration) {
        match self.srtt {
            None => {
                self.srtt = Some(r);
                self.rttvar = r / 2;
            }
            Some(srtt) => {
                self.rttvar = (self.rttvar * 3 + srtt.abs_diff(r)) / 4;
                self.srtt = Some((srtt * 7 + r) / 8);
            }
        }
    }

    pub(crate) fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    pub(crate) fn rto(&self) -> Duration {
        let base = match self.srtt {
            None => RTO_INITIAL,
            Some(srtt) => srtt + (self.rttvar * 4).max(RTO_MIN),
        };
        (base * (1 << self.backoff.min(16))).min(RTO_MAX)
    }

    pub(crate) fn back_off(&mut self) {
        self.backoff += 1;
    }

    pub(crate) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }
}
