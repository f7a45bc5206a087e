//! NewReno (RFC 5681, RFC 6582). The link is a device queue on the same machine: loss is rare, windows decide.

/// RFC 6928.
const INITIAL_SEGMENTS: u32 = 10;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Congestion {
    /// Bytes.
    pub(crate) cwnd: u32,
    pub(crate) ssthresh: u32,
    /// Bytes acknowledged since cwnd grew by one segment (congestion avoidance).
    counted: u32,
}

impl Congestion {
    pub(crate) fn new(mss: u32) -> Self {
        Self { cwnd: INITIAL_SEGMENTS * mss, ssthresh: u32::MAX, counted: 0 }
    }

    /// New data was acknowledged outside recovery. `flight` is what was outstanding before: a window that was not
    /// used does not grow (RFC 7661's point, in its simplest form).
    pub(crate) fn on_ack(&mut self, acked: u32, flight: u32, mss: u32, max: u32) {
        if flight < self.cwnd / 2 {
            return;
        }
        if self.cwnd < self.ssthresh {
            self.cwnd = self.cwnd.saturating_add(acked);
        } else {
            self.counted = self.counted.saturating_add(acked);
            if self.counted >= self.cwnd {
                self.counted -= self.cwnd;
                self.cwnd = self.cwnd.saturating_add(mss);
            }
        }
        self.cwnd = self.cwnd.min(max.max(2 * mss));
    }

    /// Third duplicate ACK.
    pub(crate) fn on_fast_retransmit(&mut self, flight: u32, mss: u32) {
        self.ssthresh = (flight / 2).max(2 * mss);
        self.cwnd = self.ssthresh + 3 * mss;
    }

    /// RFC 6582 section 3.2 step 3: a partial ACK deflates the window by what it covers.
    pub(crate) fn on_partial_ack(&mut self, acked: u32, mss: u32) {
        self.cwnd = self.cwnd.saturating_sub(acked).saturating_add(mss).max(mss);
    }

    pub(crate) fn on_recovered(&mut self, mss: u32) {
        self.cwnd = self.ssthresh.max(2 * mss);
        self.counted = 0;
    }

    pub(crate) fn inflate(&mut self, mss: u32) {
        self.cwnd = self.cwnd.saturating_add(mss);
    }

    pub(crate) fn on_timeout(&mut self, flight: u32, mss: u32) {
        self.ssthresh = (flight / 2).max(2 * mss);
        self.cwnd = mss;
        self.counted = 0;
    }
}
