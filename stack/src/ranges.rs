//! Ranges [start, end) in a list that is sorted and whose members neither overlap nor touch.

/// All of [`start`, `end`) is in one of them.
pub(crate) fn cover<T: Copy + Ord>(ranges: &[(T, T)], start: T, end: T) -> bool {
    ranges.iter().any(|r| r.0 <= start && end <= r.1)
}

/// Adds [`start`, `end`); those that it touches become one with it.
pub(crate) fn insert<T: Copy + Ord>(ranges: &mut Vec<(T, T)>, start: T, end: T) {
    let at = ranges.partition_point(|r| r.1 < start);
    let mut merged = (start, end);
    let touching = ranges[at..].iter().take_while(|r| r.0 <= end).count();
    for r in ranges.drain(at..at + touching) {
        merged = (merged.0.min(r.0), merged.1.max(r.1));
    }
    ranges.insert(at, merged);
}
