//! Relays UDP and echo requests: datagrams of the guest to the sockets of their mappings, datagrams and errors of those
//! sockets to the guest.

use std::net::{IpAddr, SocketAddr};

use super::{Container, Ctx};
use crate::config::{ContainerConfig, NoRoute};
use crate::counters::Stat;
use crate::io::datagram::{
    DatagramError, DatagramId, DatagramKind, DatagramSocket, IpFields, RECEIVE_BATCH, SEND_BATCH,
    SendDatagram, SendStop, Undeliverable,
};
use crate::io::{HostCaps, HostError};
use crate::pressure::Throttle;
use crate::queue::MemberCtx;
use crate::udp::outbox::Entry;
use crate::udp::{CAPS, Mapping};
use crate::wire::addresses::Tuple;
use crate::wire::icmp::undeliverable::{self, Quoted};
use crate::wire::icmp::{self, Unreachable};
use crate::wire::parse::Answer;
use crate::wire::udp::{self, Datagram, EchoReply, UDP};

/// A place of a batch before it is filled.
const NO_DATAGRAM: SendDatagram<'_> = SendDatagram {
    to: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
    ip: IpFields { hop_limit: 0, traffic_class: 0, dont_fragment: false },
    payload: &[],
};

impl Container {
    /// Handles a datagram of the guest: it is sent at the end of the turn, or answered with an error.
    pub(super) fn on_datagram(&mut self, cx: &mut Ctx<'_>, datagram: &Datagram<'_>) {
        let (guest, remote) = (datagram.tuple.guest(), datagram.tuple.remote());
        if datagram.kind == DatagramKind::Udp && self.config.is_forwarder(remote) {
            return self.on_question(cx, datagram);
        }
        let known = self.mappings.find(datagram.kind, guest);
        let is_gateway = self.config.gateway_of(remote.ip()) == Some(remote.ip());
        let client = known
            .filter(|_| is_gateway)
            .and_then(|id| self.mappings.get_mut(id)?.client_behind(remote.port()));
        let to = match client.map_or_else(|| self.config.route(remote), Ok) {
            Ok(to) => to,
            // The answer to a client of a published port.
            Err(NoRoute::Denied(to)) if self.answers_client(known, to) => to,
            Err(NoRoute::Denied(_)) => return self.deny_datagram(cx, datagram),
            Err(NoRoute::Refused) => {
                self.stats.add(unreachable(datagram.kind));
                return self.refuse_datagram(cx, datagram, Unreachable::Port);
            }
            // RFC 1122 section 3.2.2: no error answers a broadcast. It reaches no host but the guest's own.
            Err(NoRoute::Unreachable | NoRoute::Sibling)
                if self.config.is_broadcast(remote.ip()) =>
            {
                return self.stats.add(Stat::DropDestination);
            }
            Err(NoRoute::Unreachable | NoRoute::Sibling) => {
                self.stats.add(unreachable(datagram.kind));
                return self.refuse_datagram(cx, datagram, Unreachable::Host);
            }
        };
        // The gateway itself is no hop: it is the destination.
        let is_hop = !is_gateway;
        if is_hop && datagram.ip.hop_limit <= 1 {
            return self.on_last_hop(cx, datagram);
        }
        // A socket sends no packet without a hop left.
        let hop_limit = (datagram.ip.hop_limit - u8::from(is_hop)).max(1);
        let ip = IpFields { hop_limit, ..datagram.ip };
        let id = match known.map_or_else(|| self.open_mapping(cx, datagram.kind, guest), Ok) {
            Ok(id) => id,
            // The host does not allow echo requests, or not to this user.
            Err(Some(HostError::NetUnreachable)) if datagram.kind == DatagramKind::Echo => {
                self.stats.add(Stat::IcmpEchoProhibited);
                let payload = datagram.payload();
                let why = Undeliverable::Prohibited;
                return self.report(cx, datagram.kind, datagram.tuple, None, why, payload);
            }
            Err(_) => return self.stats.add(Stat::UdpMappingsRefused),
        };
        let len = datagram.payload().len();
        self.mappings.note_sent(id, to, len, &mut cx.member(self.member));
        let out = SendDatagram { to, ip, payload: datagram.payload() };
        if self.store_datagram(cx, id, remote, &out) {
            return;
        }
        // No room: those before it are sent first.
        self.send_stored(cx);
        if !self.store_datagram(cx, id, remote, &out) {
            self.send_batch(cx, id, &[out], |_| remote);
        }
    }

    fn store_datagram(
        &mut self,
        cx: &mut Ctx<'_>,
        id: DatagramId,
        remote: SocketAddr,
        datagram: &SendDatagram<'_>,
    ) -> bool {
        let mut mem = MemberCtx { now: cx.now, budget: cx.budget, member: self.member };
        self.outbox.push(id, remote, datagram, cx.pool, &mut mem)
    }

    /// True if the datagram leaves from a published port, for an address from which a client has sent to it.
    fn answers_client(&mut self, known: Option<DatagramId>, to: SocketAddr) -> bool {
        let mapping = known.and_then(|id| self.mappings.get_mut(id));
        mapping.is_some_and(|mapping| mapping.has_client_at(to.ip()))
    }

    /// A rule refuses the destination. As a firewall with `reject`: UDP gets port unreachable, an echo request, which
    /// has no port, administratively prohibited.
    fn deny_datagram(&mut self, cx: &mut Ctx<'_>, datagram: &Datagram<'_>) {
        self.stats.add(Stat::ReachDenied);
        match datagram.kind {
            DatagramKind::Udp => self.refuse_datagram(cx, datagram, Unreachable::Port),
            DatagramKind::Echo => {
                let (tuple, payload) = (datagram.tuple, datagram.payload());
                self.report(cx, datagram.kind, tuple, None, Undeliverable::Prohibited, payload);
            }
        }
    }

    fn refuse_datagram(&mut self, cx: &mut Ctx<'_>, datagram: &Datagram<'_>, why: Unreachable) {
        if self.icmp_allowed(cx.now) {
            let addrs = datagram.tuple.to_guest().reversed();
            let answer = icmp::unreachable(addrs, datagram.protocol(), datagram.bytes, why);
            self.egress.answer(cx.device, &answer);
        }
    }

    /// The datagram may pass no router, and the stack is one (RFC 1812 section 5.3.1).
    fn on_last_hop(&mut self, cx: &mut Ctx<'_>, datagram: &Datagram<'_>) {
        self.stats.add(Stat::IpHopLimitExceeded);
        let (kind, payload) = (datagram.kind, datagram.payload());
        self.report(cx, kind, datagram.tuple, None, Undeliverable::HopLimit, payload);
    }

    /// Creates the mapping of a guest's port, in place of the oldest if there is no room. `None`: no memory; otherwise
    /// the reason for which there is no socket.
    fn open_mapping(
        &mut self,
        cx: &mut Ctx<'_>,
        kind: DatagramKind,
        guest: SocketAddr,
    ) -> Result<DatagramId, Option<HostError>> {
        let opened = self.mappings.open(kind, guest, &mut cx.member(self.member));
        // One is enough: it holds at least what a new one needs.
        let id = opened.or_else(|| {
            let oldest = self.mappings.oldest()?;
            // Its datagrams arrived before this one.
            self.send_stored(cx);
            self.stats.add(Stat::UdpMappingsEvicted);
            self.close_mapping(cx, oldest);
            self.mappings.open(kind, guest, &mut cx.member(self.member))
        });
        let id = id.ok_or(None)?;
        let (ipv6, port) = (guest.is_ipv6(), guest.port());
        if let Err(e) = cx.host.open_datagram(id, &DatagramSocket { kind, ipv6, port, caps: CAPS })
        {
            self.mappings.close(id, &mut cx.member(self.member));
            return Err(Some(e));
        }
        self.stats.add(Stat::UdpMappingsOpened);
        Ok(id)
    }

    fn close_mapping(&mut self, cx: &mut Ctx<'_>, id: DatagramId) {
        cx.host.close_datagram(id);
        self.mappings.close(id, &mut cx.member(self.member));
        if self.mappings.len() == 0 {
            self.outbox.shrink();
        }
    }

    /// Publishes a UDP port of the guest, over IPv6 or IPv4. The caller then gives the host the socket that is bound to
    /// a port of its own, under the returned id, with the returned caps. `None`: no room, or another port leads there.
    /// A mapping that the guest opened for that port ends: from now on its datagrams leave from the published port.
    pub fn publish_datagrams(
        &mut self,
        cx: &mut Ctx<'_>,
        ipv6: bool,
        guest_port: u16,
    ) -> Option<(DatagramId, HostCaps)> {
        let ip: IpAddr = match (&self.config.ipv6, ipv6) {
            (Some(net), true) => net.guest.into(),
            (None, true) => return None,
            (_, false) => self.config.guest_ip.into(),
        };
        let guest = SocketAddr::new(ip, guest_port);
        if let Some(id) = self.mappings.find(DatagramKind::Udp, guest)
            && self.mappings.get_mut(id).is_some_and(|mapping| !mapping.is_published())
        {
            self.send_stored(cx);
            self.close_mapping(cx, id);
        }
        let id = self.mappings.publish(guest, &mut cx.member(self.member))?;
        if !self.config.reach.is_empty() {
            self.mappings.remember_clients(id, &mut cx.member(self.member));
        }
        Some((id, CAPS))
    }

    /// Closes a published UDP port, with its socket. Datagrams that the guest sent before still leave from it.
    pub fn unpublish_datagrams(&mut self, cx: &mut Ctx<'_>, id: DatagramId) {
        // It may have ended meanwhile.
        if self.mappings.get_mut(id).is_some() {
            self.send_stored(cx);
            self.close_mapping(cx, id);
        }
    }

    // ---- to the host ----

    /// Sends the stored datagrams, a batch for each mapping.
    pub(super) fn send_stored(&mut self, cx: &mut Ctx<'_>) {
        if self.outbox.is_empty() {
            return;
        }
        // Taken out for the calls below, which need the container.
        let mut outbox = std::mem::take(&mut self.outbox);
        outbox.sort();
        for entries in outbox.entries().chunk_by(|a: &Entry, b: &Entry| a.id == b.id) {
            for entries in entries.chunks(SEND_BATCH) {
                let mut batch = [NO_DATAGRAM; SEND_BATCH];
                for (place, entry) in batch.iter_mut().zip(entries) {
                    *place = outbox.datagram(entry);
                }
                let batch = &batch[..entries.len()];
                self.send_batch(cx, entries[0].id, batch, |n| entries[n].remote);
            }
        }
        let mut mem = MemberCtx { now: cx.now, budget: cx.budget, member: self.member };
        outbox.clear(cx.pool, &mut mem);
        self.outbox = outbox;
    }

    /// Sends a batch of one mapping. `remote`: the destination of a datagram as the guest sees it.
    fn send_batch(
        &mut self,
        cx: &mut Ctx<'_>,
        id: DatagramId,
        batch: &[SendDatagram<'_>],
        remote: impl Fn(usize) -> SocketAddr,
    ) {
        let Some(Mapping { kind, guest, .. }) = self.mappings.get_mut(id) else { return };
        let (kind, guest) = (*kind, *guest);
        let counter = match kind {
            DatagramKind::Udp => Stat::UdpOutDatagrams,
            DatagramKind::Echo => Stat::IcmpOutEchos,
        };
        let mut done = 0;
        while done < batch.len() {
            let (sent, stop) = cx.host.send_datagrams(id, &batch[done..]);
            self.stats.add_n(counter, sent as u64);
            done += sent;
            match stop {
                // The device behind a full buffer is slower than the guest. A larger buffer bridges a burst.
                Some(SendStop::Full) if !self.raise_caps(cx, id, false) => {
                    return self.stats.add_n(Stat::UdpSndbufErrors, (batch.len() - done) as u64);
                }
                Some(SendStop::Full) => {}
                Some(SendStop::Undeliverable(why)) => {
                    self.stats.add(Stat::UdpOutErrors);
                    let tuple = Tuple::new(guest, remote(done));
                    match why {
                        Some(why) => self.report(cx, kind, tuple, None, why, batch[done].payload),
                        // Among the errors of the socket, which the turn reads.
                        None => self.mappings.mark_ready(id),
                    }
                    done += 1;
                }
                // All were sent, or the socket is closed.
                None if sent == 0 => return,
                None => {}
            }
        }
    }

    // ---- to the guest ----

    /// The socket of a mapping has datagrams, or errors (edge-triggered).
    pub fn on_datagram_ready(&mut self, id: DatagramId) {
        if Self::is_of_forwarder(id) {
            return self.forwarder.mark_ready(id);
        }
        self.mappings.mark_ready(id);
    }

    /// Passes datagrams of ready sockets to the guest, a batch for each. Returns true when more may be there.
    pub(super) fn receive_some(&mut self, cx: &mut Ctx<'_>) -> bool {
        // Only a published port can receive before the guest has sent a frame. The datagrams stay in its socket.
        if self.mappings.ready() > 0 && self.egress.guest_mac.is_none() {
            if self.neighbour.may_request(cx.now) {
                self.request_guest_mac(cx, false);
            }
            return false;
        }
        for _ in 0..self.mappings.ready().min(Throttle::of(cx.budget).flows_per_turn) {
            let Some(id) = self.mappings.pop_ready() else { break };
            // Errors first: each is as old as the oldest datagram at least, and a full error queue loses the new ones.
            let errors = self.receive_errors(cx, id);
            if self.receive_batch(cx, id) || errors {
                self.mappings.mark_ready(id);
            }
        }
        self.mappings.ready() > 0
    }

    /// Passes one batch of datagrams to the guest. Returns true when the socket may hold more.
    fn receive_batch(&mut self, cx: &mut Ctx<'_>, id: DatagramId) -> bool {
        let Self { mappings, egress, stats, config, .. } = self;
        let Ctx { host, device, .. } = cx;
        let Some(mapping) = mappings.get_mut(id) else { return false };
        let (mut bytes, mut count, mut passed) = (0, 0, 0);
        let more = host.receive_datagrams(id, &mut |datagram| {
            (bytes, count) = (bytes + datagram.payload.len() + PER_DATAGRAM, count + 1);
            let from = datagram.from;
            // RFC 4787 REQ-8: an address that the guest has not sent to.
            let Some(remote) = accepted(config, mapping, from) else {
                return stats.add(Stat::UdpFiltered);
            };
            // The stack is a router between the two networks, except for the gateway's own datagrams.
            let hop = u8::from(remote.ip() == from.ip());
            let hop_limit = datagram.ip.hop_limit.saturating_sub(hop).max(1);
            // Not known of a received datagram. Without it a router beyond the guest fragments.
            let ip = IpFields { hop_limit, dont_fragment: false, ..datagram.ip };
            let tuple = Tuple::new(mapping.guest, remote);
            let (sent, counter) = match mapping.kind {
                DatagramKind::Udp => {
                    (egress.datagram(*device, &tuple, ip, datagram.payload), Stat::UdpInDatagrams)
                }
                DatagramKind::Echo => {
                    let Some(reply) = EchoReply::parse(datagram.payload, tuple.is_ipv6()) else {
                        return stats.add(Stat::UdpFiltered);
                    };
                    (egress.echo_reply(*device, &tuple, ip, &reply), Stat::IcmpInEchoReps)
                }
            };
            passed += if sent { datagram.payload.len() } else { 0 };
            stats.add(if sent { counter } else { Stat::UdpRcvbufErrors });
        });
        if count > 0 {
            mapping.note_received(passed);
            stats.add_n(Stat::UdpRcvbufErrors, host.take_datagram_drops(id).into());
        }
        // Half full, or more datagrams than one call takes: the next burst may be larger.
        if 2 * bytes >= mapping.caps.rcvbuf as usize || count >= RECEIVE_BATCH {
            self.raise_caps(cx, id, true);
        }
        more
    }

    /// Reports errors of a mapping's socket to the guest. Returns true when there may be more.
    fn receive_errors(&mut self, cx: &mut Ctx<'_>, id: DatagramId) -> bool {
        let Self { mappings, egress, stats, config, limits, .. } = self;
        let Ctx { host, device, now, .. } = cx;
        let Some(mapping) = mappings.get_mut(id) else { return false };
        host.receive_errors(id, &mut |error: &DatagramError<'_>| {
            let Some(remote) = accepted(config, mapping, error.to) else {
                return stats.add(Stat::UdpFiltered);
            };
            if !limits.allow_icmp(*now) {
                return stats.add(Stat::IcmpRateLimited);
            }
            stats.add(Stat::UdpErrorsRelayed);
            let tuple = Tuple::new(mapping.guest, remote);
            let answer = error_for(config, mapping.kind, tuple, error.by, error.why, error.payload);
            egress.answer(*device, &answer);
        })
    }

    /// Reports to the guest that a datagram of this tuple was not delivered.
    fn report(
        &mut self,
        cx: &mut Ctx<'_>,
        kind: DatagramKind,
        tuple: Tuple,
        by: Option<IpAddr>,
        why: Undeliverable,
        payload: &[u8],
    ) {
        if self.icmp_allowed(cx.now) {
            let answer = error_for(&self.config, kind, tuple, by, why, payload);
            self.egress.answer(cx.device, &answer);
        }
    }

    /// Doubles a cap of a mapping's socket, unless the budget is under pressure or refuses the charge. True if it did.
    fn raise_caps(&mut self, cx: &mut Ctx<'_>, id: DatagramId, receive: bool) -> bool {
        if cx.budget.under_pressure() {
            return false;
        }
        let raised = self.mappings.raise(id, receive, &mut cx.member(self.member));
        raised.into_iter().for_each(|caps| cx.host.set_datagram_caps(id, caps));
        raised.is_some()
    }

    // ---- time and end ----

    /// Ends mappings whose time is over, and lowers the caps of those that are silent.
    pub(super) fn expire_mappings(&mut self, cx: &mut Ctx<'_>) {
        // Most turns, of most containers.
        if self.mappings.len() == 0 {
            return;
        }
        while let Some(id) = self.mappings.expired(cx.now) {
            self.stats.add(Stat::UdpMappingsExpired);
            self.close_mapping(cx, id);
        }
        while let Some(id) = self.mappings.lower_idle(&mut cx.member(self.member)) {
            cx.host.set_datagram_caps(id, CAPS);
        }
    }

    /// Ends all mappings and drops the stored datagrams.
    pub(super) fn end_mappings(&mut self, cx: &mut Ctx<'_>) {
        let mut mem = MemberCtx { now: cx.now, budget: cx.budget, member: self.member };
        self.outbox.clear(cx.pool, &mut mem);
        while let Some(id) = self.mappings.any() {
            self.close_mapping(cx, id);
        }
    }
}

/// What the kernel charges for a datagram beyond its payload, bytes; about that of a small one (SKB_TRUESIZE).
const PER_DATAGRAM: usize = 1024;

/// The source of a datagram as the guest sees it; `None`: the guest has not sent to it, or it has no port to answer to.
fn accepted(
    config: &ContainerConfig,
    mapping: &mut Mapping,
    from: SocketAddr,
) -> Option<SocketAddr> {
    let answerable = from.port() != 0 || mapping.kind == DatagramKind::Echo;
    if from.is_ipv4() != mapping.guest.is_ipv4() || !mapping.accepts(from.ip()) || !answerable {
        return None;
    }
    if mapping.is_published() {
        if !config.reach.is_empty() {
            mapping.note_client(from.ip());
        }
        let ip = config.client_address(from.ip());
        // A client that has the gateway's address itself is behind a port of the gateway as well: otherwise answers to
        // it would be for the host's loopback.
        let is_own = ip == from.ip() && config.gateway_of(ip) != Some(ip);
        let port = if is_own { from.port() } else { mapping.port_of_client(from) };
        return Some(SocketAddr::new(ip, port));
    }
    // The loopback address was sent to as the gateway.
    let ip = if from.ip().is_loopback() { config.gateway_of(from.ip())? } else { from.ip() };
    Some(SocketAddr::new(ip, from.port()))
}

/// Builds the error for a datagram of this tuple. Its source is the reporter, or the gateway if the guest cannot reach
/// the reporter.
fn error_for(
    config: &ContainerConfig,
    kind: DatagramKind,
    tuple: Tuple,
    by: Option<IpAddr>,
    why: Undeliverable,
    payload: &[u8],
) -> Answer {
    let addrs = tuple.to_guest().reversed();
    let remote = addrs.ips().1;
    let reaches = |by: &IpAddr| match by {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local(),
    };
    let by = by.filter(reaches).or_else(|| config.gateway_of(remote)).unwrap_or(remote);
    let (header, payload) = quoted_header(kind, tuple, payload);
    let quoted = Quoted { addrs, protocol: udp::protocol(kind, &tuple), header, payload };
    undeliverable::answer(&quoted, by, why)
}

/// Header of a datagram as the guest sent it, and what followed it.
fn quoted_header(kind: DatagramKind, tuple: Tuple, payload: &[u8]) -> ([u8; UDP], &[u8]) {
    let guest_port = tuple.guest_port().to_be_bytes();
    match (kind, payload.split_first_chunk::<UDP>()) {
        // A whole message, with the identifier of the host socket.
        (DatagramKind::Echo, Some((message, data))) => {
            let mut header = *message;
            header[4..6].copy_from_slice(&guest_port);
            (header, data)
        }
        (DatagramKind::Echo, None) => ([0, 0, 0, 0, guest_port[0], guest_port[1], 0, 0], &[]),
        (DatagramKind::Udp, _) => {
            let mut header = [0; UDP];
            header[..2].copy_from_slice(&guest_port);
            header[2..4].copy_from_slice(&tuple.remote_port().to_be_bytes());
            header[4..6].copy_from_slice(&((UDP + payload.len()) as u16).to_be_bytes());
            (header, payload)
        }
    }
}

/// Counter of what the stack itself answers with an error.
fn unreachable(kind: DatagramKind) -> Stat {
    match kind {
        DatagramKind::Udp => Stat::UdpUnreachable,
        DatagramKind::Echo => Stat::IcmpEchoUnreachable,
    }
}
