//! Flows to other containers of the same loop: the other end is a flow of the sibling's container, not a host socket.
//!
//! ```text
//! guest A ── flow ── receive queue ──▶ send queue ── flow ── guest B       chunks and their charge move
//!              └──── send queue ◀───── receive queue ──┘                   FIN follows the last byte, RST its data
//! ```
//!
//! The SYN of guest A opens a flow here, and [`crate::siblings`] one in the container of B, which sends a SYN to guest
//! B. When B has answered, A's SYN is answered; a refusal or a reset is passed on. A pair of flows has no order: each
//! gives and takes. [`exchange`] moves the data of both; the loop calls it before the stack's turn for every flow that
//! had an event. A flow that ends leaves a notification for the other one.

use std::collections::VecDeque;
use std::net::SocketAddr;

use skbudget_controller::{FlowSizes, Instant};

use super::service::share_of_queue;
use super::{Container, Ctx, NotAccepted};
use crate::counters::Stat;
use crate::dns::siblings::Directory;
use crate::flow::{Far, Flow, HostSide, Sibling, SiblingFlow};
use crate::io::{Close, FlowId, HostCaps, HostError};
use crate::queue::chunk::ChunkPool;
use crate::queue::pass::{Budgets, PassCtx, Passed};
use crate::tcp::Tcb;
use crate::tcp::state::State;
use crate::wire::addresses::Tuple;
use crate::wire::segment::Segment;

/// Bytes moved for one pair of flows and direction in one call: other flows get their turn before it continues.
const BYTES_PER_CALL: usize = 128 << 10;

/// There is no host socket, and nothing to charge for one.
const NO_CAPS: HostCaps = HostCaps { sndbuf: 0, rcvbuf: 0 };

/// Work of a container's flows to siblings.
#[derive(Debug, Default)]
pub(super) struct SiblingQueue {
    /// Flows with an event since they were last exchanged, each once. Those that ended since are skipped.
    due: VecDeque<FlowId>,
    /// The other ends of flows that have ended.
    ended: VecDeque<(SiblingFlow, End)>,
}

/// How a flow ended, for the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both streams ended, and all was passed.
    Complete,
    /// The guest reset the connection, or its container ended.
    Reset,
    /// The guest did not answer.
    Silent,
}

/// One step of that work, for the loop.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SiblingWork {
    /// Open the other end: a connection between these addresses.
    Open { flow: FlowId, from: SocketAddr, to: SocketAddr },
    /// Call [`exchange`].
    Pass { flow: FlowId, other: SiblingFlow },
    /// Notify the other end by [`Container::sibling_ended`].
    Ended { other: SiblingFlow, end: End },
}

/// Two containers with their budgets.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The time of the call.
    pub now: Instant,
    /// The memory of all queues.
    pub pool: &'a mut ChunkPool,
    /// The two containers.
    pub containers: [&'a mut Container; 2],
    /// Their budgets, in the same order.
    pub budgets: Budgets<'a>,
}

impl Container {
    /// Answers questions for the names of other containers from now on.
    pub fn set_directory(&mut self, directory: Directory) {
        self.directory = Some(directory);
    }

    /// Flows have an event for siblings: the loop runs this container again.
    pub fn has_sibling_work(&self) -> bool {
        self.siblings.len() > 0
    }

    /// Reserves a flow for a SYN to a sibling. The SYN is answered when the sibling has answered its own. Returns false
    /// without room.
    pub(super) fn open_to_sibling(
        &mut self,
        cx: &mut Ctx<'_>,
        tuple: Tuple,
        syn: &Segment<'_>,
    ) -> bool {
        let sizes = FlowSizes { host_floor: 0, ..self.config.sizes };
        let Ok((id, ledger)) = self.reserve(cx, &sizes) else { return false };
        let (iss, ts_offset) = self.initial(&tuple, cx.now);
        let tcb = Tcb::passive(self.link(&tuple, cx.budget), iss, ts_offset, syn, cx.now);
        let side = HostSide::new(Far::Sibling(Sibling::default()), NO_CAPS, false);
        let mut flow = Flow::new(id, tuple, tcb, side, ledger, cx.now);
        self.stats.add(Stat::PassiveOpens);
        // Costs as much as a connect(2): a flow of the sibling, and a frame.
        self.admission.connects = self.admission.connects.saturating_add(1);
        self.note_sibling(&mut flow);
        self.flows.insert(flow);
        true
    }

    /// A sibling connects from `from` to `to`, an address of the guest: opens a flow towards the guest, whose other end
    /// is `other`. The caller has tested `can_accept`.
    pub(crate) fn on_sibling(
        &mut self,
        cx: &mut Ctx<'_>,
        [from, to]: [SocketAddr; 2],
        other: SiblingFlow,
    ) -> Result<FlowId, NotAccepted> {
        let tuple = Tuple::new(to, from);
        // The guest must see the sibling's own port, as both ends name the connection by it.
        if self.flows.find(&tuple).is_some() {
            return Err(NotAccepted::NoPort);
        }
        let sizes = FlowSizes { host_floor: 0, ..self.config.sizes };
        let (id, ledger) = self.reserve(cx, &sizes).map_err(|_| NotAccepted::NoRoom)?;
        let (iss, ts_offset) = self.initial(&tuple, cx.now);
        let tcb = Tcb::active(self.link(&tuple, cx.budget), iss, ts_offset, cx.now);
        let sibling = Sibling { other: Some(other), ..Sibling::default() };
        let side = HostSide::new(Far::Sibling(sibling), NO_CAPS, true);
        let mut flow = Flow::new(id, tuple, tcb, side, ledger, cx.now);
        self.stats.add(Stat::ActiveOpens);
        self.idle.watch_new(&mut flow, cx.now);
        self.mark(id.index);
        self.flows.insert(flow);
        Ok(id)
    }

    /// The other end of a flow is open.
    pub(crate) fn sibling_opened(&mut self, id: FlowId, other: SiblingFlow) {
        if let Some(sibling) = self.flows.get_mut(id).and_then(|flow| flow.host.sibling_mut()) {
            sibling.other = Some(other);
        }
    }

    /// The other end of a flow could not be opened.
    pub(crate) fn sibling_failed(&mut self, id: FlowId, error: HostError) {
        if error == HostError::HostUnreachable {
            self.stats.add(Stat::SiblingUnreachable);
        }
        if let Some(flow) = self.flows.get_mut(id) {
            flow.host.error = Some(error);
            self.mark(id.index);
        }
    }

    /// The other end of a flow has ended.
    pub(crate) fn sibling_ended(&mut self, id: FlowId, end: End) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let side = &mut flow.host;
        if let Some(sibling) = side.sibling_mut() {
            sibling.other = None;
        }
        // Both streams have ended already: this flow delivers its remaining bytes.
        let complete = end == End::Complete && side.eof && side.shut;
        if !complete && side.error.is_none() {
            side.error = Some(match end {
                _ if side.open => HostError::Reset,
                End::Silent => HostError::TimedOut,
                End::Complete | End::Reset => HostError::Refused,
            });
            if side.open {
                side.eof = true;
                // After all that the sibling sent before.
                flow.tcb.reset_when_acknowledged();
            }
        }
        self.mark(id.index);
    }

    /// The next work for the loop, oldest first.
    pub(crate) fn next_sibling_work(&mut self) -> Option<SiblingWork> {
        // First: the index of an ended flow may be that of a new one soon.
        if let Some((other, end)) = self.siblings.ended.pop_front() {
            return Some(SiblingWork::Ended { other, end });
        }
        while let Some(id) = self.siblings.due.pop_front() {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            let Some(sibling) = flow.host.sibling_mut() else { continue };
            sibling.due = false;
            if let Some(other) = sibling.other {
                return Some(SiblingWork::Pass { flow: id, other });
            }
            if !flow.host.open && flow.host.error.is_none() {
                let (from, to) = (flow.tuple.guest(), flow.tuple.remote());
                return Some(SiblingWork::Open { flow: id, from, to });
            }
        }
        None
    }

    /// Whether a flow still waits for its other end to be opened.
    pub(crate) fn waits_for_sibling(&self, id: FlowId) -> bool {
        self.flows.get(id).is_some_and(|flow| !flow.host.open && flow.host.error.is_none())
    }

    /// A flow had an event that may concern its other end.
    pub(super) fn note_sibling(&mut self, flow: &mut Flow) {
        if let Some(sibling) = flow.host.sibling_mut()
            && !std::mem::replace(&mut sibling.due, true)
        {
            self.siblings.due.push_back(flow.id);
        }
    }

    /// As `note_sibling`, for a flow in the table.
    pub(super) fn note_sibling_at(&mut self, index: u32) {
        if let Some(flow) = self.flows.index_mut(index)
            && let Some(sibling) = flow.host.sibling_mut()
            && !std::mem::replace(&mut sibling.due, true)
        {
            self.siblings.due.push_back(flow.id);
        }
    }

    /// A flow to a sibling ends: notifies the other end.
    pub(super) fn leave_sibling(&mut self, sibling: Sibling, how: Close) {
        let Some(other) = sibling.other else { return };
        let end = match how {
            Close::Graceful => End::Complete,
            Close::Reset if sibling.silent => End::Silent,
            Close::Reset => End::Reset,
        };
        self.siblings.ended.push_back((other, end));
    }

    /// Serves a flow to a sibling before its segments are sent. Returns the flow unless it has ended.
    pub(super) fn serve_sibling(
        &mut self,
        cx: &mut Ctx<'_>,
        mut flow: Box<Flow>,
    ) -> Option<Box<Flow>> {
        if let Some(error) = flow.host.error {
            if !flow.host.open {
                self.host_connect_failed(cx, flow, error);
                return None;
            }
            // The sibling gave up before the guest answered.
            if flow.tcb.state == State::SynSent {
                self.abort(cx, flow);
                return None;
            }
        }
        if let Some(sibling) = flow.host.sibling_mut() {
            sibling.refused = false;
        }
        Some(flow)
    }
}

impl SiblingQueue {
    pub(super) fn len(&self) -> usize {
        self.due.len() + self.ended.len()
    }
}

/// Passes everything that two flows have for each other. Returns true if the bound was reached.
pub(crate) fn exchange(pair: &mut Pair<'_>, ids: [FlowId; 2]) -> bool {
    let Pair { now, pool, containers: [a, b], budgets } = pair;
    let Some(mut flow_a) = take_linked(a, ids[0]) else { return false };
    let Some(mut flow_b) = take_linked(b, ids[1]) else {
        a.flows.put(flow_a);
        return false;
    };
    open_answered(a, &mut flow_a, &flow_b, *now);
    open_answered(b, &mut flow_b, &flow_a, *now);
    let mut more = false;
    for reversed in [false, true] {
        let (givers, giver, takers, taker) = match reversed {
            false => (&mut **a, &mut flow_a, &mut **b, &mut flow_b),
            true => (&mut **b, &mut flow_b, &mut **a, &mut flow_a),
        };
        let (budgets, pool) = (budgets.reborrow(reversed), &mut **pool);
        more |= one_way(*now, budgets, pool, (givers, giver), (takers, taker));
    }
    if more {
        a.note_sibling(&mut flow_a);
    }
    a.flows.put(flow_a);
    b.flows.put(flow_b);
    more
}

/// Takes a flow that still has the other end.
fn take_linked(container: &mut Container, id: FlowId) -> Option<Box<Flow>> {
    container.flows.get(id)?.host.sibling()?.other?;
    container.flows.take(id.index)
}

/// Answers the SYN of a flow's guest once the other guest has answered.
fn open_answered(container: &mut Container, flow: &mut Flow, other: &Flow, now: Instant) {
    if flow.host.open || !other.tcb.is_answered() {
        return;
    }
    flow.host.open = true;
    flow.tcb.on_host_connected();
    container.idle.watch_new(flow, now);
    container.mark(flow.id.index);
}

/// Passes data, and the end of the stream after it, from one flow to the other. Returns true if the bound was reached.
fn one_way(
    now: Instant,
    mut budgets: Budgets<'_>,
    pool: &mut ChunkPool,
    (givers, giver): (&mut Container, &mut Flow),
    (takers, taker): (&mut Container, &mut Flow),
) -> bool {
    // A guest that is gone takes nothing; a refused sender of the linux rules sleeps (L4).
    if !giver.host.open || taker.orphan.is_some() || taker.retry_at.is_some() {
        return false;
    }
    let share = share_of_queue(&givers.config, budgets.giver(), givers.idle.active());
    let (from, to) = (&mut giver.ledger, &mut taker.ledger);
    let mut cx = PassCtx { now, budgets: budgets.reborrow(false), pool, from, to };
    let Passed { bytes, refused } =
        giver.tcb.pass_to(&mut taker.tcb, share, BYTES_PER_CALL, &mut cx);
    if bytes > 0 {
        givers.totals.bytes_to_host += bytes as u64;
        takers.totals.bytes_to_guest += bytes as u64;
        taker.host.bytes_to_guest += bytes as u64;
        if takers.idle.on_data(taker, now) {
            // The budget counts active flows for fair shares (H4) and idle credit for the soft test (K7).
            budgets.taker().set_idle(&mut taker.ledger, false, now);
        }
        givers.mark(giver.id.index);
        takers.mark(taker.id.index);
    }
    if refused && let Some(sibling) = taker.host.sibling_mut() {
        // The taker's next service makes room, or waits for it.
        sibling.refused = true;
        takers.mark(taker.id.index);
    }
    if giver.tcb.drained() && !giver.host.shut {
        giver.host.shut = true;
        taker.host.eof = true;
        taker.tcb.finish();
        givers.mark(giver.id.index);
        takers.mark(taker.id.index);
    }
    bytes >= BYTES_PER_CALL && giver.tcb.unread() > 0
}
