//! Repairing a loss, and taking it back.
//!
//! ```text
//!             RACK or third repeated ACK: something is lost
//!        Open ────────────────────────────────────▶ Fast      what is lost goes out at the pace of what arrives
//!         ▲ ▲                                       │  │      (proportional rate reduction, RFC 9937)
//!         │ └─ SND.UNA reaches what SND.NXT was ────┘  │ timeout
//!         └──────────────────────────────────────── Timeout   slow start from one segment (RFC 5681 section 3.1)
//! ```
//!
//! Either may turn out to be for nothing: the guest's timestamps show that an original arrived (Eifel, RFC 3522), or
//! its DSACKs that everything sent again was there already (RFC 2883 section 4, RFC 3708). A guest that says neither is
//! asked after a timeout: once the first segment is acknowledged new data goes out instead of what seems lost, and if
//! more of what left once is acknowledged then, it was only late (F-RTO, RFC 5682 section 3). Then the congestion
//! control is put back where it was (RFC 4015 section 3.2).
//!
//! DSACKs may say so after the recovery too, as copies arrive last (`tcp_try_undo_dsack`); until then all that is sent
//! again is counted, and only answers about what was outstanding when it began. There is nothing to go back to once the
//! window went down for another cause (`tcp_enter_cwr` clears undo_marker), or the guest told of marks meanwhile, for
//! then the path was congested whatever became of the segments (`tcp_fastretrans_alert` on ECE).

use crate::seq::Seq;
use crate::tcp::board::{Board, Range};
use crate::tcp::congestion::Congestion;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Fast recovery.
    Fast,
    /// After a timeout.
    Timeout,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Recovery {
    pub(crate) phase: Phase,
    /// SND.NXT when it began (RFC 6582's recover); stays when it is over.
    pub(crate) until: Seq,
    prr: Prr,
    undo: Option<Undo>,
    forward: Forward,
    /// Repeated ACKs without SACK (RFC 5681 section 3.2).
    pub(crate) repeated: u32,
}

/// What was done to find out whether a timeout was for nothing (RFC 5682 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forward {
    Nothing,
    /// The first segment was sent again.
    First,
    /// It is acknowledged, and new data is to go out.
    New,
    /// It did.
    Asked,
}

/// RFC 9937 section 6, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Prr {
    delivered: u32,
    out: u32,
    /// RecoverFS
    flight: u32,
}

/// What a recovery that was for nothing goes back to.
#[derive(Debug, Clone, Copy)]
struct Undo {
    before: Congestion,
    /// SND.UNA when it began (the kernel's undo_marker): copies of what was acknowledged then say nothing of it.
    since: Seq,
    /// TSval of the first retransmission.
    stamp: Option<u32>,
    /// Bytes sent again and not yet known to have been there already.
    resent: u32,
    /// Something was sent again at all.
    any: bool,
}

impl Recovery {
    pub(crate) fn new(iss: Seq) -> Self {
        let (phase, prr) = (Phase::Open, Prr::default());
        Self { phase, until: iss, prr, undo: None, forward: Forward::Nothing, repeated: 0 }
    }

    /// `board`: after the ACK that told of the loss; `pipe`: bytes on their way before it.
    pub(crate) fn begin(&mut self, phase: Phase, before: Congestion, board: &Board, pipe: u32) {
        // A timeout in recovery goes back to what was before both.
        self.forward = Forward::Nothing;
        if self.phase == Phase::Open {
            self.undo =
                Some(Undo { before, since: board.una(), stamp: None, resent: 0, any: false });
            if phase == Phase::Timeout {
                self.forward = Forward::First;
            }
        }
        (self.phase, self.until) = (phase, board.nxt());
        self.prr = Prr { flight: pipe.max(1), ..Prr::default() };
        self.repeated = 0;
    }

    pub(crate) fn end(&mut self) {
        self.phase = Phase::Open;
        self.forward = Forward::Nothing;
        self.repeated = 0;
    }

    /// In fast recovery: the congestion window after an ACK that told of `delivered` bytes. `pipe` is what is on its
    /// way now; `safe`: the ACK moved SND.UNA and told of no further loss (RFC 9937 section 5's SafeACK).
    pub(crate) fn window(
        &mut self,
        cc: &Congestion,
        pipe: u32,
        delivered: u32,
        safe: bool,
        mss: u32,
    ) -> u32 {
        let prr = &mut self.prr;
        prr.delivered = prr.delivered.saturating_add(delivered);
        let more = if pipe > cc.ssthresh {
            let share = u64::from(prr.delivered) * u64::from(cc.ssthresh);
            let share = u32::try_from(share.div_ceil(u64::from(prr.flight))).unwrap_or(u32::MAX);
            share.saturating_sub(prr.out)
        } else {
            let bank = prr.delivered.saturating_sub(prr.out).max(delivered);
            let bank = if safe { bank.saturating_add(mss) } else { bank };
            bank.min(cc.ssthresh - pipe)
        };
        // The first retransmission is never held back.
        let more = if prr.out == 0 { more.max(mss) } else { more };
        pipe.saturating_add(more)
    }

    /// `len` bytes left, first or again.
    pub(crate) fn on_sent(&mut self, len: u32) {
        self.prr.out = self.prr.out.saturating_add(len);
    }

    /// `len` bytes were sent again, with this timestamp: by the recovery, or by a probe after it, whose copy is not one
    /// of the recovery's (`__tcp_retransmit_skb` counts both).
    pub(crate) fn on_sent_again(&mut self, len: u32, tsval: Option<u32>) {
        if let Some(undo) = &mut self.undo {
            undo.stamp = undo.stamp.or(tsval);
            undo.resent = undo.resent.saturating_add(len);
            undo.any = true;
        }
    }

    /// RFC 3522: SND.UNA moved, and what moved it was older than the first retransmission. What to go back to.
    pub(crate) fn answered_original(&self, tsecr: Option<u32>) -> Option<Congestion> {
        let undo = self.undo.as_ref().filter(|_| self.phase != Phase::Open)?;
        let (stamp, tsecr) = (undo.stamp?, tsecr?);
        Seq(tsecr).lt(Seq(stamp)).then_some(undo.before)
    }

    /// The guest had `twice` twice. What to go back to, once that is all that was sent again.
    pub(crate) fn on_duplicate(&mut self, twice: Range) -> Option<Congestion> {
        let undo = self.undo.as_mut().filter(|undo| undo.any && twice.end.gt(undo.since))?;
        undo.resent = undo.resent.saturating_sub(twice.len());
        (undo.resent == 0).then_some(undo.before)
    }

    /// A timeout after a timeout, or a repeated ACK: what was asked was not answered, or with no.
    pub(crate) fn stop_asking(&mut self) {
        self.forward = Forward::Nothing;
    }

    /// What is lost waits until new data told whether it is.
    pub(crate) fn holds_back(&self) -> bool {
        matches!(self.forward, Forward::New | Forward::Asked)
    }

    /// New data left.
    pub(crate) fn on_sent_new(&mut self) {
        if self.forward == Forward::New {
            self.forward = Forward::Asked;
        }
    }

    /// Nothing new can leave now. True: it was to ask with, so what is lost waits no longer (RFC 5682 section 2.1 step
    /// 2b; `tcp_xmit_recovery`).
    pub(crate) fn cannot_ask(&mut self) -> bool {
        let could = self.forward == Forward::New;
        if could {
            self.stop_asking();
        }
        could
    }

    /// RFC 5682 section 3.1, steps 2 and 3. `moved`: the ACK moved SND.UNA, but not to where SND.NXT was; `original`:
    /// it tells of something that left before the timeout and not again; `able`: there is new data and the guest's
    /// window is open for it. What to go back to.
    ///
    /// Two segments ask better than one, but one does ("can send only one segment", section 2.1 step 2b); whether one
    /// leaves, and how many, is `output`'s to find out.
    pub(crate) fn on_forward(
        &mut self,
        moved: bool,
        original: bool,
        able: bool,
    ) -> Option<Congestion> {
        match std::mem::replace(&mut self.forward, Forward::Nothing) {
            Forward::First if moved && able => self.forward = Forward::New,
            Forward::New | Forward::Asked if original => {
                return self.undo.as_ref().map(|undo| undo.before);
            }
            _ => {}
        }
        None
    }

    /// The window is down for a reason that stands.
    pub(crate) fn forget_undo(&mut self) {
        self.undo = None;
    }

    /// It was for nothing.
    pub(crate) fn undone(&mut self) {
        self.undo = None;
        self.end();
    }
}
