//! One direction of the link between a guest and its stack: serialisation at a rate, a bounded queue, a delay, and
//! seeded faults.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use skbudget_controller::Instant;
use skbudget_seed::Rng;

/// What happens to a frame that finds the queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The sender keeps it and may retry, as with a kernel that has stopped the device queue.
    Refuse,
    /// It is lost, as in a TAP with a full ring.
    Drop,
}

/// Fault rates, each in frames per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Frames that are lost.
    pub loss: u32,
    /// Frames that arrive twice.
    pub duplicate: u32,
    /// One byte after the Ethernet header is changed.
    pub corrupt: u32,
    /// Delayed by `reorder_by`, so that later frames overtake it.
    pub reorder: u32,
    /// Additional delay of a reordered frame.
    pub reorder_by: Duration,
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkConfig {
    /// One-way delay after the last bit was sent.
    pub delay: Duration,
    /// Rate; `None`: no serialisation time.
    pub bits_per_second: Option<u64>,
    /// Most frames in the queue, the one being sent included.
    pub queue_frames: usize,
    /// What happens to a frame that finds the queue full.
    pub when_full: WhenFull,
    /// Frames up to this length, of flows with nothing queued, do not wait behind frames of other flows, as in a queue
    /// that is fair between flows: it favours ACKs and requests. No frame overtakes another of its own flow, because
    /// smoltcp drops data with an older ACK field than the last one received. 0: one queue for all.
    pub express_max: usize,
    /// Fault rates.
    pub faults: Faults,
}

impl Default for LinkConfig {
    /// A quarter of a 100 us round trip, 10 Gbit/s, 256 frames.
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(25),
            bits_per_second: Some(10_000_000_000),
            queue_frames: 256,
            when_full: WhenFull::Refuse,
            express_max: 0,
            faults: Faults::default(),
        }
    }
}

/// Frame counters, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkStats {
    /// Frames accepted.
    pub frames: u64,
    /// Bytes of these frames.
    pub bytes: u64,
    /// Frames that the full queue refused.
    pub refused: u64,
    /// Frames that the full queue dropped.
    pub dropped_full: u64,
    /// Frames lost.
    pub lost: u64,
    /// Frames that arrived twice.
    pub duplicated: u64,
    /// Frames with changed bits.
    pub corrupted: u64,
    /// Frames delayed behind later ones.
    pub reordered: u64,
}

/// What happened to a frame that did not arrive as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The queue was full.
    Full,
    /// Lost by a fault.
    Lost,
    /// Arrived twice.
    Duplicated,
    /// Arrived with changed bits.
    Corrupted,
    /// Arrived behind later frames.
    Reordered,
}

/// The fate of an offered frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The sender keeps it.
    Refused,
    /// It never arrives.
    Gone,
    /// It arrives.
    Arrives {
        /// Time of arrival.
        at: Instant,
        /// A second copy.
        again: Option<Instant>,
        /// Offset of the byte to change, and the mask to XOR it with.
        corrupt: Option<(usize, u8)>,
    },
}

/// A link's state: it decides when each frame arrives.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    rng: Rng,
    busy_until: Instant,
    express_until: Instant,
    /// When the last queued frame of each flow will have been sent.
    flows: BTreeMap<u64, Instant>,
    /// When each frame of the queue will have been sent.
    departures: VecDeque<Instant>,
    stats: LinkStats,
    mishaps: VecDeque<(Instant, Mishap)>,
    refused_since_room: bool,
}

/// The log keeps this many of the latest mishaps; the counters count all.
const MISHAPS_MAX: usize = 4096;

impl Link {
    /// An idle link. `rng` decides the faults.
    pub fn new(config: LinkConfig, rng: Rng) -> Self {
        Self {
            config,
            rng,
            busy_until: Instant::default(),
            express_until: Instant::default(),
            flows: BTreeMap::new(),
            departures: VecDeque::new(),
            stats: LinkStats::default(),
            mishaps: VecDeque::new(),
            refused_since_room: false,
        }
    }

    /// Frames that the queue takes now.
    pub fn room(&mut self, now: Instant) -> usize {
        while self.departures.front().is_some_and(|d| *d <= now) {
            self.departures.pop_front();
        }
        self.config.queue_frames.saturating_sub(self.departures.len())
    }

    /// True if a sender without room keeps its frame.
    pub fn refuses(&self) -> bool {
        self.config.when_full == WhenFull::Refuse
    }
    /// Records that the sender found no room and needs an event when there is some.
    pub fn want_room(&mut self) {
        self.refused_since_room = true;
    }

    /// When there is room again, if a sender was refused since the last call.
    pub fn take_room_at(&mut self) -> Option<Instant> {
        if std::mem::take(&mut self.refused_since_room) {
            self.departures.front().copied()
        } else {
            None
        }
    }

    /// Sends a frame of `len` bytes. `flow` is any number that distinguishes flows.
    pub fn offer(&mut self, now: Instant, flow: u64, len: usize) -> Fate {
        if self.room(now) == 0 {
            return match self.config.when_full {
                WhenFull::Refuse => {
                    self.stats.refused += 1;
                    self.refused_since_room = true;
                    Fate::Refused
                }
                WhenFull::Drop => {
                    self.stats.dropped_full += 1;
                    self.note(now, Mishap::Full);
                    Fate::Gone
                }
            };
        }
        self.stats.frames += 1;
        self.stats.bytes += len as u64;
        let wire = self.config.bits_per_second.map_or(0, |bps| {
            (len as u128 * 8 * 1_000_000_000).div_ceil(u128::from(bps.max(1))) as u64
        });
        let wire = Duration::from_nanos(wire);
        // Nothing of this flow is queued, so the frame cannot overtake its own.
        let alone = self.flows.get(&flow).is_none_or(|last| *last <= now);
        let sent = if len <= self.config.express_max && alone {
            // The link's time is shared: the frame delays those that it overtakes.
            self.express_until = self.express_until.max(now) + wire;
            self.busy_until = self.busy_until.max(now) + wire;
            self.express_until
        } else {
            self.busy_until = self.busy_until.max(now) + wire;
            self.departures.push_back(self.busy_until);
            if self.config.express_max > 0 {
                self.flows.insert(flow, self.busy_until);
            }
            self.busy_until
        };
        self.fate(now, sent, len)
    }

    /// Draws the faults of a frame. The order of the draws is part of what a seed means.
    fn fate(&mut self, now: Instant, sent: Instant, len: usize) -> Fate {
        let faults = self.config.faults;
        if self.rng.chance(faults.loss) {
            self.stats.lost += 1;
            self.note(now, Mishap::Lost);
            return Fate::Gone;
        }
        let mut at = sent + self.config.delay;
        if self.rng.chance(faults.reorder) {
            self.stats.reordered += 1;
            self.note(now, Mishap::Reordered);
            at = at + faults.reorder_by;
        }
        let again = self.rng.chance(faults.duplicate).then(|| {
            self.stats.duplicated += 1;
            self.note(now, Mishap::Duplicated);
            // The copy arrives one more delay later.
            at + self.config.delay
        });
        let corrupt = (len > 14 && self.rng.chance(faults.corrupt)).then(|| {
            self.stats.corrupted += 1;
            self.note(now, Mishap::Corrupted);
            // The Ethernet header stays intact, so that the fault reaches the checks of IP and TCP.
            let byte = 14 + self.rng.below(len as u64 - 14) as usize;
            (byte, 1 << self.rng.below(8))
        });
        Fate::Arrives { at, again, corrupt }
    }

    fn note(&mut self, now: Instant, what: Mishap) {
        if self.mishaps.len() == MISHAPS_MAX {
            self.mishaps.pop_front();
        }
        self.mishaps.push_back((now, what));
    }

    /// A copy of the counters.
    pub fn stats(&self) -> LinkStats {
        self.stats
    }
    /// The latest mishaps, oldest first.
    pub fn mishaps(&self) -> impl Iterator<Item = &(Instant, Mishap)> {
        self.mishaps.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(fate: Fate) -> u64 {
        match fate {
            Fate::Arrives { at, .. } => at.0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn frames_are_serialised_then_delayed() {
        let config = LinkConfig { bits_per_second: Some(8_000_000_000), ..LinkConfig::default() };
        let mut link = Link::new(config, Rng::new(1));
        assert_eq!(at(link.offer(Instant(0), 1, 1000)), 1000 + 25_000);
        assert_eq!(at(link.offer(Instant(0), 1, 500)), 1500 + 25_000);
        assert_eq!(at(link.offer(Instant(9000), 1, 500)), 9500 + 25_000);
    }

    #[test]
    fn sparse_flows_overtake_others_and_never_themselves() {
        let config = LinkConfig {
            bits_per_second: Some(8_000_000_000),
            express_max: 100,
            ..LinkConfig::default()
        };
        let mut link = Link::new(config, Rng::new(1));
        assert_eq!(at(link.offer(Instant(0), 1, 1000)), 1000 + 25_000);
        assert_eq!(at(link.offer(Instant(0), 2, 100)), 100 + 25_000);
        assert_eq!(at(link.offer(Instant(0), 1, 100)), 1200 + 25_000);
        assert_eq!(at(link.offer(Instant(0), 2, 100)), 200 + 25_000);
        // An express frame delays the others by its own time.
        assert_eq!(at(link.offer(Instant(0), 1, 1000)), 2300 + 25_000);
        assert_eq!(at(link.offer(Instant(9000), 1, 100)), 9100 + 25_000);
    }

    #[test]
    fn a_full_queue_refuses_or_drops_and_reports_room() {
        let mut config =
            LinkConfig { bits_per_second: Some(8_000_000_000), ..LinkConfig::default() };
        config.queue_frames = 2;
        let mut link = Link::new(config, Rng::new(1));
        link.offer(Instant(0), 1, 1000);
        link.offer(Instant(0), 1, 1000);
        assert_eq!(link.take_room_at(), None);
        assert_eq!(link.offer(Instant(0), 1, 1000), Fate::Refused);
        assert_eq!(link.take_room_at(), Some(Instant(1000)));
        assert_eq!(link.take_room_at(), None);
        assert_eq!(link.room(Instant(1000)), 1);

        config.when_full = WhenFull::Drop;
        let mut link = Link::new(config, Rng::new(1));
        link.offer(Instant(0), 1, 1000);
        link.offer(Instant(0), 1, 1000);
        assert_eq!(link.offer(Instant(0), 1, 1000), Fate::Gone);
        assert_eq!(link.stats().dropped_full, 1);
        assert_eq!(link.mishaps().count(), 1);
    }

    #[test]
    fn faults_come_at_their_rate_and_are_counted() {
        let faults =
            Faults { loss: 100_000, duplicate: 100_000, corrupt: 100_000, ..Faults::default() };
        let config = LinkConfig { faults, queue_frames: usize::MAX, ..LinkConfig::default() };
        let mut link = Link::new(config, Rng::new(3));
        for _ in 0..10_000 {
            link.offer(Instant(0), 1, 100);
        }
        let s = link.stats();
        for n in [s.lost, s.duplicated, s.corrupted] {
            assert!((800..1200).contains(&n), "{s:?}");
        }
    }
}
