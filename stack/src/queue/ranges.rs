//! Lists of ranges [start, end): sorted, without overlap, not touching.

/// One range of the list contains all of [`start`, `end`).
pub(crate) fn cover<T: Copy + Ord>(ranges: &[(T, T)], start: T, end: T) -> bool {
    ranges.iter().any(|r| r.0 <= start && end <= r.1)
}

/// Adds [`start`, `end`); merges it with the ranges that it overlaps or touches.
pub(crate) fn insert<T: Copy + Ord>(ranges: &mut Vec<(T, T)>, start: T, end: T) {
    let at = ranges.partition_point(|r| r.1 < start);
    let mut merged = (start, end);
    let touching = ranges[at..].iter().take_while(|r| r.0 <= end).count();
    for r in ranges.drain(at..at + touching) {
        merged = (merged.0.min(r.0), merged.1.max(r.1));
    }
    ranges.insert(at, merged);
}

/// Removes everything from `end` on.
pub(crate) fn truncate<T: Copy + Ord>(ranges: &mut Vec<(T, T)>, end: T) {
    ranges.truncate(ranges.partition_point(|r| r.0 < end));
    if let Some(last) = ranges.last_mut() {
        last.1 = last.1.min(end);
    }
}
