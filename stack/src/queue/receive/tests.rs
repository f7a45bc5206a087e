//! Random operations against a map of bytes: same content, same ranges, and a ledger that matches the queue.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;

use skbudget_controller::{CHUNK_SIZE, MemberId, Rules};

use super::*;
use crate::queue::tests::{NOW, byte, two_flows};
use crate::test_seed::{Seeded, Setting, each_seed};

struct World {
    setting: Setting,
    budget: Budget,
    member: MemberId,
    pool: ChunkPool,
    ledger: ManuallyDrop<Ledger>,
    q: RxQueue,
    /// Another flow of the container, which charges and frees memory.
    other: ManuallyDrop<Ledger>,
    /// The bytes stored from `nxt` on; `nxt` is the first one missing.
    beyond: VecDeque<bool>,
    nxt: u64,
    taken: u64,
}

impl World {
    fn new(setting: Setting) -> Self {
        let (budget, member, [ledger, other]) = two_flows(setting);
        Self {
            setting,
            budget,
            member,
            pool: ChunkPool::new(),
            ledger,
            q: RxQueue::default(),
            other,
            beyond: VecDeque::new(),
            nxt: 0,
            taken: 0,
        }
    }

    fn step(&mut self, rng: &mut Seeded) {
        match rng.below(100) {
            0..20 => self.open(rng.below(60_000) as u64),
            20..26 => self.close(rng.below(20_000) as u64),
            26..50 => self.store(0, 1 + rng.below(9000)),
            50..68 => {
                let offset = rng.below(self.q.room() as usize + 2000) as u64;
                self.store(offset, 1 + rng.below(7000));
            }
            68..86 => self.consume(rng),
            86..90 => self.prune(),
            90..93 => {
                let idle = rng.chance(50);
                self.budget.set_idle(&mut self.ledger, idle, NOW);
            }
            _ => self.other(rng),
        }
        self.check();
    }

    fn open(&mut self, window: u64) {
        let before = self.q.room();
        let room = self.q.open(window, &mut self.budget, &mut self.ledger, NOW);
        assert!(room >= before && room == self.q.room(), "a window that shrank by being opened");
        if matches!(self.setting, Setting::Plenty | Setting::Linux) {
            assert!(room >= window, "there is plenty");
        }
    }

    fn close(&mut self, keep: u64) {
        let before = self.q.room();
        self.q.close_to(keep, &mut self.budget, &mut self.ledger, NOW);
        assert!(self.q.room() >= keep.min(before), "what was to be kept is kept");
    }

    fn store(&mut self, offset: u64, len: usize) {
        let start = self.nxt + offset;
        let data: Vec<u8> = (start..start + len as u64).map(byte).collect();
        let covered = (offset + len as u64) <= self.q.room();
        let many = self.q.ranges.len() >= RANGES_MAX;
        let Self { q, pool, budget, ledger, .. } = self;
        let stored = q.store(offset, &data, pool, budget, ledger, NOW);
        let kept = len - stored.refused as usize;
        if covered && !many && budget.rules() == Rules::Strict {
            assert_eq!(stored.refused, 0, "data within the window has its memory");
        }
        let end = offset as usize + kept;
        if kept > 0 {
            self.beyond.resize(self.beyond.len().max(end), false);
            self.beyond.range_mut(offset as usize..end).for_each(|here| *here = true);
        }
        let before = self.nxt;
        while self.beyond.front() == Some(&true) {
            self.beyond.pop_front();
            self.nxt += 1;
        }
        assert_eq!(stored.advanced, self.nxt - before);
        assert_eq!(stored.out_of_order, offset > 0 && kept > 0);
        if stored.out_of_order {
            let first = self.q.sack_ranges().next().unwrap();
            assert!(first.0 <= start && start < first.1, "the latest range is said first");
        }
    }

    fn consume(&mut self, rng: &mut Seeded) {
        let unread = (self.nxt - self.taken) as usize;
        let n = if rng.chance(30) { unread } else { rng.below(unread + 1) };
        let Self { q, pool, budget, ledger, .. } = self;
        let before = q.room();
        q.consume(n, pool, budget, ledger, NOW);
        assert!(q.room() >= before, "an advertised window is never taken back");
        self.taken += n as u64;
    }

    fn prune(&mut self) {
        let Self { q, pool, budget, ledger, .. } = self;
        let had = q.has_holes();
        assert_eq!(q.prune_ofo(pool, budget, ledger, NOW), had);
        self.beyond.clear();
    }

    fn other(&mut self, rng: &mut Seeded) {
        let chunks = 1 + rng.below(12) as u32;
        if rng.chance(50) {
            self.budget.rx_open(&mut self.other, chunks, NOW);
        } else {
            self.budget.rx_close(&mut self.other, chunks, NOW);
        }
    }

    fn check(&self) {
        let q = &self.q;
        assert_eq!(q.nxt(), self.nxt);
        assert_eq!(q.unread(), self.nxt - self.taken);
        assert_eq!(q.is_empty(), self.nxt == self.taken);
        assert!(q.head < PAYLOAD && q.slots.len() <= q.span);
        let read: Vec<u8> = q.readable(usize::MAX).flat_map(|s| s.to_vec()).collect();
        let expected: Vec<u8> = (self.taken..self.nxt).map(byte).collect();
        assert!(read == expected, "in-order bytes {}..{}", self.taken, self.nxt);
        self.check_ranges();
        self.check_ledger();
    }

    fn check_ranges(&self) {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (position, _) in (self.nxt..).zip(&self.beyond).filter(|(_, here)| **here) {
            match ranges.last_mut() {
                Some(last) if last.1 == position => last.1 += 1,
                _ => ranges.push((position, position + 1)),
            }
        }
        let mut sack: Vec<(u64, u64)> = self.q.sack_ranges().collect();
        sack.sort_unstable();
        assert_eq!(sack, ranges);
        assert_eq!(self.q.has_holes(), !ranges.is_empty());
        // Bytes of the ranges, read at the slots where they must be.
        for (start, end) in ranges {
            for position in start..end {
                let at = self.q.head + (position - self.taken) as usize;
                let chunk = self.q.slots[at / PAYLOAD].as_ref().expect("a slot with data");
                assert_eq!(chunk.bytes()[at % PAYLOAD], byte(position), "at {position}");
            }
        }
    }

    fn check_ledger(&self) {
        let q = &self.q;
        let held = q.slots.iter().flatten().count();
        let reached = (q.head + q.len).div_ceil(PAYLOAD);
        let in_order = q.slots.iter().take(reached).flatten().count() as u64;
        assert_eq!(self.pool.live(), held);
        assert_eq!(self.ledger.rmem(), in_order * CHUNK_SIZE, "in-order slots");
        assert_eq!(self.ledger.ofo(), (held as u64 - in_order) * CHUNK_SIZE, "slots beyond");
        let stats = self.budget.member_stats(self.member);
        assert_eq!((stats.rmem, stats.ofo), (self.ledger.rmem(), self.ledger.ofo()));
        if self.budget.rules() == Rules::Strict {
            assert_eq!(self.ledger.credit(), (q.span - held) as u64 * CHUNK_SIZE, "credit");
            let meter = self.budget.meter_stats(NOW);
            assert!(Some(meter.max_usage_bytes) <= meter.hard_bytes, "hard is hard");
        }
    }

    fn end(mut self) {
        self.q.clear(&mut self.pool);
        assert_eq!(self.pool.live(), 0);
        self.budget.release(ManuallyDrop::into_inner(self.ledger), NOW);
        self.budget.release(ManuallyDrop::into_inner(self.other), NOW);
        assert_eq!(self.budget.meter_stats(NOW).usage_bytes, 0);
    }
}

#[test]
fn the_queue_is_the_stream_and_the_ledger_is_the_queue() {
    for setting in Setting::ALL {
        each_seed(0..30, |rng| {
            let mut world = World::new(setting);
            for _ in 0..400 {
                world.step(rng);
            }
            world.end();
        });
    }
}

#[test]
fn too_many_ranges_are_refused_and_merging_ones_are_not() {
    let mut world = World::new(Setting::Plenty);
    world.open(100_000);
    for i in 0..RANGES_MAX as u64 {
        world.store(10 + 20 * i, 10);
    }
    assert_eq!(world.q.ranges.len(), RANGES_MAX);
    world.store(10 + 20 * RANGES_MAX as u64, 10);
    assert_eq!(world.q.ranges.len(), RANGES_MAX, "one more has no place");
    world.store(20, 10);
    assert_eq!(world.q.ranges.len(), RANGES_MAX - 1, "one that joins two has");
    world.store(0, 10);
    assert_eq!(world.q.nxt(), 40, "and the hole is filled");
    world.check();
    world.end();
}

#[test]
fn a_hole_is_filled_at_the_last_byte_of_a_slot() {
    for cut in [PAYLOAD - 1, PAYLOAD, PAYLOAD + 1, 2 * PAYLOAD] {
        let mut world = World::new(Setting::Tiny);
        world.open(4 * PAYLOAD as u64);
        world.store(cut as u64, PAYLOAD);
        world.check();
        world.store(0, cut);
        world.check();
        assert_eq!(world.ledger.ofo(), 0);
        assert_eq!(world.q.unread() as usize, cut + PAYLOAD);
        world.end();
    }
}
