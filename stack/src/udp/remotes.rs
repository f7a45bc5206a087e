//! The addresses that may send to a mapping: those that the guest has sent to (RFC 4787 REQ-8, address-dependent).
//!
//! Most ports have one or two correspondents, which are stored in place. More of them are in two generations of sets:
//! when the younger set is full it becomes the older one, whose addresses are forgotten. So the memory is bounded, an
//! insertion is cheap, and the addresses used last are always among those that may answer.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::flow::table::Keyed;

/// Addresses stored in place.
const INLINE: usize = 4;

/// Sizes of one set, addresses, with the charge of the step to it, bytes. A set has a power of two places, seven
/// eighths of them used, with 18 bytes each and their control bytes; two generations.
pub(super) const STEPS: [(usize, u64); 3] = [(28, 2 << 10), (224, 12 << 10), (896, 40 << 10)];

/// The addresses of one mapping.
#[derive(Debug)]
pub(crate) struct Remotes {
    inline: [Option<IpAddr>; INLINE],
    /// Next place to overwrite, while there is no set.
    next: usize,
    sets: Option<Box<Sets>>,
    secret: [u64; 2],
}

#[derive(Debug)]
struct Sets {
    step: usize,
    young: HashSet<IpAddr, Keyed>,
    old: HashSet<IpAddr, Keyed>,
}

impl Remotes {
    pub(super) fn new(secret: [u64; 2]) -> Self {
        Self { inline: [None; INLINE], next: 0, sets: None, secret }
    }

    /// True if this address may send to the guest.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.inline.contains(&Some(ip))
            || self
                .sets
                .as_ref()
                .is_some_and(|sets| sets.young.contains(&ip) || sets.old.contains(&ip))
    }

    /// The step of `STEPS` without which this address would displace others; `None`: there is room, or no larger step.
    pub(super) fn wants(&self, ip: IpAddr) -> Option<usize> {
        match &self.sets {
            None if self.inline.contains(&Some(ip)) || self.inline.contains(&None) => None,
            None => Some(0),
            Some(sets) if sets.young.contains(&ip) || !sets.is_full() => None,
            Some(sets) => (sets.step + 1 < STEPS.len()).then_some(sets.step + 1),
        }
    }

    /// Adds an address, in place of those used longest ago if there is no room.
    pub(super) fn insert(&mut self, ip: IpAddr) {
        if let Some(sets) = &mut self.sets {
            return sets.insert(ip);
        }
        if !self.inline.contains(&Some(ip)) {
            self.inline[self.next] = Some(ip);
            self.next = (self.next + 1) % INLINE;
        }
    }

    /// Moves to larger sets; the caller has charged them.
    pub(super) fn grow(&mut self, step: usize) {
        let (size, _) = STEPS[step];
        let new = || HashSet::with_capacity_and_hasher(size, Keyed(self.secret));
        let mut sets = Sets { step, young: new(), old: new() };
        match self.sets.take() {
            Some(before) => sets.old.extend(before.young.into_iter().chain(before.old).take(size)),
            None => sets.young.extend(self.inline.iter_mut().filter_map(Option::take)),
        }
        self.sets = Some(Box::new(sets));
    }
}

impl Sets {
    fn is_full(&self) -> bool {
        self.young.len() >= STEPS[self.step].0
    }

    fn insert(&mut self, ip: IpAddr) {
        if self.is_full() && !self.young.contains(&ip) {
            // Swapped and emptied, so that both keep the memory that was charged.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(ip);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn ip(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn addresses_displace_others_only_where_no_step_was_granted() {
        let mut remotes = Remotes::new([1, 2]);
        for n in 0..4 {
            assert_eq!(remotes.wants(ip(n)), None);
            remotes.insert(ip(n));
        }
        assert_eq!((remotes.wants(ip(3)), remotes.wants(ip(4))), (None, Some(0)));
        remotes.insert(ip(4));
        let known: Vec<bool> = (0..5).map(|n| remotes.contains(ip(n))).collect();
        assert_eq!(known, [false, true, true, true, true]);
        let (mut steps, first) = (Vec::new(), 100);
        for n in first..first + 2000 {
            if let Some(step) = remotes.wants(ip(n)) {
                steps.push(step);
                remotes.grow(step);
            }
            remotes.insert(ip(n));
            // The last step keeps at least its size.
            let oldest = (n + 1).saturating_sub(STEPS[STEPS.len() - 1].0 as u32).max(first);
            assert!((oldest..=n).all(|n| remotes.contains(ip(n))), "{n}");
        }
        assert_eq!(steps, [0, 1, 2]);
        assert!(!remotes.contains(ip(first)));
    }

    #[test]
    fn the_memory_of_each_step_is_what_is_charged_for_it() {
        for (size, bytes) in STEPS {
            let set: HashSet<IpAddr, Keyed> =
                HashSet::with_capacity_and_hasher(size, Keyed([1, 2]));
            // A set of this capacity does not grow when it is filled.
            assert_eq!(set.capacity(), size);
            let places = size as u64 * 8 / 7;
            assert!(2 * places * (size_of::<IpAddr>() as u64 + 1) + 64 <= bytes, "{size}");
        }
    }
}
