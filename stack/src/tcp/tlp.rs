//! Tail loss probes (RFC 8985 section 7): when the end of what was sent may be lost, nothing later tells of it. Two
//! round trips after it left, one segment is sent, new or the last one again, whose acknowledgement does: the loss is
//! then repaired as any other instead of by a timeout, which takes longer and shuts the window.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::seq::Seq;
use crate::tcp::recovery::Phase;
use crate::tcp::{Mem, Tcb};

/// Least time to a probe: what a guest's kernel may need to come to the CPU (Linux' TCP_TIMEOUT_MIN is two ticks).
const PROBE_MIN: Duration = Duration::from_millis(10);
/// RFC 8985 section 7.2: how long an ACK of a lone segment may be held back.
const DELAYED_ACK_MAX: Duration = Duration::from_millis(200);

/// A probe that is out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TailProbe {
    /// SND.NXT behind it.
    pub(crate) end: Seq,
    /// It was sent before; otherwise new data, which tells nothing by being acknowledged.
    pub(crate) again: bool,
}

impl Tcb {
    /// Section 7.2: after new data was sent or acknowledged. A probe that would come with the timeout is left to it.
    pub(super) fn arm_tail_probe(&mut self, now: Instant) {
        let snd = &mut self.snd;
        snd.tail_probe_at = None;
        let open = self.sack && snd.recovery.phase == Phase::Open && snd.tail_probe.is_none();
        if !open || snd.board.outstanding() == 0 || snd.wnd == 0 || !snd.syn_acked {
            return;
        }
        let Some(srtt) = snd.rtt.srtt() else { return };
        let lone = snd.board.outstanding() <= snd.mss;
        let wait = (2 * srtt).max(PROBE_MIN) + if lone { DELAYED_ACK_MAX } else { Duration::ZERO };
        let at = now + wait;
        if snd.timer.is_some_and(|timeout| at < timeout) {
            snd.tail_probe_at = Some(at);
        }
    }

    /// Section 7.3.
    pub(super) fn on_tail_probe_timer(&mut self, mem: &Mem<'_>) {
        self.snd.tail_probe_at = None;
        if self.snd.board.outstanding() > 0 {
            self.tail_probe_due = true;
            self.snd.restart_timer(mem.now);
        }
    }

    /// Section 7.4.2: an ACK that moved SND.UNA beyond a probe, which was sent before, shows that the probe repaired a
    /// loss unless a DSACK said that there was none: the window is reduced as after any recovery, once for a window of
    /// data (RFC 3168 section 6.1.2).
    pub(super) fn end_tail_probe(&mut self, duplicate: bool) {
        let snd = &mut self.snd;
        let una = snd.una();
        let Some(probe) = snd.tail_probe.filter(|probe| una.ge(probe.end)) else { return };
        if !probe.again || duplicate {
            snd.tail_probe = None;
        } else if una.gt(probe.end) {
            snd.tail_probe = None;
            if snd.recovery.phase == Phase::Open && !self.ecn.answered(probe.end) {
                snd.cc.reduce(snd.cc.cwnd, snd.mss);
                self.ecn.on_reduced(snd.nxt());
                snd.recovery.forget_undo();
            }
        }
    }

    /// The same, case 3: an ACK that says nothing new answers the second copy.
    pub(super) fn tail_was_there(&mut self) {
        let una = self.snd.una();
        self.snd.tail_probe = self.snd.tail_probe.filter(|probe| una != probe.end);
    }
}
