//! Ethernet frames in flight, in reusable buffers.

use std::io::IoSlice;

use skbudget_stack::vnet::VnetHdr;

/// A frame with its virtio-net header. The buffer keeps its size; the frame is its first `len` bytes.
#[derive(Debug, Default)]
pub struct Frame {
    /// The virtio-net header.
    pub vnet: VnetHdr,
    buf: Vec<u8>,
    len: usize,
}

impl Frame {
    /// The frame from its Ethernet header on.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[..self.len]
    }
    /// As [`Self::bytes`].
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[..self.len]
    }
    /// Sets the length. The content is whatever the buffer held before.
    pub(crate) fn reset(&mut self, len: usize) {
        if self.buf.len() < len {
            self.buf.resize(len, 0);
        }
        self.len = len;
        self.vnet = VnetHdr::default();
    }
}

/// Frames for reuse, so that a frame in flight costs no allocation.
#[derive(Debug, Default)]
pub struct FramePool {
    free: Vec<Frame>,
}

/// Most frames that the pool keeps.
const FREE_MAX: usize = 4096;

impl FramePool {
    /// A frame of `len` bytes of arbitrary content.
    pub fn take(&mut self, len: usize) -> Frame {
        let mut f = self.free.pop().unwrap_or_default();
        f.reset(len);
        f
    }
    /// A frame from the arguments of [`Device::send`](skbudget_stack::Device::send).
    pub fn gather(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> Frame {
        let mut f = self.take(parts.iter().map(|p| p.len()).sum());
        let mut at = 0;
        for part in parts {
            f.bytes_mut()[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        f.vnet = *vnet;
        f
    }
    /// Returns a frame to the pool.
    pub fn give(&mut self, frame: Frame) {
        if self.free.len() < FREE_MAX {
            self.free.push(frame);
        }
    }
    /// An equal frame.
    pub fn copy(&mut self, of: &Frame) -> Frame {
        let mut f = self.take(of.bytes().len());
        f.bytes_mut().copy_from_slice(of.bytes());
        f.vnet = of.vnet;
        f
    }
}
