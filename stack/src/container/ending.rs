//! How flows end.
//!
//! Either side may end or fail first. Data that was acknowledged to one side is delivered to the other before that side
//! learns of the end. A flow with a failed host socket lives until the guest has acknowledged all that arrived before
//! (`reset_is_due`). A flow that lost its guest lives until the host's peer has acknowledged all that the guest sent
//! (`Orphan`, K11). Both states have a timer: TCP's retransmissions for the first, polls of the host's send queue for
//! the second.

use super::service::with_ends;
use super::{Container, Ctx};
use crate::counters::Stat;
use crate::flow::Flow;
use crate::flow::orphan::{Look, Orphan};
use crate::io::{Close, FlowId, Host};
use crate::relay;
use crate::tcp::state::State;

/// Data that was acknowledged to the guest and not yet by the remotes it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Undelivered {
    /// Flows with a guest stream that has not completely reached its remote.
    pub flows: u64,
    /// Bytes of these flows that were acknowledged to the guest.
    pub bytes: u64,
    /// Bytes received from the guest since the container started.
    pub received: u64,
    /// Flows that were given up since the container started.
    pub lost_flows: u64,
    /// Bytes of these flows that were acknowledged to the guest and not delivered.
    pub lost_bytes: u64,
}

impl Container {
    /// TCP with the guest is over: keeps the flow as an orphan until the host's peer has the guest's data, then closes
    /// the host socket as `how`.
    pub(super) fn outlive_guest(&mut self, cx: &mut Ctx<'_>, mut flow: Box<Flow>, how: Close) {
        // At once: a new SYN of the guest on the same tuple must open a new flow.
        self.flows.unlink(&flow);
        // Nothing can be delivered to a socket that is not connected or in error.
        if !flow.host.open || flow.host.is_broken() {
            return self.end(cx, flow, Close::Reset);
        }
        // Releases the send queue, out-of-order data and window; in-order data stays for the host.
        flow.tcb.abandon(&mut cx.mem(&mut flow.ledger));
        // An orphan reads nothing and opens no window, so it waits for no memory.
        if std::mem::take(&mut flow.waiting) {
            cx.budget.forget(self.wake_key(&flow).0);
        }
        flow.orphan = Some(Orphan::new(how, cx.now));
        self.mark(flow.id.index);
        self.note_sibling(&mut flow);
        self.flows.put(flow);
    }

    /// Ends a served orphan when everything is delivered or when it has stalled; otherwise schedules the next poll.
    pub(super) fn serve_orphan(
        &mut self,
        cx: &mut Ctx<'_>,
        mut flow: Box<Flow>,
        mut orphan: Orphan,
    ) {
        if flow.host.is_broken() {
            return self.end(cx, flow, Close::Reset);
        }
        // The kernel reports no event when its send queue becomes empty, so it is polled.
        let left = undelivered(&flow, cx.host);
        match orphan.look(left, cx.now) {
            Look::Delivered => self.end(cx, flow, orphan.how),
            Look::Stalled => {
                self.stats.add(Stat::OrphansGivenUp);
                self.stats.add_n(Stat::OrphanBytesLost, bytes_of(&flow, left));
                self.end(cx, flow, Close::Reset);
            }
            Look::Waits => {
                flow.orphan = Some(orphan);
                // Uncharge what the kernel has given back so far.
                with_ends(cx, &mut flow, relay::host_caps::lower_as_delivered);
                self.timers.schedule(&mut flow);
                self.flows.put(flow);
            }
        }
    }

    /// The caller could not keep a connection that `on_accept` admitted: removes its flow before the guest receives a
    /// SYN.
    pub fn accept_failed(&mut self, cx: &mut Ctx<'_>, id: FlowId) {
        if self.flows.get(id).is_some()
            && let Some(flow) = self.flows.take(id.index)
        {
            self.release(cx, flow);
        }
    }

    /// Gives up on the guest, or passes the host's reset on: RST to the guest, then the flow is an orphan.
    pub(super) fn abort(&mut self, cx: &mut Ctx<'_>, flow: Box<Flow>) {
        self.reset_guest(cx, &flow);
        self.outlive_guest(cx, flow, Close::Reset);
    }

    pub(super) fn reset_guest(&mut self, cx: &mut Ctx<'_>, flow: &Flow) {
        self.stats.add(Stat::OutRsts);
        self.egress.segment(cx.device, &flow.tuple, &flow.tcb.reset_segment(), &[]);
    }

    /// The container is gone, and the flow with it. Without a reset the guest's kernel would keep the socket of an
    /// ended process, its unsent data and the whole network namespace for minutes. If nothing is undelivered, the
    /// host's peer has the guest's stream to its end and sees no reset, as with a kernel that closes the socket of an
    /// ended process.
    pub(super) fn end_with_container(&mut self, cx: &mut Ctx<'_>, flow: Box<Flow>) {
        let reset_by_guest = flow.orphan.is_some_and(|orphan| orphan.how == Close::Reset);
        // A guest that reset the connection did not finish its stream, so its remote must see a reset, too.
        let left = undelivered(&flow, cx.host);
        let complete = flow.host.shut && !reset_by_guest && left == 0;
        // The reset of the host socket discards it.
        if left > 0 && can_deliver(&flow) {
            self.stats.add(Stat::OrphansGivenUp);
            self.stats.add_n(Stat::OrphanBytesLost, bytes_of(&flow, left));
        }
        // An orphan's guest has ended the connection already.
        if flow.orphan.is_none() {
            self.reset_guest(cx, &flow);
        }
        self.end(cx, flow, if complete { Close::Graceful } else { Close::Reset });
    }

    /// Ends the flow: closes the host socket and uncharges everything.
    pub(super) fn end(&mut self, cx: &mut Ctx<'_>, flow: Box<Flow>, how: Close) {
        match flow.host.sibling() {
            Some(sibling) => self.leave_sibling(sibling, how),
            None => cx.host.close(flow.id, how),
        }
        self.release(cx, flow);
    }

    /// Removes the flow from all lists with a count, frees its chunks and releases its ledger.
    fn release(&mut self, cx: &mut Ctx<'_>, mut flow: Box<Flow>) {
        if flow.waiting {
            cx.budget.forget(self.wake_key(&flow).0);
        }
        self.idle.forget(&mut flow);
        flow.tcb.clear(cx.pool);
        self.flows.release(&flow);
        // Last: the ledger covers the chunks freed above.
        cx.budget.release(flow.ledger, cx.now);
    }

    /// Data that would be lost if the container stopped now. A flow that was never answered owes nothing.
    pub fn undelivered(&self, host: &mut dyn Host) -> Undelivered {
        let mut sum = Undelivered {
            received: self.totals.bytes_from_guest,
            lost_flows: self.stats.get(Stat::OrphansGivenUp),
            lost_bytes: self.stats.get(Stat::OrphanBytesLost),
            ..Undelivered::default()
        };
        for flow in self.flows.iter() {
            if !can_deliver(flow) {
                continue;
            }
            let left = undelivered(flow, host);
            // Delivered so far, but a guest that is still connected and has not ended its stream may send more: such a
            // flow counts, with no bytes.
            if left == 0 && (flow.host.shut || flow.orphan.is_some()) {
                continue;
            }
            sum.flows += 1;
            sum.bytes += bytes_of(flow, left);
        }
        sum
    }
}

/// Whether the flow can hold data of the guest, and a socket that takes it.
fn can_deliver(flow: &Flow) -> bool {
    // No byte of the guest was acknowledged in these states.
    let unanswered = matches!(flow.tcb.state, State::Connecting | State::SynSent);
    !unanswered && flow.host.open && !flow.host.is_broken()
}

/// Bytes of the guest that the host's peer has not acknowledged, plus one for a FIN that was not passed on.
fn undelivered(flow: &Flow, host: &mut dyn Host) -> u64 {
    let end = u64::from(flow.tcb.guest_ended() && !flow.host.shut);
    let sent = match flow.host.sibling() {
        // What was passed on belongs to the sibling.
        Some(_) => 0,
        None => host.unacknowledged(flow.id),
    };
    flow.tcb.unread() + end + sent
}

/// The part of `undelivered` that is bytes: the FIN taken off.
fn bytes_of(flow: &Flow, left: u64) -> u64 {
    left - u64::from(flow.tcb.guest_ended()).min(left)
}
