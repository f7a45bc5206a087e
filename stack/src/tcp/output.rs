//! Sends what the block wants sent now, in this order: SYN, probes, lost data, new data, FIN, ACK.

use std::io::IoSlice;

use skbudget_controller::Instant;

use crate::counters::{Stat, Stats};
use crate::queue::MemCtx;
use crate::queue::send::PARTS_MAX;
use crate::tcp::Tcb;
use crate::tcp::recovery::Phase;
use crate::tcp::scoreboard::Range;
use crate::tcp::state::{Cause, State};
use crate::tcp::tlp::TailProbe;
use crate::wire::segment::{Flags, Options, Outgoing};
use crate::wire::seq::Seq;

/// Payload of a super-frame, bytes: IPv4's length field less headers with all options.
const SUPER_MAX: usize = 65_535 - 20 - 60;
/// Most bytes and frames of one flow in one turn: other flows get their turn before it continues. The bound in bytes is
/// the main one: a bound of a few frames would permit little data when frames are small, too little for the cost of a
/// turn and far less than the guest sends in the same turn.
const BYTES_PER_TURN: usize = 4 * SUPER_MAX;
const FRAMES_PER_TURN: usize = 64;

/// Takes a segment and its payload; returns false if the device is full.
pub(crate) type Emit<'e> = &'e mut dyn FnMut(&Outgoing, &[IoSlice<'_>]) -> bool;

/// How [`Tcb::output`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Output {
    /// More can be sent in this state: call again next turn.
    pub(crate) more: bool,
    /// The device refused a frame: call again when it is writable.
    pub(crate) device_full: bool,
    /// The budget refused memory: the receive window is smaller than the flow's target.
    pub(crate) short: bool,
}

impl Tcb {
    /// Sends all that the windows, the device and the bound of a turn allow, and last a bare ACK if one is still due.
    pub(crate) fn output(
        &mut self,
        mem: &mut MemCtx<'_>,
        stats: &mut Stats,
        emit: Emit<'_>,
    ) -> Output {
        let (now, mut out) = (mem.now, Output::default());
        if matches!(self.state, State::Connecting | State::Closed | State::TimeWait) {
            return out;
        }
        // Only when a segment is certain or the host took data: each call may charge memory.
        if self.syn_due || self.rcv.ack_now || self.rcv.moved {
            out.short = self.rcv.advance_edge(mem);
        }
        // Before any segment leaves: `count_window` compares it with the field after the last one.
        let before = self.rcv.advertised_field();
        // Data segments carry the ACK, so a bare ACK comes last and only if it is still due.
        let sent = self.send_due(now, stats, emit).and_then(|()| self.send_data(now, stats, emit));
        match sent {
            Some(more) => out.more = more,
            None => out.device_full = true,
        }
        let update = self.state.receives() && self.rcv.wants_update();
        // In SYN-SENT there is no RCV.NXT; a pending SYN-ACK carries the ACK itself.
        if self.state != State::SynSent && !self.syn_due && (self.rcv.ack_now || update) {
            let ack = self.outgoing(self.snd.nxt(), Flags::ACK, now);
            if emit(&ack, &[]) {
                self.rcv.on_ack_sent(false);
            } else {
                // The guest still needs the ACK: kept for the turn in which the device has room.
                self.rcv.ack_now = true;
                out.device_full = true;
            }
        }
        if self.state.receives() {
            self.rcv.count_window(before, mem);
        }
        // FlightSize for the ACKs that arrive before the next `output` (RFC 5681).
        self.snd.flight_at_output = self.snd.board.outstanding();
        out
    }

    /// Sends the SYN and the probes that are due. `None`: the device is full.
    fn send_due(&mut self, now: Instant, stats: &mut Stats, emit: Emit<'_>) -> Option<()> {
        if self.syn_due {
            self.send_syn(now, stats, emit)?;
        }
        if self.probe_due {
            self.probe_due = false;
            // SND.UNA - 1 is never acceptable, so the guest always answers (Linux `tcp_xmit_probe_skb`).
            let probe = self.outgoing(self.snd.una() - 1, Flags::ACK, now);
            if !emit(&probe, &[]) {
                self.probe_due = true;
                return None;
            }
        }
        if self.tail_probe_due && self.state.sends() {
            self.send_tail_probe(now, stats, emit)?;
        }
        // Not repeated if there was nothing to probe with: `arm_tail_probe` sets the next one.
        self.tail_probe_due = false;
        Some(())
    }

    /// Sends the SYN or SYN-ACK. `None`: the device is full.
    fn send_syn(&mut self, now: Instant, stats: &mut Stats, emit: Emit<'_>) -> Option<()> {
        let flags = match self.state {
            State::SynSent => Flags::SYN,
            // RFC 3168 section 6.1.1: an ECN-setup SYN-ACK has ECE set and CWR clear.
            _ => Flags { ece: self.ecn.on, ..Flags::SYN_ACK },
        };
        let offered = self.state == State::SynSent;
        let mut seg = self.outgoing(self.snd.iss, flags, now);
        seg.options.mss = Some(self.link.mss);
        // RFC 7323 section 2.2: a SYN-ACK carries the option only if the SYN did (`negotiate` sets the shift to 0).
        seg.options.wscale = (offered || self.rcv.wscale > 0).then_some(super::WSCALE);
        seg.options.sack_permitted = self.sack;
        seg.options.sack = [None; 3];
        // RFC 7323 section 2.2: the window of a SYN is never scaled.
        seg.wnd = u16::try_from(self.rcv.wnd()).unwrap_or(u16::MAX);
        if !emit(&seg, &[]) {
            return None;
        }
        self.syn_due = false;
        let board = &mut self.snd.board;
        // The SYN occupies one sequence number; it is outstanding from the first transmission on.
        if board.outstanding() == 0 {
            board.sent(1, now, 0);
        } else {
            stats.add(Stat::RetransSegs);
            board.retransmitted(Range { start: board.una(), end: board.nxt() }, now, 0);
        }
        self.snd.restart_timer(now);
        self.rcv.on_ack_sent(false);
        Some(())
    }

    /// Sends lost ranges, then new data and FIN from SND.NXT on, as far as the windows allow. `None`: the device is
    /// full; `Some(true)`: more can be sent next turn.
    fn send_data(&mut self, now: Instant, stats: &mut Stats, emit: Emit<'_>) -> Option<bool> {
        if !self.state.sends() {
            return Some(false);
        }
        // Only with data to send: a flow that stays silent keeps its window until then (RFC 5681 section 4.1).
        if self.snd.board.outstanding() == 0 && self.sendable(self.snd.unsent(), now) > 0 {
            self.snd.restart_after_idle(now);
        }
        let mut left = BYTES_PER_TURN;
        let mut sent_new = false;
        for _ in 0..FRAMES_PER_TURN {
            if left == 0 {
                break;
            }
            // Lost data first: the guest's in-order edge waits for it.
            if let Some(range) = self.sendable_again(now) {
                left = left.saturating_sub(range.len() as usize);
                self.send_again(range, now, stats, emit)?;
                if self.snd.recovery.phase == Phase::Fast {
                    stats.add(Stat::TCPFastRetrans);
                }
                continue;
            }
            let unsent = self.snd.unsent();
            let len = self.sendable(unsent, now);
            // The FIN rides on the last byte and needs no window of its own.
            let fin = self.snd.fin && len == unsent && self.fin_unsent(len);
            if len == 0 && !fin {
                // F-RTO had no new data to send and ends (RFC 5682 section 2.1 step 2b): try the lost ranges.
                if self.snd.recovery.frto_has_no_new_data() {
                    continue;
                }
                // Data waits and nothing is in flight that an ACK could answer: the persist timer probes the window.
                if unsent > 0 && self.snd.timer.is_none() {
                    self.snd.timer = Some(now + self.snd.persist_delay());
                }
                self.arm_after(sent_new, now);
                return Some(false);
            }
            self.send_new(len, fin, now, emit)?;
            sent_new = true;
            // The override of the persist timer allows one small segment (RFC 9293 section 3.8.6.2.1).
            self.force_small = false;
            left = left.saturating_sub(len);
        }
        self.arm_after(sent_new, now);
        Some(true)
    }

    /// Schedules a tail loss probe if new data left (RFC 8985 section 7.2).
    fn arm_after(&mut self, sent_new: bool, now: Instant) {
        if sent_new {
            self.arm_tail_probe(now);
        }
    }

    /// The part of the first lost range that may be retransmitted now. At SND.UNA a window smaller than a segment is
    /// used, too: the guest may wait for these bytes only.
    fn sendable_again(&self, now: Instant) -> Option<Range> {
        let snd = &self.snd;
        // F-RTO sends new data first to find out whether the timeout was spurious.
        if snd.recovery.frto_holds_back() {
            return None;
        }
        let lost = snd.board.first_lost()?;
        let mss = self.segment_payload(now) as u32;
        let quota = snd.cc.cwnd.saturating_sub(snd.board.pipe());
        // Bytes from the start of the range to the right edge of the guest's window, which may have shrunk.
        let beyond = (snd.una() + snd.wnd).diff(lost.start).max(0).cast_unsigned();
        let first = lost.start == snd.una() && snd.wnd > 0;
        let window = if first { beyond.max(snd.wnd.min(mss)) } else { beyond };
        let most = quota.min(window).min(self.frame_max(mss as usize) as u32);
        if lost.len() <= most {
            return Some(lost);
        }
        // Whole segments, so that a super-frame divides evenly; less only in a window below one segment.
        let len = if most >= mss {
            most / mss * mss
        } else if first && window < mss {
            most
        } else {
            0
        };
        (len > 0).then_some(Range { end: lost.start + len, ..lost })
    }

    /// Retransmits `range`, which lies within one run of the board. `None`: the device is full.
    fn send_again(
        &mut self,
        range: Range,
        now: Instant,
        stats: &mut Stats,
        emit: Emit<'_>,
    ) -> Option<()> {
        // The FIN occupies one number of the range but no byte of the queue.
        let fin = self.snd.fin_seq().is_some_and(|fin| fin.lt(range.end));
        self.send_range(range.start, range.len() as usize - usize::from(fin), fin, now, emit)?;
        let chunks = self.snd.q.chunks();
        self.snd.board.retransmitted(range, now, chunks);
        // The TSval of the first retransmission: Eifel detection compares echoes with it (RFC 3522).
        let tsval = self.ts.map(|_| self.ts_now(now));
        self.snd.recovery.on_sent_again(range.len(), tsval);
        self.snd.retrans = self.snd.retrans.saturating_add(1);
        stats.add(Stat::RetransSegs);
        Some(())
    }

    /// Sends the next `len` bytes from SND.NXT on, with FIN if `fin`. `None`: the device is full.
    fn send_new(&mut self, len: usize, fin: bool, now: Instant, emit: Emit<'_>) -> Option<()> {
        self.send_range(self.snd.nxt(), len, fin, now, emit)?;
        let chunks = self.snd.q.chunks();
        self.snd.board.sent(len as u32 + u32::from(fin), now, chunks);
        self.snd.recovery.on_sent_new();
        if fin && let Some(next) = self.state.next(Cause::SendFin) {
            self.state = next;
        }
        Some(())
    }

    /// RFC 8985 section 7.3: sends one segment, new data if the window has room for it, otherwise the last one again.
    fn send_tail_probe(&mut self, now: Instant, stats: &mut Stats, emit: Emit<'_>) -> Option<()> {
        let mss = self.segment_payload(now);
        // The congestion window does not count: a probe may exceed it by one segment.
        let room = self.snd.wnd.saturating_sub(self.snd.board.outstanding()) as usize;
        let unsent = self.snd.unsent().min(mss);
        let again = unsent == 0 || room < unsent;
        if !again {
            self.send_new(unsent, false, now, emit)?;
        } else if let Some(range) = self.snd.board.tail(mss as u32) {
            // The last bytes that are neither acknowledged nor SACKed.
            self.send_again(range, now, stats, emit)?;
        } else {
            return Some(());
        }
        stats.add(Stat::TCPLossProbes);
        // `again` decides what an ACK proves (RFC 8985 section 7.4).
        self.snd.tail_probe = Some(TailProbe { end: self.snd.nxt(), again });
        Some(())
    }

    /// The FIN is due right after the next `len` bytes and was not sent before.
    fn fin_unsent(&self, len: usize) -> bool {
        self.snd.fin_seq() == Some(self.snd.nxt() + len as u32)
    }

    /// Payload of the largest frame, bytes: a multiple of `mss`.
    fn frame_max(&self, mss: usize) -> usize {
        if self.link.offload { (SUPER_MAX / mss).max(1) * mss } else { mss }
    }

    /// Bytes of the next frame: bounded by windows and frame size, with sender-side silly-window avoidance (RFC 9293
    /// section 3.8.6.2.1).
    fn sendable(&self, unsent: usize, now: Instant) -> usize {
        let snd = &self.snd;
        let outstanding = snd.board.outstanding();
        let quota = snd.cc.cwnd.saturating_sub(snd.board.pipe());
        // The guest's window counts from SND.UNA; the congestion window counts only bytes in flight (RFC 6675's pipe).
        let window = snd.wnd.saturating_sub(outstanding).min(quota) as usize;
        let mss = self.segment_payload(now);
        let frame = self.frame_max(mss);
        let len = unsent.min(window).min(frame);
        // No Nagle: the host side already sent these bytes, so holding back the last ones gains nothing.
        if len == unsent || len == frame {
            return len;
        }
        // Window-limited: whole segments only.
        if len >= mss {
            return len / mss * mss;
        }
        // Less than a segment: only with nothing in flight, and then half of the largest window seen, or any length
        // after the override of the persist timer.
        let half = snd.wnd_max as usize / 2;
        let worth = len >= half || self.force_small;
        if outstanding == 0 && len > 0 && worth { len } else { 0 }
    }

    /// Payload bytes of one segment, less the SACK blocks it carries now.
    fn segment_payload(&self, now: Instant) -> usize {
        if !self.sends_sack_blocks() {
            return self.snd.mss as usize;
        }
        // `snd.mss` excludes the timestamps already.
        let ts = if self.ts.is_some() { 12 } else { 0 };
        let extra = self.options(now).len() - ts;
        (self.snd.mss as usize).saturating_sub(extra).max(1)
    }

    /// Sends `len` bytes from `seq` on, with FIN if `fin`. `None`: the device is full.
    fn send_range(
        &mut self,
        seq: Seq,
        len: usize,
        fin: bool,
        now: Instant,
        emit: Emit<'_>,
    ) -> Option<()> {
        let offset = seq.diff(self.snd.data_start()).max(0) as usize;
        // PSH at the end of the queue: the guest's application gets all queued data.
        let last = offset + len == self.snd.q.len();
        // RFC 3168 sections 6.1.2 and 6.1.5: retransmissions carry neither ECT nor CWR.
        let ect = self.ecn.on && len > 0 && seq == self.snd.nxt();
        let cwr = ect && self.ecn.reduced;
        let flags = Flags { fin, psh: last && len > 0, cwr, ..Flags::ACK };
        let mut seg = self.outgoing(seq, flags, now);
        (seg.mss, seg.ect) = (self.segment_payload(now) as u16, ect);
        let mut parts = [IoSlice::new(&[]); PARTS_MAX];
        let count = self.snd.q.slices(offset, len, &mut parts);
        if !emit(&seg, &parts[..count]) {
            return None;
        }
        // Cleared only after the device took the segment that carries CWR.
        self.ecn.reduced &= !cwr;
        // RFC 6298 (5.1): the timer starts with the first segment in flight.
        if self.snd.timer.is_none() {
            self.snd.restart_timer(now);
        }
        self.snd.sent_at = now;
        self.snd.recovery.on_sent(len as u32 + u32::from(fin));
        self.rcv.on_ack_sent(len > 0);
        Some(())
    }

    /// A segment with the current ACK, window and options, without payload.
    fn outgoing(&self, seq: Seq, flags: Flags, now: Instant) -> Outgoing {
        // Only the SYN in SYN-SENT has no ACK.
        let ack = if flags.ack { self.rcv.nxt() } else { Seq(0) };
        let options = self.options(now);
        // RFC 3168 section 6.1.3: ECE on every ACK until the guest sends CWR; on a SYN it negotiates.
        let flags = Flags { ece: flags.ece || self.ecn.echo && !flags.syn, ..flags };
        Outgoing { seq, ack, flags, wnd: self.rcv.window_field(), options, mss: 0, ect: false }
    }

    /// The next segment carries SACK blocks (RFC 2018) or a DSACK (RFC 2883).
    fn sends_sack_blocks(&self) -> bool {
        self.sack && (self.rcv.q.has_holes() || self.rcv.duplicate.is_some())
    }

    /// Timestamps and SACK blocks of a segment sent now.
    fn options(&self, now: Instant) -> Options {
        let mut options = Options::default();
        if self.ts.is_some() {
            options.ts = Some((self.ts_now(now), self.rcv.ts_recent));
        }
        if self.sends_sack_blocks() {
            let base = self.rcv.irs + 1;
            // As many blocks as leave room for one payload byte; 4 is the head of the option with padding.
            let room = usize::from(self.link.segment_max).saturating_sub(options.len() + 4 + 1) / 8;
            let at = |(start, end): (u64, u64)| (base + start as u32, base + end as u32);
            // RFC 2883 section 4: the DSACK block is the first one.
            let ranges = self.rcv.duplicate.into_iter().chain(self.rcv.q.sack_ranges().map(at));
            for (slot, (start, end)) in options.sack.iter_mut().zip(ranges.take(room)) {
                *slot = Some((start.0, end.0));
            }
        }
        options
    }
}
