//! Random operations against a vector of bytes.

use skbudget_controller::{CHUNK_SIZE, Rules};
use skbudget_seed::{Rng, each_seed};

use super::*;
use crate::queue::tests::{Memory, NOW, SIZES, World, byte, random_steps};
use crate::test_budget::Setting;

struct Sending {
    mem: Memory,
    q: TxQueue,
    /// Stream positions of the first byte stored and of the next byte read.
    una: u64,
    end: u64,
}

/// What the host returns to a read.
#[derive(Debug, Clone, Copy)]
enum Host {
    Has(usize),
    Nothing,
    Ended,
    Broken,
}

impl World for Sending {
    fn new(setting: Setting) -> Self {
        Self { mem: Memory::new(setting), q: TxQueue::default(), una: 0, end: 0 }
    }

    fn step(&mut self, rng: &mut Rng) {
        match rng.index(100) {
            0..45 => {
                let host = match rng.index(10) {
                    0 => Host::Nothing,
                    1 => Host::Ended,
                    2 => Host::Broken,
                    3..6 => Host::Has(1 + rng.index(3000)),
                    _ => Host::Has(usize::MAX),
                };
                self.fill(1 + rng.index(90_000), host);
            }
            45..80 => self.acked(rng),
            _ => self.other(rng),
        }
        self.check(rng);
    }

    fn end(mut self) {
        self.q.clear(&mut self.mem.pool);
        self.mem.end();
    }
}

impl Sending {
    fn fill(&mut self, want: usize, host: Host) {
        let room = self.q.tail_room();
        let mut asked = None;
        let (end, strict) = (self.end, self.mem.budget.rules() == Rules::Strict);
        let unused_reserve = self.mem.ledger.wmem() < u64::from(SIZES.wmem_min);
        let filled = self.q.fill(want, &mut self.mem.cx(), |parts| {
            let total: usize = parts.iter().map(|p| p.len()).sum();
            asked = Some(total);
            match host {
                Host::Nothing => return Err(HostError::WouldBlock),
                Host::Broken => return Err(HostError::Reset),
                Host::Ended => return Ok(0),
                Host::Has(_) => {}
            }
            let Host::Has(has) = host else { unreachable!() };
            let mut n = 0;
            for part in parts.iter_mut() {
                let len = part.len().min(has - n);
                for (i, b) in part[..len].iter_mut().enumerate() {
                    *b = byte(end + (n + i) as u64);
                }
                n += len;
            }
            Ok(n)
        });
        let Some(asked) = asked else {
            assert_eq!(filled, Filled::NoMemory);
            assert!(room == 0, "there was room at the tail");
            assert!(!(strict && unused_reserve), "the reserve is never refused");
            return;
        };
        assert!(asked >= room && asked > 0, "asked to read nothing, which looks like the end");
        match (host, filled) {
            (Host::Has(has), Filled::Bytes { n, full }) => {
                assert_eq!(n, has.min(asked));
                assert_eq!(full, n == asked);
                self.end += n as u64;
            }
            (Host::Nothing, Filled::Failed(HostError::WouldBlock))
            | (Host::Broken, Filled::Failed(HostError::Reset))
            | (Host::Ended, Filled::Eof) => {}
            other => panic!("{other:?}"),
        }
    }

    fn acked(&mut self, rng: &mut Rng) {
        let held = (self.end - self.una) as usize;
        let n = if rng.percent(25) { held } else { rng.index(held + 1) };
        self.q.acked(n, &mut self.mem.cx());
        self.una += n as u64;
    }

    fn other(&mut self, rng: &mut Rng) {
        let chunks = 1 + rng.index(12) as u32;
        let Memory { budget, other, .. } = &mut self.mem;
        if rng.percent(50) {
            budget.tx_grant(other, chunks, NOW);
        } else {
            let chunks = chunks.min((other.wmem() / CHUNK_SIZE) as u32);
            budget.tx_free(other, chunks, NOW);
        }
    }

    fn check(&self, rng: &mut Rng) {
        let q = &self.q;
        assert_eq!(q.len(), (self.end - self.una) as usize);
        assert!(q.head < PAYLOAD);
        let (offset, len) = {
            let offset = rng.index(q.len() + 1);
            (offset, rng.index(q.len() - offset + 1).min(65_535))
        };
        let mut parts = [IoSlice::new(&[]); PARTS_MAX];
        let count = q.slices(offset, len, &mut parts);
        let bytes: Vec<u8> = parts[..count].iter().flat_map(|p| p.to_vec()).collect();
        let from = self.una + offset as u64;
        let expected: Vec<u8> = (from..from + len as u64).map(byte).collect();
        assert!(bytes == expected, "{len} bytes from {offset}");
        let chunks = (q.head + q.len).div_ceil(PAYLOAD);
        assert_eq!(q.chunks.len(), if q.len == 0 { 0 } else { chunks }, "no chunk without a byte");
        let Memory { budget, member, pool, ledger, other } = &self.mem;
        assert_eq!(pool.live(), q.chunks.len());
        assert_eq!(ledger.wmem(), q.chunks.len() as u64 * CHUNK_SIZE);
        let stats = budget.member_stats(*member);
        assert_eq!(stats.wmem, ledger.wmem() + other.wmem());
        self.mem.check();
    }
}

#[test]
fn the_queue_is_the_stream_and_the_ledger_is_the_queue() {
    each_seed!(0..30, random_steps::<Sending>);
}

#[test]
fn a_read_that_meets_nothing_gives_its_memory_back() {
    let mut world = Sending::new(Setting::Plenty);
    let before = world.mem.budget.meter_stats(NOW).usage_bytes;
    world.fill(60_000, Host::Nothing);
    assert_eq!(world.mem.budget.meter_stats(NOW).usage_bytes, before);
    assert_eq!(world.mem.pool.live(), 0);
    world.end();
}
