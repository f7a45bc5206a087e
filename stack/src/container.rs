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
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::config::ContainerConfig;
use crate::container::rate_limit::RateLimit;
use crate::counters::{Stat, Stats};
use crate::flow::Flow;
use crate::flow::syn_backlog::SynBacklog;
use crate::flow::table::FlowTable;
use crate::flow::time_wait::{TimeWait, Verdict};
use crate::io::{Close, FlowId, Ready};
use crate::tcp::Disposition;
use crate::wire::emit::Egress;
use crate::wire::reassembly::Reassembly;
use crate::wire::segment::{Outgoing, Segment, Tuple};

mod admission;
mod crowd;
mod ctx;
mod ending;
mod frames;
mod info;
mod keepalive;
mod lists;
mod memory;
pub(crate) mod rate_limit;
mod service;

pub use admission::NotAccepted;
pub use ctx::Ctx;
pub use ending::Undelivered;
pub use info::{ContainerStats, FlowInfo};
pub use memory::WakeKey;

/// Challenge ACKs per second, on average (Linux' former default of tcp_challenge_ack_limit).
const CHALLENGES_PER_SECOND: u32 = 1000;

/// Bounds of one turn: bytes moved and flows served. After a turn the loop reads the device again, where the guest's
/// ACKs wait in a short queue, and serves the other containers. Serving a flow costs two or three system calls, so a
/// container with many busy flows delays its neighbours by a fraction of a millisecond.
const BYTES_PER_TURN: u64 = 512 << 10;
const FLOWS_PER_TURN: usize = 8;
/// Under pressure every flow always has work, in the smallest pieces, so a turn serves fewer flows.
const FLOWS_PER_PRESSED_TURN: usize = 2;

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
    /// Table indices of flows that the next turns serve, first marked first.
    dirty: VecDeque<u32>,
    /// Flows with a frame that the device refused, or without the guest's hardware address. All are marked again at
    /// `blocked_until`.
    blocked: Vec<u32>,
    blocked_until: Option<Instant>,
    /// Flow deadlines: time, table index, generation. Entries may be stale (`is_live`).
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// The SYN queue.
    syn_backlog: SynBacklog,
    /// Queue ids of SYNs to admit: `syns_to_retry` after a wait for memory, `new_syns` for the first time.
    syns_to_retry: VecDeque<u32>,
    new_syns: VecDeque<u32>,
    /// Admission is paused until this time (set by `hold_admissions`).
    admit_from: Option<Instant>,
    crowd: crowd::Crowd,
    /// The budget has an entry of the published ports among its waiters.
    accepts_wait: bool,
    time_wait: TimeWait,
    /// Flows to test for idleness, in the order of the test times.
    watch: VecDeque<(Instant, FlowId)>,
    /// Flows on `watch` that had data within the idle period. They share the device queue.
    watched: usize,
    /// Idle flows with the time of their last data, longest idle first: memory pressure releases their credit in this
    /// order (H3).
    idle: VecDeque<(Instant, FlowId)>,
    /// State of the random generator, seeded from the secret. Spreads retry times and rate limits.
    rng: u64,
    reassembly: Reassembly,
    icmp: RateLimit,
    /// Time of the last router advertisement.
    advertised: Option<Instant>,
    challenges: RateLimit,
    /// Time of the last ARP request or neighbour solicitation for the guest.
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
            syn_backlog: SynBacklog::default(),
            syns_to_retry: VecDeque::new(),
            new_syns: VecDeque::new(),
            admit_from: None,
            crowd: crowd::Crowd::default(),
            accepts_wait: false,
            time_wait: TimeWait::new(config.secret),
            watch: VecDeque::new(),
            watched: 0,
            idle: VecDeque::new(),
            rng: config.secret[0] | 1,
            reassembly: Reassembly::default(),
            icmp: RateLimit::default(),
            advertised: None,
            challenges: RateLimit::default(),
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
            let mut mem = cx.mem(&mut flow.ledger);
            let disposition = flow.tcb.on_segment(seg, &mut mem, &mut self.stats);
            let got = flow.tcb.rcv.q.nxt() - had;
            self.bytes_from_guest += got;
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
            && let Some(id) = self.syn_backlog.find(&tuple)
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
                flow.tcb.rcv.ack_now |= self.challenge_allowed(cx.now);
            }
            Disposition::KeepAlive => self.on_keepalive(cx, &mut flow, seg),
            // The next four end TCP with the guest. The flow lives on as an orphan until the host's peer has all bytes
            // (K11).
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
        // Acknowledge the guest's FIN before the flow leaves, unless a simultaneous close did so already.
        if flow.tcb.rcv.ack_sent != flow.tcb.rcv.nxt() {
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
        // The flag keeps a flow from being on the list twice.
        if self.flows.set_dirty(index) {
            self.dirty.push_back(index);
        }
    }

    /// Marks all blocked flows: the device may have room now, or the guest's hardware address is known.
    fn unblock(&mut self) {
        self.blocked_until = None;
        for index in std::mem::take(&mut self.blocked) {
            self.flows.clear_blocked(index);
            // The flow may have ended while it was blocked.
            if self.flows.index_mut(index).is_some() {
                self.mark(index);
            }
        }
    }

    // ---- the turn ----

    /// Runs the timers that are due, admits SYNs, then serves dirty flows: relay, windows, segments. Returns true when
    /// work is left.
    pub fn turn(&mut self, cx: &mut Ctx<'_>) -> bool {
        // Retried each turn until it succeeds: at the start the budget may have no room yet.
        self.syn_backlog.charge(&mut cx.member(self.member));
        // Timers first: they release memory (TIME-WAIT, fragments, idle flows) that admission can use.
        self.run_timers(cx);
        self.watch_crowd(cx.budget, cx.now);
        let more_syns = self.admit_some(cx);
        let begun = self.bytes_moved();
        let flows =
            if cx.budget.under_pressure() { FLOWS_PER_PRESSED_TURN } else { FLOWS_PER_TURN };
        // `service` may mark a flow again. The length is read once, so such a flow waits for the next turn.
        for _ in 0..self.dirty.len().min(flows) {
            let Some(index) = self.dirty.pop_front() else { break };
            self.flows.clear_dirty(index);
            if let Some(flow) = self.flows.take(index) {
                self.service(cx, flow);
            }
            // The device is due for a read; the flows behind stay on the list.
            if self.bytes_moved() - begun >= BYTES_PER_TURN {
                break;
            }
        }
        // No flow is taken from the table here, which is what `forget_stale_entries` needs.
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
        self.time_wait.expire(&mut cx.member(self.member));
        self.expire_fragments(cx);
        self.expire_syns(cx);
        // Last: it takes credit of idle flows for waiting SYNs only as far as the room released above is too small.
        self.find_idle(cx);
        while let Some(Reverse((at, index, generation))) = self.timers.peek().copied() {
            if at > cx.now {
                break;
            }
            let live = is_live(&self.flows, at, index, generation);
            // Pop before running: the flow may add a later entry for itself.
            self.timers.pop();
            if live && let Some(flow) = self.flows.take(index) {
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
        // The entry was popped, so nothing wakes the flow until `schedule` adds one.
        flow.timer_at = None;
        let Some(deadline) = flow.deadline() else {
            self.flows.put(flow);
            return;
        };
        if deadline > cx.now {
            // The deadline moved after the entry was made.
            self.schedule(&mut flow);
            self.flows.put(flow);
            return;
        }
        // An orphan has no TCP timers. Service polls its send queue (`see_orphan_off`).
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

    /// Adds a timer entry unless an earlier one is pending.
    fn schedule(&mut self, flow: &mut Flow) {
        if let Some(deadline) = flow.deadline()
            && flow.timer_at.is_none_or(|at| deadline < at)
        {
            flow.timer_at = Some(deadline);
            self.timers.push(Reverse((deadline, flow.id.index, flow.id.generation)));
        }
    }

    /// Time at which `turn` must run again if no event arrives earlier.
    pub fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let idle = self.watch.front().map(|w| w.0);
        let [time_wait, syns] = [self.time_wait.deadline(), self.syn_backlog.deadline()];
        let [blocked, held] = [self.blocked_until, self.admissions_held()];
        let crowd = self.crowd.deadline();
        [timer, idle, blocked, held, crowd, time_wait, syns, self.reassembly.deadline()]
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
        while let Some(id) = self.syn_backlog.first() {
            self.remove_syn(id, cx.budget);
        }
        if std::mem::take(&mut self.accepts_wait) {
            cx.budget.forget(self.accepts_key().0);
        }
        self.time_wait.clear(&mut cx.member(self.member));
        self.reassembly.clear(&mut cx.member(self.member));
        // After the entries: the list is charged as one block.
        self.syn_backlog.uncharge(&mut cx.member(self.member));
        self.crowd = crowd::Crowd::default();
        // Nothing waits any more: release the room that was held back for SYNs (H1).
        self.hold_for_admission(cx.budget);
        self.syns_to_retry.clear();
        self.new_syns.clear();
        self.timers.clear();
        self.watch.clear();
        self.idle.clear();
        std::mem::take(&mut self.dirty).into_iter().for_each(|i| self.flows.clear_dirty(i));
        std::mem::take(&mut self.blocked).into_iter().for_each(|i| self.flows.clear_blocked(i));
        self.blocked_until = None;
    }

    /// RFC 5961 section 7: one rate limit for all flows. The quota of each second is random: a fixed one lets an
    /// off-path attacker infer other connections' challenge ACKs by counting its own (CVE-2016-5696).
    fn challenge_allowed(&mut self, now: Instant) -> bool {
        // Uniform from half to one and a half times the average.
        let spread = self.random() as u32 % CHALLENGES_PER_SECOND;
        let allowed = self.challenges.allow(now, || CHALLENGES_PER_SECOND / 2 + spread);
        self.stats.add(if allowed { Stat::TCPChallengeACK } else { Stat::TCPACKSkippedChallenge });
        allowed
    }

    /// xorshift64: spreads load and hides quotas; it is no cryptographic generator.
    fn random(&mut self) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng
    }
}

/// True if the flow's next wake-up is this timer entry.
fn is_live(flows: &FlowTable, at: Instant, index: u32, generation: u32) -> bool {
    flows.get(FlowId { index, generation }).is_some_and(|flow| flow.timer_at == Some(at))
}

#[cfg(test)]
mod tests;
