//! What remains of a flow when TCP with its guest is over: bytes acknowledged to the guest, and the host socket that
//! delivers them (K11).
//!
//! ```text
//! guest ended its stream ──▶ write all ──▶ shutdown ──▶ all acknowledged ──▶ close
//! guest reset, or given up ─▶ write all ──────────────▶ all acknowledged ──▶ reset
//! ```
//!
//! The flow keeps its slot and its charge until then: what the kernel holds in the socket's send queue is memory of the
//! container. A kernel reports no event when a send queue becomes empty, so the queue is polled. A socket without
//! progress for a while is reset, which discards its data.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::io::Close;

/// Time without progress after which the data of a guest that ended its stream is discarded.
const STALLED: Duration = Duration::from_secs(60);
/// The same after a reset: the guest gave up its data, so only data that still moves is delivered.
const STALLED_AFTER_RESET: Duration = Duration::from_secs(1);

/// Pause between two polls of the send queue; it doubles from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Delivery state of an orphaned flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orphan {
    /// How the host socket is closed when everything is delivered.
    pub(crate) how: Close,
    /// Bytes that the host's peer had not acknowledged at the last poll, and when their number last fell.
    left: u64,
    progress_at: Instant,
    /// Time of the next poll, and the pause after it.
    look_at: Instant,
    pause: Duration,
}

/// Result of a poll of the send queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Delivered,
    /// Bytes remain: poll again at `Orphan::look_at`.
    Waits,
    /// Bytes remain, without progress for too long.
    Stalled,
}

impl Orphan {
    /// Starts with a poll at once.
    pub(crate) fn new(how: Close, now: Instant) -> Self {
        let left = u64::MAX;
        Self { how, left, progress_at: now, look_at: now, pause: PAUSE_MIN }
    }

    /// When to poll next.
    pub(crate) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Evaluates a poll. `left`: bytes that the host's peer has not acknowledged, here or in the kernel.
    pub(crate) fn look(&mut self, left: u64, now: Instant) -> Look {
        if left == 0 {
            return Look::Delivered;
        }
        // The first poll always counts as progress: `left` starts at the maximum.
        if left < self.left {
            (self.left, self.progress_at) = (left, now);
        }
        let give_up_at = self.progress_at
            + match self.how {
                Close::Graceful => STALLED,
                Close::Reset => STALLED_AFTER_RESET,
            };
        if give_up_at <= now {
            return Look::Stalled;
        }
        // An early call (another event of the flow) must not move the schedule.
        if self.look_at <= now {
            self.look_at = (now + self.pause).min(give_up_at);
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        Look::Waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until_stalled(how: Close) -> (u64, u32) {
        let mut orphan = Orphan::new(how, Instant::default());
        let mut looks = 0;
        loop {
            let now = orphan.look_at();
            looks += 1;
            // After half a second one more byte is acknowledged.
            let left = if now < Instant::from_millis(500) { 10 } else { 9 };
            match orphan.look(left, now) {
                Look::Waits => assert!(orphan.look_at() > now),
                Look::Stalled => return (now.0 / 1_000_000, looks),
                Look::Delivered => panic!("9 bytes are left"),
            }
        }
    }

    #[test]
    fn the_clock_runs_from_the_last_progress_and_looks_are_few() {
        let (after, looks) = until_stalled(Close::Graceful);
        assert!((60_500..60_700).contains(&after), "{after} ms");
        assert!(looks < 320, "{looks} looks");
        let (after, looks) = until_stalled(Close::Reset);
        assert!((1_500..1_700).contains(&after), "{after} ms");
        assert!(looks < 20, "{looks} looks");
    }

    #[test]
    fn a_look_before_its_time_does_not_put_off_the_next() {
        let mut orphan = Orphan::new(Close::Graceful, Instant::default());
        assert_eq!(orphan.look(5, Instant::default()), Look::Waits);
        let due = orphan.look_at();
        assert_eq!(orphan.look(5, Instant(due.0 - 1)), Look::Waits);
        assert_eq!(orphan.look_at(), due);
        assert_eq!(orphan.look(0, due), Look::Delivered);
    }
}
