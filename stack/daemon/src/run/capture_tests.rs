use std::sync::mpsc::{self, Receiver, Sender};

use skbudget_controller::Instant;
use skbudget_stack::tap::{CaptureHead, CaptureWriter, Direction, STATISTICS_BYTES};

use super::*;

/// Longer than any wait that makes progress.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

const FRAME: usize = 100;
/// Length of a frame's block: head, frame, direction, end of the options, length.
const BLOCK: usize = 28 + FRAME + 8 + 4 + 4;

fn head() -> CaptureHead {
    CaptureHead { snaplen: 65_536, ..CaptureHead::default() }
}

/// Takes `room` bytes, then fails. With a gate, each write waits until the test opens it.
struct Disk {
    holds: Arc<Mutex<Vec<u8>>>,
    room: usize,
    gate: Option<Receiver<()>>,
}

impl Target for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(gate) = &self.gate {
            gate.recv().map_err(|_| Errno::EPIPE)?;
        }
        let n = bytes.len().min(self.room);
        if n == 0 {
            return Err(Errno::ENOSPC.into());
        }
        self.room -= n;
        self.holds.lock().unwrap().extend_from_slice(&bytes[..n]);
        Ok(n)
    }
    fn cut(&mut self, len: u64) {
        self.holds.lock().unwrap().truncate(len as usize);
    }
}

struct Setup {
    pcap: CaptureWriter,
    capture: Capture,
    holds: Arc<Mutex<Vec<u8>>>,
}

fn setup(room: usize, gate: Option<Receiver<()>>) -> Setup {
    let holds = Arc::<Mutex<Vec<u8>>>::default();
    let disk = Disk { holds: Arc::clone(&holds), room, gate };
    let (recorder, capture) = start_with(disk, "test".to_owned()).unwrap();
    let pcap = CaptureWriter::new(Box::new(recorder), &head()).unwrap();
    Setup { pcap: pcap.with_later_losses(capture.lost()), capture, holds }
}

impl Setup {
    fn write(&mut self, frames: usize) {
        for _ in 0..frames {
            let frame = [io::IoSlice::new(&[7; FRAME])];
            self.pcap.write(Instant(0), Direction::Inbound, &frame).unwrap();
        }
        self.pcap.flush().unwrap();
    }
    fn len(&self) -> usize {
        self.holds.lock().unwrap().len()
    }
}

#[test]
fn everything_is_written_in_order() {
    let mut setup = setup(usize::MAX, None);
    for _ in 0..50 {
        setup.write(20);
    }
    setup.capture.settle(LONG).unwrap();
    assert_eq!(setup.len(), head().blocks().len() + 1000 * BLOCK);
    assert_eq!(setup.pcap.lost_later(), 0);
}

#[test]
fn a_full_disk_leaves_whole_blocks_and_every_other_frame_is_counted() {
    let start = head().blocks().len();
    for room in [0, 10, start, start + 5 * BLOCK + 50, start + 6 * BLOCK] {
        let mut setup = setup(room, None);
        setup.write(3);
        setup.write(7);
        let failed = setup.capture.settle(LONG);
        assert!(failed.unwrap_err().contains("No space left"));
        setup.write(5);
        let whole = room.saturating_sub(start) / BLOCK;
        let head = if room < start { 0 } else { start };
        assert_eq!(setup.len(), head + whole * BLOCK, "room for {room}");
        assert_eq!(setup.pcap.lost_later(), 15 - whole as u64, "room for {room}");
    }
}

#[test]
fn a_reader_that_stalls_blocks_nobody_and_the_loss_is_counted() {
    let (go, gate): (Sender<()>, _) = mpsc::channel();
    let mut setup = setup(usize::MAX, Some(gate));
    // More than the queue holds: this ends only if no write blocks.
    let frames = 2 * QUEUE_MAX / BLOCK;
    setup.write(frames);
    let lost = setup.pcap.lost_later() as usize;
    let queued = (QUEUE_MAX - head().blocks().len()) / BLOCK;
    assert!(lost > 0 && frames - lost >= queued, "{lost} of {frames}");
    // The end does not block either.
    setup.capture.settle(SHORT).unwrap();
    // The target is read again: all that was accepted arrives.
    for _ in 0..3 {
        let _ = go.send(());
    }
    setup.capture.settle(LONG).unwrap();
    assert_eq!(setup.len(), head().blocks().len() + (frames - lost) * BLOCK);
}

#[test]
fn what_was_taken_and_is_not_written_at_the_end_is_counted() {
    let (_go, gate): (Sender<()>, _) = mpsc::channel();
    let mut setup = setup(usize::MAX, Some(gate));
    setup.write(10);
    setup.capture.clone().end(SHORT);
    assert_eq!(setup.pcap.lost_later(), 10);
    setup.write(1);
    assert_eq!(setup.pcap.lost_later(), 11);
}

#[test]
fn the_capture_ends_with_its_statistics() {
    let mut setup = setup(usize::MAX, None);
    setup.write(10);
    setup.capture.settle(LONG).unwrap();
    let before = setup.len();
    let holds = Arc::clone(&setup.holds);
    setup.capture.end(LONG);
    let holds = holds.lock().unwrap();
    assert_eq!(holds.len(), before + STATISTICS_BYTES);
    // Frames of the device, and those of them that are missing.
    assert_eq!(holds[before + 24..before + 32], 10u64.to_le_bytes());
    assert_eq!(holds[before + 36..before + 44], 0u64.to_le_bytes());
}
