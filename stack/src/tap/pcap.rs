//! Captures: the classic pcap format with nanoseconds, readable by tcpdump and Wireshark.
//!
//! Frames are written as they cross the device: super-frames whole, checksums as far as the sender filled them in.

use std::fmt;
use std::io::{self, IoSlice, Write};

use skbudget_controller::Instant;

/// Magic number of a capture whose stamps are nanoseconds, in the writer's byte order.
const MAGIC_NS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
/// No frame is longer: Wireshark and libpcap accept up to 262144.
const SNAPLEN_MAX: u32 = 262_144;

/// Writes one capture. After a failed write it writes nothing more: a torn record would make the rest unreadable.
pub struct PcapWriter {
    out: Option<Box<dyn Write + Send>>,
    snaplen: u32,
    /// Added to the monotonic clock to get the time of day.
    epoch_offset_ns: u64,
}

impl PcapWriter {
    /// Writes the file header. `epoch_offset_ns`: time of day less monotonic clock, as the caller read them.
    pub fn new(
        mut out: Box<dyn Write + Send>,
        snaplen: u32,
        epoch_offset_ns: u64,
    ) -> io::Result<Self> {
        let snaplen = snaplen.clamp(64, SNAPLEN_MAX);
        let mut header = [0; 24];
        header[0..4].copy_from_slice(&MAGIC_NS.to_le_bytes());
        header[4..6].copy_from_slice(&2u16.to_le_bytes());
        header[6..8].copy_from_slice(&4u16.to_le_bytes());
        header[16..20].copy_from_slice(&snaplen.to_le_bytes());
        header[20..24].copy_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
        out.write_all(&header)?;
        Ok(Self { out: Some(out), snaplen, epoch_offset_ns })
    }

    /// One frame, in parts.
    pub fn write(&mut self, now: Instant, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let Some(out) = &mut self.out else {
            return Err(io::Error::other("the capture ended at an earlier error"));
        };
        let result = write_record(out, self.snaplen, now.as_nanos() + self.epoch_offset_ns, parts);
        if result.is_err() {
            self.out = None;
        }
        result
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), |out| out.flush())
    }
}

impl fmt::Debug for PcapWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PcapWriter").field("snaplen", &self.snaplen).finish_non_exhaustive()
    }
}

fn write_record(
    out: &mut dyn Write,
    snaplen: u32,
    at_ns: u64,
    parts: &[IoSlice<'_>],
) -> io::Result<()> {
    let whole = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
    let kept = whole.min(snaplen);
    let mut header = [0; 16];
    header[0..4].copy_from_slice(&((at_ns / 1_000_000_000) as u32).to_le_bytes());
    header[4..8].copy_from_slice(&((at_ns % 1_000_000_000) as u32).to_le_bytes());
    header[8..12].copy_from_slice(&kept.to_le_bytes());
    header[12..16].copy_from_slice(&whole.to_le_bytes());
    out.write_all(&header)?;
    let mut left = kept as usize;
    for part in parts {
        let take = left.min(part.len());
        out.write_all(&part[..take])?;
        left -= take;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>, usize);

    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let mut bytes = self.0.lock().unwrap();
            if self.1 > 0 && bytes.len() + buf.len() > self.1 {
                return Err(io::Error::other("full"));
            }
            bytes.extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_frame_in_parts_is_one_record_cut_at_snaplen() {
        let sink = Sink::default();
        let mut pcap = PcapWriter::new(Box::new(sink.clone()), 64, 1_000_000_000).unwrap();
        let parts = [IoSlice::new(&[1; 40]), IoSlice::new(&[2; 40])];
        pcap.write(Instant(2_000_000_005), &parts).unwrap();
        let bytes = sink.0.lock().unwrap().clone();
        assert_eq!(bytes.len(), 24 + 16 + 64);
        assert_eq!(bytes[0..4], [0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(bytes[24..28], 3u32.to_le_bytes());
        assert_eq!(bytes[28..32], 5u32.to_le_bytes());
        assert_eq!(bytes[32..36], 64u32.to_le_bytes());
        assert_eq!(bytes[36..40], 80u32.to_le_bytes());
        assert_eq!(bytes[40 + 39..40 + 41], [1, 2]);
    }

    #[test]
    fn after_a_failed_write_nothing_more_is_written() {
        let sink = Sink(Arc::default(), 24 + 20);
        let mut pcap = PcapWriter::new(Box::new(sink.clone()), 65536, 0).unwrap();
        assert!(pcap.write(Instant(0), &[IoSlice::new(&[0; 60])]).is_err());
        let torn = sink.0.lock().unwrap().len();
        assert!(pcap.write(Instant(0), &[IoSlice::new(&[0; 1])]).is_err());
        assert_eq!(sink.0.lock().unwrap().len(), torn);
    }
}
