//! Fifth check of RFC 9293 section 3.10.7.4 (the ACK field): frees acknowledged data, updates the scoreboard, detects
//! loss, and adjusts the congestion window and the timers.

mod loss;
mod sack;

use std::ops::ControlFlow::{Break, Continue};
use std::time::Duration;

use skbudget_controller::sizing::{SndbufInput, sndbuf_expand};
use skbudget_controller::{Instant, Rules};

use crate::counters::{Stat, Stats};
use crate::pressure::Throttle;
use crate::queue::MemCtx;
use crate::tcp::ack::sack::{blocks, duplicate};
use crate::tcp::congestion::Acked;
use crate::tcp::input::Step;
use crate::tcp::recovery::Phase;
use crate::tcp::scoreboard::Range;
use crate::tcp::snd::Snd;
use crate::tcp::state::{Cause, State};
use crate::tcp::{Disposition, Tcb};
use crate::wire::segment::Segment;
use crate::wire::seq::Seq;

/// What one ACK reports.
#[derive(Debug, Clone, Copy, Default)]
struct AckSummary {
    /// Bytes by which SND.UNA advanced.
    acked: u32,
    /// Bytes newly known to have arrived, acknowledged or SACKed.
    delivered: u32,
    /// The part of `delivered` that is beyond a hole.
    sacked: u32,
    /// FlightSize and pipe before this ACK, bytes.
    flight: u32,
    pipe: u32,
    /// Range that the guest received twice (DSACK).
    duplicate: Option<Range>,
    /// Round trip of data sent only once.
    rtt: Option<Duration>,
    /// TSecr of the segment, if timestamps are in use.
    echo: Option<u32>,
    /// The segment has ECE set: the guest received CE marks.
    ece: bool,
    /// The ACK covers bytes that left before the last recovery started and were sent only once.
    original: bool,
}

impl Tcb {
    /// Processes SEG.ACK, the window and SACK blocks.
    pub(super) fn check_ack(
        &mut self,
        seg: &Segment<'_>,
        mem: &mut MemCtx<'_>,
        stats: &mut Stats,
    ) -> Step {
        // RFC 9293: in SYN-RECEIVED an ACK outside SND.UNA < SEG.ACK =< SND.NXT is answered with RST.
        if self.state == State::SynRcvd {
            if !(seg.ack.gt(self.snd.una()) && seg.ack.le(self.snd.nxt())) {
                return Break(Disposition::Refuse);
            }
            if let Some(next) = self.state.next(Cause::SynAcked) {
                self.state = next;
            }
            self.syn_due = false;
        }
        // Acknowledges data that was never sent: answer with an ACK and drop.
        if seg.ack.gt(self.snd.nxt()) {
            stats.add(Stat::AckUnsent);
            self.answer_unacceptable(seg, mem.now);
            return Break(Disposition::Output);
        }
        // RFC 5961 section 5.2: older than any window that the guest advertised, so probably forged.
        if seg.ack.lt(self.snd.una() - self.snd.wnd_max) {
            return Break(self.challenge(seg, mem.now, stats));
        }
        // Both are needed from before: `take_ack` advances SND.UNA, `update_window` overwrites the window.
        let fin_acked = self.snd.covers_fin(seg.ack);
        let old_wnd = self.snd.wnd;
        self.update_window(seg);
        // SACK blocks count even if SND.UNA stays; only a bare ACK can be a duplicate ACK (RFC 5681 section 2).
        if seg.ack.gt(self.snd.una()) || (self.sack && seg.options.sack[0].is_some()) {
            self.take_ack(seg, mem, stats);
        } else if seg.ack == self.snd.una() && seg.payload.is_empty() && !seg.flags.fin {
            self.on_repeated_ack(old_wnd, stats);
        }
        if old_wnd == 0 && self.snd.wnd > 0 {
            // The window opened: leave persist. The next `output` sends what waits and restarts the timer.
            self.snd.rtt.reset_backoff();
            self.snd.timer = None;
        }
        self.settle_timer(mem.now);
        // Last: the new state may end the flow, and everything before must be accounted for.
        if fin_acked && let Some(next) = self.state.next(Cause::FinAcked) {
            self.state = next;
            match next {
                State::Closed => return Break(Disposition::Closed),
                State::TimeWait => return Break(Disposition::TimeWait),
                _ => {}
            }
        }
        Continue(())
    }

    /// Updates SND.WND (RFC 9293 section 3.10.7.4, fifth check).
    fn update_window(&mut self, seg: &Segment<'_>) {
        let snd = &mut self.snd;
        // SND.WL1 and SND.WL2: an older segment that arrives late must not bring back an old window.
        let newer = snd.wl1.lt(seg.seq) || (snd.wl1 == seg.seq && snd.wl2.le(seg.ack));
        if seg.ack.ge(snd.una()) && newer {
            snd.wnd = u32::from(seg.wnd) << snd.wscale;
            snd.wnd_max = snd.wnd_max.max(snd.wnd);
            snd.wl1 = seg.seq;
            snd.wl2 = seg.ack;
        }
    }

    /// Takes an ACK that advances SND.UNA or has SACK blocks; SEG.ACK =< SND.NXT was checked.
    pub(super) fn take_ack(&mut self, seg: &Segment<'_>, mem: &mut MemCtx<'_>, stats: &mut Stats) {
        // Before the scoreboard changes: loss reduces the window from the FlightSize before the ACK (RFC 5681 equation
        // 4).
        let mut summary = AckSummary {
            flight: self
                .snd
                .board
                .outstanding()
                .max(self.snd.flight_at_output)
                .min(self.snd.cc.cwnd),
            pipe: self.snd.board.pipe(),
            echo: self.ts.and(seg.options.ts).map(|(_, echo)| echo),
            ece: seg.flags.ece,
            ..AckSummary::default()
        };
        // RFC 8985 section 6.2 step 2: the echo is older than a transmission at `at`.
        let stamps = self.ts.zip(summary.echo);
        let older = |at| stamps.is_some_and(|(offset, echo)| Seq(echo).lt(Seq(ts_at(at, offset))));
        let (now, mut rtt, mut again, mut original) = (mem.now, None, false, false);
        // Decides with `run.again` whether the ACK covers an original (F-RTO).
        let until = self.snd.recovery.until;
        let (had, syn, chunks) = (self.snd.una(), !self.snd.syn_acked, self.snd.q.chunks());
        let Snd { board, rack, .. } = &mut self.snd;
        summary.delivered = board.acked(seg.ack, |run| {
            again |= run.again;
            original |= !run.again && run.end.le(until);
            // No RTT sample behind a retransmitted run: those bytes were acknowledged late because of the hole (Karn's
            // algorithm, extended to its neighbours). Runs before the first retransmission were not delayed by it.
            let sample = rack.on_arrival(run, now, older).filter(|_| !again);
            rtt = sample.or(rtt);
        });
        summary.acked = board.una().diff(had).cast_unsigned();
        // After SEG.ACK: blocks at or below the new SND.UNA are duplicates.
        if self.sack && seg.options.sack[0].is_some() {
            summary.duplicate = duplicate(seg, board.una());
            for range in blocks(seg) {
                // The echo belongs to the segment that advanced SND.UNA (RFC 7323 section 4.3), not to SACKed ones.
                summary.sacked += board.sack(range, chunks, |run| {
                    original |= !run.again && run.end.le(until);
                    rtt = rack.on_arrival(run, now, |_| false).or(rtt);
                });
            }
            summary.delivered += summary.sacked;
        }
        (summary.rtt, summary.original) = (rtt, original);
        if summary.acked > 0 {
            self.snd.syn_acked = true;
            // The SYN occupies a sequence number but no byte of the queue.
            self.free_acked(summary.acked - u32::from(syn), mem);
        }
        self.process_ack_summary(&summary, mem.now, stats);
    }

    /// Frees send-queue chunks covered by SEG.ACK and uncharges them, then lets the send queue grow.
    fn free_acked(&mut self, acked: u32, mem: &mut MemCtx<'_>) {
        let snd = &mut self.snd;
        // SEG.ACK may cover our FIN, which is not in the queue.
        let bytes = (acked as usize).min(snd.q.len());
        snd.q.acked(bytes, mem);
        // New data was acknowledged, so the path works: the backoff ends even without an RTT sample.
        snd.rtt.reset_backoff();
        if bytes > 0 {
            snd.grow_target(self.link.snd_target_max, mem.budget);
        }
        // L5: `tcp_new_space`, only while the window is not full.
        if mem.budget.rules() == Rules::Linux
            && Throttle::of(mem.budget).sndbuf_grows
            && snd.board.outstanding() < snd.cc.cwnd
        {
            expand_sndbuf(snd, mem, self.link.snd_target_max);
        }
    }

    /// Updates RTT, recovery, the congestion window and the timers after an ACK that reported something new. The order
    /// matters: undo before loss detection, loss detection before the window.
    fn process_ack_summary(&mut self, summary: &AckSummary, now: Instant, stats: &mut Stats) {
        if let Some(rtt) = summary.rtt {
            self.snd.rtt.on_sample(rtt);
        }
        // Before loss detection: a DSACK widens RACK's reordering window (RFC 8985 section 6.2 step 4).
        if summary.duplicate.is_some() {
            stats.add(Stat::TCPDSACKRecv);
            let (una, nxt) = (self.snd.una(), self.snd.nxt());
            self.snd.rack.on_duplicate(una, nxt);
        }
        let marked = self.ecn.on && summary.ece;
        // CE marks: the path is congested, so the reduction stays even if nothing was lost.
        if marked {
            self.snd.recovery.forget_undo();
        }
        self.undo_if_spurious(summary, stats);
        let mut delivered = summary.delivered;
        // Duplicate ACKs have counted these bytes as delivered before.
        if !self.sack && summary.acked > 0 {
            delivered = delivered.saturating_sub(self.count_without_sack(summary.acked));
        }
        // Without SACK `on_repeated_ack` detects loss.
        let lost = if self.sack { self.detect_loss(now) } else { 0 };
        // After the undo and before a new recovery: the probe's ACK may itself require a reduction.
        self.end_tail_probe(summary.duplicate.is_some());
        // A recovery ends when SND.UNA reaches the SND.NXT of its start (RFC 6675 section 5, RFC 6582).
        let over = self.snd.recovery.phase != Phase::Open
            && self.snd.una().ge(self.snd.recovery.until)
            && summary.acked > 0;
        if over {
            self.recovered();
        }
        match self.snd.recovery.phase {
            Phase::Open if lost > 0 => {
                // A new loss reduces the window once; further losses in the same recovery do not.
                self.begin_recovery(summary.flight, summary.pipe, stats);
                if marked {
                    // One reduction answers both the loss and the marks.
                    self.snd.recovery.forget_undo();
                }
            }
            // `reduce` below sets the window.
            Phase::Fast => {}
            // The ACK that ends a recovery does not also grow the window.
            Phase::Open if over => {}
            // RFC 3168 section 6.1.2: an ACK with ECE does not grow the window.
            Phase::Open if self.ecn.on_ack(summary.ece, self.snd.board.una()) => {
                self.on_mark(summary.flight, stats);
            }
            // Slow start or congestion avoidance, also after a timeout.
            Phase::Open | Phase::Timeout if summary.acked > 0 => self.grow(summary, now),
            Phase::Open | Phase::Timeout => {}
        }
        if self.snd.recovery.phase == Phase::Fast {
            // RFC 9937: SafeACK, which lets the window catch up with ssthresh.
            let safe = summary.acked > 0 && lost == 0;
            self.reduce(delivered, safe);
        }
        // RFC 6298 (5.2) and (5.3): restart on new data, stop when nothing is outstanding.
        if summary.acked > 0 {
            let outstanding = self.snd.board.outstanding() > 0;
            self.snd.timer = outstanding.then(|| now + self.snd.rtt.rto());
            self.arm_tail_probe(now);
        }
    }

    /// Grows the congestion window for the newly acknowledged bytes.
    fn grow(&mut self, summary: &AckSummary, now: Instant) {
        let snd = &mut self.snd;
        snd.cc.on_ack(&Acked {
            bytes: summary.acked,
            flight: summary.flight,
            una: snd.board.una(),
            nxt: snd.board.nxt(),
            rtt: summary.rtt,
            srtt: snd.rtt.srtt().unwrap_or_default(),
            mss: snd.mss,
            max: self.link.snd_target_max as u32,
            now,
        });
    }

    /// Stops the timer when nothing is outstanding or waits, and starts it (retransmission or persist) when it must
    /// run.
    fn settle_timer(&mut self, now: Instant) {
        let snd = &mut self.snd;
        // Also for a FIN that waits for the window.
        let fin_waits = snd.fin && snd.fin_seq() == Some(snd.nxt());
        if snd.board.outstanding() == 0 && snd.unsent() == 0 && !fin_waits {
            snd.timer = None;
        } else if snd.timer.is_none() {
            snd.timer = Some(now + snd.rtt.rto());
        }
    }
}

/// The timestamp clock at `at`: milliseconds plus the offset of the flow (RFC 7323 section 5.4).
pub(super) fn ts_at(at: Instant, offset: u32) -> u32 {
    ((at.0 / 1_000_000) as u32).wrapping_add(offset)
}

/// Linux rules (L5), `tcp_new_space`: the send cap follows the congestion window. `header` is the overhead of one
/// segment, bytes.
fn expand_sndbuf(snd: &Snd, mem: &mut MemCtx<'_>, max: usize) {
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
