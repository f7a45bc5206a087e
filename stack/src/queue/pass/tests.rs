//! Random operations on a pair of queues: every byte arrives once and in order, and each chunk is charged to the flow
//! that has it, after every step.

use std::mem::ManuallyDrop;

use skbudget_controller::{CHUNK_SIZE, Rules};
use skbudget_seed::{Rng, each_seed};

use super::*;
use crate::queue::tests::{NOW, SIZES, byte};
use crate::test_budget::Setting;

/// Two flows: data arrives for the first, moves to the second, and is acknowledged there.
struct Pair {
    budgets: [Budget; 2],
    /// Both flows belong to the first budget.
    shared: bool,
    ledgers: [ManuallyDrop<Ledger>; 2],
    pool: ChunkPool,
    rx: RxQueue,
    tx: TxQueue,
    /// Stream positions: received, and acknowledged.
    received: u64,
    acked: u64,
}

impl Pair {
    fn new(giver: Setting, taker: Setting, shared: bool) -> Self {
        let mut budgets = [giver.budget(), taker.budget()];
        let ledgers = [0, if shared { 0 } else { 1 }].map(|at: usize| {
            let member = budgets[at].add_member(0).unwrap();
            let mut ledger = budgets[at].admit(member, &SIZES, NOW).unwrap();
            budgets[at].establish(&mut ledger, NOW).unwrap();
            ManuallyDrop::new(ledger)
        });
        let (rx, tx) = (RxQueue::default(), TxQueue::default());
        Self { budgets, shared, ledgers, pool: ChunkPool::new(), rx, tx, received: 0, acked: 0 }
    }

    fn cx(&mut self) -> PassCtx<'_> {
        let Self { budgets: [giver, taker], shared, ledgers: [from, to], pool, .. } = self;
        let budgets = if *shared { Budgets::Shared(giver) } else { Budgets::Two(giver, taker) };
        PassCtx { now: NOW, budgets, pool, from, to }
    }

    fn pass(&mut self, most: usize) -> Passed {
        let (mut rx, mut tx) = (std::mem::take(&mut self.rx), std::mem::take(&mut self.tx));
        let passed = pass(&mut rx, &mut tx, most, &mut self.cx());
        (self.rx, self.tx) = (rx, tx);
        passed
    }

    fn with_rx<T>(&mut self, work: impl FnOnce(&mut RxQueue, &mut MemCtx<'_>) -> T) -> T {
        let mut rx = std::mem::take(&mut self.rx);
        let done = work(&mut rx, &mut self.cx().giver());
        self.rx = rx;
        done
    }

    fn step(&mut self, rng: &mut Rng) {
        match rng.index(100) {
            0..15 => drop(self.with_rx(|rx, mem| rx.open(rng.index(200_000) as u64, mem))),
            15..20 => drop(self.with_rx(|rx, mem| rx.close_to(rng.index(9000) as u64, mem))),
            20..45 => {
                let len = (1 + rng.index(30_000)).min(self.rx.room() as usize);
                let data: Vec<u8> = (0..len as u64).map(|i| byte(self.received + i)).collect();
                let stored = self.with_rx(|rx, mem| rx.store(0, &data, mem));
                self.received += stored.advanced;
            }
            45..48 => self.with_rx(|rx, mem| rx.rebase_if_empty(mem)),
            48..75 => {
                let (most, unread) = (1 + rng.index(60_000), self.rx.unread());
                let passed = self.pass(most);
                assert_eq!(self.rx.unread(), unread - passed.bytes as u64);
                assert!(passed.bytes < most + PAYLOAD);
                assert!(passed.refused || passed.bytes >= most || self.rx.is_empty());
            }
            _ => self.acknowledge(1 + rng.index(50_000)),
        }
        self.check();
    }

    /// The guest acknowledges up to `n` bytes, which are the right ones.
    fn acknowledge(&mut self, n: usize) {
        let n = n.min(self.tx.len());
        let mut tx = std::mem::take(&mut self.tx);
        for start in (0..n).step_by(PAYLOAD) {
            let mut parts = [std::io::IoSlice::new(&[]); 4];
            let count = tx.slices(start, PAYLOAD.min(n - start), &mut parts);
            for value in parts[..count].iter().flat_map(|part| part.iter()) {
                assert_eq!(*value, byte(self.acked), "at {}", self.acked);
                self.acked += 1;
            }
        }
        tx.acked(n, &mut self.cx().taker());
        self.tx = tx;
    }

    fn check(&mut self) {
        let queued = self.rx.unread() + self.tx.len() as u64;
        assert_eq!(self.received, self.acked + queued, "no byte is lost, none is new");
        let [from, to] = &self.ledgers;
        assert_eq!(to.wmem(), self.tx.chunks() as u64 * CHUNK_SIZE);
        assert_eq!((from.rmem() + to.wmem()) / CHUNK_SIZE, self.pool.live() as u64);
        for at in if self.shared { 0..1 } else { 0..2 } {
            let budget = &self.budgets[at];
            if budget.rules() == Rules::Strict {
                let meter = budget.meter_stats(NOW);
                let held = |ledger: &ManuallyDrop<Ledger>| ledger.held();
                let held =
                    if self.shared { held(from) + held(to) } else { held(&self.ledgers[at]) };
                assert_eq!(meter.usage_bytes, held.next_multiple_of(4096));
                assert!(Some(meter.max_usage_bytes) <= meter.hard_bytes, "hard is hard");
            }
        }
    }

    fn end(mut self) {
        self.rx.clear(&mut self.pool);
        self.tx.clear(&mut self.pool);
        assert_eq!(self.pool.live(), 0);
        let [from, to] = self.ledgers.map(ManuallyDrop::into_inner);
        let taker = if self.shared { 0 } else { 1 };
        self.budgets[0].release(from, NOW);
        self.budgets[taker].release(to, NOW);
        assert!(self.budgets.iter().all(|budget| budget.meter_stats(NOW).usage_bytes == 0));
    }
}

fn random_steps(seed: u64) {
    for (giver, taker, shared) in [
        (Setting::Plenty, Setting::Plenty, false),
        (Setting::Plenty, Setting::Tiny, false),
        (Setting::Tiny, Setting::Plenty, false),
        (Setting::Tiny, Setting::Tiny, true),
        (Setting::Plenty, Setting::Plenty, true),
        (Setting::Linux, Setting::Plenty, false),
        (Setting::LinuxTiny, Setting::LinuxTiny, true),
    ] {
        let rng = &mut Rng::new(seed);
        let mut pair = Pair::new(giver, taker, shared);
        (0..400).for_each(|_| pair.step(rng));
        pair.end();
    }
}

#[test]
fn every_byte_is_passed_once_and_charged_to_one_flow() {
    each_seed!(0..40, random_steps);
}

/// Data in super-frames, each passed at once, as in a transfer: only their ends are copied.
#[test]
fn whole_chunks_are_moved_and_not_copied() {
    let mut pair = Pair::new(Setting::Plenty, Setting::Plenty, false);
    let mut moved = 0;
    for _ in 0..100 {
        pair.with_rx(|rx, mem| rx.open(200_000, mem));
        let data: Vec<u8> = (0..65_160).map(|i| byte(pair.received + i)).collect();
        pair.received += pair.with_rx(|rx, mem| rx.store(0, &data, mem)).advanced;
        // A chunk that was filled up here is at another address afterwards only if it was copied.
        let address = |part: std::io::IoSlice<'_>| part.as_ptr() as usize / 4096;
        let before: Vec<usize> = pair.rx.readable(64).map(address).collect();
        pair.pass(usize::MAX / 2);
        let mut parts = [std::io::IoSlice::new(&[]); 64];
        let count = pair.tx.slices(0, pair.tx.len(), &mut parts);
        let after: Vec<usize> = parts[..count].iter().map(|part| address(*part)).collect();
        moved += before.iter().filter(|at| after.contains(at)).count();
        pair.check();
        // The guest has not acknowledged the end yet.
        pair.acknowledge(pair.tx.len() - 100);
    }
    assert!(moved >= 100 * 14, "{moved} of about 1,600 chunks");
    pair.acknowledge(100);
    pair.end();
}
