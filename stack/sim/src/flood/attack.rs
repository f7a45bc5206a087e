//! A hostile guest that sends at a constant rate.

use std::collections::BTreeMap;
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_seed::Rng;

use super::{CLOSED, NEVER_READS, PUSHER, SILENT, SINK, Script};
use crate::packet::{ACK, SYN, Segment};

/// Segments sent at once. With this number bursts drift against the neighbour's probes every millisecond, so every
/// phase occurs.
const BURST: u64 = 47;
/// Every byte of data.
const FILL: u8 = 0x5a;

/// What an attacker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SYNs to ports that never answer, half of them with spoofed source addresses.
    Syn,
    /// SYNs to a port without a listener: each one causes a connect on the host, which is refused at once.
    Refused,
    /// Segments anywhere in the window except at its left edge.
    OutOfOrder,
    /// Segments of one byte, in order, to servers that never read.
    OneByte,
    /// ACKs of unsent data, SACKs of absent data, duplicates, windows that open and close.
    AckLie,
}

/// One connection of an attacker.
#[derive(Debug, Clone, Copy)]
struct Conn {
    seq: u32,
    ack: u32,
    /// Bytes that may be in flight, counted from `acked`.
    wnd: u32,
    acked: u32,
}

/// The script of an attacker.
#[derive(Debug)]
pub struct Attack {
    kind: Kind,
    left: u64,
    every: Duration,
    at: Option<Instant>,
    rng: Rng,
    conns: BTreeMap<u16, Conn>,
    /// Segments sent so far.
    pub sent: u64,
}

impl Attack {
    /// Sends `count` segments at `per_second`, on `conns` connections.
    pub fn new(kind: Kind, count: u64, per_second: u64, conns: u16) -> Self {
        let conns = if matches!(kind, Kind::Syn | Kind::Refused) { 0 } else { conns };
        let blank = Conn { seq: 1001, ack: 0, wnd: 0, acked: 1001 };
        Self {
            kind,
            left: count,
            every: Duration::from_nanos(1_000_000_000 * BURST / per_second),
            at: Some(Instant::default()),
            rng: Rng::new(9),
            conns: (0..conns).map(|i| (20_000 + i, blank)).collect(),
            sent: 0,
        }
    }

    fn port_of(kind: Kind) -> u16 {
        match kind {
            Kind::Syn | Kind::OutOfOrder => SINK,
            Kind::Refused => CLOSED,
            Kind::OneByte => NEVER_READS,
            Kind::AckLie => PUSHER,
        }
    }

    fn syn(&mut self) -> Segment {
        let port = 1024 + self.rng.below(60_000) as u16;
        let remote = match self.kind {
            Kind::Refused => CLOSED,
            _ => [SINK, SILENT, PUSHER][self.rng.below(3) as usize],
        };
        let mut seg = Segment::new(port, remote, SYN);
        seg.seq = self.rng.next_u64() as u32;
        // MSS 1460, NOP, window scale 7.
        seg.options = vec![2, 4, 5, 180, 1, 3, 3, 7];
        if self.kind == Kind::Syn && self.rng.chance(500_000) {
            let host = self.rng.next_u64().to_be_bytes();
            seg.src = [192, host[0], host[1], host[2]].into();
        }
        seg
    }

    fn hostile(&mut self) -> Option<Segment> {
        if matches!(self.kind, Kind::Syn | Kind::Refused) {
            return Some(self.syn());
        }
        let n = self.rng.below(self.conns.len() as u64) as usize;
        // A map ordered by port keeps the choice deterministic.
        let (&port, conn) = self.conns.iter_mut().nth(n)?;
        // Not established yet.
        if conn.ack == 0 {
            return None;
        }
        let rng = &mut self.rng;
        let mut seg = Segment::new(port, Self::port_of(self.kind), ACK);
        (seg.seq, seg.ack) = (conn.seq, conn.ack);
        match self.kind {
            Kind::Syn | Kind::Refused => {}
            Kind::OutOfOrder => {
                let offset = 1 + rng.below(u64::from(conn.wnd.max(2)) - 1) as u32;
                seg.seq = conn.seq.wrapping_add(offset);
                seg.data = vec![FILL; 1 + rng.index(700)];
            }
            Kind::OneByte => {
                // Only valid bytes: the flood is of small segments, not of invalid ones.
                if conn.seq.wrapping_sub(conn.acked) >= conn.wnd {
                    return None;
                }
                seg.data = vec![FILL];
                conn.seq = conn.seq.wrapping_add(1);
            }
            Kind::AckLie => match rng.below(6) {
                0 => seg.ack = conn.ack.wrapping_add(1 + rng.below(1 << 20) as u32),
                1 => seg.ack = conn.ack.wrapping_sub(rng.below(100_000) as u32),
                2 | 3 => {
                    let from = conn.ack.wrapping_add(rng.below(200_000) as u32);
                    let to = from.wrapping_add(1 + rng.below(100_000) as u32);
                    seg.options = vec![1, 1, 5, 10];
                    seg.options.extend(from.to_be_bytes());
                    seg.options.extend(to.to_be_bytes());
                }
                4 => seg.wnd = rng.below(3) as u16,
                // A duplicate ACK, the oldest lie: repeated often enough, it signals a loss.
                _ => {}
            },
        }
        Some(seg)
    }
}

impl Script for Attack {
    fn on_segment(&mut self, _: Instant, seg: &Segment, out: &mut Vec<Segment>) {
        let Some(conn) = self.conns.get_mut(&seg.dst_port) else { return };
        if seg.flags & (SYN | ACK) == SYN | ACK {
            conn.ack = seg.seq.wrapping_add(1);
            let mut ack = Segment::new(seg.dst_port, seg.src_port, ACK);
            (ack.seq, ack.ack) = (conn.seq, conn.ack);
            out.push(ack);
        }
        conn.acked = seg.ack;
        // The stack's window scale, which applies to every segment but its SYN.
        conn.wnd = u32::from(seg.wnd) << if seg.flags & SYN == 0 { 7 } else { 0 };
        // A liar acknowledges half of the segments it receives.
        if self.kind == Kind::AckLie && !seg.data.is_empty() && self.rng.chance(500_000) {
            let end = seg.seq.wrapping_add(seg.data.len() as u32);
            if end.wrapping_sub(conn.ack).cast_signed() > 0 {
                conn.ack = end;
            }
        }
    }

    fn send_due(&mut self, now: Instant, room: usize, out: &mut Vec<Segment>) {
        if self.sent == 0 {
            // First the connections are opened, honestly and completely.
            for &port in self.conns.keys() {
                let mut syn = Segment::new(port, Self::port_of(self.kind), SYN);
                syn.seq = 1000;
                syn.options = vec![2, 4, 5, 180, 3, 3, 7, 1, 4, 2, 1, 1];
                out.push(syn);
            }
            self.sent = 1;
            // Time for the handshakes before the flood starts.
            self.at = Some(now + Duration::from_millis(50));
            return;
        }
        // The link's queue bounds a burst.
        for _ in 0..BURST.min(self.left).min(room as u64) {
            self.left -= 1;
            if let Some(seg) = self.hostile() {
                self.sent += 1;
                out.push(seg);
            }
        }
        self.at = (self.left > 0).then(|| now + self.every);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.at
    }
}
