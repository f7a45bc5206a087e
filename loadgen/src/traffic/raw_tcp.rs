//! A guest without TCP that sends handcrafted segments: floods that no TCP would send.
//!
//! Pure: frames and the time are arguments, so it works on a simulated link as well as on a packet socket in a real
//! namespace. It opens connections normally and sends its flood within the advertised windows: it costs memory and
//! work, and breaks no rule that would let a stack simply drop its segments.

mod frames;

use std::collections::VecDeque;

use skbudget_sim::Pattern;
use skbudget_sim::smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber,
};

pub(crate) use self::frames::FloodAddresses;
use self::frames::window_scale;
use crate::scenario::plan::FloodKind;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnState {
    /// Waits for a SYN-ACK; the next SYN is due at this time.
    Dialing {
        again_ns: u64,
    },
    Open,
}

/// A connection, with the variables of RFC 9293 section 3.3.1.
#[derive(Debug)]
struct Conn {
    local: u16,
    remote: u16,
    state: ConnState,
    iss: u32,
    una: u32,
    nxt: u32,
    rcv_nxt: u32,
    /// First sequence number beyond the window.
    limit: u32,
    scale: u8,
    /// Out-of-order flood: sequence number of the last byte sent.
    cursor: u32,
    moved_ns: u64,
}

#[derive(Debug)]
pub(crate) struct RawTcpClient {
    addresses: FloodAddresses,
    kind: FloodKind,
    conns: Vec<Conn>,
    every_ns: u64,
    due_ns: u64,
    turn: usize,
    until_ns: u64,
    /// ARP replies and ACKs that wait for room.
    answers: VecDeque<Vec<u8>>,
    pub connected: u64,
    pub resets: u64,
}

const FIRST_PORT: u16 = 40_000;
const DIAL_EVERY_NS: u64 = 10_000;
const SYN_AGAIN_NS: u64 = 1_000_000_000;
/// In-order flood without progress for this time: retransmit from SND.UNA.
const AGAIN_NS: u64 = 200_000_000;
/// Number of bytes in one pass over a window, each alone behind a hole.
const HOLES: u32 = 60;
/// Limit of the time that a delayed sender catches up.
const CATCH_UP_NS: u64 = 5_000_000;

impl RawTcpClient {
    /// A flood from `from_ns` to `until_ns`, with `per_second` segments over all connections.
    pub(crate) fn new(
        addresses: FloodAddresses,
        kind: FloodKind,
        connections: u32,
        per_second: u32,
        from_ns: u64,
        until_ns: u64,
    ) -> Self {
        let conn = |i: u32| Conn {
            local: FIRST_PORT + i as u16,
            remote: addresses.to_port + if addresses.port_each { i as u16 } else { 0 },
            // One after another, so that the SYNs are no burst.
            state: ConnState::Dialing { again_ns: from_ns + u64::from(i) * DIAL_EVERY_NS },
            // Fixed and distinct: the flood is deterministic.
            iss: 0x0100_0000 + i * 0x0001_0000,
            una: 0,
            nxt: 0,
            rcv_nxt: 0,
            limit: 0,
            scale: 0,
            cursor: 0,
            moved_ns: 0,
        };
        Self {
            addresses,
            kind,
            conns: (0..connections).map(conn).collect(),
            every_ns: 1_000_000_000 / u64::from(per_second.max(1)),
            // Leaves time for the first connections to open.
            due_ns: from_ns + 1_000_000,
            turn: 0,
            until_ns,
            answers: VecDeque::new(),
            connected: 0,
            resets: 0,
        }
    }

    /// Handles a received frame: ARP requests and TCP segments.
    pub(crate) fn on_frame(&mut self, now_ns: u64, frame: &[u8]) {
        let Ok(eth) = EthernetFrame::new_checked(frame) else { return };
        match eth.ethertype() {
            EthernetProtocol::Arp => self.answers.extend(self.addresses.arp_reply(eth.payload())),
            EthernetProtocol::Ipv4 => {
                let Ok(ip) = Ipv4Packet::new_checked(eth.payload()) else { return };
                let own = ip.dst_addr() == self.addresses.own_ip;
                if !own || ip.next_header() != IpProtocol::Tcp {
                    return;
                }
                if let Ok(tcp) = TcpPacket::new_checked(ip.payload()) {
                    self.on_segment(now_ns, &tcp);
                }
            }
            _ => {}
        }
    }

    /// Updates a connection by a received segment (RFC 9293 section 3.10.7, as far as a flood needs it).
    fn on_segment(&mut self, now_ns: u64, tcp: &TcpPacket<&[u8]>) {
        let Some(i) = tcp.dst_port().checked_sub(FIRST_PORT).map(usize::from) else { return };
        let Some(c) = self.conns.get_mut(i) else { return };
        let seq = tcp.seq_number().0 as u32;
        let ack = tcp.ack_number().0 as u32;
        if tcp.rst() {
            // Refused: retry slowly, with a new initial sequence number.
            self.resets += 1;
            c.state = ConnState::Dialing { again_ns: now_ns + 20_000_000 };
            c.iss = c.iss.wrapping_add(0x0010_0000);
            return;
        }
        let window = u32::from(tcp.window_len());
        let answer = match c.state {
            ConnState::Dialing { .. } if tcp.syn() && tcp.ack() && ack == c.iss.wrapping_add(1) => {
                c.scale = window_scale(tcp.options()).min(14);
                (c.una, c.nxt, c.rcv_nxt) = (ack, ack, seq.wrapping_add(1));
                // The window of a SYN segment is not scaled (RFC 7323 section 2.2).
                (c.limit, c.cursor, c.moved_ns) = (ack.wrapping_add(window), ack, now_ns);
                c.state = ConnState::Open;
                self.connected += 1;
                true
            }
            ConnState::Dialing { .. } => false,
            ConnState::Open => {
                // RFC 9293 section 3.10.7.4: SND.UNA < SEG.ACK =< SND.NXT.
                if after(ack, c.una) && !after(ack, c.nxt) {
                    c.una = ack;
                    c.moved_ns = now_ns;
                }
                let limit = ack.wrapping_add(window << c.scale);
                // The limit never moves back, even if the peer shrinks its window.
                if after(limit, c.limit) {
                    c.limit = limit;
                }
                let len = tcp.payload().len() as u32 + u32::from(tcp.fin());
                // Only the next segment in order is acknowledged; the server sends nothing that matters here.
                if seq == c.rcv_nxt {
                    c.rcv_nxt = c.rcv_nxt.wrapping_add(len);
                }
                // Acknowledge every segment that occupies sequence space.
                len > 0
            }
        };
        if answer {
            let frame = self.segment(i, None, TcpControl::None, &[]);
            self.answers.push_back(frame);
        }
    }

    /// Sends everything due by now, at most `room` frames.
    pub(crate) fn poll(&mut self, now_ns: u64, room: usize, mut emit: impl FnMut(&[u8])) {
        let mut room = room;
        // Replies first: without its ACKs a connection does not open.
        while room > 0
            && let Some(frame) = self.answers.pop_front()
        {
            emit(&frame);
            room -= 1;
        }
        // The flood has ended; replies are still sent.
        if now_ns >= self.until_ns {
            return;
        }
        for i in 0..self.conns.len() {
            let c = &mut self.conns[i];
            if let ConnState::Dialing { again_ns } = c.state
                && again_ns <= now_ns
                && room > 0
            {
                // Retransmit the SYN after 1 s, the initial RTO (RFC 6298 section 2).
                c.state = ConnState::Dialing { again_ns: now_ns + SYN_AGAIN_NS };
                emit(&self.segment(i, None, TcpControl::Syn, &[]));
                room -= 1;
            }
        }
        if self.kind == FloodKind::Silent {
            return;
        }
        // After a pause, skip what is overdue beyond this time.
        self.due_ns = self.due_ns.max(now_ns.saturating_sub(CATCH_UP_NS));
        while room > 0 && self.due_ns <= now_ns {
            self.due_ns += self.every_ns;
            // Find the next connection with room in its window.
            for _ in 0..self.conns.len() {
                let i = self.turn;
                self.turn = (self.turn + 1) % self.conns.len();
                if let Some((seq, byte)) = self.next_byte(i, now_ns) {
                    emit(&self.segment(i, Some(seq), TcpControl::Psh, &[byte]));
                    room -= 1;
                    break;
                }
            }
        }
    }

    /// Sequence number and value of the next byte of a connection; `None` if its window has no room.
    fn next_byte(&mut self, i: usize, now_ns: u64) -> Option<(u32, u8)> {
        let c = &mut self.conns[i];
        if c.state != ConnState::Open {
            return None;
        }
        let seq = match self.kind {
            FloodKind::Silent => return None,
            FloodKind::OutOfOrder => {
                // From the second byte on, spread over the window: each byte occupies a whole buffer alone. At the end
                // of the window start again, to replace dropped bytes.
                let window = c.limit.wrapping_sub(c.una);
                if !after(c.limit, c.una.wrapping_add(1)) {
                    return None;
                }
                let step = (window / HOLES).max(2);
                let next = c.cursor.wrapping_add(step);
                c.cursor = if after(c.limit, next) { next } else { c.una.wrapping_add(1) };
                c.cursor
            }
            FloodKind::Tiny => {
                // No ACK for a while: retransmit from SND.UNA.
                if c.nxt != c.una && now_ns.saturating_sub(c.moved_ns) > AGAIN_NS {
                    c.moved_ns = now_ns;
                    c.nxt = c.una;
                }
                if !after(c.limit, c.nxt) {
                    return None;
                }
                let seq = c.nxt;
                c.nxt = c.nxt.wrapping_add(1);
                seq
            }
        };
        // Position in the stream; the SYN occupies the first sequence number.
        let position = u64::from(seq.wrapping_sub(c.iss.wrapping_add(1)));
        let mut byte = [0];
        Pattern::from_guest(c.remote).fill(position, &mut byte);
        Some((seq, byte[0]))
    }

    /// A frame with one TCP segment of a connection.
    fn segment(&self, i: usize, seq: Option<u32>, control: TcpControl, payload: &[u8]) -> Vec<u8> {
        let c = &self.conns[i];
        let syn = control == TcpControl::Syn;
        let seq = if syn { c.iss } else { seq.unwrap_or(c.nxt) };
        let tcp = TcpRepr {
            src_port: c.local,
            dst_port: c.remote,
            control,
            seq_number: TcpSeqNumber(seq.cast_signed()),
            ack_number: (!syn).then_some(TcpSeqNumber(c.rcv_nxt.cast_signed())),
            // Constant: the flood does not store what it receives.
            window_len: 65_535,
            window_scale: syn.then_some(0),
            max_seg_size: syn.then_some(1460),
            sack_permitted: syn,
            sack_ranges: [None, None, None],
            timestamp: None,
            payload,
        };
        self.addresses.frame(&tcp)
    }

    /// Time at which `poll` has work.
    pub(crate) fn next_deadline(&self, now_ns: u64) -> Option<u64> {
        if !self.answers.is_empty() {
            return Some(now_ns);
        }
        if now_ns >= self.until_ns {
            return None;
        }
        let dial = self.conns.iter().filter_map(|c| match c.state {
            ConnState::Dialing { again_ns } => Some(again_ns),
            ConnState::Open => None,
        });
        let flood = (self.kind != FloodKind::Silent).then_some(self.due_ns);
        dial.chain(flood).min()
    }
}

fn after(a: u32, b: u32) -> bool {
    // Modulo 2^32 (RFC 9293 section 3.4).
    a.wrapping_sub(b).cast_signed() > 0
}
