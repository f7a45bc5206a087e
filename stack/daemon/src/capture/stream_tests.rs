use std::io::IoSlice;
use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use skbudget_controller::Instant;
use skbudget_stack::tap::{Direction, block_len};

use super::*;

/// Counts wake-ups.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn spec(bytes_max: Option<u64>, filter: Option<&str>) -> CaptureSpec {
    let head = CaptureHead { snaplen: 65_536, ..CaptureHead::default() };
    CaptureSpec { head, filter: filter.map(|text| Filter::parse(text).unwrap()), bytes_max }
}

fn write(writer: &mut CaptureWriter, frames: usize, len: usize) {
    for _ in 0..frames {
        writer.write(Instant(0), Direction::Inbound, &[IoSlice::new(&vec![7; len])]).unwrap();
    }
}

/// All that the client gets now; the end is true when nothing follows.
fn read(stream: &mut Stream) -> (Vec<u8>, bool) {
    let waker = Waker::from(Arc::new(Woken::default()));
    let mut all = Vec::new();
    loop {
        match stream.poll_next(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(bytes)) => all.extend(bytes),
            Poll::Ready(None) => return (all, true),
            Poll::Pending => return (all, false),
        }
    }
}

/// Frames, and the last statistics: frames of the device, frames dropped.
fn counted(mut bytes: &[u8]) -> (usize, Option<[u64; 2]>) {
    let (mut frames, mut last) = (0, None);
    while !bytes.is_empty() {
        let len = block_len(bytes).unwrap();
        let (block, rest) = bytes.split_at_checked(len).expect("whole blocks");
        frames += usize::from(is_packet(block));
        if block[0] == 5 {
            let number = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
            last = Some([number(24), number(36)]);
        }
        bytes = rest;
    }
    (frames, last)
}

#[test]
fn a_client_is_woken_by_a_flush_and_gets_all_frames_in_order() {
    let (mut writer, mut stream) = Captures::default().start(spec(None, None)).unwrap();
    assert_eq!(counted(&read(&mut stream).0), (0, None));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    assert!(stream.poll_next(&mut Context::from_waker(&waker)).is_pending());
    write(&mut writer, 3, 100);
    assert_eq!(woken.0.load(Ordering::Relaxed), 0, "not within a burst");
    writer.flush().unwrap();
    writer.flush().unwrap();
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert_eq!(counted(&read(&mut stream).0), (3, None));
    // The container ends.
    write(&mut writer, 2, 100);
    drop(writer);
    let (bytes, end) = read(&mut stream);
    assert_eq!((counted(&bytes), end), ((2, Some([5, 0])), true));
}

#[test]
fn a_client_that_is_slow_loses_frames_and_the_capture_counts_them() {
    let (mut writer, mut stream) = Captures::default().start(spec(None, None)).unwrap();
    let frames = 2 * QUEUE_MAX / 1000;
    // This ends only if no write blocks.
    write(&mut writer, frames, 1000);
    let lost = writer.lost_later();
    assert!(lost as usize > frames / 3, "{lost} of {frames}");
    let (bytes, end) = read(&mut stream);
    assert!(bytes.len() <= QUEUE_MAX + STATISTICS_BYTES && !end);
    let taken = frames - lost as usize;
    assert_eq!(counted(&bytes), (taken, Some([frames as u64, lost])));
    // There is room again, and no new loss to report.
    write(&mut writer, 1, 1000);
    assert_eq!(counted(&read(&mut stream).0), (1, None));
    stream.end();
    let (bytes, end) = read(&mut stream);
    assert_eq!((counted(&bytes), end), ((0, Some([frames as u64 + 1, lost])), true));
    assert!(writer.has_ended());
}

#[test]
fn a_capture_is_never_longer_than_its_bound() {
    for bytes_max in [4096, 5000, 100_000] {
        let spec = spec(Some(bytes_max), None);
        let (mut writer, mut stream) = Captures::default().start(spec).unwrap();
        let mut all = read(&mut stream).0;
        while !writer.has_ended() {
            write(&mut writer, 7, 333);
            all.extend(read(&mut stream).0);
        }
        all.extend(read(&mut stream).0);
        let len = all.len() as u64;
        assert!(len <= bytes_max && len + 500 > bytes_max, "{len} of {bytes_max}");
        let (frames, last) = counted(&all);
        assert_eq!(last, Some([frames as u64, 0]));
        write(&mut writer, 1, 10);
        assert_eq!(read(&mut stream), (Vec::new(), true));
    }
}

#[test]
fn a_filter_selects_frames() {
    let (mut writer, mut stream) = Captures::default().start(spec(None, Some("arp"))).unwrap();
    write(&mut writer, 3, 60);
    let mut arp = [7; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    writer.write(Instant(0), Direction::Inbound, &[IoSlice::new(&arp)]).unwrap();
    stream.end();
    assert_eq!(counted(&read(&mut stream).0), (1, Some([1, 0])));
}

#[test]
fn captures_are_bounded_in_number_and_one_that_ends_makes_room() {
    let captures = Captures::default();
    let mut all: Vec<_> =
        (0..CAPTURES_MAX).map(|_| captures.start(spec(None, None)).unwrap()).collect();
    assert!(captures.start(spec(None, None)).is_none());
    let (writer, stream) = all.remove(0);
    drop(stream);
    assert!(writer.has_ended());
    // Although an idle worker may keep the writer.
    all.push(captures.start(spec(None, None)).unwrap());
    captures.end_all();
    for (_, stream) in &mut all {
        assert!(read(stream).1);
    }
}
