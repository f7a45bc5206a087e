//! A segment arrives: RFC 9293 section 3.10.7, one function per check. Each returns whether the next check follows.

use std::ops::ControlFlow::{self, Break, Continue};
use std::time::Duration;

use skbudget_controller::{Counter, Instant, Rules};

use crate::counters::{Stat, Stats};
use crate::queue::MemCtx;
use crate::queue::receive::Stored;
use crate::tcp::state::{Cause, State};
use crate::tcp::{Disposition, Tcb};
use crate::wire::segment::Segment;
use crate::wire::seq::Seq;

/// Shortest time between two ACKs that answer unacceptable segments without data (Linux `tcp_invalid_ratelimit` is 500
/// ms; a guest on this machine probes more often).
const OOW_INTERVAL: Duration = Duration::from_millis(100);

/// Outcome of a check: `Continue`, the next check follows; `Break`, the segment is dealt with.
pub(super) type Step = ControlFlow<Disposition>;

impl Tcb {
    /// Processes one segment from the guest; the answers leave with the next `output`.
    pub(crate) fn on_segment(
        &mut self,
        seg: &Segment<'_>,
        mem: &mut MemCtx<'_>,
        stats: &mut Stats,
    ) -> Disposition {
        let outcome = match self.state {
            State::Connecting => self.in_connecting(seg),
            State::SynSent => self.in_syn_sent(seg, mem, stats),
            _ => self.in_window_states(seg, mem, stats),
        };
        outcome.break_value().unwrap_or(Disposition::Output)
    }

    /// The host side is not connected yet: only a reset has an effect, the guest retransmits everything after its SYN.
    fn in_connecting(&self, seg: &Segment<'_>) -> Step {
        // The guest resets with the number of its SYN or the next one; other resets are not for this SYN.
        let ours = seg.seq == self.rcv.irs || seg.seq == self.rcv.irs + 1;
        if seg.flags.rst && ours { Break(Disposition::Reset) } else { Continue(()) }
    }

    /// RFC 9293 section 3.10.7.3.
    fn in_syn_sent(&mut self, seg: &Segment<'_>, mem: &mut MemCtx<'_>, stats: &mut Stats) -> Step {
        // First check (ACK), then second (RST), fourth (SYN).
        let acceptable = seg.ack.gt(self.snd.iss) && seg.ack.le(self.snd.nxt());
        if seg.flags.ack && !acceptable {
            return Break(Disposition::Refuse);
        }
        // A reset counts only with an acceptable ACK: otherwise it could be forged without knowing ISS.
        if seg.flags.rst {
            return Break(if seg.flags.ack { Disposition::Reset } else { Disposition::Output });
        }
        if !seg.flags.syn {
            return Break(Disposition::Output);
        }
        self.rcv.irs = seg.seq;
        let offset = self.ts;
        self.negotiate(&seg.options, offset, mem.now);
        self.last_heard = mem.now;
        self.snd.wl1 = seg.seq;
        self.snd.wl2 = seg.ack;
        // RFC 7323 section 2.2: the window field of a SYN or SYN-ACK is never scaled.
        self.snd.wnd = u32::from(seg.wnd);
        self.snd.wnd_max = self.snd.wnd;
        // A SYN without ACK is a simultaneous open (RFC 9293 section 3.5): SYN-RECEIVED, answer with SYN-ACK.
        let cause = if seg.flags.ack { Cause::SynAcked } else { Cause::SynCrossed };
        if let Some(next) = self.state.next(cause) {
            self.state = next;
        }
        self.rcv.ack_now = true;
        // Also clears a retransmission of our SYN that is due but did not leave because the device was full.
        self.syn_due = !seg.flags.ack;
        if self.syn_due {
            return Break(Disposition::Output);
        }
        // A SYN-ACK acknowledges our SYN: takes an RTT sample and stops the retransmission timer.
        self.take_ack(seg, mem, stats);
        Break(Disposition::Output)
    }

    /// RFC 9293 section 3.10.7.4: every state with a receive window.
    fn in_window_states(
        &mut self,
        seg: &Segment<'_>,
        mem: &mut MemCtx<'_>,
        stats: &mut Stats,
    ) -> Step {
        self.check_syn_again(seg)?;
        self.check_paws(seg, mem.now, stats)?;
        self.check_sequence(seg, mem, stats)?;
        self.check_reset(seg, mem.now, stats)?;
        self.check_syn(seg, mem.now, stats)?;
        // Fifth check: a segment without ACK is dropped.
        if !seg.flags.ack {
            return Break(Disposition::Output);
        }
        // The segment passed every check that proves the peer: the guest is alive (keep-alive, user timeout).
        self.last_heard = mem.now;
        self.keepalive_sent = 0;
        self.silent = 0;
        self.note_timestamp(seg, mem.now);
        // The ACK before the text: it may free send memory that storing the text needs.
        self.check_ack(seg, mem, stats)?;
        // Sixth check (URG) is left out: the relay has no out-of-band data.
        self.take_text(seg, mem, stats);
        self.take_fin(seg, mem)
    }

    /// Our SYN-ACK was lost: the guest retransmits its SYN.
    fn check_syn_again(&mut self, seg: &Segment<'_>) -> Step {
        if self.state == State::SynRcvd
            && seg.flags.syn
            && !seg.flags.ack
            && seg.seq == self.rcv.irs
        {
            // Before the sequence check, which would answer with a bare ACK; the guest in SYN-SENT needs the SYN-ACK.
            self.syn_due = true;
            return Break(Disposition::Output);
        }
        Continue(())
    }

    /// PAWS, RFC 7323 section 5.3 R1: before the sequence check. A reset is exempt (section 5.2).
    fn check_paws(&mut self, seg: &Segment<'_>, now: Instant, stats: &mut Stats) -> Step {
        let (Some(_), Some((tsval, _))) = (self.ts, seg.options.ts) else { return Continue(()) };
        if !seg.flags.rst && self.rcv.is_stale(tsval, now) {
            stats.add(Stat::PAWSEstab);
            self.answer_unacceptable(seg, now);
            return Break(Disposition::Output);
        }
        Continue(())
    }

    /// First check: does a part of the segment lie in the window?
    fn check_sequence(
        &mut self,
        seg: &Segment<'_>,
        mem: &mut MemCtx<'_>,
        stats: &mut Stats,
    ) -> Step {
        let (nxt, wnd) = (self.rcv.nxt(), self.rcv.wnd());
        let len = seg.seq_len();
        let in_window = |s: Seq| s.ge(nxt) && s.lt(nxt + wnd);
        // The four rows of the table in RFC 9293 section 3.10.7.4.
        let acceptable = match (len, wnd) {
            (0, 0) => seg.seq == nxt,
            (0, _) => in_window(seg.seq),
            (_, 0) => false,
            _ => {
                // First byte, last byte, or the segment covers the whole window.
                in_window(seg.seq) || in_window(seg.seq + (len - 1)) || {
                    seg.seq.lt(nxt) && (seg.seq + len).gt(nxt)
                }
            }
        };
        // With a closed window ACKs and resets still count (RFC 9293 section 3.10.7.4, note after the table).
        let at_edge = wnd == 0 && seg.seq == nxt;
        if acceptable || at_edge {
            if at_edge && !seg.payload.is_empty() {
                // Data into a closed window: a window probe with data. Answer at once; `take_text` trims the payload.
                mem.count(Counter::TCPZeroWindowDrop, 1);
                self.rcv.ack_now = true;
            }
            return Continue(());
        }
        // RFC 9293: an unacceptable reset gets no answer.
        if seg.flags.rst {
            return Break(Disposition::Output);
        }
        // Before the generic answer: the container checks the host side before the probe is answered.
        if self.is_keepalive(seg) {
            return Break(Disposition::KeepAlive);
        }
        stats.add(Stat::OutOfWindow);
        // Arrived twice: the next ACK reports it as DSACK (RFC 2883).
        if !seg.payload.is_empty() && seg.seq.lt(nxt) {
            self.rcv.note_duplicate(seg.seq, seg.payload.len());
        }
        self.answer_unacceptable(seg, mem.now);
        Break(Disposition::Output)
    }

    /// Requests an ACK that shows the guest the current RCV.NXT: always for a segment with data, SYN or FIN, at limited
    /// rate otherwise, so that two ends cannot answer each other's ACKs for ever.
    pub(crate) fn answer_unacceptable(&mut self, seg: &Segment<'_>, now: Instant) {
        if !self.is_limited(seg, now) {
            self.oow_at = Some(now);
            self.rcv.ack_now = true;
        }
    }

    /// True: the segment is a bare ACK and another one was answered less than `OOW_INTERVAL` ago.
    fn is_limited(&self, seg: &Segment<'_>, now: Instant) -> bool {
        seg.payload.is_empty()
            && !seg.flags.syn
            && !seg.flags.fin
            && self.oow_at.is_some_and(|at| now.since(at) < OOW_INTERVAL)
    }

    /// Second check, RFC 5961 section 3.2: the exact sequence number resets; one within the window gets a challenge
    /// ACK.
    fn check_reset(&mut self, seg: &Segment<'_>, now: Instant, stats: &mut Stats) -> Step {
        if !seg.flags.rst {
            return Continue(());
        }
        if seg.seq == self.rcv.nxt() {
            if self.state.synchronized() {
                stats.add(Stat::EstabResets);
            }
            return Break(Disposition::Reset);
        }
        Break(self.challenge(seg, now, stats))
    }

    /// Fourth check, RFC 5961 section 4.2: a SYN in a synchronized state gets a challenge ACK.
    fn check_syn(&mut self, seg: &Segment<'_>, now: Instant, stats: &mut Stats) -> Step {
        if !seg.flags.syn {
            return Continue(());
        }
        Break(self.challenge(seg, now, stats))
    }

    /// A challenge ACK, unless this flow sent one less than `OOW_INTERVAL` ago.
    pub(super) fn challenge(
        &mut self,
        seg: &Segment<'_>,
        now: Instant,
        stats: &mut Stats,
    ) -> Disposition {
        if self.is_limited(seg, now) {
            stats.add(Stat::TCPACKSkippedChallenge);
            return Disposition::Output;
        }
        self.oow_at = Some(now);
        Disposition::Challenge
    }

    /// Updates TS.Recent (RFC 7323 section 4.3).
    fn note_timestamp(&mut self, seg: &Segment<'_>, now: Instant) {
        if let (Some(_), Some((tsval, _))) = (self.ts, seg.options.ts)
            // Only a segment that covers Last.ACK.sent: with delayed ACKs the echo is then of the oldest unacknowledged
            // one.
            && seg.seq.le(self.rcv.ack_sent)
            && !self.rcv.is_stale(tsval, now)
        {
            self.rcv.note_timestamp(tsval, now);
        }
    }

    /// Seventh check: the segment text.
    fn take_text(&mut self, seg: &Segment<'_>, mem: &mut MemCtx<'_>, stats: &mut Stats) {
        if seg.payload.is_empty() || !self.state.receives() {
            return;
        }
        if self.ecn.on_data(seg) {
            stats.add(Stat::InCEPkts);
            // At once, as the kernel (`__tcp_ecn_check_ce`): the guest reacts to a mark within a round trip.
            self.rcv.ack_now = true;
        }
        // Trim bytes below RCV.NXT (received before) and beyond the advertised edge (not permitted).
        let nxt = self.rcv.nxt();
        let mut data = seg.payload;
        let mut offset = seg.seq.diff(nxt);
        // Before trimming: DSACK reports the bytes as they were sent. Without holes nothing beyond RCV.NXT is stored.
        if offset < 0 || self.rcv.q.has_holes() {
            self.rcv.note_duplicate(seg.seq, data.len());
        }
        if offset < 0 {
            let old = (offset.unsigned_abs() as usize).min(data.len());
            data = &data[old..];
            offset = 0;
            // Nothing new. The ACK for the guest was lost, or it retransmitted too early: acknowledge at once.
            if data.is_empty() {
                self.rcv.ack_now = true;
                return;
            }
        }
        let offset = u64::from(offset.unsigned_abs());
        let fits = u64::from(self.rcv.wnd()).saturating_sub(offset) as usize;
        data = &data[..data.len().min(fits)];
        // Text beyond the FIN's position contradicts the FIN: dropped.
        if self.rcv.fin.is_some_and(|fin| self.rcv.q.nxt() + offset + data.len() as u64 > fin) {
            return;
        }
        self.store(offset, data, mem);
    }

    /// Stores `data`, `offset` bytes beyond RCV.NXT, and counts what memory was refused for.
    fn store(&mut self, offset: u64, data: &[u8], mem: &mut MemCtx<'_>) {
        let need = offset + data.len() as u64;
        if self.rcv.q.room() < need {
            // A demoted flow (H3): the budget took back its credit while it was idle, so the charge is requested again.
            self.rcv.q.open(need, mem);
        }
        let stored = match mem.budget.rules() {
            Rules::Strict => self.rcv.q.store(offset, data, mem),
            Rules::Linux => self.rcv.store_or_prune(offset, data, mem),
        };
        self.count_stored(offset, &stored, mem);
        self.rcv.on_data(data.len() as u32 - stored.refused, stored.advanced > 0, mem.now);
    }

    /// Counts the outcome of a store by the kernel's names and requests the ACK that a refusal needs.
    fn count_stored(&mut self, offset: u64, stored: &Stored, mem: &mut MemCtx<'_>) {
        if stored.out_of_order {
            mem.count(Counter::TCPOFOQueue, 1);
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
        mem.count(counter, 1);
        self.rcv.drops = self.rcv.drops.saturating_add(1);
        if linux {
            // L6: advertise a zero window until memory is granted again.
            self.rcv.on_nomem();
        } else {
            // Strict rules: only a demoted flow can be refused. The ACK makes the guest retransmit soon.
            self.rcv.ack_now = true;
        }
    }

    /// Eighth check: the FIN, once every byte before it has arrived.
    fn take_fin(&mut self, seg: &Segment<'_>, mem: &mut MemCtx<'_>) -> Step {
        // The position is stored even if bytes are missing before the FIN: it takes effect when they arrive.
        if seg.flags.fin && self.rcv.fin.is_none() && self.state.receives() {
            let distance = (seg.seq + seg.payload.len() as u32).diff(self.rcv.nxt());
            if distance >= 0 {
                self.rcv.fin = Some(self.rcv.q.nxt() + u64::from(distance.unsigned_abs()));
            }
        }
        // Also for a retransmitted FIN: our ACK of it was lost.
        if seg.flags.fin {
            self.rcv.ack_now = true;
        }
        if self.rcv.fin != Some(self.rcv.q.nxt()) || self.rcv.fin_taken {
            return Continue(());
        }
        self.rcv.fin_taken = true;
        self.rcv.ack_now = true;
        // No byte can follow a FIN: return the credit of the window. The advertised edge stays as it is.
        self.rcv.q.close_to(0, mem);
        if let Some(next) = self.state.next(Cause::FinReceived) {
            self.state = next;
            if next == State::TimeWait {
                return Break(Disposition::TimeWait);
            }
        }
        Continue(())
    }
}
