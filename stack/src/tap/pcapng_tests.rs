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

fn head(snaplen: u32) -> CaptureHead {
    CaptureHead {
        ifname: "eth0".to_owned(),
        comment: "container web".to_owned(),
        filter: "tcp".to_owned(),
        snaplen,
        epoch_offset_ns: 1 << 60,
    }
}

fn writer(sink: &Sink, snaplen: u32) -> CaptureWriter {
    CaptureWriter::new(Box::new(sink.clone()), &head(snaplen)).unwrap()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Type and body of every block. Lengths at both ends agree, and blocks are aligned.
fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let len = block_len(bytes).unwrap();
        assert_eq!(len % 4, 0);
        assert_eq!(word(bytes, len - 4) as usize, len);
        found.push((word(bytes, 0), bytes[8..len - 4].to_vec()));
        bytes = &bytes[len..];
    }
    found
}

/// Code and value of every option.
fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    loop {
        let code = u16::from_le_bytes([bytes[0], bytes[1]]);
        let len = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        if code == 0 {
            assert_eq!((len, bytes.len()), (0, 4));
            return found;
        }
        found.push((code, bytes[4..4 + len].to_vec()));
        bytes = &bytes[4 + len.next_multiple_of(4)..];
    }
}

#[test]
fn the_head_names_program_container_interface_and_filter() {
    let found = blocks(&head(100).blocks());
    let [(SECTION_HEADER, section), (INTERFACE, interface)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(section[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
    let options_of_section = options(&section[16..]);
    assert!(options_of_section[0].1.starts_with(b"skbudget "));
    assert_eq!(options_of_section[1], (OPT_COMMENT, b"container web".to_vec()));
    assert_eq!(interface[..8], [1, 0, 0, 0, 100, 0, 0, 0]);
    let expected =
        [(IF_NAME, b"eth0".to_vec()), (IF_TSRESOL, vec![9]), (IF_FILTER, b"\0tcp".to_vec())];
    assert_eq!(options(&interface[8..]), expected);
}

#[test]
fn a_frame_in_parts_is_one_block_cut_at_snaplen() {
    let sink = Sink::default();
    let mut capture = writer(&sink, 66);
    let parts = [IoSlice::new(&[1; 40]), IoSlice::new(&[2; 40])];
    capture.write(Instant(5), Direction::Outbound, &parts).unwrap();
    capture.write(Instant(6), Direction::Unknown, &parts[..1]).unwrap();
    let found = blocks(&sink.0.lock().unwrap());
    let (kind, packet) = &found[2];
    assert_eq!(*kind, PACKET);
    // Interface, time stamp, kept and original length.
    assert_eq!([0, 4, 8, 12, 16].map(|at| word(packet, at)), [0, 1 << 28, 5, 66, 80]);
    assert_eq!(packet[20 + 39..20 + 41], [1, 2]);
    assert_eq!(packet[20 + 65..20 + 68], [2, 0, 0]);
    assert_eq!(options(&packet[20 + 68..]), [(EPB_FLAGS, vec![2, 0, 0, 0])]);
    assert_eq!(found[3].1.len(), 20 + 40, "no options");
}

#[test]
fn statistics_have_their_length() {
    let block = statistics_block(10, 3, 7);
    assert_eq!(block.len(), STATISTICS_BYTES);
    let found = blocks(&block);
    assert_eq!(found[0].0, STATISTICS);
    let (received, dropped) = (10u64.to_le_bytes().to_vec(), 3u64.to_le_bytes().to_vec());
    assert_eq!(options(&found[0].1[12..]), [(ISB_IFRECV, received), (ISB_IFDROP, dropped)]);
    assert!(!is_packet(&block) && block_len(&block[..7]).is_none());
    assert_eq!(dropped_frames(&block), Some(3));
    assert_eq!(dropped_frames(&block[..51]), None);
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    let sink = Sink(Arc::default(), head(65536).blocks().len() + 20, Arc::default());
    let mut capture = writer(&sink, 65536);
    assert!(capture.write(Instant(0), Direction::Unknown, &[IoSlice::new(&[0; 60])]).is_err());
    let torn = sink.0.lock().unwrap().len();
    assert!(capture.write(Instant(0), Direction::Unknown, &[IoSlice::new(&[0; 1])]).is_err());
    assert_eq!(sink.0.lock().unwrap().len(), torn);
}

#[test]
fn a_block_that_is_refused_whole_is_left_out_and_the_next_one_is_written() {
    let sink = Sink::default();
    let mut capture = writer(&sink, 65536);
    *sink.2.lock().unwrap() = true;
    assert!(capture.write(Instant(0), Direction::Unknown, &[IoSlice::new(&[1; 60])]).is_err());
    *sink.2.lock().unwrap() = false;
    capture.write(Instant(0), Direction::Unknown, &[IoSlice::new(&[2; 52])]).unwrap();
    let found = blocks(&sink.0.lock().unwrap());
    assert_eq!(found.len(), 3);
    assert_eq!(found[2].1[20..], [2; 52]);
}

#[test]
fn frames_that_the_filter_leaves_out_and_those_after_the_end_are_not_written() {
    let sink = Sink::default();
    let ended = Arc::new(AtomicBool::new(false));
    let mut capture = writer(&sink, 65536)
        .with_filter(Box::new(|parts| parts[0][0] == 1))
        .until(Arc::clone(&ended));
    for first in [1, 2, 1] {
        capture.write(Instant(0), Direction::Inbound, &[IoSlice::new(&[first; 60])]).unwrap();
    }
    assert_eq!(blocks(&sink.0.lock().unwrap()).len(), 2 + 2);
    assert!(!capture.has_ended());
    ended.store(true, Ordering::Relaxed);
    capture.write(Instant(0), Direction::Inbound, &[IoSlice::new(&[1; 60])]).unwrap();
    assert_eq!(blocks(&sink.0.lock().unwrap()).len(), 2 + 2);
    assert!(capture.has_ended());
}
