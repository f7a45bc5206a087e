//! After the command has ended: delivers what it sent, as the kernel does for sockets that no process has open.
//!
//! The command's sockets are closed, so every flow ends as soon as its data is delivered. The wait lasts while there is
//! progress, and `STALLED` beyond that; a signal ends it early.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skbudget_controller::Instant;
use skbudget_stack::Undelivered;

use crate::clock;
use crate::daemon::Daemon;
use crate::types::{DaemonError, Ended};

/// Longest time without progress while bytes acknowledged to the command are undelivered.
const STALLED: Duration = Duration::from_secs(60);
/// The same when all such bytes are delivered, but connections are open still: their guest no longer answers.
const STALLED_WITHOUT_BYTES: Duration = Duration::from_secs(1);

/// Interval between two checks. It doubles while there is no progress.
const STEP_MIN: Duration = Duration::from_millis(2);
const STEP_MAX: Duration = Duration::from_millis(50);

/// Connections and bytes that were not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Lost {
    pub(super) flows: u64,
    pub(super) bytes: u64,
}

impl Lost {
    pub(super) fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flows, bytes } = self;
        if *bytes == 0 {
            return write!(
                f,
                "{flows} connections were reset before all data of the command was delivered"
            );
        }
        write!(
            f,
            "{bytes} bytes that the command sent on {flows} connections were not delivered: the receivers did not \
             acknowledge them"
        )
    }
}

/// Waits until everything is delivered, there was no progress for too long, or `interrupted` returns true.
pub(super) fn drain(
    daemon: &Daemon,
    name: &str,
    mut interrupted: impl FnMut() -> io::Result<bool>,
) -> Result<Lost, DaemonError> {
    let mut wait: Option<Wait> = None;
    loop {
        let found = match daemon.undelivered(name) {
            // The command deleted the device, and that closed all flows.
            Err(DaemonError::NoSuchContainer(_)) => {
                tracing::warn!("the command deleted its device: all its connections were reset");
                let lost = |e: Ended| Lost { flows: e.lost_flows, bytes: e.lost_bytes };
                return Ok(daemon.ended(name)?.map_or_else(Lost::default, lost));
            }
            found => found?,
        };
        let now = clock::now();
        let wait = wait.get_or_insert_with(|| Wait::new(found, now));
        match wait.look(found, now) {
            Next::Over(lost) => return Ok(lost),
            // Checked only when there is something left to wait for.
            Next::Wait(_) if interrupted()? => return Ok(wait.lost_now(found)),
            Next::Wait(step) => std::thread::sleep(step),
        }
    }
}

/// State of the wait: the first and the last count, and the time of the last progress.
#[derive(Debug)]
struct Wait {
    first: Undelivered,
    last: Undelivered,
    progress_at: Instant,
    step: Duration,
}

/// Bytes delivered so far. Bytes given up are not delivered, so giving up is no progress.
fn delivered(found: Undelivered) -> u64 {
    found.received.saturating_sub(found.bytes + found.lost_bytes)
}

/// What to do after a check: end with these losses, or check again later.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Over(Lost),
    Wait(Duration),
}

impl Wait {
    fn new(first: Undelivered, now: Instant) -> Self {
        Self { first, last: first, progress_at: now, step: STEP_MIN }
    }

    /// Compares a new count with the last one.
    fn look(&mut self, found: Undelivered, now: Instant) -> Next {
        // The guest's kernel may still send what the command wrote: new bytes are progress, too.
        if found.received > self.last.received || delivered(found) > delivered(self.last) {
            (self.progress_at, self.step) = (now, STEP_MIN);
        }
        self.last = found;
        let still = now.since(self.progress_at);
        // All is delivered, or the remaining connections have no data and make no progress.
        if found.flows == 0 || found.bytes == 0 && still >= STALLED_WITHOUT_BYTES {
            return Next::Over(self.given_up(found));
        }
        if still >= STALLED {
            return Next::Over(self.lost_now(found));
        }
        let step = self.step;
        self.step = (step * 2).min(STEP_MAX);
        Next::Wait(step)
    }

    /// Bytes and flows that the stack gave up since the command ended.
    fn given_up(&self, found: Undelivered) -> Lost {
        let flows = found.lost_flows - self.first.lost_flows;
        Lost { flows, bytes: found.lost_bytes - self.first.lost_bytes }
    }

    /// The same, and all that is undelivered now.
    fn lost_now(&self, found: Undelivered) -> Lost {
        let Lost { flows, bytes } = self.given_up(found);
        Lost { flows: flows + found.flows, bytes: bytes + found.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Undelivered =
        Undelivered { flows: 2, bytes: 100, received: 500, lost_flows: 7, lost_bytes: 70 };
    const NOTHING: Undelivered = Undelivered { flows: 0, bytes: 0, ..SOME };

    /// Checks the state `at` each time in ms until the wait ends. Returns that time and what was lost.
    fn until_over(at: impl Fn(u64) -> Undelivered) -> (u64, Lost) {
        let mut now = Instant::default();
        let mut wait = Wait::new(at(0), now);
        loop {
            match wait.look(at(now.0 / 1_000_000), now) {
                Next::Over(lost) => return (now.0 / 1_000_000, lost),
                Next::Wait(step) => now = now + step,
            }
        }
    }

    #[test]
    fn it_lasts_as_long_as_bytes_move_and_a_minute_longer() {
        let (after, lost) = until_over(|_| SOME);
        assert!((60_000..60_100).contains(&after), "{after} ms");
        assert_eq!(lost, Lost { flows: 2, bytes: 100 });
        // The slow reader takes one byte every 50 seconds.
        let slow = |ms: u64| {
            let bytes = 10 - (ms / 50_000).min(10);
            if bytes == 0 { NOTHING } else { Undelivered { flows: 1, bytes, ..SOME } }
        };
        let (after, lost) = until_over(slow);
        assert!((500_000..500_100).contains(&after), "{after} ms");
        assert!(lost.is_nothing());
        // The guest's kernel still sends what the command wrote.
        let from_guest = |ms| match ms / 50_000 {
            n @ 0..4 => Undelivered { received: 500 + n, bytes: 100 + n, ..SOME },
            _ => NOTHING,
        };
        assert!(until_over(from_guest).0 >= 200_000);
    }

    #[test]
    fn what_is_given_up_is_no_progress() {
        let (after, lost) = until_over(|ms| {
            let over = ms / 1000;
            Undelivered {
                flows: 200 - over,
                bytes: 200 - over,
                lost_flows: 7 + over,
                lost_bytes: 70 + over,
                ..SOME
            }
        });
        assert!((60_000..60_100).contains(&after), "{after} ms");
        assert_eq!(lost, Lost { flows: 200, bytes: 200 });
    }

    #[test]
    fn what_the_stack_gave_up_meanwhile_counts_and_what_it_gave_up_before_does_not() {
        let (after, lost) = until_over(|ms| match ms {
            0..3000 => SOME,
            _ => Undelivered { lost_flows: 9, lost_bytes: 170, ..NOTHING },
        });
        assert!((3000..3100).contains(&after), "{after} ms");
        assert_eq!(lost, Lost { flows: 2, bytes: 100 });
        assert_eq!(until_over(|_| NOTHING), (0, Lost::default()));
    }

    #[test]
    fn connections_without_bytes_that_do_not_end_are_not_waited_for() {
        let (after, lost) = until_over(|_| Undelivered { bytes: 0, ..SOME });
        assert!((1000..1100).contains(&after), "{after} ms");
        assert!(lost.is_nothing());
    }
}
