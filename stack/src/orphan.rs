//! What is left of a flow when TCP with its guest is over: bytes that were acknowledged to the guest, and the host
//! socket that delivers them (K11).
//!
//! ```text
//! guest ended its stream ──▶ write all ──▶ shutdown ──▶ all acknowledged ──▶ close
//! guest reset, or given up ─▶ write all ──────────────▶ all acknowledged ──▶ reset
//! ```
//!
//! The flow keeps its place and its charge until then: what the kernel holds in the socket's send queue is memory of
//! the container. A kernel reports no event when a send queue becomes empty, so it is looked at from time to time.
//! Without progress for a while the socket is reset, which discards what it holds.

use std::time::Duration;

use skbudget_controller::Instant;

use crate::io::Close;

/// A guest that ended its stream has its bytes kept for so long without progress.
const STALLED: Duration = Duration::from_secs(60);
/// A guest that reset the connection gave up what it sent: only what moves is waited for.
const STALLED_AFTER_RESET: Duration = Duration::from_secs(1);

/// Time from one look at the send queue to the next: it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orphan {
    /// How the host socket ends when all is delivered.
    pub(crate) how: Close,
    /// Bytes that the host's peer had not acknowledged at the last look; when there were last fewer.
    left: u64,
    progress_at: Instant,
    look_at: Instant,
    pause: Duration,
}

/// What a look at the send queue found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Delivered,
    /// Some is left: look again at `Orphan::look_at`.
    Waits,
    /// Some is left, and has been for too long.
    Stalled,
}

impl Orphan {
    pub(crate) fn new(how: Close, now: Instant) -> Self {
        let left = u64::MAX;
        Self { how, left, progress_at: now, look_at: now, pause: PAUSE_MIN }
    }

    pub(crate) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// `left`: bytes that the host's peer has not acknowledged now, held here or by the kernel.
    pub(crate) fn look(&mut self, left: u64, now: Instant) -> Look {
        if left == 0 {
            return Look::Delivered;
        }
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
            // Half a second in, one more byte is acknowledged.
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
