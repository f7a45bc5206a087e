//! Random fragments in random order against a simple model.

use skbudget_controller::{Budget, BudgetConfig, Limits, MemberId, Rules, SockLimits};
use skbudget_seed::Rng;

use super::*;

const HARD: u64 = 64 << 20;

struct Bench {
    budget: Budget,
    member: MemberId,
    table: Reassembly,
    now: Instant,
    empty: u64,
}

impl Bench {
    fn new(hard: u64) -> Self {
        let config = BudgetConfig {
            rules: Rules::Strict,
            limits: Limits::from_bytes(hard, None, None).unwrap(),
            sock: SockLimits::default(),
            min_bytes: 0,
            weight: 100,
        };
        let mut budget = Budget::new(config, None).unwrap();
        let member = budget.add_member(0).unwrap();
        let now = Instant::from_millis(1);
        let empty = budget.meter_stats(now).usage_bytes;
        Self { budget, member, table: Reassembly::default(), now, empty }
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Reassembly, &mut MemberCtx<'_>) -> T) -> T {
        let mut mem = MemberCtx { budget: &mut self.budget, member: self.member, now: self.now };
        f(&mut self.table, &mut mem)
    }

    fn give(&mut self, fragment: &Fragment<'_>) -> Outcome {
        let outcome = self.with(|table, mem| table.on_fragment(fragment, mem));
        self.check();
        outcome
    }

    /// The charge equals the sum of the entries and is within every bound.
    fn check(&mut self) {
        let sum: u64 = self.table.entries.iter().map(|e| e.charged).sum();
        assert_eq!(self.table.charged, sum);
        assert_eq!(self.budget.member_stats(self.member).frag, sum);
        assert!(sum <= BYTES_MAX && self.table.entries.len() <= ENTRIES_MAX);
        for entry in &self.table.entries {
            assert!(entry.buffer.capacity() as u64 + ENTRY_BYTES <= entry.charged);
            assert!(entry.ranges.len() <= RANGES_MAX);
            let apart = |w: &[(u32, u32)]| w[0].0 < w[0].1 && w[0].1 < w[1].0;
            assert!(entry.ranges.windows(2).all(apart), "{:?}", entry.ranges);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.with(|table, mem| table.clear(mem));
        if !std::thread::panicking() {
            assert_eq!(self.budget.meter_stats(self.now).usage_bytes, self.empty);
            assert_eq!(self.table.deadline(), None);
        }
    }
}

fn key(id: u32, v6: bool) -> Key {
    let addrs = if v6 {
        Addrs::V6 { src: "fd00::100".parse().unwrap(), dst: "fd00::2".parse().unwrap() }
    } else {
        Addrs::V4 { src: [10, 0, 2, 100].into(), dst: [10, 0, 2, 2].into() }
    };
    Key { addrs, id, protocol: if v6 { 0 } else { 17 } }
}

fn bytes(len: usize, salt: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(salt | 1) >> 3) as u8).collect()
}

fn fragment(id: u32, whole: &[u8], from: usize, to: usize) -> Fragment<'_> {
    Fragment {
        key: key(id, id % 2 == 1),
        next: 17,
        offset: from as u32,
        more: to < whole.len(),
        ecn: 0,
        payload: &whole[from..to],
    }
}

/// The datagram as a list of known and unknown bytes; any overlap that is no exact repetition ends it.
struct Naive {
    known: Vec<Option<u8>>,
    total: Option<usize>,
    refused: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Held,
    Whole,
    Overlap,
}

impl Naive {
    fn new() -> Self {
        Self { known: vec![None; 70_000], total: None, refused: false }
    }

    fn give(&mut self, f: &Fragment<'_>) -> Expected {
        if self.refused {
            return Expected::Overlap;
        }
        let (start, end) = (f.offset as usize, f.offset as usize + f.payload.len());
        let there = &self.known[start..end];
        let repeats = there.iter().zip(f.payload).all(|(a, b)| *a == Some(*b))
            && (f.more || self.total == Some(end));
        if repeats {
            return Expected::Held;
        }
        let highest = self.known.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
        let beyond = self.total.is_some_and(|t| end > t || (!f.more && end != t));
        let shortens = !f.more && highest > end;
        if there.iter().any(Option::is_some) || beyond || shortens {
            self.refused = true;
            return Expected::Overlap;
        }
        for (to, from) in self.known[start..end].iter_mut().zip(f.payload) {
            *to = Some(*from);
        }
        if !f.more {
            self.total = Some(end);
        }
        let whole = self.total.is_some_and(|t| self.known[..t].iter().all(Option::is_some));
        if whole { Expected::Whole } else { Expected::Held }
    }
}

#[test]
fn any_order_gives_what_was_cut() {
    let mut rng = Rng::new(3);
    let mut bench = Bench::new(HARD);
    for id in 0..400 {
        let whole = bytes(rng.index(60_000) + 9, id);
        // Uneven cuts, at most as many as the holes an entry may have.
        let mut cuts: Vec<usize> = (0..rng.index(60))
            .map(|_| (rng.index(whole.len()) & !7).max(8))
            .filter(|at| *at < whole.len())
            .collect();
        cuts.extend([0, whole.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut order: Vec<usize> = (0..cuts.len() - 1).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.index(i + 1));
        }
        for (n, i) in order.iter().enumerate() {
            let outcome = bench.give(&fragment(id, &whole, cuts[*i], cuts[i + 1]));
            if n + 1 < order.len() {
                assert_eq!(outcome, Outcome::Held, "datagram {id}, piece {n} of {}", order.len());
                continue;
            }
            let Outcome::Whole(datagram) = outcome else { panic!("{outcome:?}") };
            assert_eq!((datagram.addrs, datagram.next), (key(id, id % 2 == 1).addrs, 17));
            assert!(datagram.payload == whole, "datagram {id}");
        }
        assert_eq!(bench.table.charged, 0);
    }
}

#[test]
fn overlaps_and_repetitions_are_decided_as_by_the_naive_table() {
    let mut rng = Rng::new(5);
    let (mut overlaps, mut wholes) = (0, 0);
    for id in 0..3000 {
        let mut bench = Bench::new(HARD);
        let mut naive = Naive::new();
        let size = 8 * (2 + rng.index(20)) + rng.index(8);
        let whole = bytes(size, id);
        let other = bytes(size + 64, id + 77);
        for _ in 0..40 {
            let from = (rng.index(size)) & !7;
            let len = 8 * (1 + rng.index(6));
            let mut f = fragment(id, &whole, from, (from + len).min(size));
            match rng.index(60) {
                0 => f.payload = &other[from..from + len],
                1 => f.more = !f.more && f.payload.len().is_multiple_of(8),
                _ => {}
            }
            if f.payload.is_empty() || (f.more && !f.payload.len().is_multiple_of(8)) {
                continue;
            }
            let expected = naive.give(&f);
            let outcome = bench.give(&f);
            match (&expected, &outcome) {
                (Expected::Held, Outcome::Held) => {}
                (Expected::Overlap, Outcome::Dropped(Stat::DropFragmentOverlap)) => overlaps += 1,
                (Expected::Whole, Outcome::Whole(datagram)) => {
                    wholes += 1;
                    let known: Vec<u8> =
                        naive.known[..naive.total.unwrap()].iter().map(|b| b.unwrap()).collect();
                    assert_eq!(datagram.payload, known);
                }
                _ => panic!("{expected:?} is not {outcome:?}, datagram {id}: {f:?}"),
            }
            if expected == Expected::Whole {
                break;
            }
        }
    }
    assert!(overlaps > 1000 && wholes > 100, "{overlaps} overlaps, {wholes} wholes");
}

#[test]
fn a_fragment_of_no_possible_datagram_is_dropped() {
    let mut bench = Bench::new(HARD);
    let whole = bytes(65_600, 1);
    let good = fragment(2, &whole, 0, 80);
    let cases = [
        (Fragment { payload: &[], ..good }, Stat::DropFragment),
        (Fragment { payload: &whole[..81], ..good }, Stat::DropFragment),
        (Fragment { offset: 65_528, payload: &whole[..16], ..good }, Stat::DropFragment),
        (Fragment { next: TCP, payload: &whole[..16], ..good }, Stat::DropFragmentTiny),
        (Fragment { next: TCP, offset: 8, ..good }, Stat::DropFragmentTiny),
        (Fragment { next: TCP, offset: 16, ..good }, Stat::DropFragmentTiny),
        (Fragment { payload: &whole[..4], more: false, ..good }, Stat::DropFragmentTiny),
    ];
    for (fragment, stat) in cases {
        assert_eq!(bench.give(&fragment), Outcome::Dropped(stat), "{fragment:?}");
    }
    assert_eq!(bench.table.entries.len(), 0);
    assert_eq!(bench.give(&good), Outcome::Held);
}

#[test]
fn pieces_without_end_end_the_datagram() {
    let mut bench = Bench::new(HARD);
    let whole = bytes(4000, 1);
    for i in 0..RANGES_MAX {
        assert_eq!(bench.give(&fragment(2, &whole, 16 * i, 16 * i + 8)), Outcome::Held);
    }
    let (from, to) = (16 * RANGES_MAX, 16 * RANGES_MAX + 8);
    let outcome = bench.give(&fragment(2, &whole, from, to));
    assert_eq!(outcome, Outcome::Dropped(Stat::DropFragmentTiny));
    assert_eq!(bench.table.charged, ENTRY_BYTES, "nothing is kept of it but its name");
}

#[test]
fn fragments_expire_after_thirty_seconds_and_sixty() {
    let mut bench = Bench::new(HARD);
    let whole = bytes(4000, 1);
    bench.give(&fragment(2, &whole, 0, 800));
    bench.give(&fragment(3, &whole, 0, 800));
    let start = bench.now;
    // A later fragment does not extend the time.
    bench.now = start + Duration::from_secs(29);
    bench.give(&fragment(2, &whole, 800, 1600));
    assert_eq!(bench.table.deadline(), Some(start + HOLD_V4));
    bench.now = start + HOLD_V4;
    let expired = Expired { key: key(2, false), next: 17, begin: whole[..1600].to_vec() };
    assert_eq!(bench.with(Reassembly::expire), Some(expired));
    assert_eq!(bench.with(Reassembly::expire), None);
    assert_eq!(bench.table.deadline(), Some(start + HOLD_V6));
    bench.now = start + HOLD_V6;
    assert_eq!(bench.with(Reassembly::expire).unwrap().key, key(3, true));
    assert_eq!(bench.table.charged, 0);
}

#[test]
fn a_flood_takes_the_oldest_and_never_more_than_its_share() {
    for hard in [1 << 20, HARD] {
        let mut bench = Bench::new(hard);
        let whole = bytes(65_000, 1);
        let mut rng = Rng::new(9);
        for id in 0..3000 {
            // A datagram that needs much memory at once, or little.
            let from = if rng.index(2) == 0 { 64_000 } else { rng.index(4000) & !7 };
            let outcome = bench.give(&fragment(id, &whole, from, from + 800));
            let dropped = outcome == Outcome::Dropped(Stat::DropFragmentMemory);
            assert!(outcome == Outcome::Held || dropped, "{outcome:?}");
            assert!(bench.table.charged <= hard / 8);
        }
        // A good datagram is reassembled all the same.
        let small = bytes(1600, 2);
        assert_eq!(bench.give(&fragment(9000, &small, 800, 1600)), Outcome::Held);
        assert!(matches!(bench.give(&fragment(9000, &small, 0, 800)), Outcome::Whole(_)));
    }
}

#[test]
fn a_mark_on_any_piece_is_one_on_the_whole() {
    const DROPPED: Option<u8> = None;
    // Not-ECT 0, ECT(1) 1, ECT(0) 2, CE 3.
    let cases: [([u8; 3], Option<u8>); 9] = [
        ([0, 0, 0], Some(0)),
        ([2, 2, 2], Some(2)),
        ([3, 3, 3], Some(3)),
        ([2, 3, 2], Some(3)),
        ([3, 1, 2], Some(3)),
        ([1, 2, 0], Some(1)),
        ([0, 3, 0], DROPPED),
        ([3, 3, 0], DROPPED),
        ([2, 0, 3], DROPPED),
    ];
    let whole = bytes(24, 3);
    for (id, (ecns, expected)) in (0..).zip(cases) {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut bench = Bench::new(HARD);
            let give = |i: usize| {
                let piece = fragment(id, &whole, i * 8, (i + 1) * 8);
                bench.give(&Fragment { ecn: ecns[i], ..piece })
            };
            let [first, second, last] = order.map(give);
            assert_eq!((first, second), (Outcome::Held, Outcome::Held));
            match (last, expected) {
                (Outcome::Whole(datagram), Some(ecn)) => {
                    assert_eq!((datagram.ecn, &datagram.payload), (ecn, &whole), "{ecns:?}");
                }
                (last, _) => {
                    assert_eq!(expected, DROPPED, "{ecns:?}");
                    assert_eq!(last, Outcome::Dropped(Stat::DropFragmentEcn), "{ecns:?}");
                }
            }
            assert!(bench.table.entries.is_empty(), "what was dropped is gone");
        }
    }
}
