//! One container's stack: the only module that knows the order of things.
//!
//! ```text
//! on_frame ─▶ ingress ─▶ demux ─▶ tcb.on_segment ─▶ mark dirty ┐
//! on_host_ready, on_accept, on_wake, timers ───────────────────┤
//! turn: for each dirty flow   relay to host ─ relay to guest ─ tcb.output ─▶ egress ─▶ device
//! ```
//!
//! Events only mark; all work that moves bytes or says something happens once per flow and turn, so a batch of
//! segments costs one write and one ACK.

use skbudget_controller::{Budget, Instant, MemberId};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::config::ContainerConfig;
use crate::counters::{Stat, Stats};
use crate::demux::FlowTable;
use crate::egress::Egress;
use crate::flow::Flow;
use crate::io::{Close, Ctx, FlowId, Ready};
use crate::parked::Parked;
use crate::persecond::PerSecond;
use crate::reassembly::Reassembly;
use crate::segment::{Outgoing, Segment, Tuple};
use crate::tcp::{Disposition, Mem};
use crate::timewait::{TimeWait, Verdict};

mod admission;
mod crowd;
mod ending;
mod frames;
mod info;
mod keepalive;
mod lists;
mod memory;
mod service;

pub use ending::Undelivered;
pub use info::{ContainerStats, FlowInfo};
pub(crate) use keepalive::GuestProbes;
pub use memory::WakeKey;

/// Challenge ACKs a second, on average (Linux' tcp_challenge_ack_limit of old).
const CHALLENGES_PER_SECOND: u32 = 1000;

/// Bytes moved and flows served in one turn: then the device is looked at again, where the guest's ACKs wait in a short
/// queue, and the other containers have theirs. A flow's service is two or three system calls: a container of many busy
/// flows delays its neighbours by a fraction of a millisecond.
const BYTES_PER_TURN: u64 = 512 << 10;
const FLOWS_PER_TURN: usize = 8;
/// Under pressure every flow has something to do all the time, in the smallest pieces.
const FLOWS_PER_PRESSED_TURN: usize = 2;

/// Drain order of one turn: `on_frame` / `on_host_ready` / `on_accept` / `on_wake` in any number, then `turn` once,
/// then sleep until `next_deadline`. `turn` returns true when it stopped at a bound and wants another turn at once.
#[derive(Debug)]
pub struct Container {
    config: ContainerConfig,
    member: MemberId,
    egress: Egress,
    stats: Stats,
    flows: FlowTable,
    dirty: VecDeque<u32>,
    /// Flows whose frame the device did not take, or whose guest's hardware address is not known: tried again soon.
    blocked: Vec<u32>,
    blocked_until: Option<Instant>,
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    parked: Parked,
    /// SYNs to admit: those whose memory came back, and new ones.
    woken: VecDeque<u32>,
    arrived: VecDeque<u32>,
    /// They are left alone until then.
    admit_from: Option<Instant>,
    crowd: crowd::Crowd,
    timewait: TimeWait,
    /// Flows that had data, in the order in which they may become idle.
    watch: VecDeque<(Instant, FlowId)>,
    /// Live flows on it.
    watched: usize,
    /// Idle flows and their last data, the longest idle first: their credit goes first when memory is short (H3).
    idle: VecDeque<(Instant, FlowId)>,
    /// Deterministic from the secret; spreads retries and quotas.
    rng: u64,
    reassembly: Reassembly,
    icmp: PerSecond,
    advertised: Option<Instant>,
    challenges: PerSecond,
    arp_asked: Option<Instant>,
    flows_total: u64,
    bytes_from_guest: u64,
    bytes_to_guest: u64,
    bytes_to_host: u64,
    frames_from_guest: u64,
}

impl Container {
    pub fn new(config: ContainerConfig, member: MemberId) -> Self {
        Self {
            member,
            egress: Egress::new(&config),
            stats: Stats::default(),
            flows: FlowTable::new(config.flows_max, config.secret),
            dirty: VecDeque::new(),
            blocked: Vec::new(),
            blocked_until: None,
            timers: BinaryHeap::new(),
            parked: Parked::default(),
            woken: VecDeque::new(),
            arrived: VecDeque::new(),
            admit_from: None,
            crowd: crowd::Crowd::default(),
            timewait: TimeWait::new(config.secret),
            watch: VecDeque::new(),
            watched: 0,
            idle: VecDeque::new(),
            rng: config.secret[0] | 1,
            reassembly: Reassembly::default(),
            icmp: PerSecond::default(),
            advertised: None,
            challenges: PerSecond::default(),
            arp_asked: None,
            flows_total: 0,
            bytes_from_guest: 0,
            bytes_to_guest: 0,
            bytes_to_host: 0,
            frames_from_guest: 0,
            config,
        }
    }

    pub fn config(&self) -> &ContainerConfig {
        &self.config
    }

    pub fn member(&self) -> MemberId {
        self.member
    }

    // ---- events ----

    fn on_segment(&mut self, cx: &mut Ctx<'_>, tuple: Tuple, seg: &Segment<'_>) {
        if let Some(index) = self.flows.find(&tuple)
            && let Some(mut flow) = self.flows.take(index)
        {
            let had = flow.tcb.rcv.q.nxt();
            let disposition = flow.on_segment(seg, cx, &mut self.stats);
            let got = flow.tcb.rcv.q.nxt() - had;
            self.bytes_from_guest += got;
            if got > 0 || (!seg.payload.is_empty() && disposition != Disposition::KeepAlive) {
                self.note_data(&mut flow, cx);
            }
            self.settle(cx, flow, disposition, Some(seg));
            return;
        }
        match self.timewait.on_segment(&tuple, seg, cx.now) {
            Some(Verdict::Ack(ack)) => {
                self.egress.segment(cx.device, &tuple, &ack, &[]);
            }
            Some(Verdict::Nothing) => {}
            Some(Verdict::Fresh) | None => self.on_stray(cx, tuple, seg),
        }
    }

    /// A segment for no flow (RFC 9293 section 3.10.7.1 and .2).
    fn on_stray(&mut self, cx: &mut Ctx<'_>, tuple: Tuple, seg: &Segment<'_>) {
        if seg.flags.syn && !seg.flags.ack && !seg.flags.rst {
            // One that ends what it begins is a probe, and the kernel's listeners do not answer it.
            if !seg.flags.fin {
                self.on_syn(cx, tuple, seg);
            }
            return;
        }
        if seg.flags.rst
            && let Some(id) = self.parked.find(&tuple)
        {
            self.unpark(id, cx.budget);
        }
        self.refuse(cx, &tuple, seg);
    }

    fn refuse(&mut self, cx: &mut Ctx<'_>, tuple: &Tuple, seg: &Segment<'_>) {
        if let Some(reset) = Outgoing::reset_for(seg) {
            self.stats.add(Stat::OutRsts);
            self.egress.segment(cx.device, tuple, &reset, &[]);
        }
    }

    /// Does what an event on a taken flow asks for, and puts the flow back unless it is over.
    fn settle(
        &mut self,
        cx: &mut Ctx<'_>,
        mut flow: Box<Flow>,
        disposition: Disposition,
        seg: Option<&Segment<'_>>,
    ) {
        match disposition {
            Disposition::Continue | Disposition::Established => {}
            Disposition::Refuse => {
                if let Some(seg) = seg {
                    self.refuse(cx, &flow.tuple, seg);
                }
            }
            Disposition::Challenge => {
                flow.tcb.rcv.ack_now |= self.challenge_allowed(cx.now);
            }
            Disposition::KeepAlive => self.on_keepalive(cx, &mut flow, seg),
            Disposition::Reset => return self.outlive_guest(cx, flow, Close::Reset),
            Disposition::Abort => return self.abort(cx, flow),
            Disposition::TimeWait => {
                self.enter_time_wait(cx, &flow);
                return self.outlive_guest(cx, flow, Close::Graceful);
            }
            Disposition::Closed => return self.outlive_guest(cx, flow, Close::Graceful),
        }
        self.mark(flow.id.index);
        self.flows.put(flow);
    }

    fn enter_time_wait(&mut self, cx: &mut Ctx<'_>, flow: &Flow) {
        // The last ACK is said before the flow stops speaking, unless FINs crossed and it was said already.
        if flow.tcb.rcv.ack_sent != flow.tcb.rcv.nxt() {
            let ack = flow.tcb.time_wait_ack(cx.now);
            self.egress.segment(cx.device, &flow.tuple, &ack, &[]);
        }
        let entry = flow.tcb.time_wait_entry();
        if self.timewait.insert(flow.tuple, entry, cx.budget, self.member, cx.now) {
            self.stats.add(Stat::TW);
        }
    }

    /// Host socket of a flow became ready (edge).
    pub fn on_host_ready(&mut self, id: FlowId, ready: Ready) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.host.ready.readable |= ready.readable;
        flow.host.ready.writable |= ready.writable;
        self.mark(id.index);
    }

    /// Host socket of a flow reported an error (EPOLLERR). Which one, the reads tell when all before it is read.
    pub fn on_host_broken(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.host.broken = true;
            flow.host.ready = Ready { readable: true, writable: true };
            self.mark(id.index);
        }
    }

    /// The flow at this place is served in a turn.
    fn mark(&mut self, index: u32) {
        if self.flows.set_dirty(index) {
            self.dirty.push_back(index);
        }
    }

    fn unblock(&mut self) {
        self.blocked_until = None;
        for index in std::mem::take(&mut self.blocked) {
            self.flows.clear_blocked(index);
            if self.flows.index_mut(index).is_some() {
                self.mark(index);
            }
        }
    }

    // ---- the turn ----

    /// Timers due at `cx.now`, then every flow with something to do: relay, windows, segments.
    pub fn turn(&mut self, cx: &mut Ctx<'_>) -> bool {
        self.parked.charge(cx.budget, self.member, cx.now);
        self.run_timers(cx);
        self.watch_crowd(cx.budget, cx.now);
        let more_syns = self.admit_some(cx);
        let begun = self.bytes_moved();
        let flows =
            if cx.budget.under_pressure() { FLOWS_PER_PRESSED_TURN } else { FLOWS_PER_TURN };
        for _ in 0..self.dirty.len().min(flows) {
            let Some(index) = self.dirty.pop_front() else { break };
            self.flows.clear_dirty(index);
            if let Some(flow) = self.flows.take(index) {
                self.service(cx, flow);
            }
            if self.bytes_moved() - begun >= BYTES_PER_TURN {
                break;
            }
        }
        self.forget_stale_entries();
        more_syns || !self.dirty.is_empty()
    }

    fn bytes_moved(&self) -> u64 {
        self.bytes_to_guest + self.bytes_to_host
    }

    fn run_timers(&mut self, cx: &mut Ctx<'_>) {
        if self.blocked_until.is_some_and(|t| t <= cx.now) {
            self.unblock();
        }
        self.timewait.expire(cx.budget, self.member, cx.now);
        self.expire_fragments(cx);
        self.expire_parked(cx);
        self.find_idle(cx);
        while let Some(Reverse((at, index, generation))) = self.timers.peek().copied() {
            if at > cx.now {
                break;
            }
            let live = is_live(&self.flows, at, index, generation);
            self.timers.pop();
            if live && let Some(flow) = self.flows.take(index) {
                self.run_flow_timer(cx, flow);
            }
        }
    }

    /// An entry is not looked for when its flow ends, or is idle no longer, or has an earlier deadline: it is found
    /// stale. All stale entries go as soon as a list is longer than its flows account for; so none of the lists grows
    /// with the number of connections there have been. Stale timers at the head go at once: they would wake the
    /// container for nothing. To be called when no flow is taken from the table, or its entries would be found stale.
    fn forget_stale_entries(&mut self) {
        let Self { timers, flows, watch, idle, .. } = self;
        let most = lists::most_entries(flows.len());
        if timers.len() > most {
            timers
                .retain(|&Reverse((at, index, generation))| is_live(flows, at, index, generation));
            timers.shrink_to(most);
        }
        lists::prune(watch, most, |&(_, id)| flows.get(id).is_some());
        lists::prune(idle, most, |&(since, id)| {
            flows.get(id).is_some_and(|flow| memory::is_idle_since(flow, since))
        });
        while let Some(&Reverse((at, index, generation))) = timers.peek()
            && !is_live(flows, at, index, generation)
        {
            timers.pop();
        }
    }

    fn run_flow_timer(&mut self, cx: &mut Ctx<'_>, mut flow: Box<Flow>) {
        flow.timer_at = None;
        let Some(deadline) = flow.deadline() else {
            self.flows.put(flow);
            return;
        };
        if deadline > cx.now {
            // It moved since the entry was made.
            self.schedule(&mut flow);
            self.flows.put(flow);
            return;
        }
        if flow.orphan.is_some() {
            self.mark(flow.id.index);
            self.flows.put(flow);
            return;
        }
        flow.retry_at = flow.retry_at.filter(|&t| t > cx.now);
        self.look_for_peer(cx, &mut flow);
        let disposition = flow.on_timer(cx, &mut self.stats);
        self.settle(cx, flow, disposition, None);
    }

    /// Makes sure the timer queue wakes the flow in time.
    fn schedule(&mut self, flow: &mut Flow) {
        if let Some(deadline) = flow.deadline()
            && flow.timer_at.is_none_or(|at| deadline < at)
        {
            flow.timer_at = Some(deadline);
            self.timers.push(Reverse((deadline, flow.id.index, flow.id.generation)));
        }
    }

    /// When `turn` must run again if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let idle = self.watch.front().map(|w| w.0);
        let [timewait, parked] = [self.timewait.deadline(), self.parked.deadline()];
        let [blocked, held] = [self.blocked_until, self.admissions_held()];
        let crowd = self.crowd.deadline();
        [timer, idle, blocked, held, crowd, timewait, parked, self.reassembly.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    // ---- ends ----

    /// The container is gone: every flow ends at both ends, everything is uncharged.
    pub fn abort_all(&mut self, cx: &mut Ctx<'_>) {
        for index in self.flows.indices() {
            if let Some(flow) = self.flows.take(index) {
                self.end_with_container(cx, flow);
            }
        }
        while let Some(id) = self.parked.first() {
            self.unpark(id, cx.budget);
        }
        self.timewait.clear(cx.budget, self.member, cx.now);
        self.forget_fragments(cx);
        self.parked.uncharge(cx.budget, self.member, cx.now);
        self.crowd = crowd::Crowd::default();
        self.hold_for_admission(cx.budget);
        self.woken.clear();
        self.arrived.clear();
        self.timers.clear();
        self.watch.clear();
        self.idle.clear();
        std::mem::take(&mut self.dirty).into_iter().for_each(|i| self.flows.clear_dirty(i));
        std::mem::take(&mut self.blocked).into_iter().for_each(|i| self.flows.clear_blocked(i));
        self.blocked_until = None;
    }

    /// RFC 5961 section 7: one limit for all flows. How many a second has is not to be known, or whoever counts its own
    /// would learn of others'.
    fn challenge_allowed(&mut self, now: Instant) -> bool {
        let spread = self.random() as u32 % CHALLENGES_PER_SECOND;
        let allowed = self.challenges.allow(now, || CHALLENGES_PER_SECOND / 2 + spread);
        self.stats.add(if allowed { Stat::TCPChallengeACK } else { Stat::TCPACKSkippedChallenge });
        allowed
    }

    fn random(&mut self) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng
    }
}

impl Flow {
    fn on_segment(
        &mut self,
        seg: &Segment<'_>,
        cx: &mut Ctx<'_>,
        stats: &mut Stats,
    ) -> Disposition {
        let (tcb, mut mem) = self.tcb_and_mem(cx.now, cx.budget, cx.pool, stats);
        tcb.on_segment(seg, &mut mem)
    }

    fn on_timer(&mut self, cx: &mut Ctx<'_>, stats: &mut Stats) -> Disposition {
        let (tcb, mut mem) = self.tcb_and_mem(cx.now, cx.budget, cx.pool, stats);
        tcb.on_timer(&mut mem)
    }

    /// For everything but the relay (`with_ends`): only what the host takes is measured against the device queue.
    fn tcb_and_mem<'a>(
        &'a mut self,
        now: Instant,
        budget: &'a mut Budget,
        pool: &'a mut crate::ChunkPool,
        stats: &'a mut Stats,
    ) -> (&'a mut crate::tcp::Tcb, Mem<'a>) {
        (&mut self.tcb, Mem { now, budget, pool, ledger: &mut self.ledger, stats, window_max: 0 })
    }
}

/// The timer entry is the one its flow will be woken by.
fn is_live(flows: &FlowTable, at: Instant, index: u32, generation: u32) -> bool {
    flows.get(FlowId { index, generation }).is_some_and(|flow| flow.timer_at == Some(at))
}

#[cfg(test)]
mod tests;
