//! The SACK option of an ACK: blocks in stream order, and the duplicate report.

use crate::tcp::scoreboard::Range;
use crate::wire::segment::Segment;
use crate::wire::seq::Seq;

/// Plausible SACK blocks in ascending order: RACK takes a block that arrives after a higher one for reordering, so the
/// order within one ACK must be that of the stream.
pub(super) fn blocks(seg: &Segment<'_>) -> impl Iterator<Item = Range> {
    let ack = seg.ack;
    let mut blocks = seg.options.sack;
    // Sorts by distance from SEG.ACK, since sequence numbers wrap.
    blocks.sort_unstable_by_key(|block| block.map(|(start, _)| Seq(start).diff(ack)));
    let range = |(start, end)| Range { start: Seq(start), end: Seq(end) };
    // Below SEG.ACK: a DSACK or an old block.
    blocks.into_iter().flatten().map(range).filter(move |r| r.end.gt(r.start) && r.end.gt(ack))
}

/// RFC 2883 section 4: the first block is a DSACK if SEG.ACK covers it or the second block contains it.
pub(super) fn duplicate(seg: &Segment<'_>, una: Seq) -> Option<Range> {
    let at = |i: usize| {
        seg.options.sack[i].map(|(start, end)| Range { start: Seq(start), end: Seq(end) })
    };
    let first = at(0).filter(|r| r.end.gt(r.start))?;
    let within =
        at(1).is_some_and(|second| second.start.le(first.start) && first.end.le(second.end));
    // An old ACK's first block is covered by SND.UNA too, but is no duplicate.
    (first.end.le(seg.ack) && seg.ack == una || within).then_some(first)
}
