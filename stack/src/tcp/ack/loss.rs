//! Loss by the ACKs: detection, the recovery it starts, and the end or the undo of that recovery.

use skbudget_controller::Instant;

use super::AckSummary;
use crate::counters::{Stat, Stats};
use crate::tcp::Tcb;
use crate::tcp::recovery::Phase;

/// Segments beyond a hole, or duplicate ACKs, that indicate loss (RFC 5681 section 3.2, RFC 6675 section 4).
const DUP_THRESH: u32 = 3;

impl Tcb {
    /// Reverts the reduction of a recovery that proves spurious (RFC 4015): Eifel, DSACK or F-RTO, in this order.
    pub(super) fn undo_if_spurious(&mut self, summary: &AckSummary, stats: &mut Stats) {
        let snd = &mut self.snd;
        // All three run on each ACK, even if an earlier one decides: each keeps its own state.
        let original =
            if summary.acked > 0 { snd.recovery.answered_original(summary.echo) } else { None };
        let twice = summary.duplicate.and_then(|twice| snd.recovery.on_duplicate(twice));
        let moved = summary.acked > 0 && snd.una().lt(snd.recovery.until);
        // F-RTO needs a new segment that can leave now.
        let able = snd.unsent() > 0 && snd.wnd > snd.board.outstanding();
        let late = snd.recovery.on_forward(moved, summary.original, able);
        let (before, stat) = match (original, twice, late) {
            (Some(before), ..) => (before, Stat::TCPTSUndo),
            (_, Some(before), _) => (before, Stat::TCPDSACKUndo),
            (.., Some(before)) => (before, Stat::TCPSpuriousRTOs),
            _ => return,
        };
        stats.add(stat);
        snd.cc.undo(before);
        snd.recovery.undone();
        // No range is known to be lost now; RACK marks again the ranges that are.
        snd.board.unmark_all_lost();
    }

    /// RFC 8985 section 6.2 step 5: marks lost ranges and arms the reordering timer. Returns the bytes newly lost.
    pub(in crate::tcp) fn detect_loss(&mut self, now: Instant) -> u32 {
        let snd = &mut self.snd;
        // Fast path: no hole and no retransmission, so nothing can be overtaken.
        if snd.board.in_order() {
            snd.reorder_at = None;
            return 0;
        }
        let srtt = snd.rtt.srtt().unwrap_or_default();
        // Without a reordering window: in recovery, or with DUP_THRESH segments SACKed (RFC 8985 section 6.2 step 4).
        let sure =
            snd.recovery.phase != Phase::Open || snd.board.sacked() > (DUP_THRESH - 1) * snd.mss;
        let (lost, wait) = snd.rack.detect(&mut snd.board, srtt, sure, now);
        snd.reorder_at = wait.map(|wait| now + wait);
        lost
    }

    /// Starts fast recovery. `flight` and `pipe`: FlightSize (at most cwnd) and pipe before the ACK, bytes.
    pub(in crate::tcp) fn begin_recovery(&mut self, flight: u32, pipe: u32, stats: &mut Stats) {
        let snd = &mut self.snd;
        let nxt = snd.nxt();
        // Saves `snd.cc` first: an undo returns to the window before the reduction.
        snd.recovery.begin(Phase::Fast, snd.cc, &snd.board, pipe);
        snd.cc.on_loss(flight, snd.mss, false);
        // The next new segment carries CWR, and marks on data sent before now cause no second reduction.
        self.ecn.on_reduced(nxt);
        // RFC 8985 section 7.2: no probe during recovery.
        snd.tail_probe = None;
        snd.tail_probe_at = None;
        stats.add(if self.sack { Stat::TCPSackRecovery } else { Stat::TCPRenoRecovery });
    }

    /// An ACK with ECE outside recovery. The first one in a window of data reduces the window as a loss does (RFC 3168
    /// section 6.1.2); further ones only keep it from growing.
    pub(super) fn on_mark(&mut self, flight: u32, stats: &mut Stats) {
        let snd = &mut self.snd;
        if self.ecn.reduces(snd.nxt()) {
            snd.cc.reduce(flight, snd.mss);
            stats.add(Stat::TCPECNReduced);
        }
    }

    /// Sets the window in fast recovery after `delivered` more bytes.
    pub(in crate::tcp) fn reduce(&mut self, delivered: u32, safe: bool) {
        let snd = &mut self.snd;
        let pipe = snd.board.pipe();
        snd.cc.cwnd = snd.recovery.window(&snd.cc, pipe, delivered, safe, snd.mss);
    }

    /// Ends the recovery.
    pub(super) fn recovered(&mut self) {
        let snd = &mut self.snd;
        // RFC 9937 section 6: cwnd = ssthresh at the end. After a timeout slow start goes on instead.
        if snd.recovery.phase == Phase::Fast {
            snd.cc.cwnd = snd.cc.ssthresh.max(2 * snd.mss);
        }
        snd.recovery.end();
        snd.rack.on_recovered();
        // Duplicate ACKs of this recovery do not count for data sent after it.
        if !self.sack {
            snd.board.forget_sacks();
        }
    }

    /// An ACK that repeats the last one. It is a duplicate ACK of RFC 5681 section 2 if data is outstanding and the
    /// window is unchanged. With a closed window it answers a probe; with SACK the blocks carry the information (RFC
    /// 6675 section 2).
    pub(super) fn on_repeated_ack(&mut self, old_wnd: u32, stats: &mut Stats) {
        // RFC 8985 section 7.4.2: may show that a tail loss probe was a duplicate; this holds with SACK, too.
        self.tail_was_there();
        let snd = &mut self.snd;
        let outstanding = snd.board.outstanding();
        if self.sack || outstanding == 0 || snd.wnd != old_wnd || snd.wnd == 0 {
            return;
        }
        // RFC 5682 section 2.1 steps 2a and 3a: a duplicate ACK confirms the timeout.
        snd.recovery.frto_stop();
        // One segment left the network: the first two duplicates release new data (RFC 3042), the third indicates loss.
        let (flight, pipe) = (outstanding.min(snd.cc.cwnd), snd.board.pipe());
        snd.recovery.repeated += 1;
        snd.board.add_dup_ack(snd.mss);
        // RFC 6582 section 3.2 step 2: duplicates caused by retransmissions after a timeout indicate no loss.
        let beyond_timeout = snd.una().gt(snd.recovery.until) || snd.recovery.until == snd.iss;
        if snd.recovery.phase == Phase::Open
            && snd.recovery.repeated == DUP_THRESH
            && beyond_timeout
        {
            snd.board.mark_head_lost(snd.mss, snd.q.chunks());
            self.begin_recovery(flight, pipe, stats);
        }
        if self.snd.recovery.phase == Phase::Fast {
            // Each further duplicate is one delivered segment.
            let mss = self.snd.mss;
            self.reduce(mss, false);
        }
    }

    /// Without SACK, at an ACK that advances SND.UNA: it covers the hole and the segments that duplicate ACKs reported.
    /// In recovery the next hole starts at SND.UNA (RFC 6582 section 3.2 step 3). Returns the bytes that were reported
    /// before.
    pub(super) fn count_without_sack(&mut self, acked: u32) -> u32 {
        let snd = &mut self.snd;
        let reported = snd.board.sacked();
        snd.recovery.repeated = 0;
        if snd.recovery.phase == Phase::Open {
            snd.board.forget_sacks();
        } else {
            // The first segment was the hole; the remaining bytes are those that duplicate ACKs reported.
            snd.board.sub_dup_acks(acked.saturating_sub(snd.mss));
            // Partial ACK: the segment at the new SND.UNA is lost, too.
            if snd.una().lt(snd.recovery.until) {
                snd.board.mark_head_lost(snd.mss, snd.q.chunks());
            }
        }
        reported - snd.board.sacked()
    }
}
