//! Timers of a flow: retransmission or persist (one at a time), delayed ACK, keep-alive. Deadlines are fields; the
//! container keeps one queue of them.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::counters::Stat;
use crate::tcp::state::State;
use crate::tcp::{Disposition, Mem, Tcb};

/// Linux' tcp_retries2: about 15 minutes.
const RETRIES_MAX: u32 = 15;
/// Linux' tcp_synack_retries / tcp_syn_retries.
const SYN_RETRIES_MAX: u32 = 5;
/// Linux' tcp_keepalive_probes and _intvl.
const KEEPALIVE_PROBES: u32 = 9;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);

impl Tcb {
    /// The earliest time at which `on_timer` has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.snd.timer, self.rcv.delack_at, self.idle_deadline()].into_iter().flatten().min()
    }

    fn idle_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Established | State::CloseWait | State::FinWait2 if self.snd.timer.is_none() => {
                let wait = if self.keepalive_sent == 0 {
                    self.link.keepalive
                } else {
                    self.link.keepalive + KEEPALIVE_INTERVAL * self.keepalive_sent
                };
                Some(self.last_heard + wait)
            }
            _ => None,
        }
    }

    pub(crate) fn on_timer(&mut self, mem: &mut Mem<'_>) -> Disposition {
        let due = |t: Option<Instant>| t.is_some_and(|t| t <= mem.now);
        if due(self.rcv.delack_at) {
            mem.stats.add(Stat::DelayedACKs);
            self.rcv.on_delack();
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
        let retries = if syn { SYN_RETRIES_MAX } else { RETRIES_MAX };
        // A guest that answers probes of a closed window may keep it closed for ever (RFC 1122 section 4.2.2.17):
        // only silence counts.
        self.silent += 1;
        if self.silent > retries {
            mem.stats.add(Stat::TCPAbortOnTimeout);
            return Disposition::Abort;
        }
        // A window may close over what is in flight: a guest without memory drops it and says zero. It is asked as any
        // closed window is, and what it lacks is said again when it opens.
        let closed = self.snd.wnd == 0 && !self.snd.q.is_empty();
        if (self.snd.max == self.snd.una || closed) && !syn {
            mem.stats.add(Stat::TCPWinProbe);
            self.go_back();
            // RFC 9293 section 3.8.6.2.1: the override timer sends into a window that stays small.
            self.force_small = self.snd.wnd > 0;
            self.probe_due = !self.force_small;
            self.snd.timer = Some(mem.now + self.snd.persist_delay());
            return Disposition::Continue;
        }
        mem.stats.add(Stat::TCPTimeouts);
        self.snd.cc.on_timeout(self.snd.flight(), self.snd.mss);
        self.go_back();
        self.syn_due = syn;
        self.snd.restart_timer(mem.now);
        Disposition::Continue
    }

    /// RFC 5681 section 3.1: begin again at SND.UNA; what the guest has it acknowledges at once.
    fn go_back(&mut self) {
        self.snd.timed = None;
        self.snd.dupacks = 0;
        self.snd.recover = None;
        self.snd.nxt = self.snd.una;
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
