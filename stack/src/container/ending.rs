//! How flows end.
//!
//! Each side may end or break first. What was acknowledged to one is delivered to the other before that one learns of
//! the end: a flow whose host broke lives until its guest has acknowledged all that arrived before (`reset_is_due`), a
//! flow whose guest is gone until the host's peer has acknowledged all that the guest sent (`Orphan`, K11). Every flow
//! in either state has a timer: the retransmissions of the one, the looks at the send queue of the other.

use super::Container;
use crate::counters::Stat;
use crate::flow::Flow;
use crate::io::{Close, Ctx, FlowId, Host};
use crate::orphan::{Look, Orphan};
use crate::relay;
use crate::tcp::state::State;

/// What was acknowledged to the guest and is not acknowledged by the hosts it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Undelivered {
    /// Flows whose guest's stream has not reached its host to the end.
    pub flows: u64,
    /// Bytes of them that were acknowledged to the guest.
    pub bytes: u64,
    /// Bytes that came from the guest since the container began.
    pub received: u64,
    /// Flows, and bytes of them, that were given up since the container began.
    pub lost_flows: u64,
    pub lost_bytes: u64,
}

impl Container {
    /// TCP with the guest is over. What it sent is still owed to the host.
    pub(super) fn outlive_guest(&mut self, cx: &mut Ctx<'_>, mut flow: Box<Flow>, how: Close) {
        self.flows.unlink(&flow);
        if !flow.host.open || flow.host.is_broken() {
            return self.end(cx, flow, Close::Reset);
        }
        let (tcb, mut mem) = flow.tcb_and_mem(cx.now, cx.budget, cx.pool, &mut self.stats);
        tcb.abandon(&mut mem);
        if std::mem::take(&mut flow.waiting) {
            cx.budget.forget(self.wake_key(&flow).0);
        }
        flow.orphan = Some(Orphan::new(how, cx.now));
        self.mark(flow.id.index);
        self.flows.put(flow);
    }

    /// A flow without a guest was served: is all of it delivered?
    pub(super) fn see_orphan_off(
        &mut self,
        cx: &mut Ctx<'_>,
        mut flow: Box<Flow>,
        mut orphan: Orphan,
    ) {
        if flow.host.is_broken() {
            return self.end(cx, flow, Close::Reset);
        }
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
                self.with_ends(cx, &mut flow, relay::lower_as_delivered);
                self.schedule(&mut flow);
                self.flows.put(flow);
            }
        }
    }

    /// A connection that `on_accept` made a flow of could not be kept: the flow is over before the guest heard of it.
    pub fn accept_failed(&mut self, cx: &mut Ctx<'_>, id: FlowId) {
        if self.flows.get(id).is_some()
            && let Some(flow) = self.flows.take(id.index)
        {
            self.release(cx, flow);
        }
    }

    /// We give up on the guest, or tell it that the host did.
    pub(super) fn abort(&mut self, cx: &mut Ctx<'_>, flow: Box<Flow>) {
        self.reset_guest(cx, &flow);
        self.outlive_guest(cx, flow, Close::Reset);
    }

    pub(super) fn reset_guest(&mut self, cx: &mut Ctx<'_>, flow: &Flow) {
        self.stats.add(Stat::OutRsts);
        self.egress.segment(cx.device, &flow.tuple, &flow.tcb.reset_segment(), &[]);
    }

    /// The container is gone, and its flows with it. The guest's kernel would keep a socket whose process has ended,
    /// with all that it has not sent and with the whole network namespace, for minutes: a reset ends it at once. The
    /// host's peer has what the guest sent, to its end, if nothing is undelivered: it sees no reset then, as it sees
    /// none from a kernel whose process has closed the socket.
    pub(super) fn end_with_container(&mut self, cx: &mut Ctx<'_>, flow: Box<Flow>) {
        let reset_by_guest = flow.orphan.is_some_and(|orphan| orphan.how == Close::Reset);
        let complete = flow.host.shut && !reset_by_guest && undelivered(&flow, cx.host) == 0;
        if flow.orphan.is_none() {
            self.reset_guest(cx, &flow);
        }
        self.end(cx, flow, if complete { Close::Graceful } else { Close::Reset });
    }

    /// The flow is over: host socket closed, memory given back.
    pub(super) fn end(&mut self, cx: &mut Ctx<'_>, flow: Box<Flow>, how: Close) {
        cx.host.close(flow.id, how);
        self.release(cx, flow);
    }

    fn release(&mut self, cx: &mut Ctx<'_>, mut flow: Box<Flow>) {
        if flow.waiting {
            cx.budget.forget(self.wake_key(&flow).0);
        }
        self.watched -= usize::from(flow.watched);
        flow.tcb.clear(cx.pool);
        self.flows.release(&flow);
        cx.budget.release(flow.ledger, cx.now);
    }

    /// What would be lost if the container went now. Flows that were never answered owe nothing.
    pub fn undelivered(&self, host: &mut dyn Host) -> Undelivered {
        let mut sum = Undelivered {
            received: self.bytes_from_guest,
            lost_flows: self.stats.get(Stat::OrphansGivenUp),
            lost_bytes: self.stats.get(Stat::OrphanBytesLost),
            ..Undelivered::default()
        };
        for flow in self.flows.iter() {
            let unanswered = matches!(flow.tcb.state, State::Connecting | State::SynSent);
            if unanswered || !flow.host.open || flow.host.is_broken() {
                continue;
            }
            let left = undelivered(flow, host);
            if left == 0 && (flow.host.shut || flow.orphan.is_some()) {
                continue;
            }
            sum.flows += 1;
            sum.bytes += bytes_of(flow, left);
        }
        sum
    }
}

/// Bytes from the guest that the host's peer has not acknowledged, and one for the end of the stream.
fn undelivered(flow: &Flow, host: &mut dyn Host) -> u64 {
    let end = u64::from(flow.tcb.rcv.fin_taken && !flow.host.shut);
    flow.tcb.rcv.q.unread() + end + host.unacknowledged(flow.id)
}

/// Of what `undelivered` counted, the bytes.
fn bytes_of(flow: &Flow, left: u64) -> u64 {
    left - u64::from(flow.tcb.rcv.fin_taken).min(left)
}
