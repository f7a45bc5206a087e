//! Random operations against a map of bytes: same content, same ranges, and a ledger that matches the queue.

use std::collections::VecDeque;

use skbudget_controller::{CHUNK_SIZE, Rules};
use skbudget_seed::{Rng, each_seed};

use super::*;
use crate::queue::tests::{Memory, NOW, World, byte, random_steps};
use crate::test_budget::Setting;

struct Receiving {
    setting: Setting,
    mem: Memory,
    q: RxQueue,
    /// The bytes stored from `nxt` on; `nxt` is the first one missing.
    beyond: VecDeque<bool>,
    nxt: u64,
    taken: u64,
}

impl World for Receiving {
    fn new(setting: Setting) -> Self {
        Self {
            setting,
            mem: Memory::new(setting),
            q: RxQueue::default(),
            beyond: VecDeque::new(),
            nxt: 0,
            taken: 0,
        }
    }

    fn step(&mut self, rng: &mut Rng) {
        match rng.index(100) {
            0..20 => self.open(rng.index(60_000) as u64),
            20..26 => self.close(rng.index(20_000) as u64),
            26..50 => self.store(0, 1 + rng.index(9000)),
            50..68 => {
                let offset = rng.index(self.q.room() as usize + 2000) as u64;
                self.store(offset, 1 + rng.index(7000));
            }
            68..86 => self.consume(rng),
            86..89 => self.prune(rng),
            89 => {
                self.q.drop_ofo(&mut self.mem.cx());
                self.beyond.clear();
            }
            90..93 => {
                let idle = rng.percent(50);
                self.mem.budget.set_idle(&mut self.mem.ledger, idle, NOW);
            }
            _ => self.other(rng),
        }
        self.check();
    }

    fn end(mut self) {
        self.q.clear(&mut self.mem.pool);
        self.mem.end();
    }
}

impl Receiving {
    fn open(&mut self, window: u64) {
        let before = self.q.room();
        let room = self.q.open(window, &mut self.mem.cx());
        assert!(room >= before && room == self.q.room(), "a window that shrank by being opened");
        if matches!(self.setting, Setting::Plenty | Setting::Linux) {
            assert!(room >= window, "there is plenty");
        }
    }

    fn close(&mut self, keep: u64) {
        let before = self.q.room();
        self.q.close_to(keep, &mut self.mem.cx());
        assert!(self.q.room() >= keep.min(before), "what was to be kept is kept");
    }

    fn store(&mut self, offset: u64, len: usize) {
        let start = self.nxt + offset;
        let data: Vec<u8> = (start..start + len as u64).map(byte).collect();
        let covered = (offset + len as u64) <= self.q.room();
        let many = self.q.ranges.len() >= RANGES_MAX;
        let stored = self.q.store(offset, &data, &mut self.mem.cx());
        let kept = len - stored.refused as usize;
        if covered && !many && self.mem.budget.rules() == Rules::Strict {
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

    fn consume(&mut self, rng: &mut Rng) {
        let unread = (self.nxt - self.taken) as usize;
        let n = if rng.percent(30) { unread } else { rng.index(unread + 1) };
        let before = self.q.room();
        self.q.consume(n, &mut self.mem.cx());
        assert!(self.q.room() >= before, "an advertised window is never taken back");
        self.taken += n as u64;
    }

    fn prune(&mut self, rng: &mut Rng) {
        let offset = rng.index(self.q.room() as usize + 2000) as u64;
        let (pressure, before) = (rng.percent(50), self.q.ranges.clone());
        let pruned = self.q.prune_ofo(offset, pressure, &mut self.mem.cx());
        assert_eq!(pruned, self.q.ranges != before, "something is dropped, or nothing is");
        // What is before the byte that arrives stays, and under pressure nothing else does, but for its slot.
        let (arrival, slot) = (self.nxt + offset, PAYLOAD as u64);
        let mut kept = before;
        ranges::truncate(&mut kept, arrival.saturating_sub(slot));
        let mut below = self.q.ranges.clone();
        ranges::truncate(&mut below, arrival.saturating_sub(slot));
        assert_eq!(below, kept, "before {arrival}");
        let end = self.q.ranges.last().map_or(self.nxt, |last| last.1);
        assert!(!pressure || end <= arrival + slot, "{end} is beyond {arrival}");
        self.beyond.truncate((end - self.nxt) as usize);
    }

    fn other(&mut self, rng: &mut Rng) {
        let chunks = 1 + rng.index(12) as u32;
        let Memory { budget, other, .. } = &mut self.mem;
        if rng.percent(50) {
            budget.rx_open(other, chunks, NOW);
        } else {
            budget.rx_close(other, chunks, NOW);
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
        let Memory { budget, member, pool, ledger, .. } = &self.mem;
        let held = q.slots.iter().flatten().count();
        let reached = (q.head + q.len).div_ceil(PAYLOAD);
        let in_order = q.slots.iter().take(reached).flatten().count() as u64;
        assert_eq!(pool.live(), held);
        assert_eq!(ledger.rmem(), in_order * CHUNK_SIZE, "in-order slots");
        assert_eq!(ledger.ofo(), (held as u64 - in_order) * CHUNK_SIZE, "slots beyond");
        let stats = budget.member_stats(*member);
        assert_eq!((stats.rmem, stats.ofo), (ledger.rmem(), ledger.ofo()));
        if budget.rules() == Rules::Strict {
            assert_eq!(ledger.credit(), (q.span - held) as u64 * CHUNK_SIZE, "credit");
        }
        self.mem.check();
    }
}

#[test]
fn the_queue_is_the_stream_and_the_ledger_is_the_queue() {
    each_seed!(0..30, random_steps::<Receiving>);
}

#[test]
fn too_many_ranges_are_refused_and_merging_ones_are_not() {
    let mut world = Receiving::new(Setting::Plenty);
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
        let mut world = Receiving::new(Setting::Tiny);
        world.open(4 * PAYLOAD as u64);
        world.store(cut as u64, PAYLOAD);
        world.check();
        world.store(0, cut);
        world.check();
        assert_eq!(world.mem.ledger.ofo(), 0);
        assert_eq!(world.q.unread() as usize, cut + PAYLOAD);
        world.end();
    }
}
