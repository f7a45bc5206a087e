//! Counters by name.

use std::collections::BTreeMap;

use skbudget_controller::{Counter, MemberStats};

/// Nonzero counters with the kernel's names.
pub(super) fn memory_counters(s: &MemberStats) -> BTreeMap<String, u64> {
    named(COUNTERS.iter().map(|(name, c)| (*name, s.counters[*c as usize])))
}

/// Whether the memory budget keeps this counter; all others belong to the stack.
pub(in crate::target) fn is_memory(name: &str) -> bool {
    COUNTERS.iter().any(|(n, _)| *n == name)
}

pub(in crate::target) fn named<'a>(
    all: impl Iterator<Item = (&'a str, u64)>,
) -> BTreeMap<String, u64> {
    // Zeros are omitted, so that results stay short.
    all.filter(|(_, v)| *v > 0).map(|(n, v)| (n.to_owned(), v)).collect()
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), Counter::$name)),*] };
}

const COUNTERS: &[(&str, Counter)] = counters![
    TCPMemoryPressures,
    TCPMemoryPressuresChrono,
    PruneCalled,
    RcvPruned,
    OfoPruned,
    TCPRcvCollapsed,
    TCPRcvQDrop,
    TCPOFOQueue,
    TCPOFODrop,
    TCPZeroWindowDrop,
    TCPFromZeroWindowAdv,
    TCPToZeroWindowAdv,
    TCPWantZeroWindowAdv,
    AdmissionDelayed,
    AdmissionDenied,
    CreditDemoted,
    DemotedTrim,
    HostMemExcess,
    TWRecycled,
    EventsLost,
];
