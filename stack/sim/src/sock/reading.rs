//! When a simulated server reads its data.

use std::time::Duration;

use skbudget_controller::Instant;

use super::{NEVER, Sock};

/// A server with a read rate reads in pieces of this size, bytes.
const PACED_PIECE: u64 = 16 * 1024;

impl Sock {
    /// The server starts to read; data that waited is planned anew.
    pub(crate) fn start_reading(&mut self, now: Instant) {
        self.server.reads_from = now;
        let waiting: u64 = self.reading.drain(..).map(|(_, n)| n).sum();
        self.read_until = now;
        if waiting > 0 {
            self.plan_reading(now, waiting);
        }
    }

    /// Plans when the server reads `bytes` that were just written.
    pub(super) fn plan_reading(&mut self, now: Instant, bytes: u64) {
        let arrives = self.server.awake((now + self.server.delay).max(self.server.reads_from));
        if arrives == NEVER {
            // Never read: collected in one entry, for `start_reading`.
            match self.reading.back_mut() {
                Some((at, n)) if *at == NEVER => *n += bytes,
                _ => self.reading.push_back((NEVER, bytes)),
            }
            return;
        }
        let Some(rate) = self.server.read_rate else {
            self.reading.push_back((arrives, bytes));
            return;
        };
        let mut left = bytes;
        while left > 0 {
            let n = left.min(PACED_PIECE);
            let takes = Duration::from_nanos(n * 1_000_000_000 / rate.max(1));
            self.read_until = self.server.awake(self.read_until.max(arrives) + takes);
            self.reading.push_back((self.read_until, n));
            left -= n;
        }
    }
}
