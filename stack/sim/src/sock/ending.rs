//! The end of a simulated connection: what is still delivered, and which operation returns the error.

use skbudget_controller::Instant;
use skbudget_stack::HostError;

use super::{NEVER, PortStats, Sock, State};

impl Sock {
    /// Bytes that the server's kernel has not acknowledged, plus one for the end of the stream.
    pub(crate) fn unacknowledged(&self, now: Instant) -> u64 {
        if matches!(self.state, State::Broken { .. } | State::Failed(_)) {
            return 0;
        }
        let room = if self.server.gone_from <= now { 0 } else { self.server.rcvbuf };
        let bytes = (self.written - self.consumed).saturating_sub(room);
        bytes + u64::from(self.write_closed && bytes > 0)
    }

    /// True once after a break.
    pub(crate) fn take_broke(&mut self) -> bool {
        std::mem::take(&mut self.broke)
    }

    /// close(2): the server still reads all bytes it can.
    pub(crate) fn deliver_rest(mut self, now: Instant, stats: &mut PortStats) {
        if !matches!(self.state, State::Open) {
            return;
        }
        let rest = self.will_read();
        self.consume(now, rest, stats);
        stats.eofs += u64::from(!self.eof_seen);
    }

    /// close(2) with a reset: the server reads only what its kernel had acknowledged.
    pub(crate) fn deliver_acknowledged(mut self, now: Instant, stats: &mut PortStats) {
        if !matches!(self.state, State::Open) {
            return;
        }
        let there = (self.written - self.consumed).saturating_sub(self.unacknowledged(now));
        let rest = self.will_read().min(there);
        self.consume(now, rest, stats);
    }

    /// Bytes that the server will read at some time; one that is gone or never reads counts none.
    fn will_read(&mut self) -> u64 {
        self.reading.drain(..).filter(|(at, _)| *at < NEVER).map(|(_, n)| n).sum()
    }

    /// Resets the connection once all earlier data was sent. Data on its way to the server is lost.
    pub(super) fn reset_if_due(&mut self) {
        let sent = self.owed == 0 && self.flying.is_empty();
        if self.state == State::Open && self.resetting && sent {
            let error = if self.ending { HostError::ResetAfterEnd } else { HostError::Reset };
            self.break_off(error);
        }
    }

    /// Breaks the connection and reports both edges, as EPOLLERR does.
    pub(super) fn break_off(&mut self, error: HostError) {
        self.state = State::Broken { error: Some(error) };
        self.broke = true;
        (self.want_read, self.want_write) = (true, true);
        self.reading.clear();
    }
}
