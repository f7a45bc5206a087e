//! Mappings of the guest's UDP ports to sockets of the host, as RFC 4787 requires of a NAT; and of the identifiers of
//! its echo requests (RFC 5508).
//!
//! A mapping belongs to one address and port of the guest, whatever the destination (REQ-1), and has one unconnected
//! socket. Only addresses that the guest has sent to may answer (REQ-8, `remotes`). A mapping ends 120 s after the
//! last datagram of the guest (REQ-5, REQ-6), 20 s after it if the guest has only sent to port 53, and 60 s after the
//! last echo request (RFC 5508 REQ-1).
//!
//! The mapping of a published port has the socket that is bound to that port, answers to every address, and stays.
//!
//! The table is bounded by number and by memory (M4). When either bound is reached the mapping that was silent for the
//! longest time is evicted. Datagrams on their way to the host are in `outbox` until the end of the turn; those for the
//! guest pass from the socket to the device without a queue.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use skbudget_controller::Instant;

use crate::flow::table::{Keyed, part_of};
use crate::io::HostCaps;
use crate::io::datagram::{DatagramId, DatagramKind};
use crate::queue::MemberCtx;
use clients::{CLIENTS_BYTES, Clients};
use remotes::{Remotes, STEPS};

pub(crate) mod clients;
pub(crate) mod outbox;
pub(crate) mod remotes;
#[cfg(test)]
mod tests;

/// Largest number of mappings of a container; its budget may allow less.
pub(crate) const MAPPINGS_MAX: usize = 4096;
/// Caps of a new socket. A server may answer with a dozen packets at once, and none of them is sent again.
pub(crate) const CAPS: HostCaps = HostCaps { sndbuf: 4608, rcvbuf: 32 << 10 };
/// Caps of a fast socket, at most.
const CAPS_MAX: HostCaps = HostCaps { sndbuf: 256 << 10, rcvbuf: 512 << 10 };
/// Bytes that a receive buffer may hold beyond its cap: the kernel checks for room before it adds a datagram.
const BEYOND_CAP: u64 = 64 << 10;
/// Charge of a mapping with its places in tables and lists.
const MAPPING_BYTES: u64 = 512;
const _: () = assert!(
    size_of::<Mapping>() + 4 * size_of::<(DatagramKind, SocketAddr, u64)>()
        <= MAPPING_BYTES as usize,
    "a mapping, its slot and its places in tables and lists must fit what is charged for them"
);
/// Charge of a new mapping, bytes.
const NEW_BYTES: u64 = MAPPING_BYTES + caps_bytes(CAPS) + BEYOND_CAP;

/// Charge of the mapping of a published port, bytes.
pub const PUBLISHED_BYTES: u64 = NEW_BYTES + CLIENTS_BYTES;

/// Silence of the guest after which a mapping ends, and the same if it has only sent to port 53.
const TIMEOUT: Duration = Duration::from_secs(120);
const TIMEOUT_DNS: Duration = Duration::from_secs(20);
const TIMEOUT_ECHO: Duration = Duration::from_secs(60);
const DNS_PORT: u16 = 53;
/// Silence in both directions after which the caps of a fast socket return to those of a new one.
const FAST_FOR: Duration = Duration::from_secs(2);

const fn caps_bytes(caps: HostCaps) -> u64 {
    caps.sndbuf as u64 + caps.rcvbuf as u64
}

/// One port of the guest.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) id: DatagramId,
    pub(crate) kind: DatagramKind,
    /// Address of the guest, and its port or identifier.
    pub(crate) guest: SocketAddr,
    /// Addresses that may answer.
    remotes: Remotes,
    /// It is a published port: every address may send, and it stays. These clients appear as the gateway.
    clients: Option<Box<Clients>>,
    pub(crate) caps: HostCaps,
    /// All that is charged for it, bytes.
    pub(crate) charged: u64,
    /// Time and destination of the guest's last datagram.
    pub(crate) last_sent: Instant,
    pub(crate) last_to: Option<SocketAddr>,
    /// Payload of the guest's datagrams, and of those for the guest, bytes.
    pub(crate) bytes_from_guest: u64,
    pub(crate) bytes_to_guest: u64,
    /// The guest has only sent to port 53.
    only_dns: bool,
    /// On the ready list.
    ready: bool,
    /// A datagram passed since the caps were last checked.
    active: bool,
    /// Neighbours on the list of its timeout: the ones that sent before and after it.
    older: Option<u32>,
    newer: Option<u32>,
}

/// Mappings with one timeout, in the order of their last datagrams.
#[derive(Debug, Default)]
struct Age {
    oldest: Option<u32>,
    newest: Option<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    mapping: Option<Box<Mapping>>,
}

/// All mappings of a container.
#[derive(Debug)]
pub(crate) struct Mappings {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_guest: HashMap<(DatagramKind, SocketAddr), u32, Keyed>,
    /// By timeout.
    ages: [Age; 3],
    /// Mappings with a socket that may hold datagrams or errors.
    ready: VecDeque<u32>,
    /// Fast sockets, with the time of the next check.
    fast: VecDeque<(Instant, DatagramId)>,
    secret: [u64; 2],
}

impl Mappings {
    pub(crate) fn new(secret: [u64; 2]) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_guest: HashMap::with_hasher(Keyed(secret)),
            ages: Default::default(),
            ready: VecDeque::new(),
            fast: VecDeque::new(),
            secret,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_guest.len()
    }

    /// The mapping of a guest's address and port.
    pub(crate) fn find(&self, kind: DatagramKind, guest: SocketAddr) -> Option<DatagramId> {
        let index = *self.by_guest.get(&(kind, guest))?;
        self.index(index).map(|mapping| mapping.id)
    }

    /// The mapping with this id; `None` if it has ended.
    pub(crate) fn get_mut(&mut self, id: DatagramId) -> Option<&mut Mapping> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation { slot.mapping.as_deref_mut() } else { None }
    }

    /// Mappings in `slots` slots from `from` on, and the slot after these; `None`: there are no more.
    pub(crate) fn part(
        &self,
        from: u32,
        slots: u32,
    ) -> (impl Iterator<Item = &Mapping>, Option<u32>) {
        let part = part_of(self.slots.len(), from, slots);
        let next = (part.end < self.slots.len()).then_some(part.end as u32);
        (self.slots[part].iter().filter_map(|slot| slot.mapping.as_deref()), next)
    }

    fn index(&self, index: u32) -> Option<&Mapping> {
        self.slots.get(index as usize)?.mapping.as_deref()
    }

    fn index_mut(&mut self, index: u32) -> Option<&mut Mapping> {
        self.slots.get_mut(index as usize)?.mapping.as_deref_mut()
    }

    // ---- start and end ----

    /// Charges a new mapping and creates it. `None`: the budget has no room; the caller may evict one and try again.
    pub(crate) fn open(
        &mut self,
        kind: DatagramKind,
        guest: SocketAddr,
        mem: &mut MemberCtx<'_>,
    ) -> Option<DatagramId> {
        self.create(kind, guest, false, mem)
    }

    /// As `open`, for a published port. `None` as well if another port of the host leads to this one.
    pub(crate) fn publish(
        &mut self,
        guest: SocketAddr,
        mem: &mut MemberCtx<'_>,
    ) -> Option<DatagramId> {
        let taken = self.find(DatagramKind::Udp, guest).is_some();
        (!taken).then(|| self.create(DatagramKind::Udp, guest, true, mem)).flatten()
    }

    /// Makes room for the addresses of a published port's clients, as much as the budget grants.
    pub(crate) fn remember_clients(&mut self, id: DatagramId, mem: &mut MemberCtx<'_>) {
        let Some(mapping) = self.get_mut(id) else { return };
        if let Some(step) = (0..STEPS.len()).rev().find(|step| charge(STEPS[*step].1, mem)) {
            mapping.charged += STEPS[step].1;
            mapping.remotes.grow(step);
        }
    }

    fn create(
        &mut self,
        kind: DatagramKind,
        guest: SocketAddr,
        published: bool,
        mem: &mut MemberCtx<'_>,
    ) -> Option<DatagramId> {
        let charged = if published { PUBLISHED_BYTES } else { NEW_BYTES };
        if self.len() >= MAPPINGS_MAX || !charge(charged, mem) {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let id = DatagramId { index, generation: self.slots[index as usize].generation };
        let mapping = Mapping {
            id,
            kind,
            guest,
            remotes: Remotes::new(self.secret),
            clients: published.then(Box::default),
            caps: CAPS,
            charged,
            last_sent: mem.now,
            last_to: None,
            bytes_from_guest: 0,
            bytes_to_guest: 0,
            only_dns: kind == DatagramKind::Udp,
            ready: false,
            active: false,
            older: None,
            newer: None,
        };
        self.slots[index as usize].mapping = Some(Box::new(mapping));
        self.by_guest.insert((kind, guest), index);
        if !published {
            self.link(index);
        }
        Some(id)
    }

    /// Removes a mapping and uncharges it. The caller closes its socket.
    pub(crate) fn close(&mut self, id: DatagramId, mem: &mut MemberCtx<'_>) {
        let Some(mapping) = self.get_mut(id) else { return };
        if mapping.clients.is_none() {
            self.unlink(id.index);
        }
        let slot = &mut self.slots[id.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let Some(mapping) = slot.mapping.take() else { return };
        self.by_guest.remove(&(mapping.kind, mapping.guest));
        self.free.push(id.index);
        uncharge(mapping.charged, mem);
        if mapping.ready {
            self.ready.retain(|ready| *ready != id.index);
        }
        // The tables are part of what each mapping is charged.
        if self.by_guest.is_empty() {
            self.by_guest.shrink_to_fit();
            self.ready = VecDeque::new();
            self.fast = VecDeque::new();
        }
    }

    /// The mapping whose guest was silent for the longest time.
    pub(crate) fn oldest(&self) -> Option<DatagramId> {
        let oldest = self.ages.iter().filter_map(|age| self.index(age.oldest?));
        oldest.min_by_key(|mapping| mapping.last_sent).map(|mapping| mapping.id)
    }

    /// Any mapping; published ports last.
    pub(crate) fn any(&self) -> Option<DatagramId> {
        let published = || self.slots.iter().find_map(|slot| Some(slot.mapping.as_ref()?.id));
        self.oldest().or_else(published)
    }

    /// A mapping whose time is over.
    pub(crate) fn expired(&self, now: Instant) -> Option<DatagramId> {
        let oldest = self.ages.iter().filter_map(|age| self.index(age.oldest?));
        oldest.into_iter().find(|mapping| mapping.ends_at() <= now).map(|mapping| mapping.id)
    }

    /// When a mapping ends or the caps of a fast socket are checked.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let ends = self.ages.iter().filter_map(|age| self.index(age.oldest?)).map(Mapping::ends_at);
        ends.chain(self.fast.front().map(|(at, _)| *at)).min()
    }

    // ---- traffic ----

    /// The guest sends `len` bytes to `to`, an address of the host's network: lets it answer and starts the timeout
    /// again.
    pub(crate) fn note_sent(
        &mut self,
        id: DatagramId,
        to: SocketAddr,
        len: usize,
        mem: &mut MemberCtx<'_>,
    ) {
        let Some(mapping) = self.get_mut(id) else { return };
        mapping.last_sent = mem.now;
        mapping.last_to = Some(to);
        mapping.bytes_from_guest += len as u64;
        mapping.active = true;
        // A published port has neither a filter nor a timeout.
        if mapping.clients.is_some() {
            return;
        }
        // Without room in the budget the addresses used longest ago are forgotten.
        if let Some(step) = mapping.remotes.wants(to.ip())
            && charge(STEPS[step].1, mem)
        {
            mapping.charged += STEPS[step].1;
            mapping.remotes.grow(step);
        }
        mapping.remotes.insert(to.ip());
        if mapping.only_dns && to.port() != DNS_PORT {
            // Before `only_dns` changes, which names the list.
            self.unlink(id.index);
            self.index_mut(id.index).into_iter().for_each(|mapping| mapping.only_dns = false);
            self.link(id.index);
        } else if mapping.newer.is_some() {
            self.unlink(id.index);
            self.link(id.index);
        }
    }

    /// The socket may hold datagrams or errors.
    pub(crate) fn mark_ready(&mut self, id: DatagramId) {
        let Some(mapping) = self.get_mut(id) else { return };
        if !std::mem::replace(&mut mapping.ready, true) {
            self.ready.push_back(id.index);
        }
    }

    /// Takes the next ready mapping off its list.
    pub(crate) fn pop_ready(&mut self) -> Option<DatagramId> {
        while let Some(index) = self.ready.pop_front() {
            if let Some(mapping) = self.index_mut(index) {
                mapping.ready = false;
                return Some(mapping.id);
            }
        }
        None
    }

    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    // ---- caps ----

    /// Doubles the send or the receive cap if the budget grants it. Returns the new caps, which the caller sets.
    pub(crate) fn raise(
        &mut self,
        id: DatagramId,
        receive: bool,
        mem: &mut MemberCtx<'_>,
    ) -> Option<HostCaps> {
        let mapping = self.get_mut(id)?;
        let HostCaps { sndbuf, rcvbuf } = mapping.caps;
        let caps = if receive {
            HostCaps { rcvbuf: (2 * rcvbuf).min(CAPS_MAX.rcvbuf), sndbuf }
        } else {
            HostCaps { sndbuf: (2 * sndbuf).min(CAPS_MAX.sndbuf), rcvbuf }
        };
        let more = caps_bytes(caps) - caps_bytes(mapping.caps);
        if more == 0 || !charge(more, mem) {
            return None;
        }
        let first = mapping.caps == CAPS;
        mapping.charged += more;
        mapping.caps = caps;
        mapping.active = true;
        // The first raise starts the checks that lower them again.
        if first {
            self.fast.push_back((mem.now + FAST_FOR, id));
        }
        Some(caps)
    }

    /// The next fast socket that was silent for a while: its caps are those of a new one again, which the caller sets.
    pub(crate) fn lower_idle(&mut self, mem: &mut MemberCtx<'_>) -> Option<DatagramId> {
        while let Some(&(at, id)) = self.fast.front() {
            if at > mem.now {
                return None;
            }
            self.fast.pop_front();
            let Some(mapping) = self.get_mut(id) else { continue };
            // A socket on the ready list may still hold datagrams.
            if std::mem::take(&mut mapping.active) || mapping.ready {
                self.fast.push_back((mem.now + FAST_FOR, id));
                continue;
            }
            let less = caps_bytes(mapping.caps) - caps_bytes(CAPS);
            mapping.caps = CAPS;
            mapping.charged -= less;
            uncharge(less, mem);
            return Some(id);
        }
        None
    }

    // ---- the lists ----

    /// Puts a mapping at the new end of its list. Its last datagram is the latest of all.
    fn link(&mut self, index: u32) {
        let Some(mapping) = self.index(index) else { return };
        let which = mapping.age();
        let before = self.ages[which].newest.replace(index);
        match before.and_then(|before| self.index_mut(before)) {
            Some(before) => before.newer = Some(index),
            None => self.ages[which].oldest = Some(index),
        }
        if let Some(mapping) = self.index_mut(index) {
            (mapping.older, mapping.newer) = (before, None);
        }
    }

    fn unlink(&mut self, index: u32) {
        let Some(mapping) = self.index(index) else { return };
        let (which, older, newer) = (mapping.age(), mapping.older, mapping.newer);
        match older.and_then(|older| self.index_mut(older)) {
            Some(older) => older.newer = newer,
            None => self.ages[which].oldest = newer,
        }
        match newer.and_then(|newer| self.index_mut(newer)) {
            Some(newer) => newer.older = older,
            None => self.ages[which].newest = older,
        }
    }
}

impl Mapping {
    fn ends_at(&self) -> Instant {
        self.last_sent + [TIMEOUT_DNS, TIMEOUT_ECHO, TIMEOUT][self.age()]
    }

    /// Index of its list, which has mappings of one timeout.
    fn age(&self) -> usize {
        match self.kind {
            DatagramKind::Udp if self.only_dns => 0,
            DatagramKind::Echo => 1,
            DatagramKind::Udp => 2,
        }
    }

    /// A datagram of `len` bytes for the guest passed.
    pub(crate) fn note_received(&mut self, len: usize) {
        self.bytes_to_guest += len as u64;
        self.active = true;
    }

    pub(crate) fn is_published(&self) -> bool {
        self.clients.is_some()
    }

    /// True if this address may send to the guest.
    pub(crate) fn accepts(&self, ip: IpAddr) -> bool {
        self.clients.is_some() || self.remotes.contains(ip)
    }

    /// A client has sent to this published port. Without room the addresses used longest ago are forgotten.
    pub(crate) fn note_client(&mut self, ip: IpAddr) {
        self.remotes.insert(ip);
    }

    /// True if a client of this published port has this address, and was not forgotten.
    pub(crate) fn has_client_at(&self, ip: IpAddr) -> bool {
        self.clients.is_some() && self.remotes.contains(ip)
    }

    /// The port of the gateway as which a client of this published port appears.
    pub(crate) fn port_of_client(&mut self, client: SocketAddr) -> u16 {
        let clients = self.clients.as_mut();
        clients.map_or_else(|| client.port(), |clients| clients.port_of(client))
    }

    /// The client that appears as this port of the gateway.
    pub(crate) fn client_behind(&self, port: u16) -> Option<SocketAddr> {
        self.clients.as_ref()?.behind(port)
    }
}

fn charge(bytes: u64, mem: &mut MemberCtx<'_>) -> bool {
    mem.budget.charge_udp(mem.member, bytes, mem.now)
}

fn uncharge(bytes: u64, mem: &mut MemberCtx<'_>) {
    mem.budget.uncharge_udp(mem.member, bytes, mem.now);
}
