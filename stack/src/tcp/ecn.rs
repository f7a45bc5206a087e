//! Explicit congestion notification (RFC 3168), if the guest's SYN requests it. Like a kernel with `tcp_ecn` 2, the
//! default, this stack never requests it.
//!
//! The guest's queueing discipline is between guest and stack: fq_codel marks packets instead of dropping them. The
//! ACKs report marks on the guest's data until the guest reports that it reduced its window (CWR). Marks on our data
//! that the guest reports (ECE) reduce the window as a loss does, with nothing to retransmit.

use crate::wire::segment::{CE, Segment};
use crate::wire::seq::Seq;

/// ECN state of a flow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ecn {
    /// Both ends negotiated ECN.
    pub(crate) on: bool,
    /// A marked segment arrived: every ACK carries ECE until the guest sends CWR (RFC 3168 section 6.1.3).
    pub(crate) echo: bool,
    /// The window was reduced: the next new segment carries CWR (RFC 3168 section 6.1.2).
    pub(crate) reduced: bool,
    /// SND.NXT at the last reduction: until more than this is acknowledged, the guest's reports are about older data.
    until: Option<Seq>,
}

/// RFC 3168 section 6.1.1: an ECN-setup SYN. Its packet itself must be Not-ECT (Linux `tcp_ecn_create_request`).
pub(crate) fn asks(syn: &Segment<'_>) -> bool {
    syn.flags.ece && syn.flags.cwr && !syn.flags.ack && syn.ecn == 0
}

impl Ecn {
    /// Takes the guest's SYN.
    pub(crate) fn negotiate(&mut self, syn: &Segment<'_>) {
        self.on = asks(syn);
    }

    /// Processes CWR, then CE, of a segment with data: CWR answers earlier marks, so a mark on the same segment is a
    /// new one. Returns true if the segment is marked.
    pub(crate) fn on_data(&mut self, seg: &Segment<'_>) -> bool {
        if seg.flags.cwr {
            self.echo = false;
        }
        let marked = self.on && seg.ecn == CE;
        self.echo |= marked;
        marked
    }

    /// An ACK arrived. Returns true if it reports marks.
    pub(crate) fn on_ack(&mut self, ece: bool, una: Seq) -> bool {
        // Acknowledged beyond the last reduction: a further report is about data sent after it.
        self.until = self.until.filter(|until| una.le(*until));
        self.on && ece
    }

    /// The ACK reports marks: returns true if the window is to be reduced, once per window of data.
    pub(crate) fn reduces(&mut self, nxt: Seq) -> bool {
        let reduces = self.until.is_none();
        if reduces {
            self.on_reduced(nxt);
        }
        reduces
    }

    /// A loss before `end` is of a window of data for which the window was reduced already.
    pub(crate) fn answered(&self, end: Seq) -> bool {
        self.until.is_some_and(|until| end.le(until))
    }

    /// The window was reduced, because of marks or a loss.
    pub(crate) fn on_reduced(&mut self, nxt: Seq) {
        self.until = Some(nxt);
        self.reduced = self.on;
    }
}
