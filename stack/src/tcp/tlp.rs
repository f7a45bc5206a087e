//! Tail loss probes (RFC 8985 section 7). If the last segments of a burst are lost, no later segment reveals it. Two
//! round trips after the burst a probe is sent: one new segment, or the last one again. Its acknowledgement reveals the
//! loss, which is then repaired by fast recovery and not by a timeout, which takes longer and collapses the window.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::tcp::Tcb;
use crate::tcp::recovery::Phase;
use crate::wire::seq::Seq;

/// Shortest time to a probe: a guest's kernel may need that long to be scheduled (Linux TCP_TIMEOUT_MIN is two ticks).
const PROBE_MIN: Duration = Duration::from_millis(10);
/// WCDelAckT of RFC 8985 section 7.2: how long the guest may delay the ACK of a single segment.
const DELAYED_ACK_MAX: Duration = Duration::from_millis(200);

/// An outstanding probe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TailProbe {
    /// SND.NXT after the probe.
    pub(crate) end: Seq,
    /// The probe was a retransmission. If it was new data, its ACK proves nothing about a loss.
    pub(crate) again: bool,
}

impl Tcb {
    /// RFC 8985 section 7.2, after new data was sent or acknowledged: sets the probe's deadline, unless the
    /// retransmission timer fires first.
    pub(super) fn arm_tail_probe(&mut self, now: Instant) {
        let snd = &mut self.snd;
        snd.tail_probe_at = None;
        // RFC 8985 section 7.2: SACK, no recovery, one probe at a time.
        let open = self.sack && snd.recovery.phase == Phase::Open && snd.tail_probe.is_none();
        if !open || snd.board.outstanding() == 0 || snd.wnd == 0 || !snd.syn_acked {
            return;
        }
        let Some(srtt) = snd.rtt.srtt() else { return };
        // The guest delays the ACK of a single segment; with two or more it acknowledges at once.
        let lone = snd.board.outstanding() <= snd.mss;
        let wait = (2 * srtt).max(PROBE_MIN) + if lone { DELAYED_ACK_MAX } else { Duration::ZERO };
        let at = now + wait;
        if snd.timer.is_some_and(|timeout| at < timeout) {
            snd.tail_probe_at = Some(at);
        }
    }

    /// RFC 8985 section 7.3: the next `output` sends the probe.
    pub(super) fn on_tail_probe_timer(&mut self, now: Instant) {
        self.snd.tail_probe_at = None;
        if self.snd.board.outstanding() > 0 {
            self.tail_probe_due = true;
            // The RTO counts from the probe, so that its ACK has time to arrive.
            self.snd.restart_timer(now);
        }
    }

    /// RFC 8985 section 7.4.2: an ACK beyond a probe that was a retransmission shows that the probe repaired a loss,
    /// unless a DSACK reports it as a duplicate. The window is then reduced as after any recovery, once per window of
    /// data (RFC 3168 section 6.1.2).
    pub(super) fn end_tail_probe(&mut self, duplicate: bool) {
        let snd = &mut self.snd;
        let una = snd.una();
        let Some(probe) = snd.tail_probe.filter(|probe| una.ge(probe.end)) else { return };
        // Nothing was lost: the probe was new data, or a DSACK shows that the guest had the original (case 1).
        if !probe.again || duplicate {
            snd.tail_probe = None;
        } else if una.gt(probe.end) {
            snd.tail_probe = None;
            // Case 2: the probe repaired a loss. `answered`: the same window of data reduced cwnd already.
            if snd.recovery.phase == Phase::Open && !self.ecn.answered(probe.end) {
                snd.cc.reduce(snd.cc.cwnd, snd.mss);
                self.ecn.on_reduced(snd.nxt());
                // A late DSACK must not revert this reduction.
                snd.recovery.forget_undo();
            }
        }
    }

    /// RFC 8985 section 7.4.2 case 3: a duplicate ACK shows that the guest already had the probed segment, so the probe
    /// repaired nothing.
    pub(super) fn tail_was_there(&mut self) {
        let una = self.snd.una();
        self.snd.tail_probe = self.snd.tail_probe.filter(|probe| una != probe.end);
    }
}
