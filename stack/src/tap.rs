//! The TAP device: frames enter and leave the process here.
//!
//! Three ways to get one, one read/write path behind them:
//! - [`Tap::open`] with offload: `IFF_VNET_HDR` and a 12-byte header in front of every frame, so that the receiver
//!   completes checksums and segments, and frames of up to 64 KiB cross at any MTU;
//! - [`Tap::open`] without: the plain device of the `tun-tap` crate, one frame per packet, no header;
//! - [`Tap::from_fd`]: a descriptor opened elsewhere; the kernel reports which of the two it is. One end of a
//!   SOCK_SEQPACKET pair works too: one frame per packet, no header, and the process at the other end is the cable.
//!
//! A device's namespace is fixed when its node is opened, and an open descriptor pins that namespace. Open it in a
//! scratch namespace and move the device into the container's: the container's end then appears here as `EBADFD`
//! ([`is_gone`]).

mod pcapng;
#[allow(unsafe_code, reason = "the ioctls of a TAP have no safe wrapper; nothing else lives there")]
mod sys;

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use skbudget_controller::Instant;

use crate::io::Device;
use crate::io::vnet::{VNET_HDR_LEN, VnetHdr};

pub use pcapng::{
    CaptureHead, CaptureWriter, Direction, FrameFilter, SNAPLEN_RANGE, STATISTICS_BYTES, block_len,
    dropped_frames, is_packet, statistics_block,
};

/// Smallest buffer `recv` accepts, bytes: the largest frame of the kernel (64 KiB of IP, Ethernet with a VLAN tag) and
/// the header in front of it.
pub const SCRATCH_BYTES: usize = VNET_HDR_LEN + 18 + (64 << 10) + 512;

/// Most parts that one `writev` takes without a copy. 64 KiB of payload are 17 chunks, so real frames stay below it.
const PARTS_MAX: usize = 64;

/// Smallest MTU that the kernel accepts for a TAP, bytes.
pub const MTU_MIN: u16 = 68;
/// Largest such MTU: a frame is at most 65,535 bytes with its Ethernet header.
pub const MTU_MAX: u16 = 65521;

/// Frames lost at the device, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TapCounters {
    /// The device had no room: `send` returned false and the caller keeps the frame.
    pub full: u64,
    /// The kernel rejected the frame itself (EINVAL, EMSGSIZE, ...): it is lost.
    pub refused: u64,
    /// A read shorter than the header that each frame must have.
    pub short: u64,
    /// Frames missing from captures because a write failed or a reader was too slow.
    pub capture_lost: u64,
}

/// An open TAP.
#[derive(Debug)]
pub struct Tap {
    file: File,
    offload: bool,
    gone: bool,
    now: Instant,
    captures: Vec<CaptureWriter>,
    counters: TapCounters,
}

impl Tap {
    /// Creates the device `name` in the network namespace of the calling thread.
    pub fn open(name: &str, offload: bool) -> io::Result<Self> {
        let fd = if offload { sys::open_vnet(name)? } else { sys::open_plain(name)? };
        Self::new(fd, offload)
    }

    /// Takes a TAP opened elsewhere, or a packet socket. The kernel reports whether frames carry a header.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        // Test for a socket first: `has_vnet_hdr` would fail on it.
        let offload = !sys::is_packet_socket(fd.as_fd()) && sys::has_vnet_hdr(fd.as_fd())?;
        Self::new(fd, offload)
    }

    /// The current name of the device: its container may rename it.
    pub fn device_name(&self) -> io::Result<String> {
        sys::device_name(self.file.as_fd())
    }

    /// The current network namespace of the device. Needs CAP_NET_ADMIN over the one it was created in.
    pub fn device_netns(&self) -> io::Result<OwnedFd> {
        sys::device_netns(self.file.as_fd())
    }

    fn new(fd: OwnedFd, offload: bool) -> io::Result<Self> {
        sys::set_nonblocking(fd.as_fd())?;
        Ok(Self {
            file: File::from(fd),
            offload,
            gone: false,
            now: Instant(0),
            captures: Vec::new(),
            counters: TapCounters::default(),
        })
    }

    /// Writes every frame from now on, in both directions, to `capture` as well. The caller bounds their number.
    pub fn add_capture(&mut self, capture: CaptureWriter) {
        self.captures.push(capture);
    }

    /// True while frames are recorded.
    pub fn has_captures(&self) -> bool {
        !self.captures.is_empty()
    }

    /// Sets the time stamp of captured frames; the loop calls it once a turn.
    pub fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Reads one frame into `buf`, at least [`SCRATCH_BYTES`] long. Returns its header and its range in `buf`. Errors:
    /// `WouldBlock` if no frame is queued; one for which [`is_gone`] is true if the device no longer exists.
    pub fn recv(&mut self, buf: &mut [u8]) -> io::Result<(VnetHdr, Range<usize>)> {
        debug_assert!(buf.len() >= SCRATCH_BYTES, "a larger frame would be cut");
        loop {
            let n = match self.file.read(buf) {
                // End of stream: the other end of a socket was closed. A device has no empty frames.
                Ok(0) => {
                    self.gone = true;
                    return Err(io::Error::from_raw_os_error(libc::ENODEV));
                }
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.gone |= is_gone(&e);
                    return Err(e);
                }
            };
            let (vnet, start) = if self.offload {
                let Some(header) = buf[..n].first_chunk::<VNET_HDR_LEN>() else {
                    // Not an error of the device: count it and read the next frame.
                    self.counters.short += 1;
                    continue;
                };
                // The frame starts behind the header in the same buffer.
                (VnetHdr::decode(header), VNET_HDR_LEN)
            } else {
                (VnetHdr::default(), 0)
            };
            if self.has_captures() {
                self.record(Direction::Outbound, &[IoSlice::new(&buf[start..n])]);
            }
            return Ok((vnet, start..n));
        }
    }

    /// True if frames carry a header and super-frames may be sent.
    pub fn offload(&self) -> bool {
        self.offload
    }

    /// True if the device was destroyed, with its container's namespace.
    pub fn gone(&self) -> bool {
        self.gone
    }

    /// Losses so far, including those that the capture's writer reports later.
    pub fn counters(&self) -> TapCounters {
        let later: u64 = self.captures.iter().map(CaptureWriter::lost_later).sum();
        TapCounters { capture_lost: self.counters.capture_lost + later, ..self.counters }
    }

    /// Flushes the captures, so that their readers see all frames, and removes those that have ended.
    pub fn flush_captures(&mut self) {
        let counters = &mut self.counters;
        self.captures.retain_mut(|capture| {
            counters.capture_lost += u64::from(capture.flush().is_err());
            let ended = capture.has_ended();
            if ended {
                counters.capture_lost += capture.lost_later();
            }
            !ended
        });
    }

    /// Writes a frame to the captures.
    fn record(&mut self, direction: Direction, parts: &[IoSlice<'_>]) {
        for capture in &mut self.captures {
            let lost = capture.write(self.now, direction, parts).is_err();
            self.counters.capture_lost += u64::from(lost);
        }
    }

    /// Writes header and parts as one frame.
    fn write(&self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let header = vnet.encode();
        let mut list = [IoSlice::new(&[]); PARTS_MAX];
        let head = usize::from(self.offload);
        // Overwritten by the first part when frames have no header.
        list[0] = IoSlice::new(&header);
        let used = head + parts.len();
        if let Some(room) = list.get_mut(head..used) {
            for (slot, part) in room.iter_mut().zip(parts) {
                *slot = IoSlice::new(part);
            }
            return (&self.file).write_vectored(&list[..used]);
        }
        // More parts than the list holds. A frame cannot be written in two calls, so copy it.
        let mut whole = Vec::new();
        if self.offload {
            whole.extend_from_slice(&header);
        }
        for part in parts {
            whole.extend_from_slice(part);
        }
        (&self.file).write(&whole)
    }
}

impl Device for Tap {
    fn send(&mut self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> bool {
        loop {
            match self.write(vnet, parts) {
                Ok(_) => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if is_full(&e) => {
                    self.counters.full += 1;
                    return false;
                }
                // Report it as sent: a second try would fail again, and TCP repairs a lost frame.
                Err(e) => {
                    self.gone |= is_gone(&e);
                    self.counters.refused += 1;
                    return true;
                }
            }
        }
        // Only frames that the device took are in a capture.
        if self.has_captures() {
            self.record(Direction::Inbound, parts);
        }
        true
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// True if the device behind the descriptor was destroyed: its namespace ended, or a process deleted it. EIO is not
/// among the errors, because it means that the device is down, which passes. A read returns EFAULT while the device is
/// torn down, since our buffers are always valid. EPIPE and ECONNRESET are errors of a socket that lost its other end.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EBADFD
                | libc::EBADF
                | libc::ENODEV
                | libc::ENXIO
                | libc::EFAULT
                | libc::EPIPE
                | libc::ECONNRESET
        )
    )
}

/// True for errors that pass when the device or the kernel has room again.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM))
}
