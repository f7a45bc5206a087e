//! How many packets of its own a container's stack sends: fixed quotas per second.

use skbudget_controller::Instant;

/// ICMP messages sent per second (Linux' icmp_msgs_per_sec).
const ICMP_PER_SECOND: u32 = 1000;
/// Messages of DHCP clients answered per second. A client sends one in four seconds.
const DHCP_PER_SECOND: u32 = 50;
/// Challenge ACKs per second, on average (Linux' former default of tcp_challenge_ack_limit).
const CHALLENGES_PER_SECOND: u32 = 1000;

/// Fixed-window rate limiter: at most `quota` events in each second.
#[derive(Debug, Clone, Copy, Default)]
struct RateLimit {
    second: Option<u64>,
    left: u32,
}

impl RateLimit {
    /// True if one more event is allowed at `now`. `quota` is called once at the start of each second with events.
    fn allow(&mut self, now: Instant, quota: impl FnOnce() -> u32) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.second != Some(second) {
            (self.second, self.left) = (Some(second), quota());
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

/// The limits of a container.
#[derive(Debug, Default)]
pub(super) struct RateLimits {
    icmp: RateLimit,
    dhcp: RateLimit,
    challenges: RateLimit,
}

impl RateLimits {
    /// True if one more ICMP message may be sent.
    pub(super) fn allow_icmp(&mut self, now: Instant) -> bool {
        self.icmp.allow(now, || ICMP_PER_SECOND)
    }

    /// True if one more message of a DHCP client may be handled.
    pub(super) fn allow_dhcp(&mut self, now: Instant) -> bool {
        self.dhcp.allow(now, || DHCP_PER_SECOND)
    }

    /// RFC 5961 section 7: true if one more challenge ACK may be sent; one limit for all flows. `random` makes the
    /// quota of each second random: a fixed one lets an off-path attacker infer other connections' challenge ACKs by
    /// counting its own (CVE-2016-5696).
    pub(super) fn allow_challenge(&mut self, now: Instant, random: u64) -> bool {
        // Uniform from half to one and a half times the average.
        let spread = random as u32 % CHALLENGES_PER_SECOND;
        self.challenges.allow(now, || CHALLENGES_PER_SECOND / 2 + spread)
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

    #[test]
    fn the_quota_of_challenges_is_from_half_to_one_and_a_half_times_the_average() {
        for random in [0, 1, 999, 1000, u64::MAX] {
            let mut limits = RateLimits::default();
            let now = Instant::from_millis(7);
            let allowed = (0..2000).filter(|_| limits.allow_challenge(now, random)).count();
            assert_eq!(allowed, 500 + (random as u32 % 1000) as usize);
        }
    }
}
