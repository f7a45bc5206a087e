//! What the container's stack sends to find its guest, and how often.

use std::time::Duration;

use skbudget_controller::Instant;

/// Pause between two requests for the guest's hardware address.
pub(super) const REQUEST_RETRY: Duration = Duration::from_millis(100);
/// MIN_DELAY_BETWEEN_RAS (RFC 4861 section 10).
const BETWEEN_ADVERTISEMENTS: Duration = Duration::from_secs(3);

/// MaxRtrAdvInterval (RFC 4861 section 6.2.1), seconds: a third of the lifetimes that advertisements carry.
const ADVERTISEMENT_SECONDS: u64 = 600;

/// Times of the last packets that were not sent for a flow.
#[derive(Debug, Default)]
pub(super) struct Neighbour {
    /// ARP request or neighbour solicitation for the guest.
    requested: Option<Instant>,
    /// Router advertisement.
    advertised: Option<Instant>,
    /// The next advertisement that no solicitation requests.
    next_advertisement: Option<Instant>,
}

impl Neighbour {
    /// True if a request for the guest's hardware address is due: one for the whole container, however many flows wait
    /// for it.
    pub(super) fn may_request(&mut self, now: Instant) -> bool {
        is_due(&mut self.requested, REQUEST_RETRY, now)
    }

    /// True if a router advertisement may be sent.
    pub(super) fn may_advertise(&mut self, now: Instant) -> bool {
        is_due(&mut self.advertised, BETWEEN_ADVERTISEMENTS, now)
    }

    /// An advertisement was sent: the next one refreshes it. `random` spreads the time, so that many containers do not
    /// send at once (RFC 4861 section 6.2.4).
    pub(super) fn plan_advertisement(&mut self, now: Instant, random: u64) {
        let spread = ADVERTISEMENT_SECONDS / 2 + random % (ADVERTISEMENT_SECONDS / 2);
        self.next_advertisement = Some(now + Duration::from_secs(spread));
    }

    /// The container is gone: nothing is due any more.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// When the next advertisement is due; `None` before the first solicitation.
    pub(super) fn next_advertisement(&self) -> Option<Instant> {
        self.next_advertisement
    }
}

/// True if `pause` has passed since `last`, which is `now` from then on.
fn is_due(last: &mut Option<Instant>, pause: Duration, now: Instant) -> bool {
    let due = last.is_none_or(|at| now.since(at) >= pause);
    if due {
        *last = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_advertisements_have_pauses_of_their_own() {
        let mut neighbour = Neighbour::default();
        let at = Instant::from_millis;
        assert!(neighbour.may_request(at(5)) && !neighbour.may_request(at(104)));
        assert!(neighbour.may_advertise(at(6)), "a request is no advertisement");
        assert!(neighbour.may_request(at(105)) && !neighbour.may_request(at(204)));
        assert!(!neighbour.may_advertise(at(3005)) && neighbour.may_advertise(at(3006)));
    }

    #[test]
    fn the_next_advertisement_is_due_within_the_lifetimes_of_the_last() {
        for random in [0, 1, 299, 300, u64::MAX] {
            let mut neighbour = Neighbour::default();
            assert_eq!(neighbour.next_advertisement(), None, "no guest has sent a solicitation");
            neighbour.plan_advertisement(Instant::from_millis(0), random);
            let due = neighbour.next_advertisement().unwrap();
            assert!(Instant::from_millis(300_000) <= due && due < Instant::from_millis(600_000));
            neighbour.forget();
            assert_eq!(neighbour.next_advertisement(), None);
        }
    }
}
