//! smoltcp's end of the link: frames in both directions, with the offloads of a kernel.

use std::collections::VecDeque;

use skbudget_stack::vnet::{F_NEEDS_CSUM, VnetHdr};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant as SmolInstant;

use super::GuestConfig;
use crate::frame::{Frame, FramePool};

/// smoltcp's end of the link: frames in both directions.
#[derive(Debug)]
pub(super) struct GuestDevice {
    pub(super) rx: VecDeque<Frame>,
    current: Frame,
    pub(super) tx: Vec<Frame>,
    pub(super) frames: FramePool,
    pub(super) room: usize,
    pub(super) exhausted: bool,
    mtu: usize,
    offload: bool,
}

impl GuestDevice {
    pub(super) fn new(config: &GuestConfig) -> Self {
        Self {
            rx: VecDeque::new(),
            current: Frame::default(),
            tx: Vec::new(),
            frames: FramePool::default(),
            room: 0,
            exhausted: false,
            mtu: usize::from(config.mtu) + 14,
            offload: config.offload,
        }
    }
    fn port(&mut self) -> TxPort<'_> {
        TxPort {
            tx: &mut self.tx,
            frames: &mut self.frames,
            room: &mut self.room,
            offload: self.offload,
        }
    }
}

/// The frame that smoltcp processes. Its buffer returns to the pool with the next one.
pub(super) struct RxFrame<'a>(&'a Frame);

pub(super) struct TxPort<'a> {
    tx: &'a mut Vec<Frame>,
    frames: &'a mut FramePool,
    room: &'a mut usize,
    offload: bool,
}

impl phy::Device for GuestDevice {
    type RxToken<'a> = RxFrame<'a>;
    type TxToken<'a> = TxPort<'a>;

    fn receive(&mut self, _now: SmolInstant) -> Option<(RxFrame<'_>, TxPort<'_>)> {
        // smoltcp may answer a frame at once (ARP, RST), so it gets one only while an answer can be sent.
        if self.room == 0 {
            self.exhausted |= !self.rx.is_empty();
            return None;
        }
        let next = self.rx.pop_front()?;
        self.frames.give(std::mem::replace(&mut self.current, next));
        let port = TxPort {
            tx: &mut self.tx,
            frames: &mut self.frames,
            room: &mut self.room,
            offload: self.offload,
        };
        Some((RxFrame(&self.current), port))
    }

    fn transmit(&mut self, _now: SmolInstant) -> Option<TxPort<'_>> {
        if self.room == 0 {
            self.exhausted = true;
            return None;
        }
        Some(self.port())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu;
        if self.offload {
            caps.checksum.tcp = Checksum::None;
        }
        caps
    }
}

impl phy::RxToken for RxFrame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.bytes())
    }
}

impl phy::TxToken for TxPort<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = self.frames.take(len);
        let out = f(frame.bytes_mut());
        if self.offload {
            frame.vnet = partial_checksum(frame.bytes());
        }
        *self.room -= 1;
        self.tx.push(frame);
        out
    }
}

/// The vnet header of a frame from a kernel with checksum offload, which leaves the TCP checksum to the device.
fn partial_checksum(frame: &[u8]) -> VnetHdr {
    let is_tcp_v4 = frame.len() > 34 && frame[12..14] == [8, 0] && frame[23] == 6;
    let is_tcp_v6 = frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[20] == 6;
    let ip_len = match (is_tcp_v4, is_tcp_v6) {
        (true, _) => u16::from(frame[14] & 0x0f) * 4,
        (_, true) => 40,
        _ => return VnetHdr::default(),
    };
    let csum_start = 14 + ip_len;
    VnetHdr { flags: F_NEEDS_CSUM, csum_start, csum_offset: 16, ..VnetHdr::default() }
}
