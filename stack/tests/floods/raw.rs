//! A guest without a TCP: it sends scripted segments and passes received ones to its script.

use std::any::Any;
use std::fmt::Debug;

use skbudget_sim::smoltcp::wire::{EthernetFrame, Ipv4Packet, TcpPacket};
use skbudget_sim::{Frame, FramePool, Guest};
use skbudget_stack::VnetHdr;
use skbudget_stack::controller::Instant;
use skbudget_stack::vnet::F_DATA_VALID;

/// Ports of the gateway, by the server behind them.
pub(crate) const SINK: u16 = 80;
pub(crate) const PUSHER: u16 = 81;
pub(crate) const SILENT: u16 = 82;
pub(crate) const NEVER_READS: u16 = 83;
pub(crate) const RESPONDER: u16 = 84;
pub(crate) const NOBODY: u16 = 9;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

const OUR_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];
const GUEST_MAC: [u8; 6] = [2, 0x67, 0x75, 0x65, 0x73, 0x74];
pub(crate) const GUEST: [u8; 4] = [10, 0, 2, 100];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];

/// A segment of either direction; the ports are the guest's and the remote's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seg {
    pub(crate) src: [u8; 4],
    pub(crate) port: u16,
    pub(crate) remote: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) wnd: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) len: u16,
}

impl Seg {
    pub(crate) fn new(port: u16, remote: u16, flags: u8) -> Self {
        let (seq, ack, wnd, len) = (0, 0, 0xffff, 0);
        Self { src: GUEST, port, remote, seq, ack, flags, wnd, options: Vec::new(), len }
    }

    /// Writes a frame of this size; the TCP checksum stays empty.
    pub(crate) fn write(&self, bytes: &mut [u8]) {
        let header = 20 + self.options.len();
        bytes.fill(0x5a);
        let (eth, rest) = bytes.split_at_mut(14);
        eth[..6].copy_from_slice(&OUR_MAC);
        eth[6..12].copy_from_slice(&GUEST_MAC);
        eth[12..].copy_from_slice(&[8, 0]);
        let total = rest.len() as u16;
        let (ip, tcp) = rest.split_at_mut(20);
        ip.fill(0);
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        (ip[8], ip[9]) = (64, 6);
        ip[12..16].copy_from_slice(&self.src);
        ip[16..].copy_from_slice(&GATEWAY);
        Ipv4Packet::new_unchecked(&mut *ip).fill_checksum();
        tcp[..2].copy_from_slice(&self.port.to_be_bytes());
        tcp[2..4].copy_from_slice(&self.remote.to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = (header as u8 / 4) << 4;
        tcp[13] = self.flags;
        tcp[14..16].copy_from_slice(&self.wnd.to_be_bytes());
        tcp[16..20].fill(0);
        tcp[20..header].copy_from_slice(&self.options);
    }

    pub(crate) fn bytes(&self) -> usize {
        54 + self.options.len() + usize::from(self.len)
    }

    /// Decodes a frame sent to the guest.
    pub(crate) fn read(frame: &[u8]) -> Option<Self> {
        let eth = EthernetFrame::new_checked(frame).ok()?;
        let ip = Ipv4Packet::new_checked(eth.payload()).ok()?;
        let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
        Some(Self {
            src: GUEST,
            port: tcp.dst_port(),
            remote: tcp.src_port(),
            seq: tcp.seq_number().0.cast_unsigned(),
            ack: tcp.ack_number().0.cast_unsigned(),
            flags: ip.payload()[13] & 0x17,
            wnd: tcp.window_len(),
            options: Vec::new(),
            len: tcp.payload().len() as u16,
        })
    }
}

/// The script of a raw guest.
pub(crate) trait Plot: Debug {
    /// A segment arrived; replies are appended to `say`.
    fn hear(&mut self, now: Instant, seg: &Seg, say: &mut Vec<Seg>);
    /// Called at `next` or later; the link has room for `room` segments.
    fn act(&mut self, now: Instant, room: usize, say: &mut Vec<Seg>);
    /// The time of the next `act`.
    fn next(&self) -> Option<Instant>;
}

#[derive(Debug)]
pub(crate) struct Raw<P> {
    pub(crate) plot: P,
    say: Vec<Seg>,
    blocked: bool,
}

impl<P: Plot> Raw<P> {
    pub(crate) fn new(plot: P) -> Self {
        Self { plot, say: Vec::new(), blocked: false }
    }
}

impl<P: Plot + 'static> Guest for Raw<P> {
    fn on_frame(&mut self, now: Instant, frame: Frame) {
        if let Some(seg) = Seg::read(frame.bytes()) {
            self.plot.hear(now, &seg, &mut self.say);
        }
    }

    fn poll(&mut self, now: Instant, room: usize, frames: &mut FramePool, out: &mut Vec<Frame>) {
        if self.plot.next().is_some_and(|at| at <= now) && self.say.len() < room {
            self.plot.act(now, room - self.say.len(), &mut self.say);
        }
        let n = room.min(self.say.len());
        for seg in self.say.drain(..n) {
            let mut frame = frames.take(seg.bytes());
            frame.vnet = VnetHdr { flags: F_DATA_VALID, ..VnetHdr::default() };
            seg.write(frame.bytes_mut());
            out.push(frame);
        }
        self.blocked = !self.say.is_empty();
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.plot.next().filter(|_| !self.blocked)
    }

    fn is_blocked(&self) -> bool {
        self.blocked
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
