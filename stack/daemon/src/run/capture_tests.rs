use std::sync::mpsc::{self, Receiver, Sender};

use skbudget_controller::Instant;
use skbudget_stack::tap::PcapWriter;

use super::*;

/// Longer than any wait that makes progress.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

const FRAME: usize = 100;
const RECORD: usize = 16 + FRAME;

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
    pcap: PcapWriter,
    capture: Capture,
    holds: Arc<Mutex<Vec<u8>>>,
}

fn setup(room: usize, gate: Option<Receiver<()>>) -> Setup {
    let holds = Arc::<Mutex<Vec<u8>>>::default();
    let disk = Disk { holds: Arc::clone(&holds), room, gate };
    let (recorder, capture) = start_with(disk, "test".to_owned()).unwrap();
    let pcap = PcapWriter::new(Box::new(recorder), 65_536, 0).unwrap();
    Setup { pcap: pcap.with_later_losses(capture.lost()), capture, holds }
}

impl Setup {
    fn write(&mut self, frames: usize) {
        for _ in 0..frames {
            self.pcap.write(Instant(0), &[io::IoSlice::new(&[7; FRAME])]).unwrap();
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
    assert_eq!(setup.len(), PCAP_HEADER_LEN + 1000 * RECORD);
    assert_eq!(setup.pcap.lost_later(), 0);
}

#[test]
fn a_full_disk_leaves_whole_records_and_every_other_frame_is_counted() {
    for room in
        [0, 10, PCAP_HEADER_LEN, PCAP_HEADER_LEN + 5 * RECORD + 50, PCAP_HEADER_LEN + 6 * RECORD]
    {
        let mut setup = setup(room, None);
        setup.write(3);
        setup.write(7);
        let failed = setup.capture.settle(LONG);
        assert!(failed.unwrap_err().contains("No space left"));
        setup.write(5);
        let whole = room.saturating_sub(PCAP_HEADER_LEN) / RECORD;
        let header = if room < PCAP_HEADER_LEN { 0 } else { PCAP_HEADER_LEN };
        assert_eq!(setup.len(), header + whole * RECORD, "room for {room}");
        assert_eq!(setup.pcap.lost_later(), 15 - whole as u64, "room for {room}");
    }
}

#[test]
fn a_reader_that_stalls_blocks_nobody_and_the_loss_is_counted() {
    let (go, gate): (Sender<()>, _) = mpsc::channel();
    let mut setup = setup(usize::MAX, Some(gate));
    // More than the queue holds: this ends only if no write blocks.
    let frames = 2 * QUEUE_MAX / RECORD;
    setup.write(frames);
    let lost = setup.pcap.lost_later() as usize;
    let queued = (QUEUE_MAX - PCAP_HEADER_LEN) / RECORD;
    assert!(lost > 0 && frames - lost >= queued, "{lost} of {frames}");
    // The end does not block either.
    setup.capture.settle(SHORT).unwrap();
    // The target is read again: all that was accepted arrives.
    for _ in 0..3 {
        let _ = go.send(());
    }
    setup.capture.settle(LONG).unwrap();
    assert_eq!(setup.len(), PCAP_HEADER_LEN + (frames - lost) * RECORD);
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
