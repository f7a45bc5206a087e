//! What happens to a host socket as time passes: arrivals, the server's reads, readiness edges, the next timer.

use skbudget_controller::Instant;
use skbudget_stack::{HostError, Ready};

use super::{NEVER, PortStats, Sock, State};
use crate::server::Accept;

impl Sock {
    pub(crate) fn timer_fired(&mut self, at: Instant) {
        if self.timer == Some(at) {
            self.timer = None;
        }
    }

    /// Brings the socket to `now`. Returns the readiness edge that is due, if any.
    pub(crate) fn step(&mut self, now: Instant, stats: &mut PortStats) -> Option<Ready> {
        if let State::Connecting { until } = self.state {
            if until > now {
                return None;
            }
            self.state = match self.server.accept {
                Accept::Fails(e) => State::Failed(e),
                Accept::Accepts | Accept::Silent => State::Open,
            };
        }
        while let Some((at, n)) = self.reading.front().copied() {
            if at > now {
                break;
            }
            self.reading.pop_front();
            self.peer.heard(at);
            self.consume(now, n, stats);
        }
        // A server sees the end of the stream only after it has read all data.
        let all_read = self.consumed == self.written && self.server.reads_from <= now;
        if self.write_closed && all_read && !self.eof_seen {
            self.eof_seen = true;
            stats.eofs += 1;
            self.ending = true;
            if self.owed == u64::MAX {
                self.owed = 0;
            }
        }
        self.send_more(now);
        while let Some((at, n)) = self.flying.front().copied() {
            if at > now {
                break;
            }
            self.flying.pop_front();
            self.peer.heard(at);
            self.flying_bytes -= n;
            self.available += n;
        }
        if self.peer(now).given_up_at() <= now && self.state == State::Open {
            self.break_off(HostError::TimedOut);
        }
        self.reset_if_due();
        self.edge()
    }

    /// The readiness edge that is due. It is reported once.
    fn edge(&mut self) -> Option<Ready> {
        let failed = matches!(self.state, State::Failed(_) | State::Broken { .. });
        let readable = self.want_read && (failed || self.available > 0 || self.ended());
        // As the kernel's `sk_stream_is_writeable`: writable again when a third of the buffer is free.
        let free = self.write_room() >= self.write_cap().div_ceil(3);
        let writable = self.want_write && (failed || free);
        self.want_read &= !readable;
        self.want_write &= !writable;
        (readable || writable).then_some(Ready { readable, writable })
    }

    /// The time of the next change, if no timer is set for it yet.
    pub(crate) fn arm_timer(&mut self) -> Option<Instant> {
        let connect = match self.state {
            State::Connecting { until } => until,
            State::Open | State::Failed(_) | State::Broken { .. } => NEVER,
        };
        let reads = self.reading.front().map_or(NEVER, |(at, _)| *at);
        let arrives = self.flying.front().map_or(NEVER, |(at, _)| *at);
        let given_up = match self.state {
            State::Open => self.peer.given_up_at(),
            State::Connecting { .. } | State::Failed(_) | State::Broken { .. } => NEVER,
        };
        let next = connect.min(reads).min(arrives).min(given_up);
        if next == NEVER || self.timer.is_some_and(|t| t <= next) {
            return None;
        }
        self.timer = Some(next);
        self.timer
    }
}
