//! Congestion avoidance of CUBIC (RFC 9438 section 4): the window is a cubic function of the time since the last loss.
//! It is flat around the window at which the loss happened and never below NewReno's. In integers, so that a seed gives
//! the same run on every machine.

use skbudget_controller::Instant;

use super::Acked;

/// beta_cubic, 0.7.
const BETA: (u64, u64) = (7, 10);
/// C, 0.4 segments per second cubed: 4 / 10^10 segments per millisecond cubed.
const C: (i128, i128) = (4, 10_000_000_000);
/// alpha_cubic, 3 (1 - beta) / (1 + beta), in thousandths.
const ALPHA: u64 = 529;

/// Variables of RFC 9438 section 4.1.2.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cubic {
    /// W_max, bytes; 0 before the first loss.
    w_max: u32,
    /// cwnd_prior: the window at the last loss, bytes.
    prior: u32,
    /// W_est, thousandths of a byte.
    w_est: u64,
    /// K, milliseconds.
    k: u64,
    /// Start of this congestion avoidance; `None` until its first ACK.
    epoch: Option<Instant>,
    /// When the last ACK arrived.
    at: Instant,
    /// The last loss was a timeout (section 4.8).
    after_timeout: bool,
}

impl Cubic {
    /// An ACK arrived. Time in which the window is not used does not count (section 5.8).
    pub(super) fn tick(&mut self, now: Instant, used: bool) {
        // Moves the start, so that `t` in `grow` leaves this time out.
        if !used && let Some(epoch) = self.epoch {
            self.epoch = Some(epoch + now.since(self.at));
        }
        self.at = now;
    }

    /// The window after an ACK in congestion avoidance.
    pub(super) fn grow(&mut self, cwnd: u32, acked: &Acked) -> u32 {
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => self.begin(cwnd, acked),
        };
        let t = acked.now.since(epoch).as_millis() as u64;
        let (mss, bytes) = (u64::from(acked.mss), u64::from(acked.bytes));
        // Section 4.3: from cwnd_prior on as fast as NewReno.
        let alpha = if self.w_est / 1000 >= u64::from(self.prior) { 1000 } else { ALPHA };
        self.w_est += alpha * mss * bytes / u64::from(cwnd.max(1));
        let reno = u32::try_from(self.w_est / 1000).unwrap_or(u32::MAX);
        // Section 4.3: the Reno-friendly region.
        if self.at_time(t, mss) < i128::from(reno) {
            return cwnd.max(reno);
        }
        // Sections 4.2, 4.4 and 4.5: towards the curve's value one round trip from now, at most half a window more.
        let ahead = self.at_time(t + acked.srtt.as_millis() as u64, mss);
        let target = ahead.clamp(i128::from(cwnd), i128::from(cwnd) * 3 / 2) as u64;
        let step = (target - u64::from(cwnd)) * bytes / u64::from(cwnd.max(1));
        cwnd.saturating_add(u32::try_from(step).unwrap_or(u32::MAX))
    }

    /// Starts a congestion avoidance at its first ACK: sets W_est, W_max and K.
    fn begin(&mut self, cwnd: u32, acked: &Acked) -> Instant {
        self.epoch = Some(acked.now);
        self.w_est = u64::from(cwnd) * 1000;
        // Slow start ended without a loss, or after a timeout: the curve starts at the current window.
        if self.after_timeout || cwnd >= self.w_max {
            (self.w_max, self.k) = (cwnd, 0);
        } else {
            // Section 4.2: K = cbrt((W_max - cwnd) / C).
            let segments_by_c = u64::from(self.w_max - cwnd) * (C.1 / C.0) as u64;
            self.k = cube_root(segments_by_c / u64::from(acked.mss.max(1)));
        }
        self.after_timeout = false;
        acked.now
    }

    /// W_cubic(t), bytes (section 4.2, figure 1).
    fn at_time(&self, t: u64, mss: u64) -> i128 {
        // Bounded, so that the cube fits 128 bits.
        let d = i128::from(t.min(1 << 32)) - i128::from(self.k);
        C.0 * i128::from(mss) * d * d * d / C.1 + i128::from(self.w_max)
    }

    /// A loss (sections 4.6 and 4.7). Returns the new ssthresh, bytes.
    pub(super) fn on_loss(&mut self, cwnd: u32, flight: u32, timeout: bool) -> u32 {
        let part = |of: u32, (a, b): (u64, u64)| (u64::from(of) * a / b) as u32;
        // Fast convergence: a loss at a smaller window than the one before leaves room for other flows; 17/20 is
        // (1 + beta) / 2.
        self.w_max = if cwnd < self.w_max { part(cwnd, (17, 20)) } else { cwnd };
        self.prior = cwnd;
        self.epoch = None;
        self.after_timeout = timeout;
        part(flight, BETA)
    }
}

/// The largest integer with a cube not above `n`.
fn cube_root(n: u64) -> u64 {
    let mut root = 0u64;
    for bit in (0..22).rev() {
        let next = root | 1 << bit;
        if next * next * next <= n {
            root = next;
        }
    }
    root
}

#[cfg(test)]
mod tests {
    use super::cube_root;

    #[test]
    fn cube_roots_are_exact() {
        for root in [0, 1, 2, 3, 10, 215, 4096, 2_000_000] {
            let cube: u64 = root * root * root;
            assert_eq!(cube_root(cube), root);
            assert_eq!(cube_root(cube + 1), if cube == 0 { 1 } else { root });
            assert_eq!(cube_root(cube.saturating_sub(1)), root.saturating_sub(1));
        }
    }
}
