//! The TAP device: where a container's frames enter and leave the process.
//!
//! Three ways in, one read/write path behind them:
//! - [`Tap::open`] with offload: `IFF_VNET_HDR` and a 12-byte header in front of every frame, so that checksums and
//!   segmentation are left to whoever needs them and frames of up to 64 KiB cross at any MTU;
//! - [`Tap::open`] without: the plain device of the `tun-tap` crate, one frame a packet, no header;
//! - [`Tap::from_fd`]: a descriptor somebody else opened; the kernel is asked which of the two it is. One end of a
//!   SOCK_SEQPACKET pair will do as well: one frame a packet, no header, and who has the other end is the cable.
//!
//! The namespace of a device is fixed when its node is opened, and an open descriptor pins that namespace. Open it in
//! a scratch namespace and move the device: the container's end is then seen here as `EBADFD` ([`is_gone`]).

mod pcap;
#[allow(unsafe_code, reason = "the ioctls of a TAP have no safe wrapper; nothing else lives there")]
mod sys;

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use skbudget_controller::Instant;

use crate::io::Device;
use crate::vnet::{VNET_HDR_LEN, VnetHdr};

pub use pcap::{PCAP_HEADER_LEN, PcapWriter, pcap_record_len};

/// Smallest buffer `recv` accepts: the largest frame the kernel hands over (64 KiB of IP, Ethernet with a VLAN tag)
/// and the header in front of it.
pub const SCRATCH_BYTES: usize = VNET_HDR_LEN + 18 + (64 << 10) + 512;

/// What `writev` takes in one call without a copy; 64 KiB of payload are 17 chunks, so this is never the limit.
const PARTS_MAX: usize = 64;

/// Smallest and largest MTU the kernel accepts on a TAP.
pub const MTU_MIN: u16 = 68;
pub const MTU_MAX: u16 = 65521;

/// How many frames were lost at the device, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TapCounters {
    /// The device had no room: the caller was told and keeps the frame.
    pub full: u64,
    /// The kernel refused the frame for what it is (EINVAL, EMSGSIZE, ...): it is lost.
    pub refused: u64,
    /// A read shorter than the header in front of every frame.
    pub short: u64,
    /// Frames missing in the capture because it could not be written.
    pub capture_lost: u64,
}

/// An open TAP.
#[derive(Debug)]
pub struct Tap {
    file: File,
    offload: bool,
    gone: bool,
    now: Instant,
    capture: Option<PcapWriter>,
    counters: TapCounters,
}

impl Tap {
    /// Creates the device `name` in the network namespace of the calling thread.
    pub fn open(name: &str, offload: bool) -> io::Result<Self> {
        let fd = if offload { sys::open_vnet(name)? } else { sys::open_plain(name)? };
        Self::new(fd, offload)
    }

    /// Takes a TAP opened elsewhere, or a packet socket. The kernel says whether frames carry a header.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let offload = !sys::is_packet_socket(fd.as_fd()) && sys::has_vnet_hdr(fd.as_fd())?;
        Self::new(fd, offload)
    }

    /// What the device is called now: its container may rename it.
    pub fn device_name(&self) -> io::Result<String> {
        sys::device_name(self.file.as_fd())
    }

    /// The network namespace that the device is in now. Needs CAP_NET_ADMIN over the one it was made in.
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
            capture: None,
            counters: TapCounters::default(),
        })
    }

    /// Every frame from now on, both ways, is also written there.
    pub fn set_capture(&mut self, capture: PcapWriter) {
        self.capture = Some(capture);
    }

    pub fn has_capture(&self) -> bool {
        self.capture.is_some()
    }

    /// The time frames are captured with; read by the loop, once a turn.
    pub fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// One frame into `buf`, at least [`SCRATCH_BYTES`] long: its header and where in `buf` it lies. `WouldBlock`: none
    /// is there; an error of which [`is_gone`] is true: the device is no more.
    pub fn recv(&mut self, buf: &mut [u8]) -> io::Result<(VnetHdr, Range<usize>)> {
        debug_assert!(buf.len() >= SCRATCH_BYTES, "a larger frame would be cut");
        loop {
            let n = match self.file.read(buf) {
                // The other end of a socket was closed; a device has no empty frames.
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
                    self.counters.short += 1;
                    continue;
                };
                (VnetHdr::decode(header), VNET_HDR_LEN)
            } else {
                (VnetHdr::default(), 0)
            };
            if let Some(capture) = &mut self.capture {
                let lost = capture.write(self.now, &[IoSlice::new(&buf[start..n])]).is_err();
                self.counters.capture_lost += u64::from(lost);
            }
            return Ok((vnet, start..n));
        }
    }

    /// Frames carry a header, and super-frames may be sent.
    pub fn offload(&self) -> bool {
        self.offload
    }

    /// The device went away, with the container it was in.
    pub fn gone(&self) -> bool {
        self.gone
    }

    pub fn counters(&self) -> TapCounters {
        let later = self.capture.as_ref().map_or(0, PcapWriter::lost_later);
        TapCounters { capture_lost: self.counters.capture_lost + later, ..self.counters }
    }

    /// Hands what was captured to the kernel, so that a reader of the file sees it.
    pub fn flush_capture(&mut self) {
        if let Some(capture) = &mut self.capture {
            self.counters.capture_lost += u64::from(capture.flush().is_err());
        }
    }

    fn write(&self, vnet: &VnetHdr, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let header = vnet.encode();
        let mut list = [IoSlice::new(&[]); PARTS_MAX];
        let head = usize::from(self.offload);
        list[0] = IoSlice::new(&header);
        let used = head + parts.len();
        if let Some(room) = list.get_mut(head..used) {
            for (slot, part) in room.iter_mut().zip(parts) {
                *slot = IoSlice::new(part);
            }
            return (&self.file).write_vectored(&list[..used]);
        }
        // More parts than the list holds: one copy, since a frame cannot be written in two calls.
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
                // Said to be taken: sending it again would fail again, and a lost frame is TCP's to repair.
                Err(e) => {
                    self.gone |= is_gone(&e);
                    self.counters.refused += 1;
                    return true;
                }
            }
        }
        if let Some(capture) = &mut self.capture {
            let lost = capture.write(self.now, parts).is_err();
            self.counters.capture_lost += u64::from(lost);
        }
        true
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The device behind the descriptor was destroyed: its namespace ended, or somebody deleted it. EIO is not among the
/// reasons: it says that the device is down, which passes. EFAULT is what a read answers while the device is taken
/// apart: our buffers are always good. EPIPE and ECONNRESET are what a socket answers whose other end was closed.
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

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM))
}
