//! Strict rules: two or three budgets under two groups and a host. `strict_ops.rs` has the
//! operations with a result that the model predicts, `strict_plan.rs` chooses them.

use std::sync::Arc;

use skbudget_controller::share::Share;
use skbudget_controller::{
    Budget, BudgetConfig, Counter, Event, Instant, Ledger, Level, LevelConfig, Limits, MemberId,
    MemberStats, Rules, SockLimits,
};
use skbudget_seed::Rng;

use crate::naive::{Domain, Group, Member, Naive, SIZES, pg};
use crate::strict_plan::Op;

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) naive: Naive,
    pub(crate) levels: Vec<Arc<Level>>,
    pub(crate) budgets: Vec<Budget>,
    pub(crate) ledgers: Vec<Option<Ledger>>,
    pub(crate) enters: Vec<u64>,
    pub(crate) last: Vec<Option<Event>>,
    pub(crate) log: Vec<String>,
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
        // Level 0 is the host, 1 and 2 are groups below it.
        for parent in [None, Some(0), Some(0)] {
            let hard = 60 + rng.below(if parent.is_none() { 300 } else { 160 });
            let (low, soft) = scaled(hard, &mut rng);
            let limits = LevelConfig { low, soft, hard };
            let above = parent.map(|p: usize| levels[p].clone());
            levels.push(Level::new(limits, above).unwrap());
            naive.groups.push(Group {
                parent,
                limits,
                share: Share::NONE,
                flag: false,
                max_eff: hard,
            });
        }
        let mut budgets = Vec::new();
        for _ in 0..2 + rng.below(2) {
            let hard = 30 + rng.below(120);
            let (low, soft) = scaled(hard, &mut rng);
            // A budget has no parent, or the host, or a group.
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
            // The model makes its soft test after every operation, as the budget does.
            self.naive.settle();
            self.log.push(format!("{at} {op:?} -> {answer}"));
            self.check(&format!("op {at} {op:?} -> {answer}"));
        }
        self.finish();
        core::mem::take(&mut self.log)
    }

    pub(crate) fn now(&self) -> Instant {
        Instant(self.naive.now)
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

    /// Operations on a budget or a level, not on a flow.
    fn apply_small(&mut self, op: Op) -> u64 {
        let now = self.now();
        match op {
            Op::Udp { budget, member, bytes } => {
                let domain = &self.naive.domains[budget];
                let small = self.naive.udp(budget) + bytes <= domain.limits.hard * 4096 / 8;
                // M4, H1 and the chain must all allow it.
                let ok = small
                    && self.naive.beside_waiting(budget, bytes)
                    && self.naive.chain_ok(budget, self.naive.bytes(budget) + bytes);
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
                let ok = self.naive.reserve_ok(budget, self.naive.bytes(budget) + 64);
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
            Op::Move { budget, to, min } => self.move_budget(budget, to, min),
            Op::Hold { budget, member, bytes } => {
                self.budgets[budget].hold_for_admission(MemberId(member as u16), bytes);
                self.naive.domains[budget].members[member].hold = bytes;
                bytes
            }
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
                // The model keeps no counters.
                let seen = MemberStats { counters: expected.counters, ..seen };
                assert_eq!(seen, expected, "{what}: member {member} of {at}");
                let MemberStats { rmem, ofo, credit, wmem, fwd, reserve, .. } = seen;
                sum += rmem + ofo + credit + wmem + fwd + reserve;
                sum += seen.udp + seen.frag + seen.sock + seen.host + seen.dev;
            }
            assert_eq!(pg(sum), naive.usage(at), "{what}: the categories of {at} sum up");
            // Headroom is exact: so much fits, and not a byte more.
            let room = budget.headroom();
            let bytes = naive.bytes(at);
            assert!(naive.chain_ok(at, bytes + room), "{what}: headroom of {at}");
            assert!(room == 0 || !naive.chain_ok(at, bytes + room + 1), "{what}: headroom");
            let room = budget.admission_room();
            assert!(naive.reserve_ok(at, bytes + room), "{what}: room to admit of {at}");
            assert!(room == 0 || !naive.reserve_ok(at, bytes + room + 1), "{what}: to admit");
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

    /// Enter and leave alternate, and the flag matches the last of them.
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

    /// Everything is zero after the last flow and container.
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
        // Dropping a budget uncharges its `min`.
        self.budgets.clear();
        for level in &self.levels {
            let stats = level.stats();
            assert_eq!((stats.usage, stats.fixed, stats.idle), (0, 0, 0));
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
