//! Operations on flows and budgets: computes the model's result first, then compares the
//! controller's.

use skbudget_controller::share::{Child, Share, fair_level};
use skbudget_controller::{Budget, Instant, Ledger, MemberId, RxKind, transfer};

use crate::naive::{CHUNK, Flow, SIZES};
use crate::strict::World;

impl World {
    // ---- admission ----

    pub(crate) fn admit(&mut self, budget: usize, member: usize) -> u64 {
        let sock = u64::from(SIZES.sock);
        let naive = &self.naive;
        // H7 first, then the limits of the chain.
        let half = naive.half_open(budget) + sock <= naive.domains[budget].limits.hard * 4096 / 8;
        let ok = half && naive.reserve_ok(budget, naive.bytes(budget) + sock);
        let now = self.now();
        let answer = self.budgets[budget].admit(MemberId(member as u16), &SIZES, now);
        assert_eq!(answer.is_ok(), ok, "admit {answer:?}");
        if let Ok(ledger) = answer {
            self.ledgers.push(Some(ledger));
            self.naive.flows.push(Some(Flow { budget, member, ..Flow::default() }));
        }
        u64::from(ok)
    }

    pub(crate) fn establish(&mut self, at: usize) -> u64 {
        let mut after = self.naive.flows[at].clone().unwrap();
        if after.established {
            return 2;
        }
        let before = after.held();
        after.established = true;
        after.host += u64::from(SIZES.host_floor);
        let budget = after.budget;
        let bytes = self.naive.bytes(budget) + after.held() - before;
        let ok = self.naive.reserve_ok(budget, bytes);
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        let answer = self.budgets[budget].establish(ledger, now);
        assert_eq!(answer.is_ok(), ok, "establish {answer:?}");
        if ok {
            self.naive.flows[at] = Some(after);
        }
        u64::from(ok)
    }

    pub(crate) fn release(&mut self, at: usize) -> u64 {
        let flow = self.naive.flows[at].take().unwrap();
        let now = self.now();
        self.budgets[flow.budget].release(self.ledgers[at].take().unwrap(), now);
        flow.held()
    }

    // ---- queues ----

    /// Growth and arrivals end idleness; the soft test sees that before the operation.
    pub(crate) fn touch(&mut self, at: usize) -> Flow {
        self.naive.flows[at].as_mut().unwrap().idle = false;
        self.naive.settle();
        self.naive.flows[at].clone().unwrap()
    }

    pub(crate) fn open(&mut self, at: usize, n: u64) -> u64 {
        let flow = self.touch(at);
        let granted = self.naive.grant(at, n, rx_unused(&flow));
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        let answer = self.budgets[flow.budget].rx_open(ledger, n as u32, now);
        assert_eq!(u64::from(answer), granted, "rx_open");
        self.naive.flows[at].as_mut().unwrap().credit += granted;
        granted
    }

    pub(crate) fn fill(&mut self, at: usize, n: u64, kind: RxKind) -> u64 {
        let flow = self.touch(at);
        // Only chunks without credit need a charge.
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

    pub(crate) fn close(&mut self, at: usize, n: u64) -> u64 {
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

    pub(crate) fn grant(&mut self, at: usize, n: u64) -> u64 {
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

    pub(crate) fn host_raise(&mut self, at: usize, bytes: u64) -> u64 {
        let flow = self.naive.flows[at].clone().unwrap();
        let budget = flow.budget;
        let ok = !self.naive.pressure(budget)
            && self.naive.beside_waiting(budget, bytes)
            && self.naive.chain_ok(budget, self.naive.bytes(budget) + bytes);
        let now = self.now();
        let ledger = self.ledgers[at].as_mut().unwrap();
        assert_eq!(self.budgets[budget].host_raise(ledger, bytes, now), ok);
        self.naive.flows[at].as_mut().unwrap().host += if ok { bytes } else { 0 };
        u64::from(ok)
    }

    pub(crate) fn shrink(
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

    pub(crate) fn transfer(&mut self, from: usize, to: usize, n: u64) -> u64 {
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
        // Taken out, because both ledgers are borrowed at once.
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

    /// Moves one chunk in the model: tried on a copy, kept when every meter allows it.
    pub(crate) fn move_one(&mut self, from: usize, to: usize) -> bool {
        // The model is small: a copy replaces every undo.
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
        // Within one budget a chunk that only moves to another flow adds nothing.
        let adds = giver != taker || after.bytes(taker) > naive.bytes(taker);
        if grows && adds && !naive.beside_waiting(taker, CHUNK) {
            return false;
        }
        // Only a growing budget is held to its hard limit (K6).
        let net = after.usage(taker) > naive.usage(taker);
        if net && after.usage(taker) > naive.domains[taker].limits.hard {
            return false;
        }
        let (old, new) = (naive.usage(taker), after.usage(taker));
        let min = naive.domains[taker].min;
        let up = new.max(min).saturating_sub(old.max(min));
        // K5: the levels of the taker alone, and those above both.
        let (below, common): (Vec<_>, Vec<_>) =
            naive.chain(taker).into_iter().partition(|l| !naive.chain(giver).contains(l));
        if up > 0 && giver != taker {
            let weight = naive.domains[taker].weight;
            let mut child = (old.max(min), weight, naive.domains[taker].limits.hard);
            for level in naive.chain(taker) {
                // The levels above both do not grow: the child's part is not tested there.
                let grows =
                    below.contains(&level) || after.level_usage(level) > naive.level_usage(level);
                if !naive.level_fair(level, child, up, grows) {
                    return false;
                }
                child = naive.as_child(level);
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

    pub(crate) fn budget_of(&self, at: usize) -> usize {
        self.naive.flows[at].as_ref().unwrap().budget
    }

    pub(crate) fn set_min(&mut self, budget: usize, pages: u64) -> u64 {
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

    pub(crate) fn share(&mut self, level: usize, bound: bool) -> u64 {
        let mut children = Vec::new();
        for (at, domain) in self.naive.domains.iter().enumerate() {
            if domain.parent == Some(level) {
                let (usage, min) = (self.naive.usage(at), domain.min);
                children.push(Child { usage, min, weight: domain.weight as u32 });
            }
        }
        for at in 0..self.naive.groups.len() {
            if self.naive.groups[at].parent == Some(level) {
                children.push(Child { usage: self.naive.level_usage(at), min: 0, weight: 1 });
            }
        }
        let soft = self.levels[level].soft_effective();
        let share = if bound { fair_level(&children, soft) } else { Share::NONE };
        self.levels[level].publish_share(share);
        self.naive.groups[level].share = share;
        share.of(1)
    }

    /// Moves a budget; `min`: with another guarantee, both or neither.
    pub(crate) fn move_budget(
        &mut self,
        budget: usize,
        to: Option<usize>,
        min: Option<u64>,
    ) -> u64 {
        let naive = &self.naive;
        let domain = &naive.domains[budget];
        let usage = naive.usage(budget);
        let (before, up) = (usage.max(domain.min), usage.max(min.unwrap_or(domain.min)));
        let old = naive.chain(budget);
        let mut after = naive.clone();
        after.domains[budget].parent = to;
        after.domains[budget].min = min.unwrap_or(domain.min);
        let fits = |level: &usize| {
            let more = if old.contains(level) { up.saturating_sub(before) } else { up };
            more == 0 || naive.level_usage(*level) + more <= naive.groups[*level].limits.hard
        };
        let own = min.is_none_or(|min| min <= domain.limits.hard);
        let ok = own && after.chain(budget).iter().all(fits);
        let now = self.now();
        let parent = to.map(|level| self.levels[level].clone());
        let answer = match min {
            None => self.budgets[budget].set_parent(parent, now),
            Some(min) => self.budgets[budget].set_parent_and_min(parent, min * 4096, now),
        };
        assert_eq!(answer.is_ok(), ok, "move {min:?} {answer:?}");
        if ok {
            self.naive = after;
        }
        u64::from(ok)
    }
}

fn rx_unused(flow: &Flow) -> u64 {
    (flow.rmin() / CHUNK).saturating_sub(flow.rmem + flow.ofo + flow.credit)
}

fn tx_unused(flow: &Flow) -> u64 {
    (flow.wmin() / CHUNK).saturating_sub(flow.wmem)
}
