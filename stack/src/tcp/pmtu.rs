//! The path to the guest is narrower than the link: RFC 1191 and RFC 8201, believed only as far as RFC 5927 section 5.2
//! lets it.

use crate::config::{HEADERS_V4, HEADERS_V6};
use crate::seq::Seq;
use crate::tcp::Tcb;

/// Linux' min_pmtu: below, a lie costs more than the truth.
const MTU_MIN_V4: u32 = 552;
/// RFC 8201 section 4.
const MTU_MIN_V6: u32 = 1280;

impl Tcb {
    /// An ICMP error says that the packet which began at `seq` did not fit `mtu` bytes. True: it was in flight, and
    /// what is outstanding is sent again in segments that fit.
    pub(crate) fn on_path_mtu(&mut self, mtu: u32, ipv6: bool, seq: Seq) -> bool {
        let (headers, least) =
            if ipv6 { (HEADERS_V6, MTU_MIN_V6) } else { (HEADERS_V4, MTU_MIN_V4) };
        let in_flight = seq.ge(self.snd.una()) && seq.lt(self.snd.nxt());
        let segment_max = mtu.max(least) - u32::from(headers);
        if !in_flight || !self.state.synchronized() || segment_max >= self.link.segment_max.into() {
            return false;
        }
        self.link.segment_max = segment_max as u16;
        let options = if self.ts.is_some() { 12 } else { 0 };
        let mss = self.snd.mss.min(segment_max - options);
        let smaller = mss < self.snd.mss;
        self.snd.mss = mss;
        if smaller {
            // Not to congestion: the window stays (RFC 8201 section 5.4).
            self.snd.board.lose(|_| true);
        }
        smaller
    }
}
