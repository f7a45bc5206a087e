//! One container's stack. Only this module fixes the order of the steps.
//!
//! ```text
//! on_frame ─▶ ingress ─▶ demux ─▶ tcb.on_segment ─▶ mark dirty ┐
//! on_host_ready, on_accept, on_wake, timers ───────────────────┤
//! turn: for each dirty flow   relay to host ─ relay to guest ─ tcb.output ─▶ egress ─▶ device
//! ```
//!
//! Events only mark flows as dirty. All work that moves bytes or sends segments happens once per dirty flow and turn,
//! so a batch of segments costs one write and one ACK.

use skbudget_controller::{Instant, MemberId};

use crate::config::ContainerConfig;
use crate::counters::{Stat, Stats};
use crate::dhcp::Leases;
use crate::dns::Forwarder;
use crate::dns::siblings::Directory;
use crate::flow::Flow;
use crate::flow::table::FlowTable;
use crate::flow::time_wait::{TimeWait, Verdict};
use crate::io::{Close, FlowId, Ready};
use crate::pressure::Throttle;
use crate::tcp::Disposition;
use crate::udp::Mappings;
use crate::udp::outbox::Outbox;
use crate::wire::addresses::Tuple;
use crate::wire::emit::Egress;
use crate::wire::reassembly::Reassembly;
use crate::wire::segment::{Outgoing, Segment};

mod admission;
mod admission_queue;
mod configure;
mod crowd;
mod ctx;
mod datagrams;
mod ending;
mod frames;
mod idle;
mod info;
mod keepalive;
mod lists;
mod memory;
mod names;
mod neighbour;
mod random;
mod rate_limit;
mod ready;
mod service;
pub(crate) mod siblings;
mod timers;

pub use admission::NotAccepted;
pub use ctx::Ctx;
pub use ending::Undelivered;
pub use info::{ContainerStats, FlowInfo, MappingInfo};
pub use memory::WakeKey;

use admission_queue::AdmissionQueue;
use idle::IdleTracker;
use info::Totals;
use neighbour::Neighbour;
use random::Random;
use rate_limit::RateLimits;
use ready::ReadyList;
use siblings::SiblingQueue;
use timers::FlowTimers;

/// Bytes moved in one turn. `pressure.rs` has the bound of flows, and the reason for both.
const BYTES_PER_TURN: u64 = 512 << 10;

/// One container's flows, timers, SYN queue and counters.
///
/// Call order: any number of `on_frame`, `on_host_ready`, `on_host_broken`, `on_accept` and `on_wake`, then `turn`
/// once, then sleep until `next_deadline`. `turn` returns true when it stopped at a bound: call it again without
/// sleeping.
#[derive(Debug)]
pub struct Container {
    config: ContainerConfig,
    member: MemberId,
    egress: Egress,
    stats: Stats,
    flows: FlowTable,
    ready: ReadyList,
    timers: FlowTimers,
    idle: IdleTracker,
    admission: AdmissionQueue,
    time_wait: TimeWait,
    reassembly: Reassembly,
    mappings: Mappings,
    forwarder: Forwarder,
    leases: Leases,
    outbox: Outbox,
    siblings: SiblingQueue,
    /// Names of other containers.
    directory: Option<Directory>,
    neighbour: Neighbour,
    limits: RateLimits,
    /// Spreads retry times, quotas and ports.
    random: Random,
    totals: Totals,
}

impl Container {
    /// A container without flows. `member` is its place in the budget that every call gets by [`Ctx`].
    pub fn new(config: ContainerConfig, member: MemberId) -> Self {
        Self {
            member,
            egress: Egress::new(&config),
            stats: Stats::default(),
            flows: FlowTable::new(config.flows_max, config.secret),
            ready: ReadyList::default(),
            timers: FlowTimers::default(),
            idle: IdleTracker::default(),
            admission: AdmissionQueue::default(),
            time_wait: TimeWait::new(config.secret),
            reassembly: Reassembly::default(),
            mappings: Mappings::new(config.secret),
            forwarder: Forwarder::new(config.secret),
            leases: Leases::default(),
            outbox: Outbox::default(),
            siblings: SiblingQueue::default(),
            directory: None,
            neighbour: Neighbour::default(),
            limits: RateLimits::default(),
            random: Random::new(config.secret[0]),
            totals: Totals::default(),
            config,
        }
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &ContainerConfig {
        &self.config
    }

    /// The member of the budget that is charged.
    pub fn member(&self) -> MemberId {
        self.member
    }

    // ---- events ----

    fn on_segment(&mut self, cx: &mut Ctx<'_>, tuple: Tuple, seg: &Segment<'_>) {
        if let Some(index) = self.flows.find(&tuple)
            && let Some(mut flow) = self.flows.take(index)
        {
            let had = flow.tcb.received();
            let mut mem = cx.mem(&mut flow.ledger);
            let disposition = flow.tcb.on_segment(seg, &mut mem, &mut self.stats);
            let got = flow.tcb.received() - had;
            self.totals.bytes_from_guest += got;
            // A retransmission keeps the flow active, too. A keep-alive probe does not: it may carry the last byte once
            // more.
            if got > 0 || (!seg.payload.is_empty() && disposition != Disposition::KeepAlive) {
                self.note_data(&mut flow, cx);
            }
            self.settle(cx, flow, disposition, Some(seg));
            return;
        }
        // No flow. TIME-WAIT is tested before new connections: it decides whether a SYN may reuse its tuple (RFC 6191).
        match self.time_wait.on_segment(&tuple, seg, cx.now) {
            Some(Verdict::Ack(ack)) => {
                self.egress.segment(cx.device, &tuple, &ack, &[]);
            }
            Some(Verdict::Nothing) => {}
            Some(Verdict::Fresh) | None => self.on_stray(cx, tuple, seg),
        }
    }

    /// Handles a segment without flow and without TIME-WAIT entry (RFC 9293 section 3.10.7.1 and .2).
    fn on_stray(&mut self, cx: &mut Ctx<'_>, tuple: Tuple, seg: &Segment<'_>) {
        if seg.flags.syn && !seg.flags.ack && !seg.flags.rst {
            // A SYN with FIN is a scanner's probe. The kernel's listeners drop it, too.
            if !seg.flags.fin {
                self.on_syn(cx, tuple, seg);
            }
            return;
        }
        // The guest gave up a connection that still waits for admission.
        if seg.flags.rst
            && let Some(id) = self.admission.backlog.find(&tuple)
        {
            self.remove_syn(id, cx.budget);
        }
        self.refuse(cx, &tuple, seg);
    }

    /// Answers `seg` with a RST, unless `seg` is one itself.
    fn refuse(&mut self, cx: &mut Ctx<'_>, tuple: &Tuple, seg: &Segment<'_>) {
        if let Some(reset) = Outgoing::reset_for(seg) {
            self.stats.add(Stat::OutRsts);
            self.egress.segment(cx.device, tuple, &reset, &[]);
        }
    }

    /// Acts on the result of an event and returns the flow to the table unless it is over.
    fn settle(
        &mut self,
        cx: &mut Ctx<'_>,
        mut flow: Box<Flow>,
        disposition: Disposition,
        seg: Option<&Segment<'_>>,
    ) {
        match disposition {
            Disposition::Output => {}
            // The segment is wrong, not the flow: the flow stays.
            Disposition::Refuse => {
                if let Some(seg) = seg {
                    self.refuse(cx, &flow.tuple, seg);
                }
            }
            Disposition::Challenge => {
                // `output` sends the ACK in the flow's next service.
                if self.challenge_allowed(cx.now) {
                    flow.tcb.request_ack();
                }
            }
            Disposition::KeepAlive => self.on_keepalive(cx, &mut flow, seg),
            // The next four end TCP with the guest. The flow lives on as an orphan until the host's peer has all bytes
            // (K11).
            Disposition::Reset => return self.outlive_guest(cx, flow, Close::Reset),
            Disposition::Abort => {
                if let Some(sibling) = flow.host.sibling_mut() {
                    sibling.silent = !flow.tcb.is_answered();
                }
                return self.abort(cx, flow);
            }
            Disposition::TimeWait => {
                self.enter_time_wait(cx, &flow);
                return self.outlive_guest(cx, flow, Close::Graceful);
            }
            Disposition::Closed => return self.outlive_guest(cx, flow, Close::Graceful),
        }
        self.mark(flow.id.index);
        self.note_sibling(&mut flow);
        self.flows.put(flow);
    }

    fn enter_time_wait(&mut self, cx: &mut Ctx<'_>, flow: &Flow) {
        // Acknowledge the guest's FIN before the flow leaves, unless a simultaneous close did so already.
        if flow.tcb.owes_ack() {
            let ack = flow.tcb.time_wait_ack(cx.now);
            self.egress.segment(cx.device, &flow.tuple, &ack, &[]);
        }
        let entry = flow.tcb.time_wait_entry();
        // Without memory the flow leaves no entry, and a retransmitted FIN is answered with RST (H2).
        if self.time_wait.insert(flow.tuple, entry, &mut cx.member(self.member)) {
            self.stats.add(Stat::TW);
        }
    }

    /// The host socket of a flow became ready (edge-triggered).
    pub fn on_host_ready(&mut self, id: FlowId, ready: Ready) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.host.ready.readable |= ready.readable;
        flow.host.ready.writable |= ready.writable;
        self.mark(id.index);
    }

    /// The host socket of a flow reported an error (EPOLLERR). The socket is read to its end first; then a read returns
    /// the error itself.
    pub fn on_host_broken(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.host.broken = true;
            // Reads find the error; `to_host` discards what can no longer be written.
            flow.host.ready = Ready { readable: true, writable: true };
            self.mark(id.index);
        }
    }

    /// Marks the flow at this table index for service in a turn.
    fn mark(&mut self, index: u32) {
        self.ready.mark(index);
    }

    // ---- the turn ----

    /// Runs the timers that are due, admits SYNs, then serves dirty flows: relay, windows, segments. Returns true when
    /// work is left.
    pub fn turn(&mut self, cx: &mut Ctx<'_>) -> bool {
        // Retried each turn until it succeeds: at the start the budget may have no room yet.
        self.admission.backlog.charge(&mut cx.member(self.member));
        // Before the timers, which may end the mappings of these datagrams.
        self.send_stored(cx);
        // Timers before admission: they release memory (TIME-WAIT, fragments, idle flows) that admission can use.
        self.run_timers(cx);
        // Before the flows, which take up to half a megabyte each turn: datagrams do not wait for them.
        let more_answers = self.receive_answers(cx);
        let more_datagrams = self.receive_some(cx);
        self.watch_crowd(cx.budget, cx.now);
        let more_syns = self.admit_some(cx);
        let before = self.totals.bytes_moved();
        let flows = Throttle::of(cx.budget).flows_per_turn;
        // `service` may mark a flow again. The length is read once, so such a flow waits for the next turn.
        for _ in 0..self.ready.dirty().min(flows) {
            let Some(index) = self.ready.pop() else { break };
            if let Some(flow) = self.flows.take(index) {
                self.service(cx, flow);
            }
            // The device is due for a read; the flows behind stay on the list.
            if self.totals.bytes_moved() - before >= BYTES_PER_TURN {
                break;
            }
        }
        // No flow is taken from the table here, which is what `forget_stale_entries` needs.
        self.forget_stale_entries();
        more_syns || more_answers || more_datagrams || self.ready.dirty() > 0
    }

    fn run_timers(&mut self, cx: &mut Ctx<'_>) {
        if self.ready.blocked_until().is_some_and(|t| t <= cx.now) {
            self.ready.unblock();
        }
        self.time_wait.expire(&mut cx.member(self.member));
        self.expire_fragments(cx);
        self.expire_mappings(cx);
        self.expire_questions(cx);
        self.advertise_again(cx);
        self.expire_syns(cx);
        // Last: it takes credit of idle flows for waiting SYNs only as far as the room released above is too small.
        self.find_idle(cx);
        while let Some(index) = self.timers.pop_due(&self.flows, cx.now) {
            if let Some(flow) = self.flows.take(index) {
                self.run_flow_timer(cx, flow);
            }
        }
    }

    /// Removes stale entries from the lists. An entry is not searched for when its flow ends, becomes active or gets an
    /// earlier deadline; it only turns stale. A list that is longer than its flows account for loses all its stale
    /// entries, so no list grows with the number of connections opened so far. Stale timers at the head are removed at
    /// once, because they would wake the container without need. Call it only while no flow is taken from the table:
    /// the entries of a taken flow seem stale.
    fn forget_stale_entries(&mut self) {
        let most = lists::most_entries(self.flows.len());
        self.timers.prune(&self.flows, most);
        self.idle.prune(&self.flows, most);
    }

    fn run_flow_timer(&mut self, cx: &mut Ctx<'_>, mut flow: Box<Flow>) {
        // The entry was popped, so nothing wakes the flow until `schedule` adds one.
        flow.timer_at = None;
        let Some(deadline) = flow.deadline() else {
            self.flows.put(flow);
            return;
        };
        if deadline > cx.now {
            // The deadline moved after the entry was made.
            self.timers.schedule(&mut flow);
            self.flows.put(flow);
            return;
        }
        // An orphan has no TCP timers. Service polls its send queue (`serve_orphan`).
        if flow.orphan.is_some() {
            self.mark(flow.id.index);
            self.flows.put(flow);
            return;
        }
        // The pause after a refusal is over: the next service reads the host again (L4).
        flow.retry_at = flow.retry_at.filter(|&t| t > cx.now);
        self.look_for_peer(cx, &mut flow);
        let disposition = flow.tcb.on_timer(cx.now, &mut self.stats);
        self.settle(cx, flow, disposition, None);
    }

    /// Time at which `turn` must run again if no event arrives earlier.
    pub fn next_deadline(&self) -> Option<Instant> {
        [
            self.timers.deadline(),
            self.idle.deadline(),
            self.admission.deadline(),
            self.ready.blocked_until(),
            self.time_wait.deadline(),
            self.reassembly.deadline(),
            self.mappings.deadline(),
            self.forwarder.deadline(),
            self.neighbour.next_advertisement(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    // ---- ends ----

    /// The container is gone: resets or closes every flow at both ends and uncharges everything.
    pub fn abort_all(&mut self, cx: &mut Ctx<'_>) {
        // Flows first: their ledgers must be released before the member leaves the budget.
        for index in self.flows.indices() {
            if let Some(flow) = self.flows.take(index) {
                self.end_with_container(cx, flow);
            }
        }
        while let Some(id) = self.admission.backlog.first() {
            self.remove_syn(id, cx.budget);
        }
        if std::mem::take(&mut self.admission.accepts_wait) {
            cx.budget.forget(self.accepts_key().0);
        }
        self.time_wait.clear(&mut cx.member(self.member));
        self.reassembly.clear(&mut cx.member(self.member));
        self.end_mappings(cx);
        self.end_questions(cx);
        self.neighbour.forget();
        // After the entries: the list is charged as one block.
        self.admission.backlog.uncharge(&mut cx.member(self.member));
        self.admission.clear();
        // Nothing waits any more: release the room that was held back for SYNs (H1).
        self.hold_for_admission(cx.budget);
        self.timers.clear();
        self.idle.clear();
        self.ready = ReadyList::default();
    }

    fn challenge_allowed(&mut self, now: Instant) -> bool {
        let allowed = self.limits.allow_challenge(now, self.random.next());
        self.stats.add(if allowed { Stat::TCPChallengeACK } else { Stat::TCPACKSkippedChallenge });
        allowed
    }
}

#[cfg(test)]
mod tests;
