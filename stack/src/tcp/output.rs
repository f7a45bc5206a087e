//! What the block wants sent now: SYN, probes, what was lost, data, FIN, ACK, in that order.

use std::io::IoSlice;

use crate::counters::Stat;
use crate::segment::{Flags, Options, Outgoing};
use crate::seq::Seq;
use crate::tcp::board::Range;
use crate::tcp::recovery::Phase;
use crate::tcp::state::{Cause, State};
use crate::tcp::tlp::TailProbe;
use crate::tcp::{Mem, Tcb};
use crate::txq::PARTS_MAX;

/// Payload of a super-frame: what IPv4's length field leaves beside headers with all options.
const SUPER_MAX: usize = 65_535 - 20 - 60;
/// Bytes and frames of one flow in one turn: others get theirs before it goes on. In bytes first: a few small frames
/// for what a turn costs would be little, and nothing beside what the guest says in the same turn.
const BYTES_PER_TURN: usize = 4 * SUPER_MAX;
const FRAMES_PER_TURN: usize = 64;

/// Takes a segment and its payload; false: the device is full.
pub(crate) type Emit<'e> = &'e mut dyn FnMut(&Outgoing, &[IoSlice<'_>]) -> bool;

/// How `output` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Output {
    /// There is more to send in this very state: call again next turn.
    pub(crate) more: bool,
    /// The device took nothing: call again when it may.
    pub(crate) device_full: bool,
    /// The receive window is smaller than it should be for want of memory.
    pub(crate) short: bool,
}

impl Tcb {
    pub(crate) fn output(&mut self, mem: &mut Mem<'_>, emit: Emit<'_>) -> Output {
        let mut out = Output::default();
        if matches!(self.state, State::Connecting | State::Closed | State::TimeWait) {
            return out;
        }
        if self.syn_due || self.rcv.ack_now || self.rcv.moved {
            out.short = self.rcv.advance_edge(mem.budget, mem.ledger, mem.now);
        }
        let said = self.rcv.window_said();
        let sent = self.send_due(mem, emit).and_then(|()| self.send_data(mem, emit));
        match sent {
            Some(more) => out.more = more,
            None => out.device_full = true,
        }
        let update = self.state.receives() && self.rcv.wants_update();
        if self.state != State::SynSent && !self.syn_due && (self.rcv.ack_now || update) {
            let ack = self.outgoing(self.snd.nxt(), Flags::ACK, mem);
            if emit(&ack, &[]) {
                self.rcv.on_ack_sent(false);
            } else {
                self.rcv.ack_now = true;
                out.device_full = true;
            }
        }
        if self.state.receives() {
            self.rcv.count_window(said, mem.budget, mem.ledger);
        }
        self.snd.said = self.snd.board.outstanding();
        out
    }

    /// SYN and probe. `None`: the device is full.
    fn send_due(&mut self, mem: &mut Mem<'_>, emit: Emit<'_>) -> Option<()> {
        if self.syn_due {
            self.send_syn(mem, emit)?;
        }
        if self.probe_due {
            self.probe_due = false;
            // One below SND.UNA: never acceptable, so always answered (Linux' tcp_xmit_probe_skb).
            let probe = self.outgoing(self.snd.una() - 1, Flags::ACK, mem);
            if !emit(&probe, &[]) {
                self.probe_due = true;
                return None;
            }
        }
        if self.tail_probe_due && self.state.sends() {
            self.send_tail_probe(mem, emit)?;
        }
        self.tail_probe_due = false;
        Some(())
    }

    fn send_syn(&mut self, mem: &mut Mem<'_>, emit: Emit<'_>) -> Option<()> {
        let flags = match self.state {
            State::SynSent => Flags::SYN,
            _ => Flags { ece: self.ecn.on, ..Flags::SYN_ACK },
        };
        let offered = self.state == State::SynSent;
        let mut seg = self.outgoing(self.snd.iss, flags, mem);
        seg.options.mss = Some(self.link.mss);
        seg.options.wscale = (offered || self.rcv.wscale > 0).then_some(super::WSCALE);
        seg.options.sack_permitted = self.sack;
        seg.options.sack = [None; 3];
        seg.wnd = u16::try_from(self.rcv.wnd()).unwrap_or(u16::MAX);
        if !emit(&seg, &[]) {
            return None;
        }
        self.syn_due = false;
        let board = &mut self.snd.board;
        if board.outstanding() == 0 {
            board.sent(1, mem.now, 0);
        } else {
            mem.stats.add(Stat::RetransSegs);
            board.sent_again(Range { start: board.una(), end: board.nxt() }, mem.now, 0);
        }
        self.snd.restart_timer(mem.now);
        self.rcv.on_ack_sent(false);
        Some(())
    }

    /// What was lost, then data and FIN from SND.NXT on, as far as the windows allow. `None`: the device is full; true:
    /// there is more.
    fn send_data(&mut self, mem: &mut Mem<'_>, emit: Emit<'_>) -> Option<bool> {
        if !self.state.sends() {
            return Some(false);
        }
        if self.snd.board.outstanding() == 0 && self.sendable(self.snd.unsent(), mem) > 0 {
            self.snd.restart_after_idle(mem.now);
        }
        let mut left = BYTES_PER_TURN;
        let mut fresh = false;
        for _ in 0..FRAMES_PER_TURN {
            if left == 0 {
                break;
            }
            if let Some(range) = self.sendable_again(mem) {
                left = left.saturating_sub(range.len() as usize);
                self.send_again(range, mem, emit)?;
                if self.snd.recovery.phase == Phase::Fast {
                    mem.stats.add(Stat::TCPFastRetrans);
                }
                continue;
            }
            let unsent = self.snd.unsent();
            let len = self.sendable(unsent, mem);
            let fin = self.snd.fin && len == unsent && self.fin_unsent(len);
            if len == 0 && !fin {
                if self.snd.recovery.cannot_ask() {
                    continue;
                }
                if unsent > 0 && self.snd.timer.is_none() {
                    self.snd.timer = Some(mem.now + self.snd.persist_delay());
                }
                self.arm_after(fresh, mem);
                return Some(false);
            }
            self.send_new(len, fin, mem, emit)?;
            fresh = true;
            self.force_small = false;
            left = left.saturating_sub(len);
        }
        self.arm_after(fresh, mem);
        Some(true)
    }

    fn arm_after(&mut self, fresh: bool, mem: &Mem<'_>) {
        if fresh {
            self.arm_tail_probe(mem.now);
        }
    }

    /// What of the first lost run may go out now. The first segment goes into any window that is open, for it may be
    /// all that the guest waits for.
    fn sendable_again(&self, mem: &Mem<'_>) -> Option<Range> {
        let snd = &self.snd;
        if snd.recovery.holds_back() {
            return None;
        }
        let lost = snd.board.first_lost()?;
        let mss = self.segment_payload(mem) as u32;
        let quota = snd.cc.cwnd.saturating_sub(snd.board.pipe());
        let beyond = (snd.una() + snd.wnd).diff(lost.start).max(0).cast_unsigned();
        let first = lost.start == snd.una() && snd.wnd > 0;
        let window = if first { beyond.max(snd.wnd.min(mss)) } else { beyond };
        let most = quota.min(window).min(self.frame_max(mss as usize) as u32);
        if lost.len() <= most {
            return Some(lost);
        }
        // Whole segments; less only where the window is less than one.
        let len = if most >= mss {
            most / mss * mss
        } else if first && window < mss {
            most
        } else {
            0
        };
        (len > 0).then_some(Range { end: lost.start + len, ..lost })
    }

    /// Sends `range`, within a run, again.
    fn send_again(&mut self, range: Range, mem: &mut Mem<'_>, emit: Emit<'_>) -> Option<()> {
        let fin = self.snd.fin_seq().is_some_and(|fin| fin.lt(range.end));
        self.send_range(range.start, range.len() as usize - usize::from(fin), fin, mem, emit)?;
        let chunks = self.snd.q.chunks();
        self.snd.board.sent_again(range, mem.now, chunks);
        let tsval = self.ts.map(|_| self.ts_now(mem.now));
        self.snd.recovery.on_sent_again(range.len(), tsval);
        self.snd.retrans += 1;
        mem.stats.add(Stat::RetransSegs);
        Some(())
    }

    /// Sends what comes next: `len` bytes, with FIN if asked.
    fn send_new(&mut self, len: usize, fin: bool, mem: &mut Mem<'_>, emit: Emit<'_>) -> Option<()> {
        self.send_range(self.snd.nxt(), len, fin, mem, emit)?;
        let chunks = self.snd.q.chunks();
        self.snd.board.sent(len as u32 + u32::from(fin), mem.now, chunks);
        self.snd.recovery.on_sent_new();
        if fin && let Some(next) = self.state.next(Cause::SendFin) {
            self.state = next;
        }
        Some(())
    }

    /// RFC 8985 section 7.3: one segment, new if the window has room for it, else the last.
    fn send_tail_probe(&mut self, mem: &mut Mem<'_>, emit: Emit<'_>) -> Option<()> {
        let mss = self.segment_payload(mem);
        let room = self.snd.wnd.saturating_sub(self.snd.board.outstanding()) as usize;
        let unsent = self.snd.unsent().min(mss);
        let again = unsent == 0 || room < unsent;
        if !again {
            self.send_new(unsent, false, mem, emit)?;
        } else if let Some(range) = self.snd.board.tail(mss as u32) {
            self.send_again(range, mem, emit)?;
        } else {
            return Some(());
        }
        mem.stats.add(Stat::TCPLossProbes);
        self.snd.tail_probe = Some(TailProbe { end: self.snd.nxt(), again });
        Some(())
    }

    /// FIN is due right after `len` more bytes.
    fn fin_unsent(&self, len: usize) -> bool {
        self.snd.fin_seq() == Some(self.snd.nxt() + len as u32)
    }

    /// Payload of the largest frame of segments of `mss` bytes.
    fn frame_max(&self, mss: usize) -> usize {
        if self.link.offload { (SUPER_MAX / mss).max(1) * mss } else { mss }
    }

    /// Bytes of the next frame, by window, segment size and silly-window avoidance (RFC 9293 section 3.8.6.2.1).
    fn sendable(&self, unsent: usize, mem: &Mem<'_>) -> usize {
        let snd = &self.snd;
        let outstanding = snd.board.outstanding();
        let quota = snd.cc.cwnd.saturating_sub(snd.board.pipe());
        let window = snd.wnd.saturating_sub(outstanding).min(quota) as usize;
        let mss = self.segment_payload(mem);
        let frame = self.frame_max(mss);
        let len = unsent.min(window).min(frame);
        if len == unsent || len == frame {
            return len;
        }
        if len >= mss {
            return len / mss * mss;
        }
        let half = snd.wnd_max as usize / 2;
        let worth = len >= half || self.force_small;
        if outstanding == 0 && len > 0 && worth { len } else { 0 }
    }

    /// Payload bytes of one segment beside the options it carries now.
    fn segment_payload(&self, mem: &Mem<'_>) -> usize {
        if !self.says_blocks() {
            return self.snd.mss as usize;
        }
        let ts = if self.ts.is_some() { 12 } else { 0 };
        let extra = self.options(mem).len() - ts;
        (self.snd.mss as usize).saturating_sub(extra).max(1)
    }

    /// Sends `len` bytes from `seq` on, with FIN if asked.
    fn send_range(
        &mut self,
        seq: Seq,
        len: usize,
        fin: bool,
        mem: &mut Mem<'_>,
        emit: Emit<'_>,
    ) -> Option<()> {
        let offset = seq.diff(self.snd.data_start()).max(0) as usize;
        let last = offset + len == self.snd.q.len();
        // RFC 3168 sections 6.1.2 and 6.1.5: nothing that is sent again.
        let ect = self.ecn.on && len > 0 && seq == self.snd.nxt();
        let cwr = ect && self.ecn.reduced;
        let flags = Flags { fin, psh: last && len > 0, cwr, ..Flags::ACK };
        let mut seg = self.outgoing(seq, flags, mem);
        (seg.mss, seg.ect) = (self.segment_payload(mem) as u16, ect);
        let mut parts = [IoSlice::new(&[]); PARTS_MAX];
        let count = self.snd.q.slices(offset, len, &mut parts);
        if !emit(&seg, &parts[..count]) {
            return None;
        }
        self.ecn.reduced &= !cwr;
        if self.snd.timer.is_none() {
            self.snd.restart_timer(mem.now);
        }
        self.snd.sent_at = mem.now;
        self.snd.recovery.on_sent(len as u32 + u32::from(fin));
        self.rcv.on_ack_sent(len > 0);
        Some(())
    }

    fn outgoing(&self, seq: Seq, flags: Flags, mem: &Mem<'_>) -> Outgoing {
        let ack = if flags.ack { self.rcv.nxt() } else { Seq(0) };
        let options = self.options(mem);
        let flags = Flags { ece: flags.ece || self.ecn.echo && !flags.syn, ..flags };
        Outgoing { seq, ack, flags, wnd: self.rcv.window_field(), options, mss: 0, ect: false }
    }

    /// SACK blocks go out now.
    fn says_blocks(&self) -> bool {
        self.sack && (self.rcv.q.has_holes() || self.rcv.duplicate.is_some())
    }

    fn options(&self, mem: &Mem<'_>) -> Options {
        let mut options = Options::default();
        if self.ts.is_some() {
            options.ts = Some((self.ts_now(mem.now), self.rcv.ts_recent));
        }
        if self.says_blocks() {
            let base = self.rcv.irs + 1;
            // As many blocks as leave a segment of the link room for a byte.
            let room = usize::from(self.link.segment_max).saturating_sub(options.len() + 4 + 1) / 8;
            let at = |(start, end): (u64, u64)| (base + start as u32, base + end as u32);
            let ranges = self.rcv.duplicate.into_iter().chain(self.rcv.q.sack_ranges().map(at));
            for (slot, (start, end)) in options.sack.iter_mut().zip(ranges.take(room)) {
                *slot = Some((start.0, end.0));
            }
        }
        options
    }
}
