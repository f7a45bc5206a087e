//! The table of the DNS forwarder: questions of the guest that are under way, and the sockets they use.
//!
//! A question is forwarded as it is, with an identifier of its own, from a socket that is new if few others are under
//! way; so identifier and source port of an answer are hard to guess (RFC 5452). An answer must come from a server that
//! was queried, to the socket of the query, with its identifier and its question. A server that does not answer in 2 s
//! is followed by the next; a question is given up after 10 s.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::time::Duration;

use domain::base::Message;
use domain::base::iana::Rcode;
use domain::base::message_builder::MessageBuilder;
use skbudget_controller::Instant;

use crate::flow::table::Keyed;
use crate::io::HostCaps;
use crate::io::datagram::DatagramId;
use crate::queue::MemberCtx;
use crate::udp::MAPPINGS_MAX;
use crate::wire::addresses::Tuple;

pub(crate) mod siblings;
#[cfg(test)]
mod tests;

/// Questions under way, at most.
pub(crate) const QUESTIONS_MAX: usize = 256;
/// Longest question, bytes. Common ones have less than 100, with all options a few hundred.
const QUESTION_LEN_MAX: usize = 4096;
/// Sockets, at most. Beyond them questions share sockets.
pub(crate) const SOCKETS_MAX: usize = 16;
/// Name servers that are used, at most: resolv.conf(5) allows three.
pub(crate) const SERVERS_MAX: usize = 8;
/// Caps of a socket.
pub(crate) const CAPS: HostCaps = HostCaps { sndbuf: 4608, rcvbuf: 8192 };
/// Charge of a socket: its caps, one datagram beyond them (M4), and its entry.
const SOCKET_BYTES: u64 = CAPS.sndbuf as u64 + CAPS.rcvbuf as u64 + (64 << 10) + 128;
/// Charge of a question beside its message.
const QUESTION_BYTES: u64 = 512;
const _: () = assert!(size_of::<Question>() + 256 <= QUESTION_BYTES as usize);

/// Time for a server to answer before the next one is queried.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Tries of a question: the last one ends ten seconds after the first.
const TRIES_MAX: u8 = 5;

/// A question of the guest.
#[derive(Debug)]
pub(crate) struct Question {
    /// The guest's port, and the address of the name server that it queried.
    pub(crate) tuple: Tuple,
    /// The guest's identifier.
    guest_id: u16,
    /// With our identifier.
    message: Vec<u8>,
    /// Index of its socket.
    socket: usize,
    /// Index of the server queried last, and a bit for each that was queried from this socket.
    server: usize,
    queried: u8,
    tries: u8,
    /// End of the time for the answer to its last query.
    due: Option<Instant>,
}

/// A socket and the number of questions that use it.
#[derive(Debug, Clone, Copy)]
struct Socket {
    id: DatagramId,
    ipv6: bool,
    questions: u16,
    ready: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    question: Option<Box<Question>>,
}

/// Why a question is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is no question, or too long: dropped.
    Malformed,
    /// The guest has sent it before, and it is under way.
    Repeated,
    /// No server is known, or there is no room: answered with SERVFAIL.
    NoServer,
    /// As above.
    NoRoom,
}

/// What to do with a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Open(DatagramId, bool),
    Close(DatagramId),
}

/// The forwarder of a container.
#[derive(Debug)]
pub(crate) struct Forwarder {
    servers: Vec<SocketAddr>,
    /// Index of the server that answered last.
    preferred: usize,
    slots: Vec<Slot>,
    free: Vec<usize>,
    sockets: [Option<Socket>; SOCKETS_MAX],
    /// Generation of the next socket at each place.
    generations: [u32; SOCKETS_MAX],
    /// End of the time for an answer, by slot and generation, earliest first: all times are equally long. At most two
    /// for each question under way (`start_time`).
    times: VecDeque<(Instant, usize, u32)>,
    /// Source of identifiers.
    keyed: Keyed,
    drawn: u64,
}

impl Forwarder {
    pub(crate) fn new(secret: [u64; 2]) -> Self {
        Self {
            servers: Vec::new(),
            preferred: 0,
            slots: Vec::new(),
            free: Vec::new(),
            sockets: [None; SOCKETS_MAX],
            generations: [0; SOCKETS_MAX],
            times: VecDeque::new(),
            keyed: Keyed([!secret[1], secret[0]]),
            drawn: secret[1],
        }
    }

    /// Sets the name servers. Questions under way that use one that is gone are queried elsewhere in their next try.
    pub(crate) fn set_servers(&mut self, servers: &[SocketAddr]) {
        let servers = &servers[..servers.len().min(SERVERS_MAX)];
        if self.servers != servers {
            self.servers = servers.to_vec();
            self.preferred = 0;
            // Indices mean other servers now.
            for question in self.slots.iter_mut().filter_map(|slot| slot.question.as_mut()) {
                question.queried = 0;
            }
        }
    }

    /// The server for the next query, for a connection too.
    pub(crate) fn server(&self) -> Option<SocketAddr> {
        self.servers.get(self.preferred).copied()
    }

    /// The server did not accept a connection: the next one is used from now on.
    pub(crate) fn server_failed(&mut self) {
        self.preferred = (self.preferred + 1) % self.servers.len().max(1);
    }

    /// Questions under way.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    // ---- questions ----

    /// Checks and charges a question of the guest; returns its slot. `query` then sends it.
    pub(crate) fn accept(
        &mut self,
        tuple: Tuple,
        message: &[u8],
        mem: &mut MemberCtx<'_>,
    ) -> Result<usize, Refused> {
        let parsed = Message::from_octets(message).map_err(|_| Refused::Malformed)?;
        let is_question = !parsed.header().qr() && parsed.sole_question().is_ok();
        if !is_question || message.len() > QUESTION_LEN_MAX {
            return Err(Refused::Malformed);
        }
        let guest_id = parsed.header().id();
        let same = |q: &Question| q.tuple == tuple && q.guest_id == guest_id;
        if self.questions().any(|(_, question)| same(question)) {
            return Err(Refused::Repeated);
        }
        if self.servers.is_empty() {
            return Err(Refused::NoServer);
        }
        let bytes = QUESTION_BYTES + message.len() as u64;
        if self.len() >= QUESTIONS_MAX || !mem.budget.charge_udp(mem.member, bytes, mem.now) {
            return Err(Refused::NoRoom);
        }
        let mut message = message.to_vec();
        let id = self.draw_id();
        message[..2].copy_from_slice(&id.to_be_bytes());
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let server = self.preferred;
        let (socket, queried, tries, due) = (usize::MAX, 0, 0, None);
        let question = Question { tuple, guest_id, message, socket, server, queried, tries, due };
        self.slots[index].question = Some(Box::new(question));
        Ok(index)
    }

    /// A random identifier that no question under way has.
    fn draw_id(&mut self) -> u16 {
        loop {
            self.drawn = self.drawn.wrapping_add(1);
            let id = (self.keyed.hash_one(self.drawn.to_le_bytes()) >> 24) as u16;
            if self.questions().all(|(_, question)| question.id() != id) {
                return id;
            }
        }
    }

    fn questions(&self) -> impl Iterator<Item = (usize, &Question)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(index, slot)| Some((index, slot.question.as_deref()?)))
    }

    /// Prepares the next query of a question: picks its server and its socket, and starts the time for the answer.
    /// `change`: called for sockets to be opened, where it returns whether that succeeded, and to be closed. Returns
    /// the socket, the server and the message; `None`: there is no socket.
    pub(crate) fn query(
        &mut self,
        index: usize,
        mem: &mut MemberCtx<'_>,
        change: &mut dyn FnMut(Change) -> bool,
    ) -> Option<(DatagramId, SocketAddr, &[u8])> {
        let question = self.slots.get_mut(index)?.question.as_mut()?;
        let server = question.server % self.servers.len().max(1);
        let to = *self.servers.get(server)?;
        let before = question.socket;
        // A question keeps its socket for another server of the same family: an earlier one may still answer.
        let kept =
            self.sockets.get(before).copied().flatten().is_some_and(|s| s.ipv6 == to.is_ipv6());
        if !kept {
            self.leave(before, mem, change);
            let socket = self.join(to.is_ipv6(), mem, change);
            let question = self.slots[index].question.as_mut()?;
            question.socket = usize::MAX;
            question.socket = socket?;
            question.queried = 0;
        }
        self.start_time(index, mem.now + ANSWER_TIME);
        let question = self.slots[index].question.as_mut()?;
        (question.server, question.tries) = (server, question.tries + 1);
        question.queried |= 1 << server;
        let id = self.sockets[question.socket]?.id;
        Some((id, to, &question.message))
    }

    /// Starts the time for the answer to the next query of a question.
    fn start_time(&mut self, index: usize, due: Instant) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let generation = slot.generation;
        slot.question.iter_mut().for_each(|question| question.due = Some(due));
        // Entries of answered questions stay until their time: a fast server would leave any number of them.
        if self.times.len() >= 2 * self.len() {
            let slots = &self.slots;
            self.times.retain(|entry| is_current(slots, entry));
        }
        self.times.push_back((due, index, generation));
    }

    /// Uses a new socket, or one of the others if there are enough or no room for more.
    fn join(
        &mut self,
        ipv6: bool,
        mem: &mut MemberCtx<'_>,
        change: &mut dyn FnMut(Change) -> bool,
    ) -> Option<usize> {
        let place = self.sockets.iter().position(Option::is_none);
        if let Some(place) = place
            && mem.budget.charge_udp(mem.member, SOCKET_BYTES, mem.now)
        {
            let generation = self.generations[place];
            let id = DatagramId { index: (MAPPINGS_MAX + place) as u32, generation };
            if change(Change::Open(id, ipv6)) {
                self.generations[place] = generation.wrapping_add(1);
                self.sockets[place] = Some(Socket { id, ipv6, questions: 1, ready: false });
                return Some(place);
            }
            mem.budget.uncharge_udp(mem.member, SOCKET_BYTES, mem.now);
        }
        // The one with the fewest questions.
        let sockets = self.sockets.iter_mut().enumerate();
        let sockets = sockets.filter_map(|(place, socket)| Some((place, socket.as_mut()?)));
        let of_family = sockets.filter(|(_, socket)| socket.ipv6 == ipv6);
        let (place, socket) = of_family.min_by_key(|(_, socket)| socket.questions)?;
        socket.questions += 1;
        Some(place)
    }

    /// A question leaves its socket, which closes with the last one.
    fn leave(
        &mut self,
        place: usize,
        mem: &mut MemberCtx<'_>,
        change: &mut dyn FnMut(Change) -> bool,
    ) {
        let Some(Some(socket)) = self.sockets.get_mut(place) else { return };
        socket.questions -= 1;
        if socket.questions == 0 {
            let id = socket.id;
            self.sockets[place] = None;
            change(Change::Close(id));
            mem.budget.uncharge_udp(mem.member, SOCKET_BYTES, mem.now);
        }
    }

    /// Ends a question and uncharges it.
    pub(crate) fn end(
        &mut self,
        index: usize,
        mem: &mut MemberCtx<'_>,
        change: &mut dyn FnMut(Change) -> bool,
    ) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(question) = slot.question.take() else { return };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        self.leave(question.socket, mem, change);
        let bytes = QUESTION_BYTES + question.message.len() as u64;
        mem.budget.uncharge_udp(mem.member, bytes, mem.now);
        // The lists are part of the charge of the questions.
        if self.len() == 0 {
            (self.slots, self.free) = (Vec::new(), Vec::new());
            self.times = VecDeque::new();
        }
    }

    // ---- answers ----

    /// Matches an answer that a socket received from `from`. Returns the slot of its question, with the guest's
    /// identifier; `None`: it answers none.
    pub(crate) fn answered(
        &mut self,
        id: DatagramId,
        from: SocketAddr,
        message: &[u8],
    ) -> Option<(usize, u16)> {
        let answer = Message::from_octets(message).ok()?;
        let place = self.place(id)?;
        let server = self.servers.iter().position(|server| *server == from)?;
        let (index, question) =
            self.questions().find(|(_, q)| q.socket == place && q.id() == answer.header().id())?;
        let was_queried = question.queried & (1 << server) != 0;
        let asked = Message::from_octets(&question.message[..]).ok()?;
        if !was_queried || !answer.is_answer(&asked) {
            return None;
        }
        let guest_id = question.guest_id;
        self.preferred = server;
        Some((index, guest_id))
    }

    /// A server did not get the queries of a socket (port unreachable): the questions that wait for it.
    pub(crate) fn failed(&self, id: DatagramId, to: SocketAddr) -> Vec<usize> {
        let (place, server) = (self.place(id), self.servers.iter().position(|s| *s == to));
        let concerns =
            |q: &Question| Some(q.socket) == place && Some(q.server) == server && place.is_some();
        self.questions().filter(|(_, q)| concerns(q)).map(|(index, _)| index).collect()
    }

    /// Moves a question to the next server. Returns false if it had all its tries.
    pub(crate) fn next_server(&mut self, index: usize) -> bool {
        let servers = self.servers.len().max(1);
        let Some(question) = self.slots.get_mut(index).and_then(|slot| slot.question.as_mut())
        else {
            return false;
        };
        question.server = (question.server + 1) % servers;
        question.tries < TRIES_MAX
    }

    /// A question whose server did not answer in time.
    pub(crate) fn overdue(&mut self, now: Instant) -> Option<usize> {
        while let Some(&entry) = self.times.front() {
            let (at, index, _) = entry;
            if at > now {
                return None;
            }
            self.times.pop_front();
            if is_current(&self.slots, &entry) {
                // Once: a question may have two entries with one time.
                let question = self.slots.get_mut(index)?.question.as_mut()?;
                question.due = None;
                return Some(index);
            }
        }
        None
    }

    /// When the next question is overdue.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.times.front().map(|(at, ..)| *at)
    }

    /// True if a question has no socket: the next try would fail for the same reason.
    pub(crate) fn is_without_socket(&self, index: usize) -> bool {
        self.get(index).is_none_or(|question| question.socket == usize::MAX)
    }

    /// A question under way.
    pub(crate) fn get(&self, index: usize) -> Option<&Question> {
        self.slots.get(index)?.question.as_deref()
    }

    /// Any question under way.
    pub(crate) fn any(&self) -> Option<usize> {
        self.questions().next().map(|(index, _)| index)
    }

    // ---- sockets ----

    fn place(&self, id: DatagramId) -> Option<usize> {
        self.sockets.iter().position(|s| s.is_some_and(|s| s.id == id))
    }

    /// True if an id names a socket of the forwarder.
    pub(crate) fn owns(id: DatagramId) -> bool {
        id.index as usize >= MAPPINGS_MAX
    }

    /// True if a socket is open.
    pub(crate) fn is_open(&self, id: DatagramId) -> bool {
        self.place(id).is_some()
    }

    pub(crate) fn mark_ready(&mut self, id: DatagramId) {
        if let Some(place) = self.place(id)
            && let Some(socket) = &mut self.sockets[place]
        {
            socket.ready = true;
        }
    }

    /// True if a socket has the ready mark.
    pub(crate) fn has_ready(&self) -> bool {
        self.sockets.iter().flatten().any(|socket| socket.ready)
    }

    /// Takes the ready mark of one socket.
    pub(crate) fn pop_ready(&mut self) -> Option<DatagramId> {
        let ready = self.sockets.iter_mut().flatten().find(|socket| socket.ready)?;
        ready.ready = false;
        Some(ready.id)
    }
}

/// True if an entry of the times is that of a question's last query: the question is under way, and was not moved to
/// another server meanwhile.
fn is_current(slots: &[Slot], (at, index, generation): &(Instant, usize, u32)) -> bool {
    let slot = slots.get(*index).filter(|slot| slot.generation == *generation);
    let question = slot.and_then(|slot| slot.question.as_ref());
    question.is_some_and(|question| question.due == Some(*at))
}

impl Question {
    fn id(&self) -> u16 {
        u16::from_be_bytes([self.message[0], self.message[1]])
    }

    /// The answer to a question that no server answered.
    pub(crate) fn failure(&self) -> Vec<u8> {
        failure(&self.message, self.guest_id)
    }
}

/// SERVFAIL in answer to a message, with this identifier.
pub(crate) fn failure(message: &[u8], id: u16) -> Vec<u8> {
    let builder = MessageBuilder::new_vec();
    let Ok(question) = Message::from_octets(message) else { return Vec::new() };
    let Ok(mut answer) = builder.start_answer(&question, Rcode::SERVFAIL) else {
        return Vec::new();
    };
    answer.header_mut().set_id(id);
    answer.header_mut().set_ra(true);
    answer.finish()
}
