//! Timers of a flow: retransmission or persist (one at a time), delayed ACK, keep-alive. Deadlines are fields; the
//! container keeps one queue of them.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::counters::Stat;
use crate::tcp::recovery::Phase;
use crate::tcp::state::State;
use crate::tcp::{Disposition, Mem, Tcb};

/// Linux' tcp_synack_retries / tcp_syn_retries.
const SYN_RETRIES_MAX: u32 = 5;
/// Linux' tcp_keepalive_probes and _intvl.
const KEEPALIVE_PROBES: u32 = 9;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);

/// A guest's kernel forgets a socket that its process has closed after 60 s in FIN-WAIT-2 (Linux' tcp_fin_timeout), and
/// sends nothing then. A host that never ends its stream would keep such a flow, and its charge, for two hours. Asked
/// after that time, a guest that only ended its own stream answers, and one that has forgotten the socket resets.
const CLOSE_WAIT_IDLE: Duration = Duration::from_secs(61);

impl Tcb {
    /// The earliest time at which `on_timer` has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let Self { snd, rcv, .. } = self;
        [snd.timer, snd.tail_probe_at, snd.reorder_at, rcv.delack_at, self.idle_deadline()]
            .iter()
            .filter_map(|t| *t)
            .min()
    }

    fn idle_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Established | State::CloseWait | State::FinWait2 if self.snd.timer.is_none() => {
                let idle = match self.state {
                    State::CloseWait => self.link.keepalive.min(CLOSE_WAIT_IDLE),
                    _ => self.link.keepalive,
                };
                let wait = idle + KEEPALIVE_INTERVAL * self.keepalive_sent;
                Some(self.last_heard.max(self.probed_at) + wait)
            }
            _ => None,
        }
    }

    pub(crate) fn on_timer(&mut self, mem: &mut Mem<'_>) -> Disposition {
        let now = mem.now;
        let due = |t: Option<Instant>| t.is_some_and(|t| t <= now);
        if due(self.rcv.delack_at) {
            mem.stats.add(Stat::DelayedACKs);
            self.rcv.on_delack();
        }
        if due(self.snd.reorder_at) {
            self.on_reorder_timer(mem);
        }
        if due(self.snd.tail_probe_at) {
            self.on_tail_probe_timer(mem);
        }
        if due(self.snd.timer) {
            return self.on_send_timer(mem);
        }
        if due(self.idle_deadline()) {
            return self.on_keepalive(mem);
        }
        Disposition::Continue
    }

    fn on_send_timer(&mut self, mem: &mut Mem<'_>) -> Disposition {
        self.snd.timer = None;
        self.snd.rtt.back_off();
        let syn = matches!(self.state, State::SynSent | State::SynRcvd);
        // A guest that answers probes of a closed window may keep it closed for ever (RFC 1122 section 4.2.2.17):
        // only silence counts.
        if self.silent == 0 {
            self.silent_since = mem.now;
        }
        self.silent += 1;
        let over = if syn {
            self.silent > SYN_RETRIES_MAX
        } else {
            mem.now.since(self.silent_since) >= self.link.user_timeout
        };
        if over {
            mem.stats.add(Stat::TCPAbortOnTimeout);
            return Disposition::Abort;
        }
        // A window may close over what is in flight: a guest without memory drops it and says zero. It is asked as any
        // closed window is, and what it lacks is said again when it opens.
        let outstanding = self.snd.board.outstanding() > 0;
        let closed = self.snd.wnd == 0 && !self.snd.q.is_empty();
        if (!outstanding || closed) && !syn {
            mem.stats.add(Stat::TCPWinProbe);
            self.snd.board.lose(|_| true);
            // RFC 9293 section 3.8.6.2.1: the override timer sends into a window that stays small.
            self.force_small = self.snd.wnd > 0;
            self.probe_due = !self.force_small;
            self.snd.timer = Some(mem.now + self.snd.persist_delay());
            return Disposition::Continue;
        }
        mem.stats.add(Stat::TCPTimeouts);
        self.syn_due = syn;
        if !syn {
            self.lose_on_timeout(mem.now);
        }
        self.snd.restart_timer(mem.now);
        Disposition::Continue
    }

    /// RFC 5681 section 3.1: one segment, and slow start from there (the loss window). The threshold goes down once for
    /// a loss, however it was seen and however often it is repaired.
    fn lose_on_timeout(&mut self, now: Instant) {
        let snd = &mut self.snd;
        let (nxt, pipe) = (snd.nxt(), snd.board.pipe());
        let flight = snd.board.outstanding().min(snd.cc.cwnd);
        let before = snd.cc;
        if snd.recovery.phase == Phase::Open {
            snd.cc.on_loss(flight, snd.mss, true);
            self.ecn.on_reduced(nxt);
        }
        if snd.recovery.phase != Phase::Timeout {
            snd.recovery.begin(Phase::Timeout, before, &snd.board, pipe);
        } else {
            snd.recovery.stop_asking();
        }
        snd.tail_probe = None;
        snd.tail_probe_at = None;
        snd.reorder_at = None;
        // RFC 2018 section 8: whatever the guest said of it, what is at SND.UNA is missing.
        if !self.sack || snd.board.head_is_sacked() {
            snd.board.forget_sacks();
        }
        if self.sack {
            snd.rack.detect_on_timeout(&mut snd.board, snd.rtt.srtt().unwrap_or_default(), now);
        } else {
            snd.board.lose(|_| true);
        }
        snd.cc.cwnd = snd.board.pipe() + snd.mss;
    }

    /// What was behind a hole has had its time.
    fn on_reorder_timer(&mut self, mem: &mut Mem<'_>) {
        self.snd.reorder_at = None;
        let (flight, pipe) =
            (self.snd.board.outstanding().min(self.snd.cc.cwnd), self.snd.board.pipe());
        let lost = self.detect_loss(mem.now);
        if lost > 0 && self.snd.recovery.phase == Phase::Open {
            self.begin_recovery(flight, pipe, mem);
        }
        if self.snd.recovery.phase == Phase::Fast {
            self.reduce(0, false);
        }
    }

    fn on_keepalive(&mut self, mem: &mut Mem<'_>) -> Disposition {
        if self.keepalive_sent >= KEEPALIVE_PROBES {
            mem.stats.add(Stat::TCPAbortOnTimeout);
            return Disposition::Abort;
        }
        mem.stats.add(Stat::TCPKeepAlive);
        self.keepalive_sent += 1;
        self.probe_due = true;
        Disposition::Continue
    }
}
