//! Detects keep-alive probes of the guest (RFC 9293 section 3.8.4). The container answers them, since it must check the
//! host side to know whether the remote peer is still there.

use skbudget_controller::Instant;

use crate::tcp::Tcb;
use crate::wire::segment::Segment;

impl Tcb {
    /// `seg` is a keep-alive probe. A probe starts one below RCV.NXT and has no data, or one byte that was acknowledged
    /// before (RFC 1122 section 4.2.3.6): it is never acceptable, so a TCP with this connection answers it.
    ///
    /// A probe of a closed window has the same form, but its sender waits for the window and not for a sign of life.
    /// The window field that this side last sent decides: a window below one unit of the scale is zero to the guest. A
    /// guest that has sent its FIN has no more data, so it does not wait for a window.
    pub(super) fn is_keepalive(&self, seg: &Segment<'_>) -> bool {
        let flags = seg.flags;
        let plain = flags.ack && !flags.syn && !flags.fin && !flags.rst;
        let open = self.rcv.advertised_field() > 0 || self.rcv.fin_taken;
        plain && open && seg.payload.len() <= 1 && seg.seq + 1 == self.rcv.nxt()
    }

    /// A guest that probes is alive, so our own keep-alive starts anew.
    pub(crate) fn on_guest_keepalive(&mut self, now: Instant) {
        self.probed_at = now;
        self.keepalive_sent = 0;
    }

    /// Answers the guest's keep-alive probe with the next `output`.
    pub(crate) fn answer_keepalive(&mut self) {
        self.rcv.ack_now = true;
    }
}
