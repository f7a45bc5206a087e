//! Opens flows: for a SYN of the guest (passive) or a connection to a published port (active).
//!
//! A flow's whole reservation is charged first, the caps of the host socket included: connect(2) creates that socket,
//! and its memory is real from then on (B1). The budget could charge the flow object alone while connect(2) is under
//! way (H7). The caps are nearly all of the reservation, so a second step would save little.

use std::net::{IpAddr, SocketAddr};

use skbudget_controller::{Budget, Counter, FlowSizes, Instant, Ledger, Refusal};

use super::{Container, Ctx};
use crate::config::NoRoute;
use crate::counters::Stat;
use crate::flow::syn_backlog::Pushed;
use crate::flow::{Far, Flow, HostSide};
use crate::io::{FlowId, HostCaps};
use crate::relay;
use crate::sizes::HOST_FLOOR;
use crate::tcp::{Link, Tcb};
use crate::wire::addresses::Tuple;
use crate::wire::icmp::{self, Unreachable};
use crate::wire::segment::Segment;
use crate::wire::seq::Seq;

/// connect(2) calls per turn: each is slow beside reading a frame, and the device queue fills meanwhile.
const CONNECTS_PER_TURN: usize = 2;

/// Ports drawn for an accepted connection whose own port is taken. All are taken only if the gateway's ports towards
/// one port of the guest are nearly used up: with half of them free, once in 2^64 connections.
const PORT_DRAWS: usize = 64;

/// Why `on_accept` opened no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAccepted {
    /// There is no room. Keep the connection and call again later.
    NoRoom,
    /// Its address, or the gateway's, has no port left for it. Reset this connection; others may have one.
    NoPort,
}

impl Container {
    /// Handles a SYN without flow: refuses it at once if no route exists, otherwise appends it to the SYN queue. A
    /// retransmitted SYN keeps its place.
    pub(super) fn on_syn(&mut self, cx: &mut Ctx<'_>, tuple: Tuple, syn: &Segment<'_>) {
        if self.config.is_forwarder(tuple.remote()) {
            self.refresh_name_servers(cx);
        }
        // Before queueing: an entry in the queue and a charge would be spent on a SYN that cannot succeed.
        match self.config.route(tuple.remote()) {
            Ok(_) | Err(NoRoute::Sibling) if tuple.remote().port() != 0 => {}
            // Port 0 is reserved: no listener can have it (RFC 6335 section 6).
            Ok(_) | Err(NoRoute::Sibling | NoRoute::Refused) => {
                return self.refuse(cx, &tuple, syn);
            }
            // As a firewall with `reject`: the connection is refused at once.
            Err(NoRoute::Denied(_)) => {
                self.stats.add(Stat::ReachDenied);
                return self.refuse(cx, &tuple, syn);
            }
            Err(NoRoute::Unreachable) => {
                if self.icmp_allowed(cx.now) {
                    let answer = icmp::syn_unreachable(&tuple, syn.seq.0, Unreachable::Host);
                    self.egress.answer(cx.device, &answer);
                }
                return;
            }
        }
        // The next turn admits it, first come, first served.
        let pushed = self.admission.backlog.push(tuple, syn, &mut cx.member(self.member));
        if let Pushed::Queued(id) = pushed {
            self.admission.push_new(id);
            self.join_crowd(cx.budget, cx.now);
        }
    }

    /// Reserves a flow and starts connect(2); the guest's SYN is answered when connect(2) has succeeded. Returns false
    /// without room.
    fn open_passive(
        &mut self,
        cx: &mut Ctx<'_>,
        tuple: Tuple,
        to: SocketAddr,
        syn: &Segment<'_>,
    ) -> bool {
        let sizes = self.config.sizes;
        let Ok((id, mut ledger)) = self.reserve(cx, &sizes) else { return false };
        let (iss, ts_offset) = self.initial(&tuple, cx.now);
        let tcb = Tcb::passive(self.link(&tuple, cx.budget), iss, ts_offset, syn, cx.now);
        // Where the window scale is fixed at connect, start with larger buffers if the budget has plenty (B10).
        let caps = if cx.host.window_scale_fixed_at_connect() {
            relay::host_caps::initial_caps(HOST_FLOOR, &mut cx.mem(&mut ledger))
        } else {
            HOST_FLOOR
        };
        let side = HostSide::new(Far::Host(to), caps, false);
        let flow = Flow::new(id, tuple, tcb, side, ledger, cx.now);
        self.stats.add(Stat::PassiveOpens);
        self.admission.connects = self.admission.connects.saturating_add(1);
        match cx.host.connect(id, to, caps) {
            Ok(()) => {
                self.mark(flow.id.index);
                self.flows.insert(flow);
            }
            // A failure of connect(2) is an outcome, not lack of room: the SYN leaves the queue.
            Err(e) => self.host_connect_failed(cx, flow, e),
        }
        true
    }

    /// Reserves a table slot and charges the whole reservation, or does neither. Without room it releases memory of
    /// idle flows and tries once more (H3).
    pub(super) fn reserve(
        &mut self,
        cx: &mut Ctx<'_>,
        sizes: &FlowSizes,
    ) -> Result<(FlowId, Ledger), Refusal> {
        // Slot first: it costs nothing and is returned if the charge is refused.
        let Some(id) = self.flows.reserve() else {
            self.stats.add(Stat::FlowTableFull);
            return Err(Refusal::Hard);
        };
        // `demote` returns true only if the room is there, so the second try seldom fails.
        let ledger = match self.admit(cx.budget, sizes, cx.now) {
            Ok(ledger) => Ok(ledger),
            Err(_) if self.demote(cx, sizes.total(), Budget::admission_room, None) => {
                self.admit(cx.budget, sizes, cx.now)
            }
            Err(e) => Err(e),
        };
        match ledger {
            Ok(ledger) => {
                self.totals.flows += 1;
                Ok((id, ledger))
            }
            Err(e) => {
                self.flows.unreserve(id);
                Err(e)
            }
        }
    }

    /// Charges the whole reservation up the chain, all or nothing (B1).
    fn admit(
        &self,
        budget: &mut Budget,
        sizes: &FlowSizes,
        now: Instant,
    ) -> Result<Ledger, Refusal> {
        let mut ledger = budget.admit(self.member, sizes, now)?;
        // A refusal here leaves the first part charged: release it.
        match budget.establish(&mut ledger, now) {
            Ok(()) => Ok(ledger),
            Err(e) => {
                budget.release(ledger, now);
                Err(e)
            }
        }
    }

    /// Admits SYNs: first those that were woken, then new ones, two connects a turn. No SYN overtakes one that
    /// waits: the first that still finds no room sends all behind it back to wait, in their order. Returns true when
    /// SYNs are left for the next turn.
    pub(super) fn admit_some(&mut self, cx: &mut Ctx<'_>) -> bool {
        if self.admission.is_paused(cx.now) {
            return false;
        }
        let (mut room, mut tries) = (true, CONNECTS_PER_TURN);
        while let Some((id, has_priority)) = self.admission.next() {
            room = room && has_priority;
            // The turn's connects are used up. The SYN keeps its place.
            if room && tries == 0 {
                return true;
            }
            self.admission.pop();
            tries = tries.saturating_sub(1);
            room = room && self.admit_syn(cx, id);
            if !room {
                // After the first refusal the loop goes on only to register the SYNs behind it, in order.
                self.wait_for_room(cx, id);
            }
        }
        false
    }

    /// Pauses admission until the given time, so that a guest that opens connections at a high rate does not take its
    /// neighbours' turns.
    pub fn hold_admissions(&mut self, until: Instant) {
        self.admission.pause(until);
    }

    /// Returns the number of connect(2) calls since the last call, and starts again at zero. The loop pauses admissions
    /// for them.
    pub fn take_connects(&mut self) -> u32 {
        std::mem::take(&mut self.admission.connects)
    }

    /// Admits one SYN of the queue. Returns false if there is no room for it.
    fn admit_syn(&mut self, cx: &mut Ctx<'_>, id: u32) -> bool {
        let Some(syn) = self.admission.backlog.get(id) else { return true };
        // `on_syn` has tested this: routes never change.
        let (tuple, route) = (syn.tuple, self.config.route(syn.tuple.remote()));
        let admitted = match route {
            Ok(to) => self.open_passive(cx, tuple, to, &syn.segment()),
            Err(NoRoute::Sibling) => self.open_to_sibling(cx, tuple, &syn.segment()),
            Err(NoRoute::Refused | NoRoute::Unreachable | NoRoute::Denied(_)) => return true,
        };
        if admitted {
            self.admission.backlog.remove(id);
            // The entry is a flow now: the room held back for it goes down by its reservation (H1).
            self.hold_for_admission(cx.budget);
            // Memory may be left over: release idle credit for the next SYN that waits.
            self.demote_for_syns(cx);
        }
        admitted
    }

    /// Registers a refused SYN with the budget, which wakes it when its reservation may fit (B9).
    fn wait_for_room(&mut self, cx: &mut Ctx<'_>, id: u32) {
        if self.admission.backlog.get(id).is_none() {
            return;
        }
        // Counted once per SYN, however often it is refused.
        if self.admission.backlog.set_waiting(id) {
            cx.budget.count(self.member, Counter::AdmissionDelayed, 1);
        }
        cx.budget.wait_for_admission(self.syn_key(id).0, self.config.sizes.total());
    }

    /// A published port accepted a connection from `peer`: opens a flow towards `guest_port` of the guest, over IPv6 if
    /// both the peer and the guest have it. The guest sees the peer's own address where it can answer to it. The SYN
    /// leaves in the next turn. `queued` bytes (true size) are in the socket's receive queue already; they are charged
    /// with the reservation. Returns the flow and the caps for the socket's buffers.
    pub fn on_accept(
        &mut self,
        cx: &mut Ctx<'_>,
        guest_port: u16,
        peer: SocketAddr,
        queued: u32,
    ) -> Result<(FlowId, HostCaps), NotAccepted> {
        let client = self.config.client_address(peer.ip());
        let guest: IpAddr = match &self.config.ipv6 {
            Some(net) if client.is_ipv6() => net.guest.into(),
            _ => self.config.guest_ip.into(),
        };
        let guest = SocketAddr::new(guest, guest_port);
        let Some(tuple) = self.free_tuple(guest, client, peer.port()) else {
            self.stats.add(Stat::AcceptsNoPort);
            return Err(NotAccepted::NoPort);
        };
        // The socket exists already, so what it holds is charged whether or not the guest answers.
        let reserved = self.reserve_holding(cx, queued);
        let (id, mut ledger, held) = reserved.ok_or(NotAccepted::NoRoom)?;
        let caps = if cx.host.window_scale_fixed_at_connect() {
            relay::host_caps::initial_caps(held, &mut cx.mem(&mut ledger))
        } else {
            held
        };
        let (iss, ts_offset) = self.initial(&tuple, cx.now);
        let tcb = Tcb::active(self.link(&tuple, cx.budget), iss, ts_offset, cx.now);
        let side = HostSide::new(Far::Host(peer), caps, true);
        let mut flow = Flow::new(id, tuple, tcb, side, ledger, cx.now);
        self.stats.add(Stat::ActiveOpens);
        // The connection may stay silent: it then becomes idle, and its credit can be released (H3).
        self.idle.watch_new(&mut flow, cx.now);
        self.mark(flow.id.index);
        self.flows.insert(flow);
        Ok((id, caps))
    }

    /// As `reserve`, for a host socket that has received `queued` bytes. The part above the buffer's floor is charged
    /// within the reservation: the socket holds that memory anyway, so pressure must not refuse it. From then on that
    /// part is elastic and is uncharged when the caps are lowered (H6).
    fn reserve_holding(
        &mut self,
        cx: &mut Ctx<'_>,
        queued: u32,
    ) -> Option<(FlowId, Ledger, HostCaps)> {
        let FlowSizes { host_floor, .. } = self.config.sizes;
        let held = HostCaps { rcvbuf: queued.max(HOST_FLOOR.rcvbuf), ..HOST_FLOOR };
        let more = held.rcvbuf - HOST_FLOOR.rcvbuf;
        let sizes = FlowSizes { host_floor: host_floor.saturating_add(more), ..self.config.sizes };
        let (id, mut ledger) = self.reserve(cx, &sizes).ok()?;
        // Only the configured floor stays guaranteed.
        cx.budget.lower_host_floor(&mut ledger, host_floor, cx.now);
        // An accepted connection announces more of its kind, as a SYN does (H1).
        self.join_crowd(cx.budget, cx.now);
        Some((id, ledger, held))
    }

    /// Picks the remote end that the guest sees: `client` with the peer's own port if that tuple is free, otherwise
    /// with a port drawn at random. A tuple is taken by another client that appears as the gateway, or by a connection
    /// of the same client to another published port. Ports that followed from the peer's would be used up by clients
    /// that all have one port.
    fn free_tuple(&mut self, guest: SocketAddr, client: IpAddr, port: u16) -> Option<Tuple> {
        let at = |port| Tuple::new(guest, SocketAddr::new(client, port));
        // Only live flows count: a TIME-WAIT entry on the tuple does not stop an active open.
        if self.flows.find(&at(port)).is_none() {
            return Some(at(port));
        }
        (0..PORT_DRAWS).find_map(|_| {
            // The high bits are the better mixed ones.
            let port = 1024 + ((self.random.next() >> 32) % 64_512) as u16;
            self.flows.find(&at(port)).is_none().then(|| at(port))
        })
    }

    /// True if one more accepted connection fits, if need be after credit of idle flows is released (H3). The listener
    /// is polled only then; until then the host's backlog holds the client (H1).
    pub fn can_accept(&mut self, cx: &mut Ctx<'_>) -> bool {
        let need = self.config.sizes.total();
        let fits = self.may_accept()
            && (cx.budget.admission_room() >= need
                || self.demote(cx, need, Budget::admission_room, None));
        if fits && std::mem::take(&mut self.admission.accepts_wait) {
            // Younger waiters are not kept behind an entry without a purpose.
            cx.budget.forget(self.accepts_key().0);
        }
        fits
    }

    /// Registers the published ports with the budget after `can_accept` has returned false while a client may be
    /// queued: the container is woken when a reservation may fit (B9), whichever container releases the memory.
    pub fn wait_to_accept(&mut self, budget: &mut Budget) {
        // SYNs that wait go first, and the container runs whenever one of them or a flow leaves.
        if !self.may_accept() {
            return;
        }
        if !std::mem::replace(&mut self.admission.accepts_wait, true) {
            self.stats.add(Stat::AcceptsDelayed);
        }
        budget.wait_for_admission(self.accepts_key().0, self.config.sizes.total());
    }

    /// Whether an accepted connection would be the next to be admitted, given room.
    fn may_accept(&self) -> bool {
        self.admission.backlog.waiting() == 0 && self.flows.len() < self.config.flows_max
    }

    /// Link parameters for the family of `tuple`.
    pub(super) fn link(&self, tuple: &Tuple, budget: &Budget) -> Link {
        Link::new(&self.config, tuple.is_ipv6(), budget.sock_limits().wmem[2])
    }

    /// Initial sequence number and timestamp offset of a connection. RFC 6528: a clock of 4 µs plus a keyed hash of the
    /// tuple. RFC 7323 section 5.4: the offset is random per connection.
    pub(super) fn initial(&self, tuple: &Tuple, now: Instant) -> (Seq, u32) {
        use std::hash::BuildHasher;
        // The low half of the hash offsets the ISN, the high half the timestamps.
        let hash = crate::flow::table::Keyed(self.config.secret).hash_one(tuple);
        let clock = (now.0 / 4000) as u32;
        (Seq(clock.wrapping_add(hash as u32)), (hash >> 32) as u32)
    }
}
