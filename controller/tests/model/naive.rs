//! A second implementation of the strict rules without running sums: every number is recomputed
//! from the flows.

use skbudget_controller::share::Share;
use skbudget_controller::{FlowSizes, LevelConfig, Limits, MemberStats};

pub(crate) const CHUNK: u64 = 4096;
pub(crate) const SIZES: FlowSizes =
    FlowSizes { sock: 1536, rmem_min: 8192, wmem_min: 4096, host_floor: 6912 };

pub(crate) fn pg(bytes: u64) -> u64 {
    bytes.div_ceil(4096)
}

#[derive(Clone, Default)]
pub(crate) struct Flow {
    pub(crate) budget: usize,
    pub(crate) member: usize,
    pub(crate) established: bool,
    pub(crate) idle: bool,
    pub(crate) rmem: u64,
    pub(crate) ofo: u64,
    pub(crate) credit: u64,
    pub(crate) wmem: u64,
    pub(crate) host: u64,
}

impl Flow {
    pub(crate) fn rmin(&self) -> u64 {
        if self.established { u64::from(SIZES.rmem_min) } else { 0 }
    }
    pub(crate) fn wmin(&self) -> u64 {
        if self.established { u64::from(SIZES.wmem_min) } else { 0 }
    }
    pub(crate) fn rx(&self) -> u64 {
        self.rmin().max((self.rmem + self.ofo + self.credit) * CHUNK)
    }
    pub(crate) fn tx(&self) -> u64 {
        self.wmin().max(self.wmem * CHUNK)
    }
    pub(crate) fn held(&self) -> u64 {
        u64::from(SIZES.sock) + self.rx() + self.tx() + self.host
    }
    pub(crate) fn floor(&self) -> u64 {
        let host = if self.established { u64::from(SIZES.host_floor) } else { 0 };
        u64::from(SIZES.sock) + self.rmin() + self.wmin() + host
    }
    pub(crate) fn elastic(&self) -> u64 {
        self.held() - self.floor()
    }
    pub(crate) fn idle_credit(&self) -> u64 {
        if self.idle { (self.credit * CHUNK).min(self.rx() - self.rmin()) } else { 0 }
    }
    pub(crate) fn active(&self) -> bool {
        self.elastic() > 0 && !self.idle
    }
}

#[derive(Clone, Default)]
pub(crate) struct Member {
    pub(crate) dev: u64,
    pub(crate) udp: u64,
    pub(crate) compact: u64,
    pub(crate) hold: u64,
}

#[derive(Clone)]
pub(crate) struct Domain {
    pub(crate) parent: Option<usize>,
    pub(crate) limits: Limits,
    pub(crate) min: u64,
    pub(crate) weight: u64,
    pub(crate) members: Vec<Member>,
    pub(crate) flag: bool,
    pub(crate) since: u64,
    pub(crate) flagged_ns: u64,
    pub(crate) max_eff: u64,
}

#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) parent: Option<usize>,
    pub(crate) limits: LevelConfig,
    pub(crate) share: Share,
    pub(crate) flag: bool,
    pub(crate) max_eff: u64,
}

/// What a level counts for a child, the child's weight, its hard.
pub(crate) type Child = (u64, u64, u64);

#[derive(Clone, Default)]
pub(crate) struct Naive {
    pub(crate) flows: Vec<Option<Flow>>,
    pub(crate) domains: Vec<Domain>,
    pub(crate) groups: Vec<Group>,
    pub(crate) now: u64,
}

impl Naive {
    // ---- sums ----

    pub(crate) fn flows_of(&self, domain: usize) -> impl Iterator<Item = &Flow> {
        self.flows.iter().flatten().filter(move |flow| flow.budget == domain)
    }
    pub(crate) fn fixed(&self, domain: usize) -> u64 {
        // Device queues and compact entries are reservations too.
        let small: u64 = self.domains[domain].members.iter().map(|m| m.dev + m.compact).sum();
        small + self.flows_of(domain).map(Flow::floor).sum::<u64>()
    }
    pub(crate) fn udp(&self, domain: usize) -> u64 {
        self.domains[domain].members.iter().map(|m| m.udp).sum()
    }
    pub(crate) fn bytes(&self, domain: usize) -> u64 {
        let elastic: u64 = self.flows_of(domain).map(Flow::elastic).sum();
        self.fixed(domain) + self.udp(domain) + elastic
    }
    pub(crate) fn usage(&self, domain: usize) -> u64 {
        pg(self.bytes(domain))
    }
    pub(crate) fn idle(&self, domain: usize) -> u64 {
        self.flows_of(domain).map(Flow::idle_credit).sum::<u64>() / CHUNK
    }
    pub(crate) fn active(&self, domain: usize) -> u64 {
        self.flows_of(domain).filter(|flow| flow.active()).count() as u64
    }
    pub(crate) fn half_open(&self, domain: usize) -> u64 {
        let half = self.flows_of(domain).filter(|flow| !flow.established);
        half.count() as u64 * u64::from(SIZES.sock)
    }
    /// E, pages.
    pub(crate) fn room(&self, domain: usize) -> u64 {
        self.domains[domain].limits.hard.saturating_sub(pg(self.fixed(domain)))
    }

    pub(crate) fn chain(&self, domain: usize) -> Vec<usize> {
        let mut levels = Vec::new();
        let mut at = self.domains[domain].parent;
        while let Some(level) = at {
            levels.push(level);
            at = self.groups[level].parent;
        }
        levels
    }
    fn below(&self, level: usize) -> impl Iterator<Item = usize> {
        (0..self.domains.len()).filter(move |domain| self.chain(*domain).contains(&level))
    }
    pub(crate) fn level_usage(&self, level: usize) -> u64 {
        self.below(level).map(|d| self.usage(d).max(self.domains[d].min)).sum()
    }
    pub(crate) fn level_fixed(&self, level: usize) -> u64 {
        self.below(level).map(|d| pg(self.fixed(d)).max(self.domains[d].min)).sum()
    }
    pub(crate) fn level_idle(&self, level: usize) -> u64 {
        // A `min` covers fixed and idle parts together.
        let calm = |d: usize| (pg(self.fixed(d)) + self.idle(d)).max(self.domains[d].min);
        self.below(level).map(calm).sum::<u64>() - self.level_fixed(level)
    }

    // ---- decisions ----

    fn level_mins(&self, level: usize) -> u64 {
        self.below(level).map(|d| self.domains[d].min).sum()
    }
    fn level_hards(&self, level: usize) -> u64 {
        let own = self.domains.iter().filter(|d| d.parent == Some(level)).map(|d| d.limits.hard);
        let groups = self.groups.iter().filter(|g| g.parent == Some(level)).map(|g| g.limits.hard);
        own.sum::<u64>() + groups.sum::<u64>()
    }
    pub(crate) fn as_child(&self, level: usize) -> Child {
        (self.level_usage(level), 1, self.groups[level].limits.hard)
    }
    fn level_weights(&self, level: usize) -> u64 {
        let own = self.domains.iter().filter(|d| d.parent == Some(level)).map(|d| d.weight);
        let groups = self.groups.iter().filter(|g| g.parent == Some(level)).count();
        own.sum::<u64>() + groups as u64
    }
    /// Pages at which the level's flag is set.
    fn level_soft(&self, level: usize) -> u64 {
        let LevelConfig { soft, hard, .. } = self.groups[level].limits;
        let fixed = self.level_fixed(level);
        fixed + self.level_idle(level) + hard.saturating_sub(fixed) * soft / hard
    }
    /// Pages at which reservations beyond a child's part end.
    fn level_reserved(&self, level: usize) -> u64 {
        let LevelConfig { soft, hard, .. } = self.groups[level].limits;
        let mins = self.level_mins(level);
        mins + hard.saturating_sub(mins) * soft / hard
    }

    /// Whether a child that holds `child.0`, with weight `child.1` and hard `child.2`, may grow by
    /// `up`: within its part of the level's hard, or while the level stays at or below `most`.
    fn spreads(&self, level: usize, child: Child, up: u64, most: u64) -> bool {
        let hard = self.groups[level].limits.hard;
        let by_weight = hard * child.1 / self.level_weights(level);
        // The part by weight, or what the others' maxima leave.
        let part = by_weight.max(hard.saturating_sub(self.level_hards(level) - child.2));
        child.0 + up <= part || self.level_usage(level) + up <= most
    }

    /// As `spreads`, once the level is flagged; a fair level that bounds replaces it. `grows`:
    /// whether the level's usage grows too.
    pub(crate) fn level_fair(&self, level: usize, child: Child, up: u64, grows: bool) -> bool {
        let Group { flag, share, .. } = self.groups[level];
        match share {
            _ if !flag => true,
            Share::NONE => !grows || self.spreads(level, child, up, self.level_soft(level)),
            share => child.0 + up <= share.of(child.1 as u32),
        }
    }

    /// As `chain_ok` for reservations.
    pub(crate) fn reserve_ok(&self, domain: usize, bytes: u64) -> bool {
        let d = &self.domains[domain];
        let (before, after) = (self.usage(domain).max(d.min), pg(bytes).max(d.min));
        let up = after - before;
        let mut child = (before, d.weight, d.limits.hard);
        let spread = |level: usize| {
            let ok = self.spreads(level, child, up, self.level_reserved(level));
            child = self.as_child(level);
            ok
        };
        let spread = up == 0 || self.chain(domain).into_iter().all(spread);
        self.chain_ok(domain, bytes) && spread
    }

    /// Whether the domain may hold `bytes`, by hard limits and the levels' shares.
    pub(crate) fn chain_ok(&self, domain: usize, bytes: u64) -> bool {
        let d = &self.domains[domain];
        let (before, after) = (self.usage(domain), pg(bytes));
        if after == before {
            return true;
        }
        if after > d.limits.hard {
            return false;
        }
        let up = after.max(d.min) - before.max(d.min);
        up == 0
            || self.levels_ok(&self.chain(domain), (before.max(d.min), d.weight, d.limits.hard), up)
    }

    fn levels_ok(&self, chain: &[usize], child: Child, up: u64) -> bool {
        let mut child = child;
        chain.iter().all(|&level| {
            let group = &self.groups[level];
            let usage = self.level_usage(level);
            let fair = self.level_fair(level, child, up, true);
            child = self.as_child(level);
            fair && usage + up <= group.limits.hard
        })
    }

    /// Under the domain's own pressure: whether `flow` may hold this much elastic memory.
    pub(crate) fn fair(&self, flow: &Flow, elastic: u64) -> bool {
        let d = flow.budget;
        let active = self.active(d) + u64::from(!flow.active());
        !self.domains[d].flag
            || u128::from(self.room(d)) * 4096 > u128::from(active) * u128::from(elastic)
    }

    /// Whether growth by `more` keeps the bytes that waiting flows are going to reserve, or half of
    /// the room.
    pub(crate) fn beside_waiting(&self, domain: usize, more: u64) -> bool {
        let hold: u64 = self.domains[domain].members.iter().map(|m| m.hold).sum();
        // At most half of E is held back (H1).
        let held_back = hold.min(self.room(domain) * 4096 / 2);
        let hard = self.domains[domain].limits.hard * 4096;
        hold == 0 || self.bytes(domain) + more + held_back <= hard
    }

    /// The most of `want` chunks that the flow may be charged, `unused` of them from its reserve.
    pub(crate) fn grant(&self, at: usize, want: u64, unused: u64) -> u64 {
        let flow = self.flows[at].as_ref().unwrap();
        let fits = |k: &u64| {
            let more = k.saturating_sub(unused) * CHUNK;
            more == 0
                || self.beside_waiting(flow.budget, more)
                    && self.chain_ok(flow.budget, self.bytes(flow.budget) + more)
                    && self.fair(flow, flow.elastic() + more)
        };
        // The largest prefix, found by trying.
        (0..=want).rev().find(fits).unwrap_or(0)
    }

    pub(crate) fn pressure(&self, domain: usize) -> bool {
        let d = &self.domains[domain];
        let mut child = (self.usage(domain), d.weight);
        d.flag
            || self.chain(domain).iter().any(|&level| {
                let group = &self.groups[level];
                let over = child.0 > group.share.of(child.1 as u32);
                child = (self.level_usage(level), 1);
                group.flag && over && self.usage(domain) > d.min
            })
    }

    // ---- flags ----

    /// The soft test of every domain and level; the effective maxima follow.
    pub(crate) fn settle(&mut self) {
        for domain in 0..self.domains.len() {
            let fixed = pg(self.fixed(domain));
            // K7, on pages as in the budget.
            let elastic = self.usage(domain) - fixed - self.idle(domain);
            let (usage, room, now) = (self.usage(domain), self.room(domain), self.now);
            let d = &mut self.domains[domain];
            let Limits { low, soft, hard } = d.limits;
            let was = d.flag;
            d.flag = flag(d.flag, elastic, room, (low, soft, hard));
            match (was, d.flag) {
                (false, true) => d.since = now,
                (true, false) => d.flagged_ns += now - d.since,
                _ => {}
            }
            assert!(usage <= d.max_eff, "domain {domain} above its effective maximum");
            // A lowered limit: the effective maximum falls with usage (K6).
            d.max_eff = hard.max(d.max_eff.min(usage));
        }
        for level in 0..self.groups.len() {
            let (usage, fixed) = (self.level_usage(level), self.level_fixed(level));
            let elastic = usage.saturating_sub(fixed).saturating_sub(self.level_idle(level));
            let group = &mut self.groups[level];
            let LevelConfig { low, soft, hard } = group.limits;
            let room = hard.saturating_sub(fixed);
            group.flag = flag(group.flag, elastic, room, (low, soft, hard));
            assert!(usage <= group.max_eff, "level {level} above its effective maximum");
            group.max_eff = hard.max(group.max_eff.min(usage));
        }
    }

    pub(crate) fn member_stats(&self, domain: usize, member: usize) -> MemberStats {
        let of = &self.domains[domain].members[member];
        let mut stats = MemberStats { dev: of.dev, udp: of.udp, ..MemberStats::default() };
        stats.sock = of.compact;
        for flow in self.flows_of(domain).filter(|flow| flow.member == member) {
            stats.rmem += flow.rmem * CHUNK;
            stats.ofo += flow.ofo * CHUNK;
            stats.credit += flow.credit * CHUNK;
            stats.wmem += flow.wmem * CHUNK;
            stats.host += flow.host;
            stats.sock += u64::from(SIZES.sock);
            stats.flows += 1;
            stats.reserve += flow.rx() - (flow.rmem + flow.ofo + flow.credit) * CHUNK;
            stats.reserve += flow.tx() - flow.wmem * CHUNK;
        }
        stats
    }
}

fn flag(was: bool, elastic: u64, room: u64, (low, soft, hard): (u64, u64, u64)) -> bool {
    let scaled = elastic * hard;
    if was { scaled > room * low } else { scaled > room * soft }
}
