//! Limits how often a message of one kind is reported: an event that a remote can cause must not fill a disk with
//! messages, nor displace others.

use std::collections::HashMap;
use std::time::Duration;

use skbudget_controller::Instant;

/// Messages of one kind reported at once.
const BURST: u32 = 5;
/// After the burst: one message in this time.
const EVERY: Duration = Duration::from_secs(5);

/// Kinds with an allowance of their own. There are fewer places in the code that report; beyond this number all others
/// count as one kind.
const KINDS_MAX: usize = 256;

/// The place in the code that reports: file and line.
pub(super) type Kind = (Option<&'static str>, Option<u32>);

/// Whether to report a message; `No`: suppress it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admitted {
    /// Report it, with the number of its kind suppressed since the last one.
    Yes {
        left_out: u64,
    },
    No,
}

/// Token bucket of one kind.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// Messages that may be reported at once.
    left: u32,
    /// When `left` was last raised.
    since: Instant,
    /// Messages suppressed since the last one reported.
    left_out: u64,
}

#[derive(Debug, Default)]
pub(super) struct Limiter {
    kinds: HashMap<Kind, Allowance>,
}

impl Limiter {
    /// Counts a message of that kind and decides about it.
    pub(super) fn admit(&mut self, kind: Kind, now: Instant) -> Admitted {
        // The table is bounded: unknown kinds beyond it share one entry.
        let known = self.kinds.len() < KINDS_MAX || self.kinds.contains_key(&kind);
        let kind = if known { kind } else { (None, None) };
        let new = Allowance { left: BURST, since: now, left_out: 0 };
        let allowance = self.kinds.entry(kind).or_insert(new);
        let periods = now.since(allowance.since).as_nanos() / EVERY.as_nanos();
        if periods > 0 {
            let more = u32::try_from(periods).unwrap_or(BURST);
            allowance.left = allowance.left.saturating_add(more).min(BURST);
            allowance.since = now;
        }
        if allowance.left == 0 {
            allowance.left_out += 1;
            return Admitted::No;
        }
        allowance.left -= 1;
        Admitted::Yes { left_out: std::mem::take(&mut allowance.left_out) }
    }

    /// Returns the number of messages of all kinds that were suppressed and not reported, and clears it.
    pub(super) fn take_left_out(&mut self) -> u64 {
        self.kinds.values_mut().map(|allowance| std::mem::take(&mut allowance.left_out)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Kind = (Some("a.rs"), Some(1));
    const B: Kind = (Some("a.rs"), Some(2));
    const YES: Admitted = Admitted::Yes { left_out: 0 };

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    #[test]
    fn a_burst_then_one_in_a_while_with_the_count_of_the_others() {
        let mut limiter = Limiter::default();
        for _ in 0..BURST {
            assert_eq!(limiter.admit(A, at(0)), YES);
        }
        for ms in 1..1001 {
            assert_eq!(limiter.admit(A, at(ms)), Admitted::No);
        }
        // Another kind has its own allowance.
        assert_eq!(limiter.admit(B, at(1001)), YES);
        assert_eq!(limiter.admit(A, at(5000)), Admitted::Yes { left_out: 1000 });
        assert_eq!(limiter.admit(A, at(5001)), Admitted::No);
        assert_eq!(limiter.take_left_out(), 1);
        assert_eq!(limiter.take_left_out(), 0);
    }

    #[test]
    fn an_hour_of_a_flood_is_bounded() {
        let mut limiter = Limiter::default();
        let reported = (0..3_600_000).filter(|ms| limiter.admit(A, at(*ms)) != Admitted::No);
        assert_eq!(reported.count(), BURST as usize + 719);
    }

    #[test]
    fn kinds_are_bounded() {
        let mut limiter = Limiter::default();
        for line in 0..100_000 {
            limiter.admit((Some("b.rs"), Some(line)), at(0));
        }
        assert!(limiter.kinds.len() <= KINDS_MAX + 1);
    }
}
