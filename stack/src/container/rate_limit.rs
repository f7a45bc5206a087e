//! Fixed-window rate limiter: at most `quota` events in each second.

use skbudget_controller::Instant;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RateLimit {
    second: Option<u64>,
    left: u32,
}

impl RateLimit {
    /// True if one more event is allowed at `now`. `quota` is called once at the start of each second with events.
    pub(crate) fn allow(&mut self, now: Instant, quota: impl FnOnce() -> u32) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.second != Some(second) {
            (self.second, self.left) = (Some(second), quota());
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_quota() {
        let mut limit = RateLimit::default();
        for second in [0, 1, 5] {
            let now = Instant::from_millis(1000 * second + 999);
            let allowed = (0..10).filter(|_| limit.allow(now, || 3)).count();
            assert_eq!(allowed, 3);
        }
    }
}
