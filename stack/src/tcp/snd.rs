//! The send half: what is queued, what is outstanding, what the guest lets us send.

use std::time::Duration;

use skbudget_controller::{Budget, Instant};

use crate::seq::Seq;
use crate::tcp::board::Board;
use crate::tcp::congestion::{Algorithm, Congestion};
use crate::tcp::rack::Rack;
use crate::tcp::rcv::grows_by;
use crate::tcp::recovery::Recovery;
use crate::tcp::rtt::Rtt;
use crate::tcp::tlp::TailProbe;
use crate::txq::TxQueue;

/// Bytes queued for a flow before its guest has shown that it takes them (tcp_wmem's default).
pub(crate) const TARGET_INITIAL: usize = 4 * 4032;

#[derive(Debug)]
pub(crate) struct Snd {
    pub(crate) q: TxQueue,
    pub(crate) iss: Seq,
    /// Our SYN is acknowledged: SND.UNA is the queue's first byte. Asked of a flag, for ISS comes round again.
    pub(crate) syn_acked: bool,
    /// SND.UNA, SND.NXT and what is known of all between.
    pub(crate) board: Board,
    /// SND.WND in bytes.
    pub(crate) wnd: u32,
    pub(crate) wnd_max: u32,
    pub(crate) wl1: Seq,
    pub(crate) wl2: Seq,
    /// Shift of the windows the guest advertises.
    pub(crate) wscale: u8,
    /// Payload bytes of one segment, options taken off.
    pub(crate) mss: u32,
    pub(crate) cc: Congestion,
    pub(crate) rtt: Rtt,
    pub(crate) rack: Rack,
    pub(crate) recovery: Recovery,
    pub(crate) tail_probe: Option<TailProbe>,
    pub(crate) tail_probe_at: Option<Instant>,
    /// When what is behind a hole has had its time to be overtaken (RFC 8985 section 6.2 step 5).
    pub(crate) reorder_at: Option<Instant>,
    /// Retransmission or persist timer: which of them follows from what is outstanding.
    pub(crate) timer: Option<Instant>,
    /// The host's stream ended: a FIN follows the last byte.
    pub(crate) fin: bool,
    /// The host reset the connection: RST follows when all before it is acknowledged.
    pub(crate) reset: bool,
    /// Bytes the relay may have queued here.
    pub(crate) target: usize,
    pub(crate) retrans: u64,
    /// When data last left, or the time without was last reckoned with.
    pub(crate) sent_at: Instant,
    /// Outstanding when we last spoke, bytes. ACKs of one turn are answered once: what the first of them took off was
    /// in flight when a later one tells of a loss (RFC 5681's FlightSize).
    pub(crate) said: u32,
}

impl Snd {
    pub(crate) fn new(iss: Seq, mss: u32, algorithm: Algorithm) -> Self {
        Self {
            q: TxQueue::default(),
            iss,
            syn_acked: false,
            board: Board::new(iss),
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
            said: 0,
        }
    }

    pub(crate) fn una(&self) -> Seq {
        self.board.una()
    }

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

    /// Our FIN was sent and is acknowledged by `ack`.
    pub(crate) fn covers_fin(&self, ack: Seq) -> bool {
        // Before `una` moves: the FIN is the last thing in sequence space.
        self.fin_seq().is_some_and(|fin| ack.gt(fin))
    }

    /// Bytes of the queue that were not sent yet.
    pub(crate) fn unsent(&self) -> usize {
        let sent = self.nxt().diff(self.data_start()).max(0) as usize;
        self.q.len().saturating_sub(sent)
    }

    /// The retransmission timer begins to run, or runs anew (RFC 6298 5.1, 5.3).
    pub(crate) fn restart_timer(&mut self, now: Instant) {
        self.timer = Some(now + self.rtt.rto());
    }

    /// Data leaves now, and nothing is outstanding (RFC 5681 section 4.1). Once for the time since data last left,
    /// whatever was asked or answered in between, and though the device may not take it yet.
    pub(crate) fn restart_after_idle(&mut self, now: Instant) {
        let (idle, timeout) = (now.since(self.sent_at), self.rtt.rto());
        if idle >= timeout && self.sent_at != Instant(0) {
            let timeouts = idle.as_nanos() / timeout.as_nanos();
            self.sent_at = now;
            self.cc.on_idle(u32::try_from(timeouts).unwrap_or(u32::MAX), self.mss);
        }
    }

    /// The guest acknowledged something: the queue grows to two congestion windows and more (Linux' tcp_sndbuf_expand),
    /// for while a hole is filled as much again lies behind it. Less would hold back the window: it would neither be
    /// used nor grow, and be measured too small when something is lost.
    pub(crate) fn grow_target(&mut self, target_max: usize, budget: &Budget) {
        let short = self.target < 2 * self.cc.cwnd as usize;
        if short && grows_by(budget, self.target as u64) {
            self.target = (self.target * 2).min(target_max.max(TARGET_INITIAL));
        }
    }

    /// Pressure or refusal: `sk_stream_moderate_sndbuf` for our target.
    pub(crate) fn moderate_target(&mut self) {
        self.target = self.target.min(self.q.len() / 2).max(4608);
    }

    pub(crate) fn on_idle(&mut self) {
        self.target = TARGET_INITIAL;
    }

    /// How long the persist timer waits: the RTO, backed off, as Linux does (RFC 9293 section 3.8.6.1).
    pub(crate) fn persist_delay(&self) -> Duration {
        self.rtt.rto()
    }
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, Board, Snd};
    use crate::seq::Seq;

    #[test]
    fn the_queue_begins_at_una_however_far_it_is_from_iss() {
        let mut snd = Snd::new(Seq(7), 1460, Algorithm::Cubic);
        assert_eq!(snd.data_start(), Seq(8));
        snd.syn_acked = true;
        for distance in [1u32, 1 << 31, (1 << 31) + 1, u32::MAX] {
            snd.board = Board::new(snd.iss + distance);
            assert_eq!(snd.data_start(), snd.una(), "{distance} bytes on");
        }
    }
}
