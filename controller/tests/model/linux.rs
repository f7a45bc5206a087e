//! Linux rules in chunks: two budgets, each a pool, below a group and a host that count.

use std::sync::Arc;

use skbudget_controller::{
    Budget, BudgetConfig, Event, FlowSizes, Instant, Ledger, Level, LevelConfig, Limits, MemberId,
    Rules, RxKind, SockLimits,
};
use skbudget_seed::Rng;

const SIZES: FlowSizes = FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 6912 };
const SNDBUF_MIN: u64 = 4608;

#[derive(Debug, Clone, Copy)]
enum Op {
    Admit { budget: usize },
    Release(usize),
    Fill(usize, u64, RxKind),
    Settle(usize, u64),
    Free(usize, u64),
    Prune(usize, u64),
    Grant(usize, u64),
    TxFree(usize, u64),
    Sndbuf(usize, u32),
    Limits { budget: usize, hard: u64 },
    Advance { ms: u64 },
}

/// Queues in chunks; a chunk is a page, so `forward_alloc` is always 0.
#[derive(Clone, Default)]
struct Flow {
    budget: usize,
    rmem: u64,
    ofo: u64,
    wmem: u64,
    sndbuf: u64,
    /// Charged by force and perhaps still held, chunks.
    forced_rx: u64,
    forced_tx: u64,
}

struct Pool {
    limits: Limits,
    flag: bool,
    since: u64,
    flagged_ns: u64,
    /// The highest `hard` since usage was last below it.
    bound: u64,
}

pub(crate) struct World {
    rng: Rng,
    now: u64,
    levels: Vec<Arc<Level>>,
    maxima: Vec<u64>,
    chains: Vec<Vec<usize>>,
    budgets: Vec<Budget>,
    pools: Vec<Pool>,
    flows: Vec<Option<Flow>>,
    ledgers: Vec<Option<Ledger>>,
    log: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let maxima = vec![40 + rng.below(120), 20 + rng.below(100)];
        let level =
            |max, parent| Level::new(LevelConfig { low: max, soft: max, hard: max }, parent);
        let host = level(maxima[0], None).unwrap();
        let group = level(maxima[1], Some(host.clone())).unwrap();
        let levels = vec![host, group];
        let (mut budgets, mut pools, mut chains) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let hard = 20 + rng.below(80);
            let limits = Limits { low: hard / 2, soft: 2 * hard / 3, hard };
            let config = BudgetConfig {
                rules: Rules::Linux,
                limits,
                sock: SockLimits::default(),
                min_bytes: 0,
                weight: 1,
            };
            // Nearest level first: none, the host, or the group and the host.
            let chain = rng.pick(&[&[][..], &[0], &[1, 0]]).to_vec();
            let parent = chain.first().map(|at: &usize| levels[*at].clone());
            let mut budget = Budget::new(config, parent).unwrap();
            budget.add_member(1 << 20).unwrap();
            budgets.push(budget);
            chains.push(chain);
            pools.push(Pool { limits, flag: false, since: 0, flagged_ns: 0, bound: hard });
        }
        let (flows, ledgers, log) = (Vec::new(), Vec::new(), Vec::new());
        Self { rng, now: 0, levels, maxima, chains, budgets, pools, flows, ledgers, log }
    }

    pub(crate) fn run(mut self, ops: usize) -> Vec<String> {
        for at in 0..ops {
            let Some(op) = self.choose() else { continue };
            let answer = self.apply(op);
            let what = format!("{at} {op:?} -> {answer}");
            self.check(&what);
            self.log.push(what);
        }
        for at in 0..self.flows.len() {
            if self.flows[at].is_some() {
                self.release(at);
            }
        }
        self.check("at the end");
        assert!(self.levels.iter().all(|level| level.usage() == 0));
        core::mem::take(&mut self.log)
    }

    fn choose(&mut self) -> Option<Op> {
        let live: Vec<usize> =
            (0..self.flows.len()).filter(|at| self.flows[*at].is_some()).collect();
        let rng = &mut self.rng;
        let (budget, roll) = (rng.below(2) as usize, rng.below(100));
        match roll {
            0..=9 => return (live.len() < 10).then_some(Op::Admit { budget }),
            10..=12 => return Some(Op::Advance { ms: rng.below(100) }),
            13 => return Some(Op::Limits { budget, hard: 5 + rng.below(90) }),
            _ if live.is_empty() => return None,
            _ => {}
        }
        let at = rng.pick(&live);
        let flow = self.flows[at].as_ref().unwrap();
        let n = 1 + rng.below(if roll.is_multiple_of(3) { 30 } else { 5 });
        Some(match roll {
            14..=16 => Op::Release(at),
            17..=35 => Op::Fill(at, n, RxKind::InOrder),
            36..=45 => Op::Fill(at, n, RxKind::Ofo),
            46..=50 => Op::Settle(at, n.min(flow.ofo)),
            51..=59 => Op::Free(at, n.min(flow.rmem)),
            60..=63 => Op::Prune(at, n.min(flow.ofo)),
            64..=84 => Op::Grant(at, n),
            85..=96 => Op::TxFree(at, n.min(flow.wmem)),
            _ => Op::Sndbuf(at, rng.pick(&[4608, 16_384, 87_040, 1 << 20])),
        })
    }

    fn apply(&mut self, op: Op) -> u64 {
        let now = Instant(self.now);
        match op {
            Op::Admit { budget } => {
                let ledger = self.budgets[budget].admit(MemberId(0), &SIZES, now).unwrap();
                self.ledgers.push(Some(ledger));
                self.flows.push(Some(Flow { budget, sndbuf: 16_384, ..Flow::default() }));
                0
            }
            Op::Release(at) => self.release(at),
            Op::Fill(at, n, kind) => {
                // Chunk by chunk: each one changes the state that the next one meets.
                let expected = (0..n).take_while(|_| self.fill_one(at, kind)).count() as u64;
                let seen = self.with(at, |b, l| b.rx_fill(l, n as u32, kind, now));
                assert_eq!(u64::from(seen), expected, "rx_fill");
                expected
            }
            Op::Grant(at, n) => {
                let expected = (0..n).take_while(|_| self.grant_one(at)).count() as u64;
                let seen = self.with(at, |b, l| b.tx_grant(l, n as u32, now));
                assert_eq!(u64::from(seen), expected, "tx_grant");
                expected
            }
            Op::Settle(at, n) => {
                self.with(at, |b, l| b.rx_settle(l, n as u32));
                self.flow(at).ofo -= n;
                self.flow(at).rmem += n;
                n
            }
            Op::Free(at, n) => {
                self.with(at, |b, l| b.rx_free(l, n as u32, now));
                self.flow(at).rmem -= n;
                self.gave_back(at, n)
            }
            Op::Prune(at, n) => {
                self.with(at, |b, l| b.rx_prune(l, n as u32, now));
                self.flow(at).ofo -= n;
                self.gave_back(at, n)
            }
            Op::TxFree(at, n) => {
                self.with(at, |b, l| b.tx_free(l, n as u32, now));
                self.flow(at).wmem -= n;
                self.gave_back(at, n)
            }
            Op::Sndbuf(at, bytes) => {
                self.with(at, |_, l| l.set_sndbuf(bytes));
                self.flow(at).sndbuf = u64::from(bytes);
                0
            }
            Op::Limits { budget, hard } => {
                let limits = Limits { low: hard / 2, soft: 2 * hard / 3, hard };
                self.budgets[budget].set_limits(limits, now);
                self.pools[budget].limits = limits;
                hard
            }
            Op::Advance { ms } => {
                self.now += ms * 1_000_000;
                ms
            }
        }
    }

    fn release(&mut self, at: usize) -> u64 {
        let flow = self.flows[at].take().unwrap();
        let ledger = self.ledgers[at].take().unwrap();
        self.budgets[flow.budget].release(ledger, Instant(self.now));
        // Two releases, one for each queue: each makes the kernel's test.
        for (freed, kept) in [(flow.rmem + flow.ofo, flow.wmem), (flow.wmem, 0)] {
            if freed > 0 && self.alloc(flow.budget) + kept < self.pools[flow.budget].limits.low {
                self.leave(flow.budget);
            }
        }
        flow.rmem + flow.ofo + flow.wmem
    }

    // ---- the ladder ----

    fn flow(&mut self, at: usize) -> &mut Flow {
        self.flows[at].as_mut().unwrap()
    }

    fn with<T>(&mut self, at: usize, call: impl FnOnce(&mut Budget, &mut Ledger) -> T) -> T {
        let budget = self.flows[at].as_ref().unwrap().budget;
        call(&mut self.budgets[budget], self.ledgers[at].as_mut().unwrap())
    }

    fn alloc(&self, budget: usize) -> u64 {
        let held = self.flows.iter().flatten().filter(|flow| flow.budget == budget);
        held.map(|flow| flow.rmem + flow.ofo + flow.wmem).sum()
    }

    fn level_usage(&self, level: usize) -> u64 {
        let below = (0..2).filter(|budget| self.chains[*budget].contains(&level));
        below.map(|budget| self.alloc(budget)).sum()
    }

    fn enter(&mut self, budget: usize) {
        let pool = &mut self.pools[budget];
        if !pool.flag {
            (pool.flag, pool.since) = (true, self.now);
        }
    }

    fn leave(&mut self, budget: usize) {
        let pool = &mut self.pools[budget];
        if pool.flag {
            pool.flag = false;
            pool.flagged_ns += self.now - pool.since;
        }
    }

    fn gave_back(&mut self, at: usize, n: u64) -> u64 {
        let flow = self.flow(at);
        flow.forced_rx = flow.forced_rx.min(flow.rmem + flow.ofo);
        flow.forced_tx = flow.forced_tx.min(flow.wmem);
        let budget = flow.budget;
        if n > 0 && self.alloc(budget) < self.pools[budget].limits.low {
            self.leave(budget);
        }
        n
    }

    /// L2 for one page more.
    fn passes(&mut self, at: usize, below_min: bool) -> bool {
        let flow = self.flows[at].clone().unwrap();
        let chain = self.chains[flow.budget].clone();
        // L1: the container's chain decides first.
        if chain.iter().any(|level| self.level_usage(*level) + 1 > self.maxima[*level]) {
            return false;
        }
        let after = self.alloc(flow.budget) + 1;
        let Limits { low, soft, hard } = self.pools[flow.budget].limits;
        if after <= low {
            self.leave(flow.budget);
            return true;
        }
        // Above `pressure` the flag is set, whatever follows.
        if after > soft {
            self.enter(flow.budget);
        }
        if after > hard {
            return false;
        }
        let nsock = self.flows.iter().flatten().filter(|f| f.budget == flow.budget).count();
        let held = flow.rmem + flow.ofo + flow.wmem + 1;
        below_min || !self.pools[flow.budget].flag || hard > nsock as u64 * held
    }

    fn fill_one(&mut self, at: usize, kind: RxKind) -> bool {
        let held = self.flow(at).rmem + self.flow(at).ofo;
        let ok = self.passes(at, held == 0);
        // An empty receive queue takes its first in-order chunk by force (L6).
        let force = !ok && kind == RxKind::InOrder && self.flow(at).rmem == 0;
        let flow = self.flow(at);
        if ok || force {
            match kind {
                RxKind::InOrder => flow.rmem += 1,
                RxKind::Ofo => flow.ofo += 1,
            }
            flow.forced_rx += u64::from(force);
        }
        ok || force
    }

    fn grant_one(&mut self, at: usize) -> bool {
        let flow = self.flow(at);
        // `sk_stream_memory_free`: a new buffer needs a queue below sndbuf (L4).
        if flow.wmem * 4096 >= flow.sndbuf {
            return false;
        }
        // The first buffer of an empty send queue is forced (L4).
        if flow.wmem == 0 {
            (flow.wmem, flow.forced_tx) = (1, 1);
            return true;
        }
        let ok = self.passes(at, false);
        let flow = self.flow(at);
        if !ok {
            // L3: the cap is cut; a queue that then reaches it is charged by force.
            flow.sndbuf = flow.sndbuf.min(flow.wmem * 4096 / 2).max(SNDBUF_MIN);
            if flow.wmem * 4096 + 4096 < flow.sndbuf {
                return false;
            }
            flow.forced_tx += 1;
        }
        flow.wmem += 1;
        true
    }

    // ---- after every operation ----

    fn check(&mut self, what: &str) {
        let now = Instant(self.now);
        for at in 0..2 {
            let alloc = self.alloc(at);
            let meter = self.budgets[at].meter_stats(now);
            assert_eq!(meter.usage_bytes, alloc * 4096, "{what}: usage of {at}");
            let pool = &mut self.pools[at];
            let current = if pool.flag { self.now - pool.since } else { 0 };
            assert_eq!(meter.pressure_ns, pool.flagged_ns + current, "{what}: time of {at}");
            let forced: u64 = self
                .flows
                .iter()
                .flatten()
                .filter(|flow| flow.budget == at)
                .map(|flow| flow.forced_rx + flow.forced_tx)
                .sum();
            // A lowered limit stays exceeded until usage falls.
            pool.bound = pool.limits.hard.max(pool.bound.min(alloc));
            assert!(alloc <= pool.bound + forced, "{what}: more than hard and what was forced");
            let seen = self.budgets[at].member_stats(MemberId(0));
            let held = seen.rmem + seen.ofo + seen.wmem + seen.fwd;
            assert_eq!(held, alloc * 4096, "{what}: the categories of {at} sum up");
            let mut flag = None;
            while let Some(event) = self.budgets[at].poll_event() {
                self.log.push(format!("{at} {event:?}"));
                match event {
                    Event::PressureEnter { .. } => flag = Some(true),
                    Event::PressureLeave { .. } => flag = Some(false),
                    Event::AdmissionDenied { .. } | Event::HardRefused { .. } => {}
                }
            }
            assert!(flag.is_none_or(|flag| flag == pool.flag), "{what}: flag of {at}");
        }
        for (at, level) in self.levels.iter().enumerate() {
            assert_eq!(level.usage(), self.level_usage(at), "{what}: level {at}");
        }
        for (flow, ledger) in self.flows.iter().zip(&self.ledgers) {
            if let (Some(flow), Some(ledger)) = (flow, ledger) {
                assert_eq!(u64::from(ledger.sndbuf()), flow.sndbuf, "{what}: sndbuf");
                assert_eq!(ledger.rmem(), flow.rmem * 4096, "{what}");
            }
        }
    }
}

impl Drop for World {
    /// After a failed assertion the ledgers are forgotten: their own panics would hide it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            core::mem::forget(core::mem::take(&mut self.ledgers));
        }
    }
}
