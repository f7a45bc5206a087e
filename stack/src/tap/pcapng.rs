//! Packet captures in the pcapng format (draft-ietf-opsawg-pcapng), readable by Wireshark and by tcpdump.
//!
//! Frames are recorded as they cross the device: super-frames whole, checksums as far as the sender computed them. A
//! capture is a sequence of blocks, each with its length at both ends: a section header, one interface, a block for
//! each frame, and the interface's statistics.

use std::fmt;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use skbudget_controller::Instant;

/// Types of blocks.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

/// Shows the byte order of the section.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

/// Codes of options; a code has its meaning within one type of block.
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const IF_FILTER: u16 = 11;
const EPB_FLAGS: u16 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// Shortest and longest snapshot length, bytes: libpcap and Wireshark accept no longer frame.
pub const SNAPLEN_RANGE: (u32, u32) = (64, 262_144);

/// Length of a statistics block, bytes.
pub const STATISTICS_BYTES: usize = 52;

/// Place of the number of dropped frames in it.
const DROPPED_AT: usize = 36;

/// Bytes of a packet block before the frame.
const PACKET_HEAD_BYTES: usize = 28;

/// The way of a frame, as the container sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Received by the container.
    Inbound,
    /// Sent by the container.
    Outbound,
    /// Not recorded.
    Unknown,
}

/// How a capture describes itself, and what it keeps of each frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureHead {
    /// Name of the device in its container.
    pub ifname: String,
    /// For readers: which container this is.
    pub comment: String,
    /// The filter as typed; empty: none.
    pub filter: String,
    /// Bytes kept of each frame, within [`SNAPLEN_RANGE`].
    pub snaplen: u32,
    /// The time of day less the monotonic clock, ns.
    pub epoch_offset_ns: u64,
}

/// Selects frames, given in parts, without their device header.
pub type FrameFilter = Box<dyn Fn(&[IoSlice<'_>]) -> bool + Send>;

/// Writes one capture. Each block is one write. A block that is refused as a whole (`WouldBlock`) is left out. After
/// any other failed write the capture ends, because a torn block makes all later ones unreadable.
pub struct CaptureWriter {
    out: Option<Box<dyn Write + Send>>,
    filter: Option<FrameFilter>,
    /// The block being written.
    block: Vec<u8>,
    snaplen: u32,
    epoch_offset_ns: u64,
    /// Losses of a writer that stores blocks later.
    lost: Option<Arc<AtomicU64>>,
    /// Set by a writer that needs no more blocks.
    ended: Option<Arc<AtomicBool>>,
}

impl CaptureWriter {
    /// Writes the head of the capture.
    pub fn new(mut out: Box<dyn Write + Send>, head: &CaptureHead) -> io::Result<Self> {
        out.write_all(&head.blocks())?;
        Ok(Self {
            out: Some(out),
            filter: None,
            block: Vec::new(),
            snaplen: head.snaplen(),
            epoch_offset_ns: head.epoch_offset_ns,
            lost: None,
            ended: None,
        })
    }

    /// For a writer that takes blocks now and stores them later: `lost` is where it counts frames that it could not
    /// store.
    #[must_use]
    pub fn with_later_losses(mut self, lost: Arc<AtomicU64>) -> Self {
        self.lost = Some(lost);
        self
    }

    /// Writes only the frames that the filter selects.
    #[must_use]
    pub fn with_filter(mut self, filter: FrameFilter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Writes only until the flag is set.
    #[must_use]
    pub fn until(mut self, ended: Arc<AtomicBool>) -> Self {
        self.ended = Some(ended);
        self
    }

    /// Writes one frame, given in parts, cut at the snapshot length.
    pub fn write(
        &mut self,
        now: Instant,
        direction: Direction,
        parts: &[IoSlice<'_>],
    ) -> io::Result<()> {
        if self.has_ended() || self.filter.as_ref().is_some_and(|selects| !selects(parts)) {
            return Ok(());
        }
        let Some(out) = &mut self.out else {
            return Err(io::Error::other("the capture ended at an earlier error"));
        };
        let at_ns = now.as_nanos() + self.epoch_offset_ns;
        fill_packet(&mut self.block, self.snaplen, at_ns, direction, parts);
        // A regular file may take part of a write.
        let mut left = &self.block[..];
        while !left.is_empty() {
            let error = match out.write(left) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(n) => {
                    left = &left[n..];
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            // Nothing of this block is in the file, so the next one can follow.
            let refused_whole =
                left.len() == self.block.len() && error.kind() == io::ErrorKind::WouldBlock;
            if !refused_whole {
                self.out = None;
            }
            return Err(error);
        }
        Ok(())
    }

    /// Writes buffered blocks to the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), |out| out.flush())
    }

    /// Frames that the writer took and could not store.
    pub fn lost_later(&self) -> u64 {
        self.lost.as_ref().map_or(0, |lost| lost.load(Ordering::Relaxed))
    }

    /// The writer needs no more blocks.
    pub fn has_ended(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for CaptureWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaptureWriter").field("snaplen", &self.snaplen).finish_non_exhaustive()
    }
}

impl CaptureHead {
    /// The blocks at the start of the capture: section and interface.
    pub fn blocks(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let section = Block::start(&mut bytes, SECTION_HEADER);
        section.bytes.extend_from_slice(&BYTE_ORDER_MAGIC.to_le_bytes());
        // Format version 1.0; the length of the section is unknown.
        section.bytes.extend_from_slice(&[1, 0, 0, 0]);
        section.bytes.extend_from_slice(&(-1i64).to_le_bytes());
        section
            .option(SHB_USERAPPL, concat!("skbudget ", env!("CARGO_PKG_VERSION")).as_bytes())
            .option(OPT_COMMENT, self.comment.as_bytes())
            .end();
        let interface = Block::start(&mut bytes, INTERFACE);
        interface.bytes.extend_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
        interface.bytes.extend_from_slice(&[0; 2]);
        interface.bytes.extend_from_slice(&self.snaplen().to_le_bytes());
        // Time stamps are in units of 10^-9 s. The first byte of a filter is its kind: 0 is text.
        let filter =
            if self.filter.is_empty() { String::new() } else { format!("\0{}", self.filter) };
        interface
            .option(IF_NAME, self.ifname.as_bytes())
            .option(IF_TSRESOL, &[9])
            .option(IF_FILTER, filter.as_bytes())
            .end();
        bytes
    }

    fn snaplen(&self) -> u32 {
        self.snaplen.clamp(SNAPLEN_RANGE.0, SNAPLEN_RANGE.1)
    }
}

/// The interface's statistics so far: frames that the capture's filter selected, and those of them that are missing in
/// the capture. `at_ns`: the time of day.
pub fn statistics_block(received: u64, dropped: u64, at_ns: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(STATISTICS_BYTES);
    let block = Block::start(&mut bytes, STATISTICS);
    // Number of the interface.
    block.bytes.extend_from_slice(&0u32.to_le_bytes());
    put_time(block.bytes, at_ns);
    block
        .option(ISB_IFRECV, &received.to_le_bytes())
        .option(ISB_IFDROP, &dropped.to_le_bytes())
        .end();
    bytes
}

/// Length of the block at the start of `bytes`, from its head; `None` if that is incomplete.
pub fn block_len(bytes: &[u8]) -> Option<usize> {
    let [_, _, _, _, len @ ..] = bytes.first_chunk::<8>()?;
    Some(u32::from_le_bytes(*len) as usize)
}

/// The block at the start of `bytes` is a frame.
pub fn is_packet(bytes: &[u8]) -> bool {
    bytes.first_chunk::<4>() == Some(&PACKET.to_le_bytes())
}

/// The frames that are missing in a capture, if this block has the statistics of [`statistics_block`].
pub fn dropped_frames(block: &[u8]) -> Option<u64> {
    let block: &[u8; STATISTICS_BYTES] = block.try_into().ok()?;
    let is_statistics = block.first_chunk::<4>() == Some(&STATISTICS.to_le_bytes());
    let dropped = block[DROPPED_AT..].first_chunk::<8>()?;
    is_statistics.then(|| u64::from_le_bytes(*dropped))
}

/// Builds a packet block: interface, time stamp, kept length, original length, bytes, direction.
fn fill_packet(
    bytes: &mut Vec<u8>,
    snaplen: u32,
    at_ns: u64,
    direction: Direction,
    parts: &[IoSlice<'_>],
) {
    let whole = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
    let kept = whole.min(snaplen);
    bytes.clear();
    let block = Block::start(bytes, PACKET);
    block.bytes.extend_from_slice(&0u32.to_le_bytes());
    put_time(block.bytes, at_ns);
    block.bytes.extend_from_slice(&kept.to_le_bytes());
    block.bytes.extend_from_slice(&whole.to_le_bytes());
    debug_assert_eq!(block.bytes.len(), PACKET_HEAD_BYTES);
    let mut left = kept as usize;
    for part in parts {
        let take = left.min(part.len());
        block.bytes.extend_from_slice(&part[..take]);
        left -= take;
    }
    pad(block.bytes);
    match direction {
        Direction::Inbound => block.option(EPB_FLAGS, &1u32.to_le_bytes()).end(),
        Direction::Outbound => block.option(EPB_FLAGS, &2u32.to_le_bytes()).end(),
        Direction::Unknown => block.end(),
    }
}

/// A time stamp: the upper half first.
fn put_time(bytes: &mut Vec<u8>, at_ns: u64) {
    bytes.extend_from_slice(&((at_ns >> 32) as u32).to_le_bytes());
    bytes.extend_from_slice(&(at_ns as u32).to_le_bytes());
}

/// Fills up to a multiple of four bytes.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A block that is being appended.
struct Block<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
    has_options: bool,
}

impl<'a> Block<'a> {
    fn start(bytes: &'a mut Vec<u8>, kind: u32) -> Self {
        let start = bytes.len();
        bytes.extend_from_slice(&kind.to_le_bytes());
        // The length, set at the end.
        bytes.extend_from_slice(&[0; 4]);
        Self { bytes, start, has_options: false }
    }

    /// Appends an option, unless its value is empty.
    fn option(mut self, code: u16, value: &[u8]) -> Self {
        let value = &value[..value.len().min(u16::MAX.into())];
        if !value.is_empty() {
            self.bytes.extend_from_slice(&code.to_le_bytes());
            self.bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
            self.bytes.extend_from_slice(value);
            pad(self.bytes);
            self.has_options = true;
        }
        self
    }

    fn end(self) {
        if self.has_options {
            // Code and length of the end of the options.
            self.bytes.extend_from_slice(&[0; 4]);
        }
        let len = ((self.bytes.len() - self.start + 4) as u32).to_le_bytes();
        self.bytes[self.start + 4..self.start + 8].copy_from_slice(&len);
        self.bytes.extend_from_slice(&len);
    }
}

#[cfg(test)]
#[path = "pcapng_tests.rs"]
mod tests;
