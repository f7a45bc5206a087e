//! How a flow begins: the guest's SYN, or a connection to a published port.
//!
//! The whole reservation is charged before anything else happens, the host socket's caps included: connect(2) makes
//! that socket, and its memory is real from then on. (The budget could charge the flow object alone while the host
//! is asked (H7); with the caps in the reservation nearly all of it is due at once, so two steps would buy nothing.)

use std::net::{IpAddr, SocketAddr};

use skbudget_controller::{Budget, Counter, FlowSizes, Instant, Ledger, Refusal};

use super::Container;
use crate::config::{HOST_FLOOR, NoRoute};
use crate::counters::Stat;
use crate::flow::{Flow, HostSide};
use crate::icmp::{self, Unreachable};
use crate::io::{Ctx, FlowId, HostCaps};
use crate::parked::Parking;
use crate::relay;
use crate::segment::{Segment, Tuple};
use crate::seq::Seq;
use crate::tcp::{Link, Tcb};

/// connect(2)s in one turn.
const CONNECTS_PER_TURN: usize = 2;

impl Container {
    /// A SYN for no flow. A parked one that is said again keeps its place.
    pub(super) fn on_syn(&mut self, cx: &mut Ctx<'_>, tuple: Tuple, syn: &Segment<'_>) {
        match self.config.route(tuple.remote()) {
            Ok(_) => {}
            Err(NoRoute::Refused) => return self.refuse(cx, &tuple, syn),
            Err(NoRoute::Unreachable) => {
                if self.icmp_allowed(cx.now) {
                    let answer = icmp::syn_unreachable(&tuple, syn.seq.0, Unreachable::Host);
                    self.egress.answer(cx.device, &answer);
                }
                return;
            }
        }
        // Taken in the next turn, first come, first served.
        if let Parking::Parked(id) = self.parked.park(tuple, syn, cx.budget, self.member, cx.now) {
            self.arrived.push_back(id);
            self.join_crowd(cx.budget, cx.now);
        }
    }

    /// False: no room.
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
        let caps = if cx.host.keeps_scale() {
            relay::begin_caps(cx.budget, &mut ledger, HOST_FLOOR, cx.now)
        } else {
            HOST_FLOOR
        };
        let side = HostSide::new(to, caps, false);
        let flow = Flow::new(id, tuple, tcb, side, ledger, cx.now);
        self.stats.add(Stat::PassiveOpens);
        match cx.host.connect(id, to, caps) {
            Ok(()) => {
                self.mark(flow.id.index);
                self.flows.insert(flow);
            }
            Err(e) => self.host_connect_failed(cx, flow, e),
        }
        true
    }

    /// A place in the table and the whole reservation, or nothing.
    fn reserve(
        &mut self,
        cx: &mut Ctx<'_>,
        sizes: &FlowSizes,
    ) -> Result<(FlowId, Ledger), Refusal> {
        let Some(id) = self.flows.reserve() else {
            self.stats.add(Stat::FlowTableFull);
            return Err(Refusal::Hard);
        };
        let ledger = match self.admit(cx.budget, sizes, cx.now) {
            Ok(ledger) => Ok(ledger),
            Err(_) if self.demote(cx, sizes.total(), Budget::admission_room) => {
                self.admit(cx.budget, sizes, cx.now)
            }
            Err(e) => Err(e),
        };
        match ledger {
            Ok(ledger) => {
                self.flows_total += 1;
                Ok((id, ledger))
            }
            Err(e) => {
                self.flows.unreserve(id);
                Err(e)
            }
        }
    }

    fn admit(
        &self,
        budget: &mut Budget,
        sizes: &FlowSizes,
        now: Instant,
    ) -> Result<Ledger, Refusal> {
        let mut ledger = budget.admit(self.member, sizes, now)?;
        match budget.establish(&mut ledger, now) {
            Ok(()) => Ok(ledger),
            Err(e) => {
                budget.release(ledger, now);
                Err(e)
            }
        }
    }

    /// SYNs whose memory came back, then those that came in, a few in a turn. Nobody overtakes those who wait: the
    /// first of them that still finds no room sends all behind it back to wait, in their order. True: there are more.
    pub(super) fn admit_some(&mut self, cx: &mut Ctx<'_>) -> bool {
        if self.admit_from.is_some_and(|from| from > cx.now) {
            return false;
        }
        self.admit_from = None;
        let (mut room, mut tries) = (true, CONNECTS_PER_TURN);
        while let Some(id) = self.woken.pop_front() {
            if self.parked.get(id).is_none() {
                continue;
            }
            if room && tries == 0 {
                self.woken.push_front(id);
                return true;
            }
            tries = tries.saturating_sub(1);
            room = room && self.admit_parked(cx, id);
            if !room {
                self.wait_for_room(cx, id);
            }
        }
        while let Some(id) = self.arrived.pop_front() {
            if self.parked.get(id).is_none() {
                continue;
            }
            room = room && self.parked.waiting() == 0;
            if room && tries == 0 {
                self.arrived.push_front(id);
                return true;
            }
            tries = tries.saturating_sub(1);
            room = room && self.admit_parked(cx, id);
            if !room {
                self.wait_for_room(cx, id);
            }
        }
        false
    }

    /// SYNs stay where they are until then: who opens connections at a high rate costs others their turns.
    pub fn hold_admissions(&mut self, until: Instant) {
        self.admit_from = Some(until);
    }

    /// When those that are held go on.
    pub(super) fn admissions_held(&self) -> Option<Instant> {
        self.admit_from.filter(|_| !self.arrived.is_empty() || !self.woken.is_empty())
    }

    /// True unless there is no room for it.
    fn admit_parked(&mut self, cx: &mut Ctx<'_>, id: u32) -> bool {
        let Some(syn) = self.parked.get(id) else { return true };
        let Ok(to) = self.config.route(syn.tuple.remote()) else { return true };
        let admitted = self.open_passive(cx, syn.tuple, to, &syn.segment());
        if admitted {
            self.parked.take(id);
            self.hold_for_admission(cx.budget);
            self.demote_for_parked(cx);
        }
        admitted
    }

    fn wait_for_room(&mut self, cx: &mut Ctx<'_>, id: u32) {
        if self.parked.get(id).is_none() {
            return;
        }
        if self.parked.set_waiting(id) {
            cx.budget.count(self.member, Counter::AdmissionDelayed, 1);
        }
        cx.budget.wait_for_admission(self.parked_key(id).0, self.config.sizes.total());
    }

    /// A published port accepted a connection from `peer`: a flow towards `guest_port` of the guest begins, in the
    /// peer's family if the guest has it (its SYN goes out in the next turn). `queued` bytes (true size) stand in the
    /// receive queue of its socket already: they are charged with the rest. Returns what the socket's buffers are to
    /// be. `None`: no room; keep the connection and ask again later.
    pub fn on_accept(
        &mut self,
        cx: &mut Ctx<'_>,
        guest_port: u16,
        peer: SocketAddr,
        queued: u32,
    ) -> Option<(FlowId, HostCaps)> {
        let (guest, gateway): (IpAddr, IpAddr) = match &self.config.ipv6 {
            Some(net) if peer.is_ipv6() => (net.guest.into(), net.gateway.into()),
            _ => (self.config.guest_ip.into(), self.config.gateway_ip.into()),
        };
        let tuple = self.free_tuple(SocketAddr::new(guest, guest_port), gateway, peer.port())?;
        let (id, mut ledger, held) = self.reserve_holding(cx, queued)?;
        let caps = if cx.host.keeps_scale() {
            relay::begin_caps(cx.budget, &mut ledger, held, cx.now)
        } else {
            held
        };
        let (iss, ts_offset) = self.initial(&tuple, cx.now);
        let tcb = Tcb::active(self.link(&tuple, cx.budget), iss, ts_offset, cx.now);
        let side = HostSide::new(peer, caps, true);
        let mut flow = Flow::new(id, tuple, tcb, side, ledger, cx.now);
        self.stats.add(Stat::ActiveOpens);
        self.watch_new(&mut flow, cx.now);
        self.mark(flow.id.index);
        self.flows.insert(flow);
        Some((id, caps))
    }

    /// As `reserve`, for a flow whose host socket has received `queued` bytes. What exceeds the floor of its buffer is
    /// charged as a part of the reservation, or pressure would keep a connection out that holds its memory anyway; it
    /// is not guaranteed from then on, and goes back when the caps are lowered.
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
        cx.budget.lower_host_floor(&mut ledger, host_floor, cx.now);
        self.join_crowd(cx.budget, cx.now);
        Some((id, ledger, held))
    }

    /// The guest sees the gateway, with the peer's own port where it is free.
    fn free_tuple(&self, guest: SocketAddr, gateway: IpAddr, port: u16) -> Option<Tuple> {
        let at = |port| Tuple::new(guest, SocketAddr::new(gateway, port));
        std::iter::once(port)
            .chain((0..64).map(|i| 1024 + (port.wrapping_mul(31).wrapping_add(i * 997)) % 64_000))
            .map(at)
            .find(|tuple| self.flows.find(tuple).is_none())
    }

    /// Is there room for one more accepted connection? The listener is polled only while this is true.
    pub fn can_accept(&self, budget: &Budget) -> bool {
        self.parked.waiting() == 0
            && self.flows.len() < self.config.flows_max
            && budget.admission_room() >= self.config.sizes.total()
    }

    fn link(&self, tuple: &Tuple, budget: &Budget) -> Link {
        self.config.link(tuple.is_ipv6(), budget.sock_limits().wmem[2])
    }

    /// Initial sequence number and timestamp offset (RFC 6528: a clock of 4 microseconds plus a keyed hash of the
    /// tuple; RFC 7323 section 5.4).
    fn initial(&self, tuple: &Tuple, now: Instant) -> (Seq, u32) {
        use std::hash::BuildHasher;
        let hash = crate::demux::Keyed(self.config.secret).hash_one(tuple);
        let clock = (now.0 / 4000) as u32;
        (Seq(clock.wrapping_add(hash as u32)), (hash >> 32) as u32)
    }
}
