//! Whether the peer of a host socket is still there: SO_KEEPALIVE and TCP_INFO.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use skbudget_stack::FlowId;

use super::HostSockets;
use crate::sys;

/// Unanswered probes that the kernel counts at most (MAX_TCP_KEEPCNT): the guest's own count is to decide, and comes
/// first.
const PROBES_MAX: u32 = 127;
/// The least TCP_KEEPIDLE, seconds.
const IDLE_LEAST: u32 = 1;

impl HostSockets {
    /// A failure leaves the socket without probes, and `silence` shows what is heard of the peer all the same.
    pub(super) fn probe_every(&mut self, flow: FlowId, every: Duration) {
        let Some(slot) = self.slot(flow) else { return };
        let seconds = u32::try_from(every.as_secs()).unwrap_or(u32::MAX).max(IDLE_LEAST);
        let _ = setsockopt(&slot.stream, sockopt::KeepAlive, &true);
        let _ = setsockopt(&slot.stream, sockopt::TcpKeepCount, &PROBES_MAX);
        let _ = setsockopt(&slot.stream, sockopt::TcpKeepInterval, &seconds);
        // The last: with it the kernel sets its timer, by what has passed since the peer was heard.
        let _ = setsockopt(&slot.stream, sockopt::TcpKeepIdle, &seconds);
    }

    /// A time that is over makes the kernel probe at its next tick (tcp_sock_set_keepidle_locked).
    pub(super) fn probe_now(&mut self, flow: FlowId) {
        let Some(slot) = self.slot(flow) else { return };
        let _ = setsockopt(&slot.stream, sockopt::KeepAlive, &true);
        let _ = setsockopt(&slot.stream, sockopt::TcpKeepIdle, &IDLE_LEAST);
    }

    /// `None` while bytes are queued: the kernel then retransmits, or probes a closed window up to two minutes apart,
    /// and sends no keep-alive probes.
    pub(super) fn peer_silence(&mut self, flow: FlowId) -> Option<Duration> {
        let socket = self.slot(flow)?.stream.as_fd();
        let (queued, _) = sys::socket_queued_bytes(socket).ok()?;
        if queued > 0 {
            return None;
        }
        sys::tcp_silence(socket).ok()
    }
}
