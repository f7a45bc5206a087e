//! Path MTU discovery towards the guest, for a path narrower than the link: RFC 1191 and RFC 8201, with the checks of
//! RFC 5927 section 5.2 against forged errors.

use crate::sizes::{HEADERS_V4, HEADERS_V6};
use crate::tcp::Tcb;
use crate::wire::seq::Seq;

/// Lower bound for IPv4 (Linux `min_pmtu`): a forged smaller MTU would cost more than a true one could gain.
const MTU_MIN_V4: u32 = 552;
/// Minimum link MTU of IPv6 (RFC 8201 section 4).
const MTU_MIN_V6: u32 = 1280;

impl Tcb {
    /// An ICMP error reports that the packet with sequence number `seq` did not fit `mtu` bytes. Returns true if it was
    /// in flight and the segments are smaller from now on; outstanding data is then retransmitted.
    pub(crate) fn on_path_mtu(&mut self, mtu: u32, ipv6: bool, seq: Seq) -> bool {
        let (headers, least) =
            if ipv6 { (HEADERS_V6, MTU_MIN_V6) } else { (HEADERS_V4, MTU_MIN_V4) };
        // RFC 5927 section 4.1: an off-path attacker does not know a sequence number in flight.
        let in_flight = seq.ge(self.snd.una()) && seq.lt(self.snd.nxt());
        let segment_max = mtu.max(least) - u32::from(headers);
        // RFC 8201 section 4: an error never raises the path MTU.
        if !in_flight || !self.state.synchronized() || segment_max >= self.link.segment_max.into() {
            return false;
        }
        self.link.segment_max = segment_max as u16;
        let options = if self.ts.is_some() { 12 } else { 0 };
        let mss = self.snd.mss.min(segment_max - options);
        let smaller = mss < self.snd.mss;
        self.snd.mss = mss;
        if smaller {
            // Not a congestion loss: the congestion window stays (RFC 8201 section 5.4).
            self.snd.board.mark_lost(|_| true);
        }
        smaller
    }
}
