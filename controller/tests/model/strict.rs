//! Strict rules: two or three budgets under two groups and a host.

use std::sync::Arc;

use skbudget_controller::share::fair_level;
use skbudget_controller::{
    Budget, BudgetConfig, Counter, Event, Instant, Ledger, Level, LevelConfig, Limits, MemberId,
    MemberStats, Rules, RxKind, SockLimits, transfer,
};

use crate::naive::{CHUNK, Domain, Flow, Group, Member, Naive, SIZES, pg};
use crate::rng::Rng;

#[derive(Debug, Clone, Copy)]
enum Op {
    Admit { budget: usize, member: usize },
    Establish(usize),
    Release(usize),
    Open(usize, u64),
    Fill(usize, u64, RxKind),
    Settle(usize, u64),
    Free(usize, u64),
    Prune(usize, u64),
    Close(usize, u64),
    Grant(usize, u64),
    TxFree(usize, u64),
    HostRaise(usize, u64),
    HostLower(usize, u64),
    Idle(usize, bool),
    Transfer(usize, usize, u64),
    Udp { budget: usize, member: usize, bytes: u64 },
    UdpGone { budget: usize, member: usize },
    Compact { budget: usize, member: usize },
    CompactGone { budget: usize, member: usize },
    Limits { budget: usize, hard: u64 },
    Min { budget: usize, pages: u64 },
    Level { level: usize, hard: u64 },
    Share { level: usize, bound: bool },
    Move { budget: usize, to: Option<usize> },
    Wait { budget: usize, key: u64, need: u64 },
    Wake { budget: usize },
    Advance { ms: u64 },
}

pub(crate) struct World {
    rng: Rng,
    naive: Naive,
    levels: Vec<Arc<Level>>,
    budgets: Vec<Budget>,
    ledgers: Vec<Option<Ledger>>,
    enters: Vec<u64>,
    last: Vec<Option<Event>>,
    log: Vec<String>,
}

fn scaled(hard: u64, rng: &mut Rng) -> (u64, u64) {
    let soft = hard * rng.pick(&[1, 2, 3]) / 4;
    (soft * rng.pick(&[1, 2, 4]) / 4, soft)
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut naive = Naive::default();
        let mut levels: Vec<Arc<Level>> = Vec::new();
        for parent in [None, Some(0), Some(0)] {
            let hard = 60 + rng.below(if parent.is_none() { 300 } else { 160 });
            let (low, soft) = scaled(hard, &mut rng);
            let limits = LevelConfig { low, soft, hard };
            let above = parent.map(|p: usize| levels[p].clone());
            levels.push(Level::new(limits, above).unwrap());
            naive.groups.push(Group {
                parent,
                limits,
                share: u64::MAX,
                flag: false,
                max_eff: hard,
            });
        }
        let mut budgets = Vec::new();
        for _ in 0..2 + rng.below(2) {
            let hard = 30 + rng.below(120);
            let (low, soft) = scaled(hard, &mut rng);
            let parent = rng.pick(&[None, Some(0), Some(1), Some(1), Some(2)]);
            let weight = 1 + rng.below(3);
            let limits = Limits { low, soft, hard };
            let config = BudgetConfig {
                rules: Rules::Strict,
                limits,
                sock: SockLimits::default(),
                min_bytes: 0,
                weight: weight as u32,
            };
            let mut budget = Budget::new(config, parent.map(|p| levels[p].clone())).unwrap();
            let mut domain = Domain {
                parent,
                limits,
                min: 0,
                weight,
                members: Vec::new(),
                flag: false,
                since: 0,
                flagged_ns: 0,
                max_eff: hard,
            };
            for _ in 0..1 + rng.below(2) {
                let dev = rng.below(3) * 2048;
                if budget.add_member(dev).is_ok() {
                    domain.members.push(Member { dev, ..Member::default() });
                }
            }
            budgets.push(budget);
            naive.domains.push(domain);
        }
        naive.settle();
        let count = budgets.len();
        Self {
            rng,
            naive,
            levels,
            budgets,
            ledgers: Vec::new(),
            enters: vec![0; count],
            last: vec![None; count],
            log: Vec::new(),
        }
    }

    pub(crate) fn run(mut self, ops: usize) -> Vec<String> {
        for at in 0..ops {
            let Some(op) = self.choose() else { continue };
            let answer = self.apply(op);
            self.naive.settle();
            self.log.push(format!("{at} {op:?} -> {answer}"));
            self.check(&format!("op {at} {op:?} -> {answer}"));
        }
        self.finish();
        core::mem::take(&mut self.log)
    }

    fn now(&self) -> Instant {
        Instant(self.naive.now)
    }

    fn choose(&mut self) -> Option<Op> {
        let live: Vec<usize> =
            (0..self.ledgers.len()).filter(|at| self.ledgers[*at].is_some()).collect();
        let rng = &mut self.rng;
        let budget = rng.below(self.budgets.len() as u64) as usize;
        let members = self.naive.domains[budget].members.len() as u64;
        let member = rng.below(members) as usize;
        let level = rng.below(3) as usize;
        let roll = rng.below(100);
        if roll < 14 {
            return (members > 0 && live.len() < 14).then_some(Op::Admit { budget, member });
        }
        if roll < 30 && members > 0 {
            return Some(match rng.below(16) {
                0..=2 => Op::Udp { budget, member, bytes: rng.below(9000) },
                3 => Op::UdpGone { budget, member },
                4 => Op::Compact { budget, member },
                5 => Op::CompactGone { budget, member },
                6 => Op::Limits { budget, hard: 10 + rng.below(140) },
                7 => Op::Min { budget, pages: rng.below(60) },
                8 => Op::Level { level, hard: 30 + rng.below(250) },
                9 | 10 => Op::Share { level, bound: rng.below(4) > 0 },
                11 => Op::Move { budget, to: rng.pick(&[None, Some(0), Some(1), Some(2)]) },
                12 => Op::Wait { budget, key: rng.below(6), need: 1 + rng.below(20_000) },
                13 => Op::Wake { budget },
                _ => Op::Advance { ms: rng.below(50) },
            });
        }
        if live.is_empty() {
            return None;
        }
        let at = rng.pick(&live);
        let flow = self.naive.flows[at].as_ref().unwrap();
        let n = 1 + rng.below(rng_size(roll));
        Some(match roll {
            30..=37 => Op::Establish(at),
            38..=40 => Op::Release(at),
            41..=52 => Op::Open(at, n),
            53..=60 => Op::Fill(at, n, RxKind::InOrder),
            61..=64 => Op::Fill(at, n, RxKind::Ofo),
            65..=66 => Op::Settle(at, n.min(flow.ofo)),
            67..=71 => Op::Free(at, n.min(flow.rmem)),
            72..=73 => Op::Prune(at, n.min(flow.ofo)),
            74..=75 => Op::Close(at, n),
            76..=84 => Op::Grant(at, n),
            85..=89 => Op::TxFree(at, n.min(flow.wmem)),
            90..=91 => Op::HostRaise(at, n * 1500),
            92 => Op::HostLower(at, n * 3000),
            93..=95 => Op::Idle(at, rng.below(3) > 0),
            _ => Op::Transfer(at, rng.pick(&live), n),
        })
    }

    fn apply(&mut self, op: Op) -> u64 {
        match op {
            Op::Admit { budget, member } => self.admit(budget, member),
            Op::Establish(at) => self.establish(at),
            Op::Release(at) => self.release(at),
            Op::Open(at, n) => self.open(at, n),
            Op::Fill(at, n, kind) => self.fill(at, n, kind),
            Op::Settle(at, n) => self.shrink(
                at,
                |b, l, _| b.rx_settle(l, n as u32),
                |f| {
                    f.ofo -= n;
                    f.rmem += n;
                },
            ),
            Op::Free(at, n) => {
                self.shrink(at, |b, l, now| b.rx_free(l, n as u32, now), |f| f.rmem -= n)
            }
            Op::Prune(at, n) => self.shrink(
                at,
                |b, l, now| b.rx_prune(l, n as u32, now),
                |f| {
                    f.ofo -= n;
                    f.credit += n;
                },
            ),
            Op::Close(at, n) => self.close(at, n),
            Op::Grant(at, n) => self.grant(at, n),
            Op::TxFree(at, n) => {
                self.shrink(at, |b, l, now| b.tx_free(l, n as u32, now), |f| f.wmem -= n)
            }
            Op::HostRaise(at, bytes) => self.host_raise(at, bytes),
            Op::HostLower(at, bytes) => self.shrink(
                at,
                |b, l, now| b.host_lower(l, bytes, now),
                |f| {
                    let floor = if f.established { u64::from(SIZES.host_floor) } else { 0 };
                    f.host = (f.host.max(bytes) - bytes).max(floor.min(f.host));
                },
            ),
            Op::Idle(at, idle) => {
                self.shrink(at, |b, l, now| b.set_idle(l, idle, now), |f| f.idle = idle)
            }
            Op::Transfer(from, to, n) => self.transfer(from, to, n),
            _ => self.apply_small(op),
        }
    }

    /// Operations that are not a flow's.
    fn apply_small(&mut self, op: Op) -> u64 {
        let now = self.now();
        match op {
            Op::Udp { budget, member, bytes } => {
                let domain = &self.naive.domains[budget];
                let small = self.naive.udp(budget) + bytes <= domain.limits.hard * 4096 / 8;
                let ok = small && self.naive.chain_ok(budget, self.naive.bytes(budget) + bytes);
                let id = MemberId(member as u16);
                assert_eq!(self.budgets[budget].charge_udp(id, bytes, now), ok);
                self.naive.domains[budget].members[member].udp += if ok { bytes } else { 0 };
                u64::from(ok)
            }
            Op::UdpGone { budget, member } => {
                let bytes = core::mem::take(&mut self.naive.domains[budget].members[member].udp);
                self.budgets[budget].uncharge_udp(MemberId(member as u16), bytes, now);
                bytes
            }
            Op::Compact { budget, member } => {
                let ok = self.naive.chain_ok(budget, self.naive.bytes(budget) + 64);
                let id = MemberId(member as u16);
                assert_eq!(self.budgets[budget].charge_compact(id, 64, now), ok);
                self.naive.domains[budget].members[member].compact += if ok { 64 } else { 0 };
                u64::from(ok)
            }
            Op::CompactGone { budget, member } => {
                let of = &mut self.naive.domains[budget].members[member];
                let bytes = core::mem::take(&mut of.compact);
                self.budgets[budget].uncharge_compact(MemberId(member as u16), bytes, now);
                bytes
            }
            Op::Limits { budget, hard } => {
                let (low, soft) = scaled(hard, &mut self.rng);
                let limits = Limits { low, soft, hard };
                self.budgets[budget].set_limits(limits, now);
                let usage = self.naive.usage(budget);
                let domain = &mut self.naive.domains[budget];
                (domain.limits, domain.max_eff) = (limits, hard.max(usage));
                hard
            }
            Op::Min { budget, pages } => self.set_min(budget, pages),
            Op::Level { level, hard } => {
                let (low, soft) = scaled(hard, &mut self.rng);
                let limits = LevelConfig { low, soft, hard };
                self.levels[level].set_limits(limits).unwrap();
                let usage = self.naive.level_usage(level);
                let group = &mut self.naive.groups[level];
                (group.limits, group.max_eff) = (limits, hard.max(usage));
                hard
            }
            Op::Share { level, bound } => self.share(level, bound),
            Op::Move { budget, to } => self.move_budget(budget, to),
            Op::Wait { budget, key, need } => {
                self.budgets[budget].wait(key, need);
                need
            }
            Op::Wake { budget } => {
                let woken = self.budgets[budget].poll_wake(now);
                woken.unwrap_or(u64::MAX)
            }
            Op::Advance { ms } => {
                self.naive.now += ms * 1_000_000;
                self.naive.now
            }
            _ => unreachable!("a flow's operation"),
        }
    }

    // ---- admission ----

    fn admit(&mut self, budget: usize, member: usize) -> u64 {
        let sock = u64::from(SIZES.sock);
        let naive = &self.naive;
        let half = naive.half_open(budget) + sock <= naive.domains[budget].limits.hard * 4096 / 8;
        let ok = half && naive.chain_ok(budget, naive.bytes(budget) + sock);
        let now = self.now();
        let answer = self.budgets[budget].admit(MemberId(member as u16), &SIZES, now);
        assert_eq!(answer.is_ok(), ok, "admit {answer:?}");
        if let Ok(ledger) = answer {
            self.ledgers.push(Some(ledger));
            self.naive.flows.push(Some(Flow { budget, member, ..Flow::default() }));
        }
        u64::from(ok)
    }

    fn establish(&mut self, at: usize) -> u64 {
        let mut after = self.naive.flows[at].clone().unwrap();
        if after.established {
            return 2;
        }
        let before = after.held();
        after.established = true;
        after.host += u64::from(SIZES.host_floor);
        let budget = after.budget;
        let bytes = self.naive.bytes(budget) + after.held() - before;
        let ok = self.naive.chain_ok(budget, bytes);
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        let answer = self.budgets[budget].establish(ledger, now);
        assert_eq!(answer.is_ok(), ok, "establish {answer:?}");
        if ok {
            self.naive.flows[at] = Some(after);
        }
        u64::from(ok)
    }

    fn release(&mut self, at: usize) -> u64 {
        let flow = self.naive.flows[at].take().unwrap();
        let now = self.now();
        self.budgets[flow.budget].release(self.ledgers[at].take().unwrap(), now);
        flow.held()
    }

    // ---- queues ----

    /// Growth and arrivals end idleness, and the soft test sees that first.
    fn touch(&mut self, at: usize) -> Flow {
        self.naive.flows[at].as_mut().unwrap().idle = false;
        self.naive.settle();
        self.naive.flows[at].clone().unwrap()
    }

    fn open(&mut self, at: usize, n: u64) -> u64 {
        let flow = self.touch(at);
        let granted = self.naive.grant(at, n, rx_unused(&flow));
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        let answer = self.budgets[flow.budget].rx_open(ledger, n as u32, now);
        assert_eq!(u64::from(answer), granted, "rx_open");
        self.naive.flows[at].as_mut().unwrap().credit += granted;
        granted
    }

    fn fill(&mut self, at: usize, n: u64, kind: RxKind) -> u64 {
        let flow = self.touch(at);
        let asked = n.saturating_sub(flow.credit);
        let opened = self.naive.grant(at, asked, rx_unused(&flow));
        let filled = n.min(flow.credit + opened);
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        let answer = self.budgets[flow.budget].rx_fill(ledger, n as u32, kind, now);
        assert_eq!(u64::from(answer), filled, "rx_fill");
        assert!(filled >= n.min(flow.credit), "in-window data is never refused");
        let flow = self.naive.flows[at].as_mut().unwrap();
        flow.credit = flow.credit + opened - filled;
        match kind {
            RxKind::InOrder => flow.rmem += filled,
            RxKind::Ofo => flow.ofo += filled,
        }
        filled
    }

    fn close(&mut self, at: usize, n: u64) -> u64 {
        let flow = self.naive.flows[at].as_mut().unwrap();
        let closed = n.min(flow.credit);
        flow.credit -= closed;
        let budget = flow.budget;
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        let answer = self.budgets[budget].rx_close(ledger, n as u32, now);
        assert_eq!(u64::from(answer), closed, "rx_close");
        closed
    }

    fn grant(&mut self, at: usize, n: u64) -> u64 {
        let flow = self.touch(at);
        let granted = self.naive.grant(at, n, tx_unused(&flow));
        assert!(granted >= n.min(tx_unused(&flow)), "the reserve is never refused");
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        let answer = self.budgets[flow.budget].tx_grant(ledger, n as u32, now);
        assert_eq!(u64::from(answer), granted, "tx_grant");
        self.naive.flows[at].as_mut().unwrap().wmem += granted;
        granted
    }

    fn host_raise(&mut self, at: usize, bytes: u64) -> u64 {
        let flow = self.naive.flows[at].clone().unwrap();
        let budget = flow.budget;
        let ok = !self.naive.pressure(budget)
            && self.naive.chain_ok(budget, self.naive.bytes(budget) + bytes);
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        assert_eq!(self.budgets[budget].host_raise(ledger, bytes, now), ok);
        self.naive.flows[at].as_mut().unwrap().host += if ok { bytes } else { 0 };
        u64::from(ok)
    }

    fn shrink(
        &mut self,
        at: usize,
        real: impl FnOnce(&mut Budget, &mut Ledger, Instant),
        model: impl FnOnce(&mut Flow),
    ) -> u64 {
        let now = self.now();
        let flow = self.naive.flows[at].as_mut().unwrap();
        model(flow);
        let (budget, held) = (flow.budget, flow.held());
        real(&mut self.budgets[budget], self.ledgers[at].as_mut().unwrap(), now);
        held
    }

    // ---- between budgets ----

    fn transfer(&mut self, from: usize, to: usize, n: u64) -> u64 {
        if from == to {
            return 0;
        }
        let (giver, taker) = (self.budget_of(from), self.budget_of(to));
        let rmem = self.naive.flows[from].as_ref().unwrap().rmem;
        let moves = n.min(rmem);
        if moves == 0 {
            return 0;
        }
        self.touch(to);
        let mut expected = 0;
        while expected < moves && self.move_one(from, to) {
            expected += 1;
        }
        let now = self.now();
        let mut given = self.ledgers[from].take().unwrap();
        let mut taken = self.ledgers[to].take().unwrap();
        let answer = if giver == taker {
            self.budgets[giver].transfer_within(&mut given, &mut taken, n as u32, now)
        } else {
            let [a, b] = self.budgets.get_disjoint_mut([giver, taker]).unwrap();
            transfer(a, &mut given, b, &mut taken, n as u32, now)
        };
        self.ledgers[from] = Some(given);
        self.ledgers[to] = Some(taken);
        assert_eq!(u64::from(answer), expected, "transfer");
        expected
    }

    /// One chunk in the model: tried on a copy, kept when every meter allows it.
    fn move_one(&mut self, from: usize, to: usize) -> bool {
        let mut after = self.naive.clone();
        after.flows[from].as_mut().unwrap().rmem -= 1;
        after.flows[to].as_mut().unwrap().wmem += 1;
        let (giver, taker) = (self.budget_of(from), self.budget_of(to));
        let target = self.naive.flows[to].clone().unwrap();
        let grows = after.flows[to].as_ref().unwrap().held() > target.held();
        let naive = &self.naive;
        if grows && !naive.fair(&target, target.elastic() + CHUNK) {
            return false;
        }
        let net = after.usage(taker) > naive.usage(taker);
        if net && after.usage(taker) > naive.domains[taker].limits.hard {
            return false;
        }
        let (old, new) = (naive.usage(taker), after.usage(taker));
        let min = naive.domains[taker].min;
        let up = new.max(min).saturating_sub(old.max(min));
        let (below, common): (Vec<_>, Vec<_>) =
            naive.chain(taker).into_iter().partition(|l| !naive.chain(giver).contains(l));
        if up > 0 && giver != taker {
            let weight = naive.domains[taker].weight;
            let mut child = (old.max(min), weight);
            for level in naive.chain(taker) {
                let group = &naive.groups[level];
                if group.flag && child.0 + up > group.share.saturating_mul(child.1) {
                    return false;
                }
                child = (naive.level_usage(level), 1);
            }
        }
        let fits = |level: &usize| {
            let (was, is) = (naive.level_usage(*level), after.level_usage(*level));
            is <= was || is <= naive.groups[*level].limits.hard
        };
        if giver == taker && net {
            let flow = naive.flows[to].as_ref().unwrap();
            if !naive.chain_ok(flow.budget, naive.bytes(taker) + CHUNK) {
                return false;
            }
        }
        if !below.iter().all(fits) || !common.iter().all(fits) {
            return false;
        }
        self.naive = after;
        self.naive.settle();
        true
    }

    fn budget_of(&self, at: usize) -> usize {
        self.naive.flows[at].as_ref().unwrap().budget
    }

    fn set_min(&mut self, budget: usize, pages: u64) -> u64 {
        let naive = &self.naive;
        let domain = &naive.domains[budget];
        let usage = naive.usage(budget);
        let (old, new) = (usage.max(domain.min), usage.max(pages));
        let up = new.saturating_sub(old);
        let room =
            |level: &usize| naive.level_usage(*level) + up <= naive.groups[*level].limits.hard;
        let ok = pages <= domain.limits.hard && (up == 0 || naive.chain(budget).iter().all(room));
        let now = self.now();
        let answer = self.budgets[budget].set_min(pages * 4096, now);
        assert_eq!(answer.is_ok(), ok, "set_min {answer:?}");
        if ok {
            self.naive.domains[budget].min = pages;
        }
        u64::from(ok)
    }

    fn share(&mut self, level: usize, bound: bool) -> u64 {
        let mut children = Vec::new();
        for (at, domain) in self.naive.domains.iter().enumerate() {
            if domain.parent == Some(level) {
                children.push((self.naive.usage(at).max(domain.min), domain.weight as u32));
            }
        }
        for at in 0..self.naive.groups.len() {
            if self.naive.groups[at].parent == Some(level) {
                children.push((self.naive.level_usage(at), 1));
            }
        }
        let soft = self.levels[level].soft_effective();
        let share = if bound { fair_level(&children, soft) } else { u64::MAX };
        self.levels[level].publish_share(share);
        self.naive.groups[level].share = share;
        share
    }

    fn move_budget(&mut self, budget: usize, to: Option<usize>) -> u64 {
        let naive = &self.naive;
        let domain = &naive.domains[budget];
        let up = naive.usage(budget).max(domain.min);
        let old = naive.chain(budget);
        let mut after = naive.clone();
        after.domains[budget].parent = to;
        let ok = after.chain(budget).iter().filter(|level| !old.contains(level)).all(|level| {
            up == 0 || naive.level_usage(*level) + up <= naive.groups[*level].limits.hard
        });
        let now = self.now();
        let parent = to.map(|level| self.levels[level].clone());
        let answer = self.budgets[budget].set_parent(parent, now);
        assert_eq!(answer.is_ok(), ok, "set_parent {answer:?}");
        if ok {
            self.naive = after;
        }
        u64::from(ok)
    }

    // ---- after every operation ----

    fn check(&mut self, what: &str) {
        let now = self.now();
        for at in 0..self.budgets.len() {
            let (naive, budget) = (&self.naive, &self.budgets[at]);
            let domain = &naive.domains[at];
            let meter = budget.meter_stats(now);
            assert_eq!(meter.usage_bytes, naive.usage(at) * 4096, "{what}: usage of {at}");
            assert_eq!(meter.hard_effective_bytes, Some(domain.max_eff * 4096), "{what}");
            let current = if domain.flag { naive.now - domain.since } else { 0 };
            assert_eq!(meter.pressure_ns, domain.flagged_ns + current, "{what}: time of {at}");
            assert_eq!(budget.under_pressure(), naive.pressure(at), "{what}: pressure of {at}");
            let mut sum = 0;
            let mut enters = 0;
            for member in 0..domain.members.len() {
                let seen = budget.member_stats(MemberId(member as u16));
                enters += seen.counters[Counter::TCPMemoryPressures as usize];
                let expected = naive.member_stats(at, member);
                let seen = MemberStats { counters: expected.counters, ..seen };
                assert_eq!(seen, expected, "{what}: member {member} of {at}");
                let MemberStats { rmem, ofo, credit, wmem, fwd, reserve, .. } = seen;
                sum += rmem + ofo + credit + wmem + fwd + reserve;
                sum += seen.udp + seen.sock + seen.host + seen.dev;
            }
            assert_eq!(pg(sum), naive.usage(at), "{what}: the categories of {at} sum up");
            let room = budget.headroom();
            let bytes = naive.bytes(at);
            assert!(naive.chain_ok(at, bytes + room), "{what}: headroom of {at}");
            assert!(room == 0 || !naive.chain_ok(at, bytes + room + 1), "{what}: headroom");
            self.check_events(at, enters, what);
        }
        for (at, level) in self.levels.iter().enumerate() {
            let (stats, naive) = (level.stats(), &self.naive);
            let seen = (stats.usage, stats.fixed, stats.idle, stats.pressure);
            let flag = naive.groups[at].flag;
            let sums = (naive.level_usage(at), naive.level_fixed(at), naive.level_idle(at), flag);
            assert_eq!(seen, sums, "{what}: level {at}: usage, fixed, idle, flag");
            assert_eq!(stats.hard_effective, naive.groups[at].max_eff, "{what}: level {at}");
        }
    }

    /// Enter and leave alternate, and the flag is what the last of them says.
    fn check_events(&mut self, at: usize, enters: u64, what: &str) {
        while let Some(event) = self.budgets[at].poll_event() {
            self.log.push(format!("{at} {event:?}"));
            match event {
                Event::PressureEnter { .. } => {
                    assert!(!matches!(self.last[at], Some(Event::PressureEnter { .. })), "{what}");
                    self.enters[at] += 1;
                }
                Event::PressureLeave { .. } => {
                    assert!(matches!(self.last[at], Some(Event::PressureEnter { .. })), "{what}");
                }
                Event::AdmissionDenied { .. } | Event::HardRefused { .. } => continue,
            }
            self.last[at] = Some(event);
        }
        if !self.naive.domains[at].members.is_empty() {
            assert_eq!(self.enters[at], enters, "{what}: counted and announced");
        }
        let flag = matches!(self.last[at], Some(Event::PressureEnter { .. }));
        assert_eq!(flag, self.naive.domains[at].flag, "{what}: flag of {at}");
    }

    /// All zero after the last one goes.
    fn finish(&mut self) {
        let now = self.now();
        for at in 0..self.ledgers.len() {
            if self.ledgers[at].is_some() {
                self.release(at);
            }
        }
        for at in 0..self.budgets.len() {
            for member in 0..self.naive.domains[at].members.len() {
                self.budgets[at].remove_member(MemberId(member as u16), now);
            }
            assert_eq!(self.budgets[at].meter_stats(now).usage_bytes, 0);
        }
        self.budgets.clear();
        for level in &self.levels {
            let stats = level.stats();
            assert_eq!((stats.usage, stats.fixed, stats.idle), (0, 0, 0));
        }
    }
}

impl Drop for World {
    /// A failed assertion is what matters then, not the ledgers it left behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            core::mem::forget(core::mem::take(&mut self.ledgers));
        }
    }
}

fn rng_size(roll: u64) -> u64 {
    if roll.is_multiple_of(3) { 40 } else { 6 }
}

fn rx_unused(flow: &Flow) -> u64 {
    (flow.rmin() / CHUNK).saturating_sub(flow.rmem + flow.ofo + flow.credit)
}

fn tx_unused(flow: &Flow) -> u64 {
    (flow.wmin() / CHUNK).saturating_sub(flow.wmem)
}
