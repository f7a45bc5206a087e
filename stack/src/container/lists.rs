//! Bounds for lists that may contain stale entries.

use std::collections::VecDeque;

/// Entries of one flow that are not stale: at most two (`watch`, for a new flow that has data already).
const PER_FLOW: usize = 2;
/// A shorter list is not pruned: there is too little to gain.
const FEW: usize = 64;

/// Longest list for this number of flows between two turns. Twice the entries that are not stale, so that pruning costs
/// a constant amount per entry on average.
pub(super) fn most_entries(flows: u32) -> usize {
    2 * PER_FLOW * flows as usize + FEW
}

/// Removes the stale entries of a list that is longer than `most` and releases the list's spare memory.
pub(super) fn prune<T>(list: &mut VecDeque<T>, most: usize, live: impl FnMut(&T) -> bool) {
    if list.len() > most {
        list.retain(live);
        list.shrink_to(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_pruned_when_it_is_longer_than_its_flows_account_for() {
        let mut list: VecDeque<u32> = (0..68).collect();
        prune(&mut list, most_entries(1), |n| n % 2 == 0);
        assert_eq!(list.len(), 68, "not longer than that");
        list.push_back(68);
        prune(&mut list, most_entries(1), |n| n % 2 == 0);
        assert!(list.iter().copied().eq((0..=68).step_by(2)), "in their order: {list:?}");
        list.extend(0..100_000);
        prune(&mut list, most_entries(1), |_| false);
        assert!(list.is_empty() && list.capacity() <= 2 * most_entries(1));
    }
}
