//! Serves one dirty flow in a turn: host connect result, relay in both directions, segments to the guest.

use std::time::Duration;

use skbudget_controller::{Budget, Rules};

use super::neighbour::REQUEST_RETRY;
use super::{Container, Ctx};
use crate::config::ContainerConfig;
use crate::counters::Stat;
use crate::flow::Flow;
use crate::io::{Close, HostError};
use crate::pressure::{CapChange, Throttle};
use crate::queue::MemCtx;
use crate::relay::{self, Ends, Moved};
use crate::tcp::state::State;
use crate::wire::icmp::{self, Unreachable};

/// Pause of a flow after the device refused a frame.
const DEVICE_RETRY: Duration = Duration::from_millis(1);

/// Reasons for which a served flow has work left.
#[derive(Debug, Default)]
struct Serviced {
    /// The flow used up its bytes of this turn.
    more: bool,
    /// The budget refused memory to read the host socket.
    no_send_memory: bool,
    /// The budget refused credit, so the window is smaller than the flow's target.
    short_window: bool,
    /// The device refused a frame, or the guest's hardware address is unknown.
    device_full: bool,
}

impl Container {
    /// Serves a flow that is taken from the table, and returns it there unless it ends.
    pub(super) fn service(&mut self, cx: &mut Ctx<'_>, mut flow: Box<Flow>) {
        let mut no_memory = false;
        // connect(2) is under way and the socket reported writable, which also reports failure: read SO_ERROR.
        if let Some(sibling) = flow.host.sibling() {
            let Some(served) = self.serve_sibling(cx, flow) else { return };
            flow = served;
            no_memory = sibling.refused;
        } else if !flow.host.open && flow.host.ready.writable {
            match cx.host.connect_outcome(flow.id) {
                // A spurious edge: wait for the next one.
                None => flow.host.ready.writable = false,
                Some(Ok(())) => {
                    flow.host.open = true;
                    flow.tcb.on_host_connected();
                    // The flow may stay silent: it then becomes idle, and its credit can be released (H3).
                    self.idle.watch_new(&mut flow, cx.now);
                }
                Some(Err(e @ (HostError::Reset | HostError::ResetAfterEnd))) => {
                    // connect(2) succeeded and the peer reset the connection since. Complete the handshake with the
                    // guest, so that it receives the data that arrived before the reset.
                    (flow.host.open, flow.host.error) = (true, Some(e));
                    flow.host.ready.readable = true;
                    flow.tcb.on_host_connected();
                    self.idle.watch_new(&mut flow, cx.now);
                }
                Some(Err(e)) => return self.host_connect_failed(cx, flow, e),
            }
        }
        // The relay counts neither direction per container: compare before and after.
        let before = flow.host.bytes_to_guest;
        let unread = flow.tcb.unread();
        let mut serviced = self.move_bytes(cx, &mut flow);
        serviced.no_send_memory |= no_memory;
        let taken = unread - flow.tcb.unread();
        self.totals.bytes_to_host += taken;
        // Bytes towards the host were noted as activity when they arrived from the guest.
        if flow.host.bytes_to_guest > before {
            self.totals.bytes_to_guest += flow.host.bytes_to_guest - before;
            self.note_data(&mut flow, cx);
        }
        if serviced.more {
            self.mark(flow.id.index);
        }
        // An orphan sends no segments to the guest, so nothing below applies to it.
        if let Some(orphan) = flow.orphan {
            return self.serve_orphan(cx, flow, orphan);
        }
        // The guest has acknowledged all that arrived before the host's error, so the RST loses nothing. After the
        // relay, which may have read more.
        if flow.tcb.reset_is_due() {
            return self.abort(cx, flow);
        }
        if serviced.device_full {
            self.block(cx, &flow);
        }
        // Before `schedule`: the linux rules set `retry_at`, which is part of the flow's deadline.
        if serviced.no_send_memory || serviced.short_window {
            self.short_of_memory(cx, &mut flow, serviced.no_send_memory);
        }
        self.timers.schedule(&mut flow);
        self.flows.put(flow);
    }

    /// Relays both directions, then sends segments.
    fn move_bytes(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow) -> Serviced {
        let mut done = Serviced::default();
        // Nothing more is read for a guest that is gone, nor while a refused sender sleeps (L4).
        let is_sibling = flow.host.sibling().is_some();
        let (idle, reads) = (flow.idle, flow.orphan.is_none() && flow.retry_at.is_none());
        // Data of a sibling was exchanged before the turn. What it does not take any more is dropped as a host's is.
        let relays = flow.host.sibling().is_none() || flow.host.is_broken();
        if flow.host.open && relays {
            let queue_share = share_of_queue(&self.config, cx.budget, self.idle.active());
            with_ends(cx, flow, |ends, mem| {
                // Caps before bytes: what pressure releases here is available to the reads below (B7).
                match Throttle::of(mem.budget).host_caps {
                    CapChange::Lower => relay::host_caps::lower_under_pressure(ends, mem),
                    // An idle flow is served for an ACK or a timer, which needs no larger caps.
                    CapChange::Raise if idle => {}
                    CapChange::Raise => relay::host_caps::raise_initial(ends, mem),
                }
                // To the host first: bytes that the socket takes free chunks, which `to_guest` may need at once.
                match relay::to_host(ends, queue_share, mem) {
                    Moved::More => done.more = true,
                    Moved::Done | Moved::NoMemory => {}
                }
                if !reads || is_sibling {
                    return;
                }
                match relay::to_guest(ends, mem) {
                    Moved::More => done.more = true,
                    Moved::NoMemory => done.no_send_memory = true,
                    Moved::Done => {}
                }
            });
        }
        // Last: one `output` then sends the new window edge, the new data and the ACK in as few segments as possible.
        if flow.orphan.is_none() {
            self.emit_segments(cx, flow, &mut done);
        }
        done
    }

    /// Sends the segments that are due to the guest.
    fn emit_segments(&mut self, cx: &mut Ctx<'_>, flow: &mut Flow, done: &mut Serviced) {
        // A frame needs the guest's hardware address: treat its absence as a full device, so that `block` requests it.
        if self.egress.guest_mac.is_none() {
            done.device_full = true;
            return;
        }
        let Self { egress, stats, .. } = self;
        let Ctx { now, budget, pool, device, .. } = cx;
        let Flow { tuple, tcb, ledger, .. } = flow;
        let mut mem = MemCtx { now: *now, budget, pool, ledger };
        let out = tcb
            .output(&mut mem, stats, &mut |seg, parts| egress.segment(*device, tuple, seg, parts));
        // Not an assignment: the relay may have set it.
        done.more |= out.more;
        done.device_full = out.device_full;
        done.short_window = out.short;
    }

    /// Puts the flow on the list of blocked flows: the device is full, or the guest's hardware address is unknown.
    fn block(&mut self, cx: &mut Ctx<'_>, flow: &Flow) {
        let retry = if self.egress.guest_mac.is_some() {
            self.stats.add(Stat::DeviceFull);
            DEVICE_RETRY
        } else {
            if self.neighbour.may_request(cx.now) {
                self.request_guest_mac(cx, flow.tuple.is_ipv6());
            }
            REQUEST_RETRY
        };
        self.ready.block(flow.id.index, cx.now + retry);
    }

    /// Passes a failed connect to the guest as a network would: RST for a refused connection, an ICMP error for a
    /// missing route, silence for a timeout, so that the guest's own SYN timer decides.
    pub(super) fn host_connect_failed(
        &mut self,
        cx: &mut Ctx<'_>,
        flow: Box<Flow>,
        error: HostError,
    ) {
        self.stats.add(Stat::HostConnectFailed);
        if self.config.is_forwarder(flow.tuple.remote()) {
            self.name_server_failed();
        }
        let reason = match error {
            HostError::HostUnreachable => Some(Unreachable::Host),
            HostError::NetUnreachable => Some(Unreachable::Net),
            HostError::TimedOut | HostError::NoResources | HostError::WouldBlock => None,
            HostError::Refused | HostError::Reset | HostError::ResetAfterEnd => {
                debug_assert_eq!(flow.tcb.state, State::Connecting);
                // The host side refused: RST, which `abort` sends.
                return self.abort(cx, flow);
            }
        };
        if let Some(reason) = reason
            && self.icmp_allowed(cx.now)
        {
            // The guest's SYN is quoted as ICMP requires; `irs` is its sequence number.
            let answer = icmp::syn_unreachable(&flow.tuple, flow.tcb.irs().0, reason);
            self.egress.answer(cx.device, &answer);
        }
        self.end(cx, flow, Close::Reset);
    }

    /// Linux rules: a refused sender sleeps 8 to 200 ms: 2 jiffies to a fifth of a second (L4).
    pub(super) fn retry_later(&mut self, cx: &Ctx<'_>, flow: &mut Flow) {
        debug_assert_eq!(cx.budget.rules(), Rules::Linux);
        let wait = Duration::from_millis(8 + self.random.next() % 193);
        flow.retry_at = Some(cx.now + wait);
    }
}

/// Calls `work` with both ends of a flow and its memory context.
pub(super) fn with_ends<T>(
    cx: &mut Ctx<'_>,
    flow: &mut Flow,
    work: impl FnOnce(&mut Ends<'_>, &mut MemCtx<'_>) -> T,
) -> T {
    let Ctx { now, budget, pool, host, .. } = cx;
    let Flow { id, tcb, host: side, ledger, .. } = flow;
    let mut mem = MemCtx { now: *now, budget, pool, ledger };
    let mut ends = Ends { id: *id, tcb, side, host: *host };
    work(&mut ends, &mut mem)
}

/// Largest receive window of one flow, bytes: an equal part of the device queue for each active flow, at most
/// `tcp_rmem[2]` (B12).
pub(super) fn share_of_queue(config: &ContainerConfig, budget: &Budget, active: usize) -> u64 {
    let share = config.queue_window() / active.max(1) as u64;
    share.min(u64::from(budget.sock_limits().rmem[2]))
}
