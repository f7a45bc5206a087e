//! Explicit congestion notification (RFC 3168), where the guest's SYN asks for it. As a kernel whose `tcp_ecn` is 2,
//! the default, this stack asks nobody.
//!
//! Between guest and stack stands the guest's queueing discipline: fq_codel, where it is one, marks what it would else
//! drop. The guest is told of marks on what it sends until it says that its window went down. What it says of marks on
//! ours costs what a loss costs, with nothing to send again.

use crate::segment::{CE, Segment};
use crate::seq::Seq;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ecn {
    /// Both ends speak it.
    pub(crate) on: bool,
    /// A mark came: every ACK says so until the guest's window went down (section 6.1.3).
    pub(crate) echo: bool,
    /// Our window went down: the next new segment says so (section 6.1.2).
    pub(crate) reduced: bool,
    /// SND.NXT when it did: until more than this is acknowledged the guest cannot have heard of it.
    until: Option<Seq>,
}

/// Section 6.1.1: a SYN that asks for ECN. Its packet must not be capable itself (Linux' tcp_ecn_create_request).
pub(crate) fn asks(syn: &Segment<'_>) -> bool {
    syn.flags.ece && syn.flags.cwr && !syn.flags.ack && syn.ecn == 0
}

impl Ecn {
    pub(crate) fn negotiate(&mut self, syn: &Segment<'_>) {
        self.on = asks(syn);
    }

    /// Data came. What it says of the sender's window is older than the mark it bears. True: it bears one.
    pub(crate) fn on_data(&mut self, seg: &Segment<'_>) -> bool {
        if seg.flags.cwr {
            self.echo = false;
        }
        let marked = self.on && seg.ecn == CE;
        self.echo |= marked;
        marked
    }

    /// An ACK came. True: it tells of marks.
    pub(crate) fn on_ack(&mut self, ece: bool, una: Seq) -> bool {
        self.until = self.until.filter(|until| una.le(*until));
        self.on && ece
    }

    /// It does: is the window to go down? Once for what was outstanding.
    pub(crate) fn reduces(&mut self, nxt: Seq) -> bool {
        let reduces = self.until.is_none();
        if reduces {
            self.on_reduced(nxt);
        }
        reduces
    }

    /// Is a loss before `end` of a window of data for which the window went down already?
    pub(crate) fn answered(&self, end: Seq) -> bool {
        self.until.is_some_and(|until| end.le(until))
    }

    /// The window went down, for marks or for a loss.
    pub(crate) fn on_reduced(&mut self, nxt: Seq) {
        self.until = Some(nxt);
        self.reduced = self.on;
    }
}
