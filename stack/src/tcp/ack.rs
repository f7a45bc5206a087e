//! The fifth check of RFC 9293 section 3.10.7.4: what the guest acknowledges, what it says of holes, and what follows
//! for what is to be sent.

use std::time::Duration;

use skbudget_controller::sizing::{SndbufInput, sndbuf_expand};
use skbudget_controller::{Instant, Rules};

use crate::counters::Stat;
use crate::segment::Segment;
use crate::seq::Seq;
use crate::tcp::board::Range;
use crate::tcp::congestion::Acked;
use crate::tcp::recovery::Phase;
use crate::tcp::snd::Snd;
use crate::tcp::state::{Cause, State};
use crate::tcp::{Disposition, Mem, Tcb};

/// Segments behind a hole, or repeated ACKs, that mean loss (RFC 5681 section 3.2, RFC 6675 section 4).
const DUP_THRESH: u32 = 3;

/// What one ACK told.
#[derive(Debug, Clone, Copy, Default)]
struct News {
    /// Bytes by which SND.UNA moved.
    acked: u32,
    /// Bytes that arrived and were not known to.
    delivered: u32,
    /// Of them, behind holes.
    sacked: u32,
    /// Outstanding, and on its way, before.
    flight: u32,
    pipe: u32,
    /// What the guest had twice.
    duplicate: Option<Range>,
    /// A round trip that is not ambiguous.
    rtt: Option<Duration>,
    /// TSecr
    echo: Option<u32>,
    /// The guest tells of marks.
    ece: bool,
    /// Something arrived that left before the last loss was seen, and once.
    original: bool,
}

impl Tcb {
    /// Ok(true): this ACK completed the handshake.
    pub(super) fn check_ack(
        &mut self,
        seg: &Segment<'_>,
        mem: &mut Mem<'_>,
    ) -> Result<bool, Disposition> {
        let mut established = false;
        if self.state == State::SynRcvd {
            if !(seg.ack.gt(self.snd.una()) && seg.ack.le(self.snd.nxt())) {
                return Err(Disposition::Refuse);
            }
            if let Some(next) = self.state.next(Cause::SynAcked) {
                self.state = next;
            }
            self.syn_due = false;
            established = true;
        }
        if seg.ack.gt(self.snd.nxt()) {
            mem.stats.add(Stat::AckUnsent);
            self.answer_unacceptable(seg, mem.now);
            return Err(Disposition::Continue);
        }
        // RFC 5961 section 5.2: too old to be honest.
        if seg.ack.lt(self.snd.una() - self.snd.wnd_max) {
            return Err(self.challenge(seg, mem));
        }
        let fin_acked = self.snd.covers_fin(seg.ack);
        let old_wnd = self.snd.wnd;
        self.update_window(seg);
        if seg.ack.gt(self.snd.una()) || (self.sack && seg.options.sack[0].is_some()) {
            self.take_ack(seg, mem);
        } else if seg.ack == self.snd.una() && seg.payload.is_empty() && !seg.flags.fin {
            self.on_repeated_ack(old_wnd, mem);
        }
        if old_wnd == 0 && self.snd.wnd > 0 {
            // Out of persist: what waits goes out with the next `output`, which arms the timer anew.
            self.snd.rtt.reset_backoff();
            self.snd.timer = None;
        }
        self.settle_timer(mem.now);
        if fin_acked && let Some(next) = self.state.next(Cause::FinAcked) {
            self.state = next;
            match next {
                State::Closed => return Err(Disposition::Closed),
                State::TimeWait => return Err(Disposition::TimeWait),
                _ => {}
            }
        }
        Ok(established)
    }

    fn update_window(&mut self, seg: &Segment<'_>) {
        let snd = &mut self.snd;
        let newer = snd.wl1.lt(seg.seq) || (snd.wl1 == seg.seq && snd.wl2.le(seg.ack));
        if seg.ack.ge(snd.una()) && newer {
            snd.wnd = u32::from(seg.wnd) << snd.wscale;
            snd.wnd_max = snd.wnd_max.max(snd.wnd);
            snd.wl1 = seg.seq;
            snd.wl2 = seg.ack;
        }
    }

    /// SEG.ACK =< SND.NXT, and it moves SND.UNA or has SACK blocks.
    pub(super) fn take_ack(&mut self, seg: &Segment<'_>, mem: &mut Mem<'_>) {
        let mut news = News {
            flight: self.snd.board.outstanding().max(self.snd.said).min(self.snd.cc.cwnd),
            pipe: self.snd.board.pipe(),
            echo: self.ts.and(seg.options.ts).map(|(_, echo)| echo),
            ece: seg.flags.ece,
            ..News::default()
        };
        // RFC 8985 section 6.2 step 2: the echo is of something older than what was sent at `at`.
        let stamps = self.ts.zip(news.echo);
        let older = |at| stamps.is_some_and(|(offset, echo)| Seq(echo).lt(Seq(ts_at(at, offset))));
        let (now, mut rtt, mut again, mut original) = (mem.now, None, false, false);
        let until = self.snd.recovery.until;
        let (had, syn, chunks) = (self.snd.una(), !self.snd.syn_acked, self.snd.q.chunks());
        let Snd { board, rack, .. } = &mut self.snd;
        news.delivered = board.acked(seg.ack, |run| {
            again |= run.again;
            original |= !run.again && run.end.le(until);
            // What waited behind a hole for a retransmission says nothing of the path (Karn's point, for its
            // neighbours); what is before the first one was held back by nobody but the guest.
            let told = rack.on_arrival(run, now, older).filter(|_| !again);
            rtt = told.or(rtt);
        });
        news.acked = board.una().diff(had).cast_unsigned();
        if self.sack && seg.options.sack[0].is_some() {
            news.duplicate = duplicate(seg, board.una());
            for range in blocks(seg) {
                // The echo is of what moved SND.UNA last (RFC 7323 section 4.3), not of what is behind a hole.
                news.sacked += board.sack(range, chunks, |run| {
                    original |= !run.again && run.end.le(until);
                    rtt = rack.on_arrival(run, now, |_| false).or(rtt);
                });
            }
            news.delivered += news.sacked;
        }
        (news.rtt, news.original) = (rtt, original);
        if news.acked > 0 {
            self.snd.syn_acked = true;
            self.free_acked(news.acked - u32::from(syn), mem);
        }
        self.digest(&news, mem);
    }

    /// What is acknowledged is nobody's.
    fn free_acked(&mut self, acked: u32, mem: &mut Mem<'_>) {
        let snd = &mut self.snd;
        let bytes = (acked as usize).min(snd.q.len());
        snd.q.acked(bytes, mem.pool, mem.budget, mem.ledger, mem.now);
        snd.rtt.reset_backoff();
        let pressure = mem.budget.under_pressure();
        if bytes > 0 {
            snd.grow_target(self.link.snd_target_max, mem.budget);
        }
        if mem.budget.rules() == Rules::Linux && !pressure && snd.board.outstanding() < snd.cc.cwnd
        {
            expand_sndbuf(snd, mem, self.link.snd_target_max);
        }
    }

    /// Loss, recovery, the congestion window and the timers, after an ACK that told something.
    fn digest(&mut self, news: &News, mem: &mut Mem<'_>) {
        if let Some(rtt) = news.rtt {
            self.snd.rtt.on_sample(rtt);
        }
        if news.duplicate.is_some() {
            mem.stats.add(Stat::TCPDSACKRecv);
            let (una, nxt) = (self.snd.una(), self.snd.nxt());
            self.snd.rack.on_duplicate(una, nxt);
        }
        let marked = self.ecn.on && news.ece;
        if marked {
            self.snd.recovery.forget_undo();
        }
        self.undo_if_spurious(news, mem);
        let mut delivered = news.delivered;
        if !self.sack && news.acked > 0 {
            delivered = delivered.saturating_sub(self.count_without_sack(news.acked));
        }
        let lost = if self.sack { self.detect_loss(mem.now) } else { 0 };
        self.end_tail_probe(news.duplicate.is_some());
        let over = self.snd.recovery.phase != Phase::Open
            && self.snd.una().ge(self.snd.recovery.until)
            && news.acked > 0;
        if over {
            self.recovered();
        }
        match self.snd.recovery.phase {
            Phase::Open if lost > 0 => {
                self.begin_recovery(news.flight, news.pipe, mem);
                if marked {
                    // The reduction is that of the marks, too.
                    self.snd.recovery.forget_undo();
                }
            }
            Phase::Fast => {}
            Phase::Open if over => {}
            Phase::Open if self.ecn.on_ack(news.ece, self.snd.board.una()) => {
                self.on_mark(news.flight, mem);
            }
            Phase::Open | Phase::Timeout if news.acked > 0 => self.grow(news, mem.now),
            Phase::Open | Phase::Timeout => {}
        }
        if self.snd.recovery.phase == Phase::Fast {
            let safe = news.acked > 0 && lost == 0;
            self.reduce(delivered, safe);
        }
        if news.acked > 0 {
            let outstanding = self.snd.board.outstanding() > 0;
            self.snd.timer = outstanding.then(|| mem.now + self.snd.rtt.rto());
            self.arm_tail_probe(mem.now);
        }
    }

    /// RFC 4015: what was taken for a loss was none.
    fn undo_if_spurious(&mut self, news: &News, mem: &mut Mem<'_>) {
        let snd = &mut self.snd;
        let original =
            if news.acked > 0 { snd.recovery.answered_original(news.echo) } else { None };
        let twice = news.duplicate.and_then(|twice| snd.recovery.on_duplicate(twice));
        let moved = news.acked > 0 && snd.una().lt(snd.recovery.until);
        let able = snd.unsent() > 0 && snd.wnd > snd.board.outstanding();
        let late = snd.recovery.on_forward(moved, news.original, able);
        let (before, stat) = match (original, twice, late) {
            (Some(before), ..) => (before, Stat::TCPTSUndo),
            (_, Some(before), _) => (before, Stat::TCPDSACKUndo),
            (.., Some(before)) => (before, Stat::TCPSpuriousRTOs),
            _ => return,
        };
        mem.stats.add(stat);
        snd.cc.undo(before);
        snd.recovery.undone();
        // Nothing is known to be lost; what is, RACK finds again.
        snd.board.find_all();
    }

    /// RFC 8985 section 6.2 step 5. What is lost; the timer for what may be.
    pub(super) fn detect_loss(&mut self, now: Instant) -> u32 {
        let snd = &mut self.snd;
        if snd.board.in_order() {
            snd.reorder_at = None;
            return 0;
        }
        let srtt = snd.rtt.srtt().unwrap_or_default();
        let sure =
            snd.recovery.phase != Phase::Open || snd.board.sacked() > (DUP_THRESH - 1) * snd.mss;
        let (lost, wait) = snd.rack.detect(&mut snd.board, srtt, sure, now);
        snd.reorder_at = wait.map(|wait| now + wait);
        lost
    }

    /// `flight`: what was outstanding before, within the window; `pipe`: on its way before.
    pub(super) fn begin_recovery(&mut self, flight: u32, pipe: u32, mem: &mut Mem<'_>) {
        let snd = &mut self.snd;
        let nxt = snd.nxt();
        snd.recovery.begin(Phase::Fast, snd.cc, &snd.board, pipe);
        snd.cc.on_loss(flight, snd.mss, false);
        self.ecn.on_reduced(nxt);
        snd.tail_probe = None;
        snd.tail_probe_at = None;
        mem.stats.add(if self.sack { Stat::TCPSackRecovery } else { Stat::TCPRenoRecovery });
    }

    /// The guest tells of marks, in this window for the first time or again: the first costs what a loss does (RFC 3168
    /// section 6.1.2), and none lets the window grow.
    fn on_mark(&mut self, flight: u32, mem: &mut Mem<'_>) {
        let snd = &mut self.snd;
        if self.ecn.reduces(snd.nxt()) {
            snd.cc.reduce(flight, snd.mss);
            mem.stats.add(Stat::TCPECNReduced);
        }
    }

    /// The window in fast recovery after `delivered` bytes more.
    pub(super) fn reduce(&mut self, delivered: u32, safe: bool) {
        let snd = &mut self.snd;
        let pipe = snd.board.pipe();
        snd.cc.cwnd = snd.recovery.window(&snd.cc, pipe, delivered, safe, snd.mss);
    }

    fn recovered(&mut self) {
        let snd = &mut self.snd;
        if snd.recovery.phase == Phase::Fast {
            snd.cc.cwnd = snd.cc.ssthresh.max(2 * snd.mss);
        }
        snd.recovery.end();
        snd.rack.on_recovered();
        if !self.sack {
            snd.board.forget_sacks();
        }
    }

    fn grow(&mut self, news: &News, now: Instant) {
        let snd = &mut self.snd;
        snd.cc.on_ack(&Acked {
            bytes: news.acked,
            flight: news.flight,
            una: snd.board.una(),
            nxt: snd.board.nxt(),
            rtt: news.rtt,
            srtt: snd.rtt.srtt().unwrap_or_default(),
            mss: snd.mss,
            max: self.link.snd_target_max as u32,
            now,
        });
    }

    /// RFC 5681 section 2: same ACK, no data, same window, something outstanding. With a closed window it answers a
    /// probe; from a guest that says SACK it tells nothing (RFC 6675 section 2).
    fn on_repeated_ack(&mut self, old_wnd: u32, mem: &mut Mem<'_>) {
        self.tail_was_there();
        let snd = &mut self.snd;
        let outstanding = snd.board.outstanding();
        if self.sack || outstanding == 0 || snd.wnd != old_wnd || snd.wnd == 0 {
            return;
        }
        // RFC 5682 section 2.1 steps 2a and 3a: a timeout had its reason.
        snd.recovery.stop_asking();
        // What it stands for left the network: the first two let new data out (RFC 3042), the third means loss.
        let (flight, pipe) = (outstanding.min(snd.cc.cwnd), snd.board.pipe());
        snd.recovery.repeated += 1;
        snd.board.one_left(snd.mss);
        // RFC 6582 section 3.2 step 2: repeated ACKs of what was sent again after a timeout mean nothing.
        let fresh = snd.una().gt(snd.recovery.until) || snd.recovery.until == snd.iss;
        if snd.recovery.phase == Phase::Open && snd.recovery.repeated == DUP_THRESH && fresh {
            snd.board.lose_head(snd.mss, snd.q.chunks());
            self.begin_recovery(flight, pipe, mem);
        }
        if self.snd.recovery.phase == Phase::Fast {
            let mss = self.snd.mss;
            self.reduce(mss, false);
        }
    }

    /// Without SACK: what repeated ACKs stood for is acknowledged with the hole before it; in recovery the next hole
    /// begins at SND.UNA (RFC 6582 section 3.2 step 3). Returns the bytes that repeated ACKs told of before.
    fn count_without_sack(&mut self, acked: u32) -> u32 {
        let snd = &mut self.snd;
        let told = snd.board.sacked();
        snd.recovery.repeated = 0;
        if snd.recovery.phase == Phase::Open {
            snd.board.forget_sacks();
        } else {
            snd.board.fewer_left(acked.saturating_sub(snd.mss));
            if snd.una().lt(snd.recovery.until) {
                snd.board.lose_head(snd.mss, snd.q.chunks());
            }
        }
        told - snd.board.sacked()
    }

    /// Persist timer where the window is closed, none where nothing is outstanding and nothing waits.
    fn settle_timer(&mut self, now: Instant) {
        let snd = &mut self.snd;
        let fin_waits = snd.fin && snd.fin_seq() == Some(snd.nxt());
        if snd.board.outstanding() == 0 && snd.unsent() == 0 && !fin_waits {
            snd.timer = None;
        } else if snd.timer.is_none() {
            snd.timer = Some(now + snd.rtt.rto());
        }
    }
}

/// SACK blocks that can be true, in ascending order: what is read in the order of the stream does not look as if it had
/// been overtaken.
fn blocks(seg: &Segment<'_>) -> impl Iterator<Item = Range> {
    let ack = seg.ack;
    let mut blocks = seg.options.sack;
    blocks.sort_unstable_by_key(|block| block.map(|(start, _)| Seq(start).diff(ack)));
    let range = |(start, end)| Range { start: Seq(start), end: Seq(end) };
    blocks.into_iter().flatten().map(range).filter(move |r| r.end.gt(r.start) && r.end.gt(ack))
}

/// RFC 2883 section 4: the first block names what came twice when it is acknowledged already or within the second.
fn duplicate(seg: &Segment<'_>, una: Seq) -> Option<Range> {
    let at = |i: usize| {
        seg.options.sack[i].map(|(start, end)| Range { start: Seq(start), end: Seq(end) })
    };
    let first = at(0).filter(|r| r.end.gt(r.start))?;
    let within =
        at(1).is_some_and(|second| second.start.le(first.start) && first.end.le(second.end));
    (first.end.le(seg.ack) && seg.ack == una || within).then_some(first)
}

/// The timestamp clock at `at`: milliseconds, offset per flow (RFC 7323 section 5.4).
pub(super) fn ts_at(at: Instant, offset: u32) -> u32 {
    ((at.0 / 1_000_000) as u32).wrapping_add(offset)
}

/// Linux rules: `tcp_new_space`, the cap follows the congestion window.
fn expand_sndbuf(snd: &Snd, mem: &mut Mem<'_>, max: usize) {
    let expanded = sndbuf_expand(&SndbufInput {
        sndbuf: mem.ledger.sndbuf(),
        mss: snd.mss,
        cwnd: snd.cc.cwnd / snd.mss,
        reordering: 3,
        header: 320,
        factor: 2,
        wmem_max: max as u32,
    });
    mem.ledger.set_sndbuf(expanded);
}
