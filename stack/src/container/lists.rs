//! Bounds of the lists whose entries may be stale.

use std::collections::VecDeque;

/// Entries of one flow that are not stale: at most two (`watch`, for a flow that is new and has data already).
const PER_FLOW: usize = 2;
/// Below this a list is left alone: it is not worth the look.
const FEW: usize = 64;

/// The longest that a list of entries for so many flows becomes between two turns. Twice what is not stale, so that
/// going through the list costs each entry a fixed number of looks, however many go through it.
pub(super) fn most_entries(flows: u32) -> usize {
    2 * PER_FLOW * flows as usize + FEW
}

/// Drops the stale entries of a list that is longer than `most`, and the memory it no longer needs.
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
