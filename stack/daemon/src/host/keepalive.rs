//! Checks whether the peer of a host socket is still reachable: SO_KEEPALIVE and TCP_INFO.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use skbudget_stack::FlowId;

use super::HostSockets;
use crate::sys;

/// Unanswered probes until the kernel closes the connection, at its maximum (MAX_TCP_KEEPCNT): the guest's own, lower
/// count decides.
const PROBES_MAX: u32 = 127;
/// The smallest TCP_KEEPIDLE, seconds.
const IDLE_LEAST: u32 = 1;
/// The largest TCP_KEEPINTVL (MAX_TCP_KEEPINTVL), seconds. After an unanswered probe the next one of the kernel's own
/// follows only then, and `probe_now` sends one for each probe of the guest. So it is the guest's count that ends a
/// connection: a guest that lengthens its interval or turns keep-alive off does not see the kernel end it.
const INTERVAL_MAX: u32 = 32_767;

impl HostSockets {
    /// Sends a probe after each `every` without traffic, as long as the peer answers. If a call fails, the socket sends
    /// no probes; `silence` still reports when the peer was last received from.
    pub(super) fn probe_every(&mut self, flow: FlowId, every: Duration) {
        let Some(slot) = self.slot(flow) else { return };
        let seconds = u32::try_from(every.as_secs()).unwrap_or(u32::MAX).max(IDLE_LEAST);
        let _ = setsockopt(&slot.stream, sockopt::KeepAlive, &true);
        let _ = setsockopt(&slot.stream, sockopt::TcpKeepCount, &PROBES_MAX);
        let _ = setsockopt(&slot.stream, sockopt::TcpKeepInterval, &INTERVAL_MAX);
        // Set last: with this option the kernel starts its timer, counting from the last segment of the peer.
        let _ = setsockopt(&slot.stream, sockopt::TcpKeepIdle, &seconds);
    }

    /// Sends a probe now: an idle time that is over already makes the kernel probe at its next tick
    /// (tcp_sock_set_keepidle_locked).
    pub(super) fn probe_now(&mut self, flow: FlowId) {
        let Some(slot) = self.slot(flow) else { return };
        let _ = setsockopt(&slot.stream, sockopt::KeepAlive, &true);
        let _ = setsockopt(&slot.stream, sockopt::TcpKeepIdle, &IDLE_LEAST);
    }

    /// The time since the last segment of the peer. `None` while bytes are queued: the kernel then retransmits, or
    /// probes a closed window at intervals of up to two minutes, and sends no keep-alive probes.
    pub(super) fn peer_silence(&mut self, flow: FlowId) -> Option<Duration> {
        let socket = self.slot(flow)?.stream.as_fd();
        let (queued, _) = sys::socket_queued_bytes(socket).ok()?;
        if queued > 0 {
            return None;
        }
        sys::tcp_silence(socket).ok()
    }
}
