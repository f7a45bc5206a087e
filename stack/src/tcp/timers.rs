//! Timers of a flow: retransmission or persist (one at a time), reordering, tail loss probe, delayed ACK, keep-alive.
//! Deadlines are fields; the container keeps one queue of them.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::counters::{Stat, Stats};
use crate::tcp::recovery::Phase;
use crate::tcp::state::State;
use crate::tcp::{Disposition, Tcb};

/// Retransmissions of a SYN or SYN-ACK (Linux `tcp_syn_retries`, `tcp_synack_retries`).
const SYN_RETRIES_MAX: u32 = 5;
/// Keep-alive probes without an answer, and the time between them (Linux `tcp_keepalive_probes`,
/// `tcp_keepalive_intvl`).
const KEEPALIVE_PROBES: u32 = 9;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);

/// Idle time before the first probe in CLOSE-WAIT. A guest's kernel removes a socket that its process closed after 60 s
/// in FIN-WAIT-2 (Linux `tcp_fin_timeout`) and sends nothing. If the host never ends its stream, such a flow would stay
/// charged for two hours. A probe after this time tests it: a guest that ended only its own stream answers, one that
/// removed the socket resets.
const CLOSE_WAIT_IDLE: Duration = Duration::from_secs(61);

impl Tcb {
    /// The earliest time at which `on_timer` has work to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let Self { snd, rcv, .. } = self;
        [snd.timer, snd.tail_probe_at, snd.reorder_at, rcv.delack_at, self.idle_deadline()]
            .iter()
            .filter_map(|t| *t)
            .min()
    }

    /// When the next keep-alive probe is due.
    fn idle_deadline(&self) -> Option<Instant> {
        match self.state {
            // With the timer armed, retransmissions or probes test the guest already.
            State::Established | State::CloseWait | State::FinWait2 if self.snd.timer.is_none() => {
                let idle = match self.state {
                    State::CloseWait => self.link.keepalive.min(CLOSE_WAIT_IDLE),
                    _ => self.link.keepalive,
                };
                let wait = idle + KEEPALIVE_INTERVAL * self.keepalive_sent;
                // A keep-alive probe of the guest proves that it is alive, although it is not acceptable.
                Some(self.last_heard.max(self.probed_at) + wait)
            }
            _ => None,
        }
    }

    /// Runs the timers that are due.
    pub(crate) fn on_timer(&mut self, now: Instant, stats: &mut Stats) -> Disposition {
        let due = |t: Option<Instant>| t.is_some_and(|t| t <= now);
        if due(self.rcv.delack_at) {
            stats.add(Stat::DelayedACKs);
            self.rcv.on_delack();
        }
        if due(self.snd.reorder_at) {
            self.on_reorder_timer(now, stats);
        }
        if due(self.snd.tail_probe_at) {
            self.on_tail_probe_timer(now);
        }
        // After the others: it may end the flow.
        if due(self.snd.timer) {
            return self.on_send_timer(now, stats);
        }
        if due(self.idle_deadline()) {
            return self.on_keepalive(stats);
        }
        Disposition::Output
    }

    /// The retransmission or persist timer fired.
    fn on_send_timer(&mut self, now: Instant, stats: &mut Stats) -> Disposition {
        self.snd.timer = None;
        self.snd.rtt.back_off();
        let syn = matches!(self.state, State::SynSent | State::SynRcvd);
        // Only silence counts: a guest that answers probes may keep its window closed for ever (RFC 1122 section
        // 4.2.2.17).
        if self.silent == 0 {
            self.silent_since = now;
        }
        self.silent += 1;
        let over = if syn {
            self.silent > SYN_RETRIES_MAX
        } else {
            now.since(self.silent_since) >= self.link.user_timeout
        };
        if over {
            stats.add(Stat::TCPAbortOnTimeout);
            return Disposition::Abort;
        }
        // The window may close over data in flight: a guest without memory drops the data and advertises zero. Probe it
        // like any closed window; the dropped data is retransmitted when the window opens.
        let outstanding = self.snd.board.outstanding() > 0;
        let closed = self.snd.wnd == 0 && !self.snd.q.is_empty();
        if (!outstanding || closed) && !syn {
            stats.add(Stat::TCPWinProbe);
            // Not lost to congestion, so the congestion window stays.
            self.snd.board.mark_lost(|_| true);
            // RFC 9293 section 3.8.6.2.1: the override timeout sends into a window that stays small.
            self.force_small = self.snd.wnd > 0;
            self.probe_due = !self.force_small;
            self.snd.timer = Some(now + self.snd.persist_delay());
            return Disposition::Output;
        }
        stats.add(Stat::TCPTimeouts);
        // In SYN-SENT and SYN-RECEIVED the SYN is all that is outstanding.
        self.syn_due = syn;
        if !syn {
            self.lose_on_timeout(now);
        }
        self.snd.restart_timer(now);
        Disposition::Output
    }

    /// RFC 5681 section 3.1: the window becomes one segment (the loss window), with slow start from there. ssthresh is
    /// reduced once per loss, however it was detected and however often it is repaired.
    fn lose_on_timeout(&mut self, now: Instant) {
        let snd = &mut self.snd;
        let (nxt, pipe) = (snd.nxt(), snd.board.pipe());
        let flight = snd.board.outstanding().min(snd.cc.cwnd);
        let before = snd.cc;
        // Not again in a recovery: its loss has reduced ssthresh already.
        if snd.recovery.phase == Phase::Open {
            snd.cc.on_loss(flight, snd.mss, true);
            self.ecn.on_reduced(nxt);
        }
        // A second timeout in the same recovery keeps `until`, so that it still ends where it should.
        if snd.recovery.phase != Phase::Timeout {
            snd.recovery.begin(Phase::Timeout, before, &snd.board, pipe);
        } else {
            snd.recovery.frto_stop();
        }
        snd.tail_probe = None;
        snd.tail_probe_at = None;
        snd.reorder_at = None;
        // RFC 2018 section 8: the segment at SND.UNA is missing, even if the guest SACKed it.
        if !self.sack || snd.board.head_is_sacked() {
            snd.board.forget_sacks();
        }
        if self.sack {
            snd.rack.detect_on_timeout(&mut snd.board, snd.rtt.srtt().unwrap_or_default(), now);
        } else {
            snd.board.mark_lost(|_| true);
        }
        // What RACK holds for in flight counts, so that exactly one segment may be sent.
        snd.cc.cwnd = snd.board.pipe() + snd.mss;
    }

    /// The reordering timer fired: data beyond a hole has waited for the reordering window (RFC 8985 section 6.2 step
    /// 5).
    fn on_reorder_timer(&mut self, now: Instant, stats: &mut Stats) {
        self.snd.reorder_at = None;
        let (flight, pipe) =
            (self.snd.board.outstanding().min(self.snd.cc.cwnd), self.snd.board.pipe());
        let lost = self.detect_loss(now);
        if lost > 0 && self.snd.recovery.phase == Phase::Open {
            self.begin_recovery(flight, pipe, stats);
        }
        // No byte was delivered, but lost runs lowered pipe.
        if self.snd.recovery.phase == Phase::Fast {
            self.reduce(0, false);
        }
    }

    /// Keep-alive: sends a probe, or aborts after [`KEEPALIVE_PROBES`] without an answer.
    fn on_keepalive(&mut self, stats: &mut Stats) -> Disposition {
        if self.keepalive_sent >= KEEPALIVE_PROBES {
            stats.add(Stat::TCPAbortOnTimeout);
            return Disposition::Abort;
        }
        stats.add(Stat::TCPKeepAlive);
        self.keepalive_sent += 1;
        self.probe_due = true;
        Disposition::Output
    }
}
