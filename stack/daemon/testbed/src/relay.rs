//! A cable with impairments by a seed: forwards frames between two descriptors with delay, loss, reordering,
//! duplication and a rate limit for each direction. It replaces `netem`, which not every kernel has.
//!
//! The simulator's own `Link` decides about each frame: the n-th TCP frame of a direction is treated alike in every run
//! of a seed, whatever connection it belongs to. Other frames (ARP, neighbour discovery) are only delayed. The devices
//! must not use offload: a super-frame would be one loss instead of forty, so it is dropped and counted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use skbudget_sim::{Fate, Link, LinkConfig, LinkStats, Mishap, Rng};
use skbudget_stack::controller::Instant;
use skbudget_stack::tap::{CaptureWriter, Direction};

/// Maximum length of a frame, bytes: an Ethernet header and an MTU of 1500.
pub const FRAME_MAX: usize = 1514;
/// Frames read from one side before the other is served.
const BATCH: usize = 64;
/// Longest wait, after which the stop flag is checked.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// Direction of a frame. `Up`: from the left descriptor to the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Up,
    Down,
}

/// What happened to the frames.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub up: LinkStats,
    pub down: LinkStats,
    /// Time from the start, direction and impairment; the latest 4096 of each direction.
    pub log: Vec<(Instant, Way, Mishap)>,
    /// Frames that the receiving device did not take: losses that the seed did not plan.
    pub full: u64,
    /// Frames longer than [`FRAME_MAX`], which are dropped.
    pub oversized: u64,
}

/// A running relay. Dropped without `stop`, it ends without a report.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Report>>,
}

impl Relay {
    /// Both descriptors must be non-blocking and return one frame in each read. `capture` records every frame as the
    /// left side sends and receives it.
    pub fn start(
        left: OwnedFd,
        right: OwnedFd,
        up: LinkConfig,
        down: LinkConfig,
        seed: u64,
        capture: Option<CaptureWriter>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let mut cable = Cable {
            began: Clock::now(),
            ends: [left.into(), right.into()],
            links: [Link::new(up, Rng::fork(seed, 0)), Link::new(down, Rng::fork(seed, 1))],
            delays: [up.delay, down.delay],
            queue: BinaryHeap::new(),
            count: 0,
            free: Vec::new(),
            capture,
            full: 0,
            oversized: 0,
        };
        let work = move || {
            cable.run(&flag);
            cable.report()
        };
        let thread = std::thread::Builder::new().name("relay".to_owned()).spawn(work).unwrap();
        Self { stop, thread: Some(thread) }
    }

    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().unwrap()).unwrap_or_default()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A delayed frame: its arrival time, its number, its direction.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    at: Instant,
    number: u64,
    way: Way,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Cable {
    began: Clock,
    ends: [std::fs::File; 2],
    links: [Link; 2],
    delays: [Duration; 2],
    queue: BinaryHeap<Reverse<Flying>>,
    count: u64,
    free: Vec<Vec<u8>>,
    capture: Option<CaptureWriter>,
    full: u64,
    oversized: u64,
}

impl Cable {
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.deliver();
            let more = self.take(Way::Up) | self.take(Way::Down);
            if !more {
                self.wait();
            }
        }
    }

    fn now(&self) -> Instant {
        Instant(self.began.elapsed().as_nanos() as u64)
    }

    fn wait(&self) {
        let now = self.now();
        let next = self.queue.peek().map(|Reverse(flying)| flying.at.since(now));
        let wait = TimeSpec::from(next.map_or(WAIT_MAX, |next| next.min(WAIT_MAX)));
        let ends = self.ends.each_ref();
        let mut fds = ends.map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        let _ = ppoll(&mut fds, Some(wait), Some(SigSet::empty()));
    }

    /// Reads the frames that one end sent. True when more may be pending.
    fn take(&mut self, way: Way) -> bool {
        for _ in 0..BATCH {
            let mut frame = self.free.pop().unwrap_or_default();
            frame.resize(FRAME_MAX + 1, 0);
            match (&self.ends[way as usize]).read(&mut frame) {
                Ok(1..) if frame.len() <= 1 => {}
                Ok(n @ 1..) => {
                    frame.truncate(n);
                    self.offer(way, frame);
                }
                Ok(_) => return false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // WouldBlock. Any other error means that the end is closed; the owner then stops the relay.
                Err(_) => {
                    self.free.push(frame);
                    return false;
                }
            }
        }
        true
    }

    fn offer(&mut self, way: Way, frame: Vec<u8>) {
        let now = self.now();
        if way == Way::Up {
            self.note(now, &frame);
        }
        if frame.len() > FRAME_MAX {
            self.oversized += 1;
            return;
        }
        let fate = if is_tcp(&frame) {
            self.links[way as usize].offer(now, 0, frame.len())
        } else {
            Fate::Arrives { at: now + self.delays[way as usize], again: None, corrupt: None }
        };
        if let Fate::Arrives { at, again, corrupt } = fate {
            let mut frame = frame;
            if let Some((byte, bits)) = corrupt {
                frame[byte] ^= bits;
            }
            if let Some(at) = again {
                self.fly(at, way, frame.clone());
            }
            self.fly(at, way, frame);
        } else {
            self.free.push(frame);
        }
    }

    fn fly(&mut self, at: Instant, way: Way, frame: Vec<u8>) {
        self.count += 1;
        self.queue.push(Reverse(Flying { at, number: self.count, way, frame }));
    }

    /// Writes the frames that are due.
    fn deliver(&mut self) {
        let now = self.now();
        while self.queue.peek().is_some_and(|Reverse(flying)| flying.at <= now) {
            let Some(Reverse(flying)) = self.queue.pop() else { break };
            let to = match flying.way {
                Way::Up => 1,
                Way::Down => 0,
            };
            if (&self.ends[to]).write(&flying.frame).is_err() {
                self.full += 1;
            } else if flying.way == Way::Down {
                self.note(now, &flying.frame);
            }
            self.free.push(flying.frame);
        }
    }

    fn note(&mut self, now: Instant, frame: &[u8]) {
        if let Some(capture) = &mut self.capture {
            let _ = capture.write(now, Direction::Unknown, &[IoSlice::new(frame)]);
        }
    }

    fn report(&mut self) -> Report {
        if let Some(capture) = &mut self.capture {
            let _ = capture.flush();
        }
        let of = |link: &Link, way| -> Vec<_> {
            link.mishaps().map(|&(at, what)| (at, way, what)).collect()
        };
        let mut log = of(&self.links[0], Way::Up);
        log.extend(of(&self.links[1], Way::Down));
        log.sort_by_key(|&(at, way, _)| (at, way));
        let [up, down] = self.links.each_ref().map(Link::stats);
        Report { up, down, log, full: self.full, oversized: self.oversized }
    }
}

/// Whether a frame carries TCP over IPv4, or over IPv6 without extension headers.
fn is_tcp(frame: &[u8]) -> bool {
    match (frame.get(12..14), frame.get(23), frame.get(20)) {
        (Some([0x08, 0x00]), Some(6), _) => true,
        (Some([0x86, 0xdd]), _, Some(next)) => *next == 6,
        _ => false,
    }
}
