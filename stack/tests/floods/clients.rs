//! Connections that are opened, used once and closed, a number of them at a time; some of them to dead destinations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skbudget_sim::flood::{RESPONDER, SILENT, Script};
use skbudget_sim::packet::{ACK, FIN, RST, SYN, Segment};
use skbudget_stack::controller::Instant;

use crate::scene::ECHOED;

/// Time after which an unanswered SYN is retransmitted.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
enum Stage {
    Opening { sent: Instant },
    Requested { at: Instant },
    Closing,
}

#[derive(Debug, Clone, Copy)]
struct Conn {
    stage: Stage,
    seq: u32,
    ack: u32,
    got: u32,
    /// Requests still to send.
    left: u32,
}

#[derive(Debug)]
pub(crate) struct Clients {
    /// Connections still to open, and how many may be open at once.
    todo: u32,
    at_once: usize,
    /// Requests of each connection, and the time between them.
    requests: u32,
    every: Duration,
    /// SYNs to servers that never answer, sent at the start.
    dead: u16,
    /// No connection sends or closes before all are established.
    gather: bool,
    conns: BTreeMap<u16, Conn>,
    /// Requests that are due, by time.
    due: BTreeSet<(Instant, u16)>,
    next_port: u16,
    at: Option<Instant>,
    pub(crate) established: u32,
    pub(crate) most: usize,
    pub(crate) done: u32,
    pub(crate) resets: u32,
    pub(crate) took: Vec<u64>,
}

impl Clients {
    pub(crate) fn new(conns: u32, at_once: usize) -> Self {
        Self {
            todo: conns,
            at_once,
            requests: 1,
            every: Duration::ZERO,
            dead: 0,
            gather: false,
            conns: BTreeMap::new(),
            due: BTreeSet::new(),
            next_port: 2000,
            at: Some(Instant::from_millis(1)),
            established: 0,
            most: 0,
            done: 0,
            resets: 0,
            took: Vec::new(),
        }
    }

    /// All connections are established before the first request is sent.
    pub(crate) fn gathering(self) -> Self {
        Self { gather: true, ..self }
    }

    pub(crate) fn requesting(self, requests: u32, every: Duration) -> Self {
        Self { requests, every, ..self }
    }

    pub(crate) fn beside_dead(self, dead: u16) -> Self {
        Self { dead, ..self }
    }

    fn connect(&mut self, now: Instant, out: &mut Vec<Segment>) {
        self.todo -= 1;
        let port = self.next_port;
        self.next_port += 1;
        let seq = u32::from(port).wrapping_mul(0x9e37_79b1);
        let stage = Stage::Opening { sent: now };
        // ACK 0 marks a SYN without an answer.
        self.conns.insert(port, Conn { stage, seq, ack: 0, got: 0, left: self.requests });
        out.push(syn(port, RESPONDER, seq));
    }

    fn request(&mut self, now: Instant, port: u16, out: &mut Vec<Segment>) {
        let Some(conn) = self.conns.get_mut(&port) else { return };
        let mut seg = Segment::new(port, RESPONDER, ACK);
        (seg.seq, seg.ack) = (conn.seq, conn.ack);
        seg.data = vec![0x5a; ECHOED as usize];
        conn.seq = conn.seq.wrapping_add(ECHOED);
        conn.left -= 1;
        conn.got = 0;
        conn.stage = Stage::Requested { at: now };
        out.push(seg);
    }

    fn receive(&mut self, now: Instant, seg: &Segment, out: &mut Vec<Segment>) {
        let Some(conn) = self.conns.get_mut(&seg.dst_port) else { return };
        if seg.flags & RST != 0 {
            self.resets += 1;
            self.conns.remove(&seg.dst_port);
            return;
        }
        if seg.flags & SYN != 0 {
            if matches!(conn.stage, Stage::Opening { .. }) && conn.ack == 0 {
                conn.ack = seg.seq.wrapping_add(1);
                conn.seq = conn.seq.wrapping_add(1);
                self.established += 1;
                let mut ack = Segment::new(seg.dst_port, seg.src_port, ACK);
                (ack.seq, ack.ack) = (conn.seq, conn.ack);
                out.push(ack);
                // Gathering clients wait until all are established.
                if !self.gather {
                    self.request(now, seg.dst_port, out);
                }
            }
            return;
        }
        // Only the next segment in order is taken; the stack retransmits the others.
        if seg.seq != conn.ack {
            return;
        }
        let news = seg.data.len() as u32 + u32::from(seg.flags & FIN);
        conn.ack = conn.ack.wrapping_add(news);
        conn.got += seg.data.len() as u32;
        if news > 0 {
            let mut ack = Segment::new(seg.dst_port, seg.src_port, ACK);
            (ack.seq, ack.ack) = (conn.seq, conn.ack);
            out.push(ack);
        }
        match conn.stage {
            Stage::Requested { at } if conn.got >= ECHOED => {
                self.took.push(now.0 - at.0);
                if conn.left > 0 {
                    self.due.insert((at + self.every, seg.dst_port));
                } else {
                    conn.stage = Stage::Closing;
                    let mut fin = Segment::new(seg.dst_port, seg.src_port, FIN | ACK);
                    (fin.seq, fin.ack) = (conn.seq, conn.ack);
                    conn.seq = conn.seq.wrapping_add(1);
                    out.push(fin);
                }
            }
            // The responder closes after the client: the guest side needs no TIME-WAIT.
            Stage::Closing if seg.flags & FIN != 0 => {
                self.done += 1;
                self.conns.remove(&seg.dst_port);
            }
            _ => {}
        }
    }
}

fn syn(port: u16, remote: u16, seq: u32) -> Segment {
    let mut syn = Segment::new(port, remote, SYN);
    syn.seq = seq;
    syn.options = vec![2, 4, 5, 180, 3, 3, 7, 1];
    syn
}

impl Script for Clients {
    fn on_segment(&mut self, now: Instant, seg: &Segment, out: &mut Vec<Segment>) {
        self.receive(now, seg, out);
        while self.todo > 0 && self.conns.len() < self.at_once {
            self.connect(now, out);
        }
        self.most = self.most.max(self.conns.len());
        // All are established: now each sends its request, and closes after the answer.
        if self.gather && self.todo == 0 && self.established as usize == self.conns.len() {
            self.gather = false;
            let ports: Vec<u16> = self.conns.keys().copied().collect();
            for port in ports {
                self.request(now, port, out);
            }
        }
    }

    fn send_due(&mut self, now: Instant, _: usize, out: &mut Vec<Segment>) {
        for i in 0..std::mem::take(&mut self.dead) {
            out.push(syn(60_000 + i, SILENT, 77));
        }
        while self.todo > 0 && self.conns.len() < self.at_once {
            self.connect(now, out);
        }
        self.most = self.most.max(self.conns.len());
        while let Some(&(at, port)) = self.due.first().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, port));
            self.request(now, port, out);
        }
        for (&port, conn) in &mut self.conns {
            if let Stage::Opening { sent } = &mut conn.stage
                && conn.ack == 0
                && now.since(*sent) >= AGAIN
            {
                *sent = now;
                out.push(syn(port, RESPONDER, conn.seq));
            }
        }
        self.at = None;
    }

    fn next_deadline(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        let open = self.conns.values().filter_map(|conn| match conn.stage {
            Stage::Opening { sent } if conn.ack == 0 => Some(sent + AGAIN),
            _ => None,
        });
        // Clients that connect all at once scan them rarely; those that connect in sequence have only one.
        [self.at, due, open.min()].into_iter().flatten().min()
    }
}
