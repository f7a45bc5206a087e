//! Loss recovery, and its undo when nothing was lost.
//!
//! ```text
//!          RACK or the third duplicate ACK: data is lost
//!        Open ────────────────────────────────────▶ Fast      retransmits at the rate of deliveries
//!         ▲ ▲                                       │  │      (proportional rate reduction, RFC 9937)
//!         │ └─ SND.UNA reaches `until` ─────────────┘  │ timeout
//!         └──────────────────────────────────────── Timeout   slow start from one segment (RFC 5681 section 3.1)
//! ```
//!
//! Either recovery may be spurious. Three signals show this:
//!
//! - Eifel (RFC 3522): the guest's timestamp echo shows that an original arrived.
//! - DSACK (RFC 2883 section 4, RFC 3708): the guest already had all retransmitted bytes.
//! - F-RTO (RFC 5682 section 3), after a timeout, for a guest that sends neither: once the first segment is
//!   acknowledged, new data is sent in place of the lost ranges. If the next ACK covers bytes that left before the
//!   timeout and were sent only once, they were late, not lost.
//!
//! The congestion control then returns to its state before the recovery (RFC 4015 section 3.2).
//!
//! DSACKs may arrive after the recovery, because copies arrive last (`tcp_try_undo_dsack`). Until then all
//! retransmitted bytes are counted, and only DSACKs for bytes that were outstanding when the recovery started count.
//! The saved state is discarded when the window is reduced for another reason (`tcp_enter_cwr` clears `undo_marker`),
//! or when the guest reports CE marks in the meantime: the path was congested, whether or not a segment was lost
//! (`tcp_fastretrans_alert` on ECE).

use crate::tcp::congestion::Congestion;
use crate::tcp::scoreboard::{Range, Scoreboard};
use crate::wire::seq::Seq;

/// State of the diagram above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No recovery runs.
    Open,
    /// Fast recovery.
    Fast,
    /// Recovery after a retransmission timeout.
    Timeout,
}

/// Recovery state of a flow's send half.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recovery {
    pub(crate) phase: Phase,
    /// SND.NXT at the start of the recovery (RFC 6582's recover); keeps its value when the recovery is over.
    pub(crate) until: Seq,
    /// Proportional rate reduction, in fast recovery.
    prr: Prr,
    /// Saved state while the recovery may still prove spurious.
    undo: Option<Undo>,
    /// F-RTO, in recovery after a timeout.
    f_rto: FRto,
    /// Duplicate ACKs without SACK (RFC 5681 section 3.2).
    pub(crate) repeated: u32,
}

/// F-RTO: how far the test for a spurious timeout got (RFC 5682 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FRto {
    /// No test runs.
    Idle,
    /// Step 1: the first segment was retransmitted.
    HeadResent,
    /// Step 2: it is acknowledged, and new data is to be sent.
    SendNew,
    /// Step 2b: new data was sent; the next ACK decides.
    AwaitAck,
}

/// Variables of RFC 9937 section 6, bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Prr {
    /// prr_delivered: delivered to the guest in this recovery.
    delivered: u32,
    /// prr_out: sent in this recovery.
    out: u32,
    /// RecoverFS: in flight at its start.
    flight: u32,
}

/// State to which a spurious recovery returns.
#[derive(Debug, Clone, Copy)]
struct Undo {
    /// Congestion control before the recovery.
    before: Congestion,
    /// SND.UNA at the start (the kernel's `undo_marker`): a DSACK below it is for a retransmission of an earlier
    /// recovery.
    since: Seq,
    /// TSval of the first retransmission, if timestamps are in use.
    stamp: Option<u32>,
    /// Retransmitted bytes that no DSACK has covered yet.
    resent: u32,
    /// At least one byte was retransmitted.
    any: bool,
}

impl Recovery {
    /// No recovery; `iss` as `until` means that there was none yet.
    pub(crate) fn new(iss: Seq) -> Self {
        let (phase, prr) = (Phase::Open, Prr::default());
        Self { phase, until: iss, prr, undo: None, f_rto: FRto::Idle, repeated: 0 }
    }

    /// Starts a recovery. `before`: congestion control to return to; `board`: after the ACK that revealed the loss;
    /// `pipe`: bytes in flight before that ACK.
    pub(crate) fn begin(
        &mut self,
        phase: Phase,
        before: Congestion,
        board: &Scoreboard,
        pipe: u32,
    ) {
        // A timeout within a recovery keeps the state saved at its start: an undo reverts both reductions.
        self.f_rto = FRto::Idle;
        if self.phase == Phase::Open {
            self.undo =
                Some(Undo { before, since: board.una(), stamp: None, resent: 0, any: false });
            // RFC 5682 section 2.1 step 1: only the first timeout can be tested, not one within a recovery.
            if phase == Phase::Timeout {
                self.f_rto = FRto::HeadResent;
            }
        }
        (self.phase, self.until) = (phase, board.nxt());
        // At least 1: `window` divides by it.
        self.prr = Prr { flight: pipe.max(1), ..Prr::default() };
        self.repeated = 0;
    }

    /// Ends the recovery; the saved state stays, for DSACKs that arrive later.
    pub(crate) fn end(&mut self) {
        self.phase = Phase::Open;
        self.f_rto = FRto::Idle;
        self.repeated = 0;
    }

    /// In fast recovery: the congestion window after an ACK that delivered `delivered` bytes (RFC 9937 section 6).
    /// `pipe`: bytes in flight now; `safe`: the ACK advanced SND.UNA and revealed no further loss (SafeACK, section
    /// 5).
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
        // Above ssthresh: send ssthresh / RecoverFS bytes per byte delivered, so that the window shrinks over a round
        // trip.
        let more = if pipe > cc.ssthresh {
            let share = u64::from(prr.delivered) * u64::from(cc.ssthresh);
            let share = u32::try_from(share.div_ceil(u64::from(prr.flight))).unwrap_or(u32::MAX);
            share.saturating_sub(prr.out)
        } else {
            // At or below it: send what was delivered (packet conservation), one segment more if the ACK was safe, and
            // never more than ssthresh allows.
            let bank = prr.delivered.saturating_sub(prr.out).max(delivered);
            let bank = if safe { bank.saturating_add(mss) } else { bank };
            bank.min(cc.ssthresh - pipe)
        };
        // RFC 9937 section 6: the first retransmission is never held back.
        let more = if prr.out == 0 { more.max(mss) } else { more };
        pipe.saturating_add(more)
    }

    /// `len` bytes were sent, new or retransmitted.
    pub(crate) fn on_sent(&mut self, len: u32) {
        self.prr.out = self.prr.out.saturating_add(len);
    }

    /// `len` bytes were retransmitted with this TSval, by the recovery or by a later tail loss probe: a DSACK does not
    /// show which copy it answers, so both count (`__tcp_retransmit_skb`).
    pub(crate) fn on_sent_again(&mut self, len: u32, tsval: Option<u32>) {
        if let Some(undo) = &mut self.undo {
            undo.stamp = undo.stamp.or(tsval);
            undo.resent = undo.resent.saturating_add(len);
            undo.any = true;
        }
    }

    /// Eifel (RFC 3522): an ACK advanced SND.UNA. Returns the state to go back to if its echo is older than the first
    /// retransmission: the original arrived.
    pub(crate) fn answered_original(&self, tsecr: Option<u32>) -> Option<Congestion> {
        // In recovery only: after it, the ACK that ended it has decided.
        let undo = self.undo.as_ref().filter(|_| self.phase != Phase::Open)?;
        let (stamp, tsecr) = (undo.stamp?, tsecr?);
        Seq(tsecr).lt(Seq(stamp)).then_some(undo.before)
    }

    /// DSACK: the guest received `twice` twice. Returns the state to go back to once this covers all retransmitted
    /// bytes.
    pub(crate) fn on_duplicate(&mut self, twice: Range) -> Option<Congestion> {
        // A duplicate below `since` answers an earlier recovery.
        let undo = self.undo.as_mut().filter(|undo| undo.any && twice.end.gt(undo.since))?;
        undo.resent = undo.resent.saturating_sub(twice.len());
        (undo.resent == 0).then_some(undo.before)
    }

    /// Ends F-RTO without a verdict: a second timeout or a duplicate ACK shows that data is lost.
    pub(crate) fn frto_stop(&mut self) {
        self.f_rto = FRto::Idle;
    }

    /// F-RTO runs: lost ranges wait until the ACK of new data shows whether they are lost.
    pub(crate) fn frto_holds_back(&self) -> bool {
        matches!(self.f_rto, FRto::SendNew | FRto::AwaitAck)
    }

    /// New data was sent.
    pub(crate) fn on_sent_new(&mut self) {
        if self.f_rto == FRto::SendNew {
            self.f_rto = FRto::AwaitAck;
        }
    }

    /// No new data can be sent now. Returns true if F-RTO needed it: the test ends, so lost ranges may be retransmitted
    /// (RFC 5682 section 2.1 step 2b; `tcp_xmit_recovery`).
    pub(crate) fn frto_has_no_new_data(&mut self) -> bool {
        let could = self.f_rto == FRto::SendNew;
        if could {
            self.frto_stop();
        }
        could
    }

    /// F-RTO, RFC 5682 section 3.1 steps 2 and 3, at an ACK. `moved`: it advanced SND.UNA, but not to `until`;
    /// `original`: it covers bytes sent before the timeout and only once; `able`: there is new data, and the guest's
    /// window has room for it. Returns the state to go back to if the timeout was spurious.
    ///
    /// Two new segments give a better test than one, but one suffices ("can send only one segment", section 2.1 step
    /// 2b); `output` finds out whether any leaves, and how many.
    pub(crate) fn on_forward(
        &mut self,
        moved: bool,
        original: bool,
        able: bool,
    ) -> Option<Congestion> {
        // Any other ACK ends the test: the state is taken and put back only where the test continues.
        match std::mem::replace(&mut self.f_rto, FRto::Idle) {
            FRto::HeadResent if moved && able => self.f_rto = FRto::SendNew,
            // Step 3b: an original arrived after the timeout, so the timeout was spurious.
            FRto::SendNew | FRto::AwaitAck if original => {
                return self.undo.as_ref().map(|undo| undo.before);
            }
            _ => {}
        }
        None
    }

    /// Discards the saved state: the window is reduced for a reason that an undo must not revert.
    pub(crate) fn forget_undo(&mut self) {
        self.undo = None;
    }

    /// The recovery was spurious and its reduction is reverted.
    pub(crate) fn undone(&mut self) {
        self.undo = None;
        self.end();
    }
}
