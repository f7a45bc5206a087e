//! The DNS forwarder at work: questions of the guest to name servers of the host, and their answers. Connections to the
//! forwarder's address are relayed to the name server, as any other flow.

use super::{Container, Ctx};
use crate::counters::Stat;
use crate::dns::{CAPS, Change, Forwarder, Refused, SOCKETS_MAX, failure};
use crate::io::datagram::{
    DatagramId, DatagramKind, DatagramSocket, IpFields, SendDatagram, SendStop,
};
use crate::queue::MemberCtx;
use crate::wire::addresses::Tuple;
use crate::wire::icmp::HOP_LIMIT;
use crate::wire::udp::Datagram;

/// Header fields of queries and answers.
const FIELDS: IpFields = IpFields { hop_limit: HOP_LIMIT, traffic_class: 0, dont_fragment: false };

impl Container {
    /// Reads the host's name servers again if they have changed. Call it before a question or a connection.
    pub(super) fn refresh_name_servers(&mut self, cx: &mut Ctx<'_>) {
        self.forwarder.set_servers(cx.host.name_servers(cx.now));
        self.config.name_server = self.forwarder.server();
    }

    /// The name server did not accept a connection.
    pub(super) fn name_server_failed(&mut self) {
        self.forwarder.server_failed();
        self.config.name_server = self.forwarder.server();
    }

    /// Handles a datagram of the guest to the forwarder.
    pub(super) fn on_question(&mut self, cx: &mut Ctx<'_>, datagram: &Datagram<'_>) {
        let (tuple, message) = (datagram.tuple, datagram.payload());
        // Names of siblings leave no question under way, and need no name server.
        let directory = self.directory.as_ref();
        if let Some(answer) = directory.and_then(|names| names.answer(&self.config, message)) {
            self.stats.add(Stat::DnsSiblings);
            let id = message.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
            return self.answer_guest(cx, tuple, id, &answer);
        }
        self.refresh_name_servers(cx);
        let mut mem = cx.member(self.member);
        match self.forwarder.accept(tuple, message, &mut mem) {
            Ok(index) => {
                self.stats.add(Stat::DnsQuestions);
                self.query(cx, index);
            }
            Err(Refused::Malformed) => self.stats.add(Stat::DnsMalformed),
            Err(Refused::Repeated) => self.stats.add(Stat::DnsRepeated),
            Err(Refused::NoServer | Refused::NoRoom) => {
                self.stats.add(Stat::DnsRefused);
                let id = message.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
                self.answer_guest(cx, tuple, id, &failure(message, id));
            }
        }
    }

    /// Sends a question to its server, or to the next ones while that fails at once.
    fn query(&mut self, cx: &mut Ctx<'_>, index: usize) {
        loop {
            let Ctx { host, budget, now, .. } = cx;
            let mut mem = MemberCtx { now: *now, budget, member: self.member };
            let mut change = |change: Change| match change {
                Change::Open(id, ipv6) => {
                    let (kind, port, caps) = (DatagramKind::Udp, 0, CAPS);
                    host.open_datagram(id, &DatagramSocket { kind, ipv6, port, caps }).is_ok()
                }
                Change::Close(id) => {
                    host.close_datagram(id);
                    true
                }
            };
            let query = self.forwarder.query(index, &mut mem, &mut change);
            let sent = query.is_some_and(|(id, to, payload)| {
                let datagram = SendDatagram { to, ip: FIELDS, payload };
                // A full buffer loses the query as the network may: the next one follows in time.
                let (_, stop) = host.send_datagrams(id, &[datagram]);
                matches!(stop, None | Some(SendStop::Full))
            });
            if sent {
                return self.stats.add(Stat::DnsQueries);
            }
            if !self.forwarder.next_server(index) || self.forwarder.is_without_socket(index) {
                return self.give_up(cx, index);
            }
        }
    }

    /// Answers a question with SERVFAIL and ends it.
    fn give_up(&mut self, cx: &mut Ctx<'_>, index: usize) {
        self.stats.add(Stat::DnsFailed);
        if let Some(question) = self.forwarder.get(index) {
            let (tuple, answer) = (question.tuple, question.failure());
            let id = answer.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
            self.answer_guest(cx, tuple, id, &answer);
        }
        self.end_question(cx, index);
    }

    fn end_question(&mut self, cx: &mut Ctx<'_>, index: usize) {
        let Ctx { host, budget, now, .. } = cx;
        let mut mem = MemberCtx { now: *now, budget, member: self.member };
        self.forwarder.end(index, &mut mem, &mut |change| {
            if let Change::Close(id) = change {
                host.close_datagram(id);
            }
            true
        });
    }

    /// Sends a message to the guest, with its identifier.
    fn answer_guest(&mut self, cx: &mut Ctx<'_>, tuple: Tuple, id: u16, message: &[u8]) {
        let mut message = message.to_vec();
        let Some(place) = message.first_chunk_mut() else { return };
        *place = id.to_be_bytes();
        // A full device loses it: the guest sends its question again.
        self.egress.datagram(cx.device, &tuple, FIELDS, &message);
    }

    /// Passes answers of ready sockets to the guest, a batch for each. Returns true when more may be there.
    pub(super) fn receive_answers(&mut self, cx: &mut Ctx<'_>) -> bool {
        // Most turns, of most containers.
        if self.forwarder.len() == 0 {
            return false;
        }
        // Bounded: a server may send faster than the batches are read.
        for _ in 0..SOCKETS_MAX {
            let Some(id) = self.forwarder.pop_ready() else { return false };
            let mut refused = Vec::new();
            cx.host.receive_errors(id, &mut |error| refused.push(error.to));
            for to in refused {
                for index in self.forwarder.failed(id, to) {
                    if self.forwarder.next_server(index) {
                        self.query(cx, index);
                    } else {
                        self.give_up(cx, index);
                    }
                }
            }
            // The last question may have left the socket for one of the other family, and closed it.
            if self.forwarder.is_open(id) && self.receive_batch_of_answers(cx, id) {
                self.forwarder.mark_ready(id);
            }
        }
        self.forwarder.has_ready()
    }

    /// Passes one batch. Returns true when the socket may hold more.
    fn receive_batch_of_answers(&mut self, cx: &mut Ctx<'_>, id: DatagramId) -> bool {
        let mut answered = Vec::new();
        let Self { forwarder, egress, stats, .. } = self;
        let Ctx { host, device, .. } = cx;
        let more = host.receive_datagrams(id, &mut |datagram| {
            let found = forwarder.answered(id, datagram.from, datagram.payload);
            let Some((index, guest_id)) = found.filter(|(index, _)| !answered.contains(index))
            else {
                return stats.add(Stat::DnsUnmatched);
            };
            stats.add(Stat::DnsAnswers);
            let Some(question) = forwarder.get(index) else { return };
            let mut message = datagram.payload.to_vec();
            message[..2].copy_from_slice(&guest_id.to_be_bytes());
            egress.datagram(*device, &question.tuple, FIELDS, &message);
            answered.push(index);
        });
        answered.into_iter().for_each(|index| self.end_question(cx, index));
        self.config.name_server = self.forwarder.server();
        more
    }

    /// Moves overdue questions to their next servers.
    pub(super) fn expire_questions(&mut self, cx: &mut Ctx<'_>) {
        while let Some(index) = self.forwarder.overdue(cx.now) {
            if self.forwarder.next_server(index) {
                self.query(cx, index);
            } else {
                self.give_up(cx, index);
            }
        }
    }

    /// Ends all questions without an answer.
    pub(super) fn end_questions(&mut self, cx: &mut Ctx<'_>) {
        while let Some(index) = self.forwarder.any() {
            self.end_question(cx, index);
        }
    }

    /// True if an id names a socket of the forwarder.
    pub(super) fn is_of_forwarder(id: DatagramId) -> bool {
        Forwarder::owns(id)
    }
}
