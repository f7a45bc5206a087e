//! Packet captures: the classic pcap format with nanoseconds, readable by tcpdump and Wireshark.
//!
//! Frames are recorded as they cross the device: super-frames whole, checksums as far as the sender computed them.

use std::fmt;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use skbudget_controller::Instant;

/// Magic number of a capture with time stamps in nanoseconds, in the writer's byte order.
const MAGIC_NS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
/// Length of the file header, bytes.
pub const PCAP_HEADER_LEN: usize = 24;
/// Length of each record's header, bytes.
const PCAP_RECORD_HEADER_LEN: usize = 16;
/// Longest frame in a capture, bytes: libpcap and Wireshark accept no more.
const SNAPLEN_MAX: u32 = 262_144;

/// Writes one capture. Each record is one write. A record that is refused as a whole (`WouldBlock`) is left out. After
/// any other failed write the capture ends, because a torn record makes all later ones unreadable.
pub struct PcapWriter {
    out: Option<Box<dyn Write + Send>>,
    /// The record being written.
    record: Vec<u8>,
    snaplen: u32,
    /// Added to the monotonic clock, gives the time of day, ns.
    epoch_offset_ns: u64,
    /// Losses of a writer that stores records later.
    lost: Option<Arc<AtomicU64>>,
}

impl PcapWriter {
    /// Writes the file header. `epoch_offset_ns` is the time of day less the monotonic clock, both read by the caller.
    pub fn new(
        mut out: Box<dyn Write + Send>,
        snaplen: u32,
        epoch_offset_ns: u64,
    ) -> io::Result<Self> {
        let snaplen = snaplen.clamp(64, SNAPLEN_MAX);
        let mut header = [0; PCAP_HEADER_LEN];
        header[0..4].copy_from_slice(&MAGIC_NS.to_le_bytes());
        // Format version 2.4; time zone and accuracy stay 0.
        header[4..6].copy_from_slice(&2u16.to_le_bytes());
        header[6..8].copy_from_slice(&4u16.to_le_bytes());
        header[16..20].copy_from_slice(&snaplen.to_le_bytes());
        header[20..24].copy_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
        out.write_all(&header)?;
        Ok(Self { out: Some(out), record: Vec::new(), snaplen, epoch_offset_ns, lost: None })
    }

    /// For a writer that takes records now and stores them later: `lost` is where it counts records that it could not
    /// store.
    #[must_use]
    pub fn with_later_losses(mut self, lost: Arc<AtomicU64>) -> Self {
        self.lost = Some(lost);
        self
    }

    /// Writes one frame, given in parts, cut at the snapshot length.
    pub fn write(&mut self, now: Instant, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let Some(out) = &mut self.out else {
            return Err(io::Error::other("the capture ended at an earlier error"));
        };
        let at_ns = now.as_nanos() + self.epoch_offset_ns;
        fill_record(&mut self.record, self.snaplen, at_ns, parts);
        // A regular file may take part of a write.
        let mut left = &self.record[..];
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
            // Nothing of this record is in the file, so the next one can follow.
            let refused_whole =
                left.len() == self.record.len() && error.kind() == io::ErrorKind::WouldBlock;
            if !refused_whole {
                self.out = None;
            }
            return Err(error);
        }
        Ok(())
    }

    /// Writes buffered records to the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), |out| out.flush())
    }

    /// Records that the writer took and could not store.
    pub fn lost_later(&self) -> u64 {
        self.lost.as_ref().map_or(0, |lost| lost.load(Ordering::Relaxed))
    }
}

impl fmt::Debug for PcapWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PcapWriter").field("snaplen", &self.snaplen).finish_non_exhaustive()
    }
}

/// Builds a record: time stamp, kept length, original length, bytes.
fn fill_record(record: &mut Vec<u8>, snaplen: u32, at_ns: u64, parts: &[IoSlice<'_>]) {
    let whole = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
    let kept = whole.min(snaplen);
    let mut header = [0; PCAP_RECORD_HEADER_LEN];
    header[0..4].copy_from_slice(&((at_ns / 1_000_000_000) as u32).to_le_bytes());
    header[4..8].copy_from_slice(&((at_ns % 1_000_000_000) as u32).to_le_bytes());
    header[8..12].copy_from_slice(&kept.to_le_bytes());
    header[12..16].copy_from_slice(&whole.to_le_bytes());
    record.clear();
    record.extend_from_slice(&header);
    let mut left = kept as usize;
    for part in parts {
        let take = left.min(part.len());
        record.extend_from_slice(&part[..take]);
        left -= take;
    }
}

/// Length of the record at the start of `bytes`, from its header; `None` if the header is incomplete.
pub fn pcap_record_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<PCAP_RECORD_HEADER_LEN>()?;
    let kept = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    Some(PCAP_RECORD_HEADER_LEN + kept as usize)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Written bytes, the most it takes, and whether it refuses every write for now.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>, usize, Arc<Mutex<bool>>);

    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            if *self.2.lock().unwrap() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
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
        let sink = Sink(Arc::default(), 24 + 20, Arc::default());
        let mut pcap = PcapWriter::new(Box::new(sink.clone()), 65536, 0).unwrap();
        assert!(pcap.write(Instant(0), &[IoSlice::new(&[0; 60])]).is_err());
        let torn = sink.0.lock().unwrap().len();
        assert!(pcap.write(Instant(0), &[IoSlice::new(&[0; 1])]).is_err());
        assert_eq!(sink.0.lock().unwrap().len(), torn);
    }

    #[test]
    fn a_record_that_is_refused_whole_is_left_out_and_the_next_one_is_written() {
        let sink = Sink::default();
        let mut pcap = PcapWriter::new(Box::new(sink.clone()), 65536, 0).unwrap();
        *sink.2.lock().unwrap() = true;
        assert!(pcap.write(Instant(0), &[IoSlice::new(&[1; 60])]).is_err());
        *sink.2.lock().unwrap() = false;
        pcap.write(Instant(0), &[IoSlice::new(&[2; 50])]).unwrap();
        let bytes = sink.0.lock().unwrap().clone();
        let record = &bytes[PCAP_HEADER_LEN..];
        assert_eq!(pcap_record_len(record), Some(16 + 50));
        assert_eq!(record.len(), 16 + 50);
        assert_eq!(pcap_record_len(&record[..15]), None);
    }
}
