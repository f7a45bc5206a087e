//! The guest's end of one connection, driven by hand.

use std::net::SocketAddr;

use skbudget_stack::FlowId;

use crate::rig::{GATEWAY, Rig, one};
use crate::wire::{ACK, FIN, PSH, RST, SYN, Seg};

/// The guest's state of a connection. Timestamps are sent when both SYNs had them.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) flow: FlowId,
    pub(crate) guest_port: u16,
    pub(crate) remote_port: u16,
    /// SND.NXT and RCV.NXT.
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// Window field that the guest sends.
    pub(crate) wnd: u16,
    /// The stack's window scale and its last advertised edge.
    pub(crate) scale: u8,
    pub(crate) edge: u32,
    pub(crate) ts: Option<(u32, u32)>,
    pub(crate) v6: bool,
}

/// Fields and options of a guest's SYN.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub(crate) seq: u32,
    pub(crate) wnd: u16,
    pub(crate) mss: Option<u16>,
    pub(crate) wscale: Option<u8>,
    pub(crate) sack_ok: bool,
    pub(crate) ts: Option<u32>,
    pub(crate) v6: bool,
}

impl Default for Hello {
    fn default() -> Self {
        Self {
            seq: 1000,
            wnd: 64_000,
            mss: Some(1460),
            wscale: Some(7),
            sack_ok: true,
            ts: None,
            v6: false,
        }
    }
}

impl Hello {
    pub(crate) fn syn(&self, guest_port: u16, remote_port: u16) -> Seg {
        Seg {
            guest_port,
            remote_port,
            seq: self.seq,
            flags: SYN,
            wnd: self.wnd,
            mss: self.mss,
            wscale: self.wscale,
            sack_ok: self.sack_ok,
            ts: self.ts.map(|v| (v, 0)),
            v6: self.v6,
            ..Seg::default()
        }
    }
}

/// The guest sends a stray segment, from which the stack learns its hardware address.
pub(crate) fn introduce(rig: &mut Rig) {
    let stray = Seg { flags: RST, ..Hello::default().syn(1, 1) };
    assert_eq!(rig.send(stray), []);
}

impl Peer {
    /// Opens a connection to port 80 of the gateway.
    pub(crate) fn open(rig: &mut Rig) -> Self {
        Self::open_with(rig, 40_000, &Hello::default())
    }

    pub(crate) fn open_with(rig: &mut Rig, guest_port: u16, hello: &Hello) -> Self {
        let syn = hello.syn(guest_port, 80);
        let none = rig.send(syn.clone());
        assert_eq!(none, [], "the host is asked first");
        let flow = *rig.host.connects.last().expect("a connect");
        let syn_ack = one(rig.ready(flow, false, true));
        assert!(syn_ack.is(SYN | ACK), "{syn_ack:?}");
        let peer = Self::answering(flow, &syn, &syn_ack);
        let none = rig.send(peer.pure_ack());
        assert_eq!(none, []);
        assert_eq!(rig.state(flow), "ESTAB");
        peer
    }

    /// As `open_with`, for a guest with ACKs that take `ms` milliseconds.
    pub(crate) fn open_far(rig: &mut Rig, hello: &Hello, ms: u64) -> Self {
        let syn = hello.syn(40_000, 80);
        rig.send(syn.clone());
        let flow = *rig.host.connects.last().expect("a connect");
        let syn_ack = one(rig.ready(flow, false, true));
        assert_eq!(rig.pass_segs(ms), []);
        let peer = Self::answering(flow, &syn, &syn_ack);
        assert_eq!(rig.send(peer.pure_ack()), []);
        peer
    }

    /// The guest's state after the SYN-ACK.
    pub(crate) fn answering(flow: FlowId, syn: &Seg, syn_ack: &Seg) -> Self {
        assert_eq!(syn_ack.ack, syn.seq.wrapping_add(1));
        Self {
            flow,
            guest_port: syn.guest_port,
            remote_port: syn.remote_port,
            seq: syn.seq.wrapping_add(1),
            ack: syn_ack.seq.wrapping_add(1),
            // Scaled if the SYN had the option: about 64 KiB either way.
            wnd: if syn.wscale.is_some() { 512 } else { 64_000 },
            scale: if syn.wscale.is_some() { syn_ack.wscale.unwrap_or(0) } else { 0 },
            edge: syn_ack.ack.wrapping_add(u32::from(syn_ack.wnd)),
            ts: syn_ack.ts.map(|(val, _)| (syn.ts.unwrap_or_default().0, val)),
            v6: syn.v6,
        }
    }

    /// Opens a connection from the host side: the stack sends the SYN, the guest accepts.
    pub(crate) fn accept(rig: &mut Rig, guest_port: u16) -> Self {
        Self::accept_from(rig, guest_port, SocketAddr::from((GATEWAY, 5555)))
    }

    pub(crate) fn accept_from(rig: &mut Rig, guest_port: u16, from: SocketAddr) -> Self {
        let flow = rig.accept(guest_port, from);
        rig.stack.on_host_ready(flow, skbudget_stack::Ready { readable: false, writable: true });
        let syn = one(crate::rig::segs(rig.turn()));
        assert!(syn.is(SYN), "{syn:?}");
        let hello = Hello { v6: syn.v6, ..Hello::default() };
        let answer = Seg {
            ack: syn.seq.wrapping_add(1),
            flags: SYN | ACK,
            ..hello.syn(guest_port, syn.remote_port)
        };
        let ack = one(rig.send(answer.clone()));
        assert!(ack.is(ACK), "{ack:?}");
        let scale = syn.wscale.unwrap();
        Self {
            flow,
            guest_port,
            remote_port: syn.remote_port,
            seq: answer.seq.wrapping_add(1),
            ack: syn.seq.wrapping_add(1),
            wnd: 512,
            scale,
            edge: ack.ack.wrapping_add(u32::from(ack.wnd) << scale),
            ts: None,
            v6: syn.v6,
        }
    }

    fn blank(&self) -> Seg {
        Seg {
            guest_port: self.guest_port,
            remote_port: self.remote_port,
            seq: self.seq,
            ack: self.ack,
            flags: ACK,
            wnd: self.wnd,
            ts: self.ts,
            v6: self.v6,
            ..Seg::default()
        }
    }

    pub(crate) fn pure_ack(&self) -> Seg {
        self.blank()
    }

    /// An ACK with SACK blocks: the guest has the ranges `have` of the segments `said` behind holes, the latest first.
    pub(crate) fn holes(&self, said: &[Seg], have: &[(usize, usize)]) -> Seg {
        let end = |s: &Seg| s.seq.wrapping_add(s.data.len() as u32);
        let sack = have.iter().map(|r| (said[r.0].seq, end(&said[r.1 - 1]))).collect();
        Seg { sack, ..self.blank() }
    }

    /// A segment with the next bytes of the stream.
    pub(crate) fn data(&mut self, data: &[u8]) -> Seg {
        let seg = self.data_at(0, data);
        self.seq = self.seq.wrapping_add(data.len() as u32);
        seg
    }

    /// A segment `offset` bytes after (or before) SND.NXT, which does not move.
    pub(crate) fn data_at(&self, offset: i32, data: &[u8]) -> Seg {
        let seq = self.seq.wrapping_add_signed(offset);
        Seg { seq, flags: ACK | PSH, data: data.to_vec(), ..self.blank() }
    }

    pub(crate) fn fin(&mut self) -> Seg {
        let seg = Seg { flags: ACK | FIN, ..self.blank() };
        self.seq = self.seq.wrapping_add(1);
        seg
    }

    pub(crate) fn rst(&self) -> Seg {
        Seg { flags: RST, ack: 0, ..self.blank() }
    }

    /// Receives the stack's segments in order; returns the new bytes.
    pub(crate) fn receive(&mut self, segs: &[Seg]) -> Vec<u8> {
        let mut heard = Vec::new();
        for seg in segs {
            self.note(seg);
            // Old bytes in front are skipped; a segment behind a hole is ignored.
            let at = self.ack.wrapping_sub(seg.seq) as usize;
            if at <= seg.data.len() && (!seg.data.is_empty() || seg.is(ACK | FIN)) {
                heard.extend_from_slice(&seg.data[at..]);
                self.ack = seg.seq.wrapping_add(seg.data.len() as u32);
                self.ack = self.ack.wrapping_add(u32::from(seg.flags & FIN));
            }
        }
        heard
    }

    /// Records the window and the timestamp of a segment.
    pub(crate) fn note(&mut self, seg: &Seg) {
        self.edge = seg.ack.wrapping_add(u32::from(seg.wnd) << self.scale);
        if let (Some((_, recent)), Some((val, _))) = (&mut self.ts, seg.ts) {
            *recent = val;
        }
    }

    /// Bytes that the advertised window still allows.
    pub(crate) fn window(&self) -> usize {
        self.edge.wrapping_sub(self.seq) as usize
    }
}

/// The guest resets the connection; nothing of it is left.
pub(crate) fn end(mut rig: Rig, peer: &Peer) {
    rig.send(peer.rst());
    rig.assert_empty();
}

/// The stack's congestion window, bytes.
pub(crate) fn cwnd(rig: &Rig, peer: &Peer) -> u32 {
    rig.flow(peer.flow).expect("the flow").cwnd
}

/// Bytes that differ by position.
pub(crate) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 7 + i / 251) % 256) as u8).collect()
}
