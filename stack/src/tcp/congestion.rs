//! How much may be on its way: NewReno (RFC 5681). The link is a device queue on the same machine: loss is rare,
//! windows decide.

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

    /// New data was acknowledged outside recovery. `pipe` is what was on its way before: a window that was not used
    /// does not grow (RFC 7661's point, in its simplest form).
    pub(crate) fn on_ack(&mut self, acked: u32, pipe: u32, mss: u32, max: u32) {
        if pipe < self.cwnd / 2 {
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

    /// Something was lost (RFC 5681 section 3.1, equation 4): how far the window goes down.
    pub(crate) fn on_loss(&mut self, pipe: u32, mss: u32) {
        self.ssthresh = (pipe / 2).max(2 * mss);
        self.counted = 0;
    }

    /// It was not: back to `before`, but not below what came since (RFC 4015 section 3.2).
    pub(crate) fn undo(&mut self, before: Self) {
        let cwnd = self.cwnd.max(before.cwnd);
        *self = Self { cwnd, ..before };
    }
}
