//! A segment arrives: RFC 9293 section 3.10.7, check by check, each a function that says go on or done.

use std::time::Duration;

use skbudget_controller::{Counter, Instant, Rules};

use crate::counters::Stat;
use crate::segment::Segment;
use crate::seq::Seq;
use crate::tcp::state::{Cause, State};
use crate::tcp::{Disposition, Mem, Tcb};

/// ACKs that answer unacceptable segments without data: at most one in this time (Linux' tcp_invalid_ratelimit is
/// 500 ms; our guest is next door and probes sooner).
const OOW_INTERVAL: Duration = Duration::from_millis(100);

/// A check's outcome: go on, or the segment is dealt with.
pub(super) type Step = Result<(), Disposition>;

impl Tcb {
    pub(crate) fn on_segment(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Disposition {
        let outcome = match self.state {
            State::Connecting => self.in_connecting(seg),
            State::SynSent => self.in_syn_sent(seg, mem),
            _ => self.in_window_states(seg, mem),
        };
        outcome.err().unwrap_or(Disposition::Continue)
    }

    /// The host side is still being asked: only a reset matters, everything else the guest sends again.
    fn in_connecting(&self, seg: &Segment<'_>) -> Step {
        let ours = seg.seq == self.rcv.irs || seg.seq == self.rcv.irs + 1;
        if seg.flags.rst && ours { Err(Disposition::Reset) } else { Ok(()) }
    }

    /// Section 3.10.7.3.
    fn in_syn_sent(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Step {
        let acceptable = seg.ack.gt(self.snd.iss) && seg.ack.le(self.snd.nxt());
        if seg.flags.ack && !acceptable {
            return Err(Disposition::Refuse);
        }
        if seg.flags.rst {
            return Err(if seg.flags.ack { Disposition::Reset } else { Disposition::Continue });
        }
        if !seg.flags.syn {
            return Ok(());
        }
        self.rcv.irs = seg.seq;
        let offset = self.ts;
        self.negotiate(&seg.options, offset, mem.now);
        self.last_heard = mem.now;
        self.snd.wl1 = seg.seq;
        self.snd.wl2 = seg.ack;
        self.snd.wnd = u32::from(seg.wnd);
        self.snd.wnd_max = self.snd.wnd;
        let cause = if seg.flags.ack { Cause::SynAcked } else { Cause::SynCrossed };
        if let Some(next) = self.state.next(cause) {
            self.state = next;
        }
        self.rcv.ack_now = true;
        // It may have been due again, and not have left for want of room in the device.
        self.syn_due = !seg.flags.ack;
        if self.syn_due {
            return Ok(());
        }
        self.take_ack(seg, mem);
        Err(Disposition::Established)
    }

    /// Section 3.10.7.4: every state with a receive window.
    fn in_window_states(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Step {
        self.check_syn_again(seg)?;
        self.check_paws(seg, mem)?;
        self.check_sequence(seg, mem)?;
        self.check_reset(seg, mem)?;
        self.check_syn(seg, mem)?;
        if !seg.flags.ack {
            return Ok(());
        }
        self.last_heard = mem.now;
        self.keepalive_sent = 0;
        self.silent = 0;
        self.note_timestamp(seg, mem.now);
        let established = self.check_ack(seg, mem)?;
        self.take_text(seg, mem);
        self.take_fin(seg, mem)?;
        if established { Err(Disposition::Established) } else { Ok(()) }
    }

    /// Our SYN-ACK was lost: the guest says its SYN again.
    fn check_syn_again(&mut self, seg: &Segment<'_>) -> Step {
        if self.state == State::SynRcvd
            && seg.flags.syn
            && !seg.flags.ack
            && seg.seq == self.rcv.irs
        {
            self.syn_due = true;
            return Err(Disposition::Continue);
        }
        Ok(())
    }

    /// RFC 7323 section 5.3, R1.
    fn check_paws(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Step {
        let (Some(_), Some((tsval, _))) = (self.ts, seg.options.ts) else { return Ok(()) };
        if !seg.flags.rst && self.rcv.is_stale(tsval, mem.now) {
            mem.stats.add(Stat::PAWSEstab);
            self.answer_unacceptable(seg, mem.now);
            return Err(Disposition::Continue);
        }
        Ok(())
    }

    /// First check: is any of it in the window?
    fn check_sequence(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Step {
        let (nxt, wnd) = (self.rcv.nxt(), self.rcv.wnd());
        let len = seg.seq_len();
        let in_window = |s: Seq| s.ge(nxt) && s.lt(nxt + wnd);
        let acceptable = match (len, wnd) {
            (0, 0) => seg.seq == nxt,
            (0, _) => in_window(seg.seq),
            (_, 0) => false,
            _ => {
                in_window(seg.seq) || in_window(seg.seq + (len - 1)) || {
                    seg.seq.lt(nxt) && (seg.seq + len).gt(nxt)
                }
            }
        };
        // With a closed window ACKs and resets still count (section 3.10.7.4, note after the table).
        let at_edge = wnd == 0 && seg.seq == nxt;
        if acceptable || at_edge {
            if at_edge && !seg.payload.is_empty() {
                mem.budget.count(mem.ledger.member(), Counter::TCPZeroWindowDrop, 1);
                self.rcv.ack_now = true;
            }
            return Ok(());
        }
        if seg.flags.rst {
            return Err(Disposition::Continue);
        }
        if self.is_keepalive(seg) {
            return Err(Disposition::KeepAlive);
        }
        mem.stats.add(Stat::OutOfWindow);
        if !seg.payload.is_empty() && seg.seq.lt(nxt) {
            self.rcv.note_duplicate(seg.seq, seg.payload.len());
        }
        self.answer_unacceptable(seg, mem.now);
        Err(Disposition::Continue)
    }

    /// An ACK that tells the guest where we stand: always for data, limited for what has none, so that two ends
    /// cannot keep each other busy.
    pub(crate) fn answer_unacceptable(&mut self, seg: &Segment<'_>, now: Instant) {
        if !self.is_limited(seg, now) {
            self.oow_at = Some(now);
            self.rcv.ack_now = true;
        }
    }

    fn is_limited(&self, seg: &Segment<'_>, now: Instant) -> bool {
        seg.payload.is_empty()
            && !seg.flags.syn
            && !seg.flags.fin
            && self.oow_at.is_some_and(|at| now.since(at) < OOW_INTERVAL)
    }

    /// Second check, RFC 5961 section 3.2: an exact sequence number resets, one in the window is challenged.
    fn check_reset(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Step {
        if !seg.flags.rst {
            return Ok(());
        }
        if seg.seq == self.rcv.nxt() {
            if self.state.synchronized() {
                mem.stats.add(Stat::EstabResets);
            }
            return Err(Disposition::Reset);
        }
        Err(self.challenge(seg, mem))
    }

    /// Fourth check, RFC 5961 section 4.2.
    fn check_syn(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Step {
        if !seg.flags.syn {
            return Ok(());
        }
        Err(self.challenge(seg, mem))
    }

    /// A challenge ACK, unless this flow had one a moment ago.
    pub(super) fn challenge(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Disposition {
        if self.is_limited(seg, mem.now) {
            mem.stats.add(Stat::TCPACKSkippedChallenge);
            return Disposition::Continue;
        }
        self.oow_at = Some(mem.now);
        Disposition::Challenge
    }

    /// RFC 7323 section 4.3.
    fn note_timestamp(&mut self, seg: &Segment<'_>, now: Instant) {
        if let (Some(_), Some((tsval, _))) = (self.ts, seg.options.ts)
            && seg.seq.le(self.rcv.ack_sent)
            && !self.rcv.is_stale(tsval, now)
        {
            self.rcv.note_timestamp(tsval, now);
        }
    }

    /// Seventh: the text.
    fn take_text(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) {
        if seg.payload.is_empty() || !self.state.receives() {
            return;
        }
        if self.ecn.on_data(seg) {
            mem.stats.add(Stat::InCEPkts);
            self.rcv.ack_now = true;
        }
        // What is before RCV.NXT was taken already, what is beyond the edge was never invited.
        let nxt = self.rcv.nxt();
        let mut data = seg.payload;
        let mut offset = seg.seq.diff(nxt);
        if offset < 0 || self.rcv.q.has_holes() {
            self.rcv.note_duplicate(seg.seq, data.len());
        }
        if offset < 0 {
            let old = (offset.unsigned_abs() as usize).min(data.len());
            data = &data[old..];
            offset = 0;
            if data.is_empty() {
                self.rcv.ack_now = true;
                return;
            }
        }
        let offset = u64::from(offset.unsigned_abs());
        let fits = u64::from(self.rcv.wnd()).saturating_sub(offset) as usize;
        data = &data[..data.len().min(fits)];
        if self.rcv.fin.is_some_and(|fin| self.rcv.q.nxt() + offset + data.len() as u64 > fin) {
            return;
        }
        self.store(offset, data, mem);
    }

    fn store(&mut self, offset: u64, data: &[u8], mem: &mut Mem<'_>) {
        let need = offset + data.len() as u64;
        if self.rcv.q.room() < need {
            // A demoted flow (H3): its credit was written off while idle; the charge is asked for again.
            self.rcv.q.open(need, mem.budget, mem.ledger, mem.now);
        }
        let mut stored = self.rcv.q.store(offset, data, mem.pool, mem.budget, mem.ledger, mem.now);
        if stored.refused > 0 && mem.budget.rules() == Rules::Linux {
            mem.budget.count(mem.ledger.member(), Counter::PruneCalled, 1);
            if self.rcv.q.prune_ofo(mem.pool, mem.budget, mem.ledger, mem.now) {
                mem.budget.count(mem.ledger.member(), Counter::OfoPruned, 1);
                let kept = data.len() - stored.refused as usize;
                let again = self.rcv.q.store(
                    offset + kept as u64 * u64::from(offset > 0),
                    &data[kept..],
                    mem.pool,
                    mem.budget,
                    mem.ledger,
                    mem.now,
                );
                stored.advanced += again.advanced;
                stored.refused = again.refused;
            }
        }
        self.count_stored(offset, &stored, mem);
        self.rcv.on_data(data.len() as u32 - stored.refused, stored.advanced > 0, mem.now);
    }

    fn count_stored(&mut self, offset: u64, stored: &crate::rxq::Stored, mem: &mut Mem<'_>) {
        let member = mem.ledger.member();
        if stored.out_of_order {
            mem.budget.count(member, Counter::TCPOFOQueue, 1);
        }
        if stored.refused == 0 {
            return;
        }
        let linux = mem.budget.rules() == Rules::Linux;
        let counter = match (offset > 0, linux) {
            (true, _) => Counter::TCPOFODrop,
            (false, true) => Counter::TCPRcvQDrop,
            (false, false) => Counter::DemotedTrim,
        };
        mem.budget.count(member, counter, 1);
        if linux {
            mem.budget.count(member, Counter::RcvPruned, 1);
            self.rcv.on_nomem();
        } else {
            self.rcv.ack_now = true;
        }
    }

    /// Eighth: the FIN, once every byte before it is here.
    fn take_fin(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) -> Step {
        if seg.flags.fin && self.rcv.fin.is_none() && self.state.receives() {
            let distance = (seg.seq + seg.payload.len() as u32).diff(self.rcv.nxt());
            if distance >= 0 {
                self.rcv.fin = Some(self.rcv.q.nxt() + u64::from(distance.unsigned_abs()));
            }
        }
        if seg.flags.fin {
            self.rcv.ack_now = true;
        }
        if self.rcv.fin != Some(self.rcv.q.nxt()) || self.rcv.fin_taken {
            return Ok(());
        }
        self.rcv.fin_taken = true;
        self.rcv.ack_now = true;
        // Nothing can come after a FIN: what the window holds is given back. The window itself stays as advertised.
        self.rcv.q.close_to(0, mem.budget, mem.ledger, mem.now);
        if let Some(next) = self.state.next(Cause::FinReceived) {
            self.state = next;
            if next == State::TimeWait {
                return Err(Disposition::TimeWait);
            }
        }
        Ok(())
    }
}
