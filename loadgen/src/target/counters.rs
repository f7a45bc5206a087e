//! Counters by name.

use std::collections::BTreeMap;

use skbudget_controller::{Counter, MemberStats};

/// Nonzero counters with the kernel's names.
pub(super) fn memory_counters(s: &MemberStats) -> BTreeMap<String, u64> {
    named(Counter::ALL.iter().map(|c| c.name()).zip(s.counters))
}

/// Whether the memory budget keeps this counter; all others belong to the stack.
pub(super) fn is_memory(name: &str) -> bool {
    Counter::ALL.iter().any(|c| c.name() == name)
}

pub(super) fn named<'a>(all: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    // Zeros are omitted, so that results stay short.
    all.filter(|(_, v)| *v > 0).map(|(n, v)| (n.to_owned(), v)).collect()
}
