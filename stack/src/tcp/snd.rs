//! Send half: queued data, the scoreboard of outstanding data, the guest's window, congestion control and timers.

use std::time::Duration;

use skbudget_controller::sizing::moderate_sndbuf;
use skbudget_controller::{Budget, Instant};

use crate::config::Algorithm;
use crate::queue::send::TxQueue;
use crate::tcp::congestion::Congestion;
use crate::tcp::rack::Rack;
use crate::tcp::recovery::Recovery;
use crate::tcp::rtt::Rtt;
use crate::tcp::scoreboard::Scoreboard;
use crate::tcp::tlp::TailProbe;
use crate::wire::seq::Seq;

/// First send-queue bound, bytes: until the guest acknowledges data (default of Linux `tcp_wmem`).
pub(crate) const TARGET_INITIAL: usize = 4 * 4032;

/// Send variables of a flow.
#[derive(Debug)]
pub(crate) struct Snd {
    /// Data from SND.UNA on, sent and unsent.
    pub(crate) q: TxQueue,
    /// Our initial sequence number.
    pub(crate) iss: Seq,
    /// Our SYN is acknowledged, so SND.UNA is the first byte of the queue. A flag, because comparing with ISS fails
    /// once sequence numbers wrap.
    pub(crate) syn_acked: bool,
    /// SND.UNA, SND.NXT and the state of the bytes between.
    pub(crate) board: Scoreboard,
    /// SND.WND in bytes.
    pub(crate) wnd: u32,
    /// Largest SND.WND seen, for silly-window avoidance and RFC 5961.
    pub(crate) wnd_max: u32,
    /// SND.WL1 and SND.WL2: SEG.SEQ and SEG.ACK of the last window update.
    pub(crate) wl1: Seq,
    pub(crate) wl2: Seq,
    /// Shift of the windows the guest advertises.
    pub(crate) wscale: u8,
    /// Payload of one segment, bytes, less the options that every segment carries.
    pub(crate) mss: u32,
    pub(crate) cc: Congestion,
    pub(crate) rtt: Rtt,
    pub(crate) rack: Rack,
    pub(crate) recovery: Recovery,
    /// The outstanding tail loss probe, and when the next one is due.
    pub(crate) tail_probe: Option<TailProbe>,
    pub(crate) tail_probe_at: Option<Instant>,
    /// When data beyond a hole has waited for the reordering window (RFC 8985 section 6.2 step 5).
    pub(crate) reorder_at: Option<Instant>,
    /// Retransmission or persist timer: persist if nothing is outstanding or the window is closed.
    pub(crate) timer: Option<Instant>,
    /// The host's stream ended: a FIN follows the last byte.
    pub(crate) fin: bool,
    /// The host reset the connection: RST once all data before it is acknowledged.
    pub(crate) reset: bool,
    /// Bytes that the relay may queue here.
    pub(crate) target: usize,
    /// Retransmissions of this flow.
    pub(crate) retrans: u32,
    /// When data was last sent, or when `restart_after_idle` last accounted for idle time.
    pub(crate) sent_at: Instant,
    /// Bytes outstanding at the end of the last `output`. FlightSize for the ACKs that arrive before the next one (RFC
    /// 5681): the first of them already reduces the current value.
    pub(crate) flight_at_output: u32,
}

impl Snd {
    pub(crate) fn new(iss: Seq, mss: u32, algorithm: Algorithm) -> Self {
        Self {
            q: TxQueue::default(),
            iss,
            syn_acked: false,
            board: Scoreboard::new(iss),
            wnd: 0,
            wnd_max: 0,
            wl1: Seq(0),
            wl2: Seq(0),
            wscale: 0,
            mss,
            cc: Congestion::new(algorithm, mss, iss),
            rtt: Rtt::default(),
            rack: Rack::new(iss),
            recovery: Recovery::new(iss),
            tail_probe: None,
            tail_probe_at: None,
            reorder_at: None,
            timer: None,
            fin: false,
            reset: false,
            target: TARGET_INITIAL,
            retrans: 0,
            sent_at: Instant(0),
            flight_at_output: 0,
        }
    }

    /// SND.UNA
    pub(crate) fn una(&self) -> Seq {
        self.board.una()
    }

    /// SND.NXT
    pub(crate) fn nxt(&self) -> Seq {
        self.board.nxt()
    }

    /// Sequence number of the first byte in the queue.
    pub(crate) fn data_start(&self) -> Seq {
        if self.syn_acked { self.una() } else { self.iss + 1 }
    }

    /// Sequence number of our FIN, if the stream has ended.
    pub(crate) fn fin_seq(&self) -> Option<Seq> {
        self.fin.then(|| self.data_start() + self.q.len() as u32)
    }

    /// SEG.ACK acknowledges our FIN. Called before SND.UNA advances.
    pub(crate) fn covers_fin(&self, ack: Seq) -> bool {
        // The FIN is the last number in sequence space, so only its ACK is beyond it.
        self.fin_seq().is_some_and(|fin| ack.gt(fin))
    }

    /// Bytes of the queue that were never sent.
    pub(crate) fn unsent(&self) -> usize {
        let sent = self.nxt().diff(self.data_start()).max(0) as usize;
        self.q.len().saturating_sub(sent)
    }

    /// Starts or restarts the retransmission timer (RFC 6298 5.1, 5.3).
    pub(crate) fn restart_timer(&mut self, now: Instant) {
        self.timer = Some(now + self.rtt.rto());
    }

    /// Data is about to be sent and nothing is outstanding: reduces the window after an idle time (RFC 5681 section
    /// 4.1). Probes and ACKs do not end the idle time. It is accounted for once, even if the device refuses the data
    /// now.
    pub(crate) fn restart_after_idle(&mut self, now: Instant) {
        let (idle, timeout) = (now.since(self.sent_at), self.rtt.rto());
        // Instant(0): no data was sent yet, so the initial window applies.
        if idle >= timeout && self.sent_at != Instant(0) {
            let timeouts = idle.as_nanos() / timeout.as_nanos();
            self.sent_at = now;
            self.cc.on_idle(u32::try_from(timeouts).unwrap_or(u32::MAX), self.mss);
        }
    }

    /// The guest acknowledged data: the queue bound doubles up to two congestion windows (Linux `tcp_sndbuf_expand`).
    /// While a hole is repaired a second window is queued beyond it. A smaller bound would leave the window unused: it
    /// would not grow, and a loss would measure it too small.
    pub(crate) fn grow_target(&mut self, target_max: usize, budget: &Budget) {
        let short = self.target < 2 * self.cc.cwnd as usize;
        if short && budget.may_grow(self.target as u64) {
            self.target = (self.target * 2).min(target_max.max(TARGET_INITIAL));
        }
    }

    /// Under pressure or after a refusal: halves the bound as `sk_stream_moderate_sndbuf`.
    pub(crate) fn moderate_target(&mut self) {
        self.target = moderate_sndbuf(self.target as u32, self.q.len() as u64, false) as usize;
    }

    /// The flow became idle: its queue starts small again.
    pub(crate) fn on_idle(&mut self) {
        self.target = TARGET_INITIAL;
    }

    /// Time until the persist timer fires: the RTO with backoff, as Linux (RFC 9293 section 3.8.6.1).
    pub(crate) fn persist_delay(&self) -> Duration {
        self.rtt.rto()
    }
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, Scoreboard, Snd};
    use crate::wire::seq::Seq;

    #[test]
    fn the_queue_begins_at_una_however_far_it_is_from_iss() {
        let mut snd = Snd::new(Seq(7), 1460, Algorithm::Cubic);
        assert_eq!(snd.data_start(), Seq(8));
        snd.syn_acked = true;
        for distance in [1u32, 1 << 31, (1 << 31) + 1, u32::MAX] {
            snd.board = Scoreboard::new(snd.iss + distance);
            assert_eq!(snd.data_start(), snd.una(), "{distance} bytes on");
        }
    }
}
