//! Keep-alive probes of the guest (RFC 9293 section 3.8.4), recognised. What is done about them is the container's
//! part: it takes the host's side to know whether the peer is still there.

use skbudget_controller::Instant;

use crate::segment::Segment;
use crate::tcp::Tcb;

impl Tcb {
    /// A keep-alive probe begins one before RCV.NXT and has no data, or one byte that was acknowledged long ago (RFC
    /// 1122 section 4.2.3.6): it is never acceptable, so a TCP that is there answers it.
    ///
    /// The probe of a closed window looks the same, and its sender waits for the window rather than for a sign of life.
    /// What the guest was last told of the window decides: a few bytes less than a unit of the scale are zero to it. A
    /// guest that has sent its FIN has nothing to wait for a window with.
    pub(super) fn is_keepalive(&self, seg: &Segment<'_>) -> bool {
        let flags = seg.flags;
        let plain = flags.ack && !flags.syn && !flags.fin && !flags.rst;
        let open = self.rcv.window_said() > 0 || self.rcv.fin_taken;
        plain && open && seg.payload.len() <= 1 && seg.seq + 1 == self.rcv.nxt()
    }

    /// Who probes is there: our own keep-alive need not ask.
    pub(crate) fn on_guest_keepalive(&mut self, now: Instant) {
        self.probed_at = now;
        self.keepalive_sent = 0;
    }

    /// The guest's keep-alive probe is answered in this turn.
    pub(crate) fn answer_keepalive(&mut self) {
        self.rcv.ack_now = true;
    }
}
