//! The language of the strict vectors: commands are separated by `;`, words by blanks.
//!
//! Set-up: `host HARD [SOFT LOW]`, `group NAME HARD [under LEVEL]`, `budget NAME HARD|none [flat]
//! [under LEVEL] [min P] [weight W] [dev BYTES]`, `sizes S R W FLOOR`, `flow|admit|half NAME
//! BUDGET`, `flows|halves N BUDGET`, `idleflows N BUDGET CHUNKS`, `crowd N HARD USAGE` (budgets
//! B1.. under the host). `#n` names the n-th anonymous flow.
//!
//! Operations: `open fill ofo settle free prune close send acked FLOW CHUNKS`, `raise|lower FLOW
//! BYTES`, `idle|busy|drop FLOW`, `dropone BUDGET`, `demote N CHUNKS`, `grow BUDGET USAGE`, `move
//! FROM TO CHUNKS`, `[un]compact|[un]udp|dev BUDGET BYTES`, `limit BUDGET HARD [flat]`, `min BUDGET
//! P`, `share LEVEL X|max`, `publish LEVEL`, `parent BUDGET LEVEL|none`, `wait BUDGET KEY NEED`,
//! `forget BUDGET KEY`, `wake BUDGET`, `leave BUDGET`.
//!
//! Statements: `usage bytes fail eff headroom reserve flag pressure state BUDGET X`, `held caps
//! rmem credit wmem FLOW X`, `level failat levelflag levelwake LEVEL X`.

use std::collections::BTreeMap;
use std::sync::Arc;

use skbudget_controller::share::{Child, Share, fair_level};
use skbudget_controller::{
    Budget, BudgetConfig, FlowSizes, Instant, Ledger, Level, LevelConfig, Limits, MemberId,
    Pressure, Refusal, Rules, RxKind, SockLimits, transfer,
};

const NOW: Instant = Instant(1);

struct Seat {
    budget: Budget,
    member: MemberId,
}

pub(crate) struct World {
    number: &'static str,
    why: &'static str,
    sizes: FlowSizes,
    levels: BTreeMap<String, Arc<Level>>,
    seats: BTreeMap<String, Seat>,
    flows: BTreeMap<String, (String, Ledger)>,
    step: String,
}

impl World {
    pub(crate) fn new(number: &'static str, why: &'static str) -> Self {
        let sizes = FlowSizes { sock: 1536, rmem_min: 4096, wmem_min: 4096, host_floor: 0 };
        let (levels, seats, flows) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { number, why, sizes, levels, seats, flows, step: String::new() }
    }

    pub(crate) fn run(mut self, script: &str) {
        for step in script.split(';') {
            self.step = step.trim().to_owned();
            let (command, expected) = match step.split_once('=') {
                Some((command, expected)) => (command, Some(expected.trim())),
                None => (step, None),
            };
            let words: Vec<&str> = command.split_whitespace().collect();
            // A command that is neither set-up nor operation is a statement.
            if let Some(answer) = self.make(&words).or_else(|| self.act(&words)) {
                // Without `=` a new flow must be admitted.
                let admits = ["flow", "half"].contains(&words[0]);
                if let Some(expected) = expected.or_else(|| admits.then_some("ok")) {
                    self.expect(&answer, expected);
                }
            } else {
                let seen = self.look(&words);
                self.expect(&seen, words[2]);
            }
        }
        let flows = core::mem::take(&mut self.flows);
        for (_, (budget, ledger)) in flows {
            self.seat(&budget).budget.release(ledger, NOW);
        }
    }

    fn expect(&self, seen: &str, expected: &str) {
        let (number, why, step) = (self.number, self.why, &self.step);
        assert_eq!(seen, expected, "vector {number}, at `{step}` ({why})");
    }

    fn seat(&mut self, name: &str) -> &mut Seat {
        self.seats.get_mut(name).expect("a budget of that name")
    }

    fn flow_of(&mut self, name: &str) -> (&mut Budget, &mut Ledger) {
        let (budget, ledger) = self.flows.get_mut(name).expect("a flow of that name");
        (&mut self.seats.get_mut(budget).expect("its budget").budget, ledger)
    }

    // ---- set-up ----

    fn make(&mut self, words: &[&str]) -> Option<String> {
        match words {
            ["host", rest @ ..] => {
                let hard = num(rest[0]);
                let (soft, low) = match rest {
                    [_, soft, low] => (num(soft), num(low)),
                    _ => (2 * hard / 3, hard / 2),
                };
                self.level("host", LevelConfig { low, soft, hard }, None);
            }
            ["group", name, hard, rest @ ..] => {
                let hard = num(hard);
                let parent = option(rest, "under").map(|level| self.levels[level].clone());
                self.level(name, LevelConfig { low: hard, soft: hard, hard }, parent);
            }
            ["budget", name, hard, rest @ ..] => self.budget(name, hard, rest),
            ["crowd", n, hard, usage] => {
                // Each budget has one flow, which grows until the budget uses `usage` pages.
                for at in 1..=num(n) {
                    let name = format!("B{at}");
                    self.budget(&name, hard, &["flat", "under", "host"]);
                    self.act(&["flow", &format!("{name}f"), &name]);
                    self.act(&["grow", &name, usage]);
                }
            }
            ["sizes", sock, rmem, wmem, floor] => {
                let [sock, rmem_min, wmem_min, host_floor] =
                    [sock, rmem, wmem, floor].map(|word| num(word) as u32);
                self.sizes = FlowSizes { sock, rmem_min, wmem_min, host_floor };
            }
            ["flows", n, budget] => self.many(num(n), "flow", budget),
            ["halves", n, budget] => self.many(num(n), "half", budget),
            ["idleflows", n, budget, chunks] => {
                self.many(num(n), "flow", budget);
                for at in 0..num(n) {
                    let name = format!("#{at}");
                    assert_eq!(self.act(&["open", &name, chunks]).as_deref(), Some(*chunks));
                    self.act(&["idle", &name]);
                }
            }
            _ => return None,
        }
        Some(String::new())
    }

    fn level(&mut self, name: &str, config: LevelConfig, parent: Option<Arc<Level>>) {
        self.levels.insert(name.to_owned(), Level::new(config, parent).expect("a level"));
    }

    fn budget(&mut self, name: &str, hard: &str, rest: &[&str]) {
        let weight = option(rest, "weight").map_or(1, |word| num(word) as u32);
        let config = BudgetConfig {
            rules: Rules::Strict,
            limits: limits(hard, rest),
            sock: SockLimits::default(),
            min_bytes: option(rest, "min").map_or(0, |word| num(word) * 4096),
            weight,
        };
        let parent = option(rest, "under").map(|level| self.levels[level].clone());
        let mut budget = Budget::new(config, parent).expect("a budget");
        let dev = option(rest, "dev").map_or(0, num);
        let member = budget.add_member(dev).expect("its device queue fits");
        self.seats.insert(name.to_owned(), Seat { budget, member });
    }

    fn many(&mut self, n: u64, how: &str, budget: &str) {
        let first = self.flows.len();
        for at in 0..n as usize {
            let answer = self.act(&[how, &format!("#{}", first + at), budget]);
            assert_eq!(answer.as_deref(), Some("ok"), "vector {}", self.number);
        }
    }

    fn admit(&mut self, name: &str, budget: &str, whole: bool) -> String {
        let sizes = self.sizes;
        let seat = self.seat(budget);
        let mut ledger = match seat.budget.admit(seat.member, &sizes, NOW) {
            Ok(ledger) => ledger,
            Err(refusal) => return word(Err(refusal)),
        };
        // `half` stops after `admit`.
        let answer = if whole { seat.budget.establish(&mut ledger, NOW) } else { Ok(()) };
        if answer.is_ok() {
            self.flows.insert(name.to_owned(), (budget.to_owned(), ledger));
        } else {
            seat.budget.release(ledger, NOW);
        }
        word(answer)
    }

    // ---- operations ----

    fn act(&mut self, words: &[&str]) -> Option<String> {
        match words {
            ["flow" | "admit", name, budget] => return Some(self.admit(name, budget, true)),
            ["half", name, budget] => return Some(self.admit(name, budget, false)),
            ["drop", flow] => {
                let (budget, ledger) = self.flows.remove(*flow).expect("a flow of that name");
                self.seat(&budget).budget.release(ledger, NOW);
                return Some(String::new());
            }
            ["dropone", _budget] => {
                let name = self.flows.keys().next().expect("a flow").clone();
                return self.act(&["drop", &name]);
            }
            ["demote", n, chunks] => {
                for at in 0..num(n) {
                    let closed = self.act(&["close", &format!("#{at}"), chunks]);
                    assert_eq!(closed.as_deref(), Some(*chunks));
                }
                return Some(String::new());
            }
            ["grow", budget, usage] => {
                let held = self.seat(budget).budget.meter_stats(NOW).usage_bytes / 4096;
                // A flow that holds only its reservation (3 pages) opens its first chunk within the
                // reserve, without a charge: one chunk more.
                let more = (num(usage) - held + u64::from(held == 3)).to_string();
                return self.act(&["open", &format!("{budget}f"), &more]);
            }
            ["move", from, to, n] => return Some(self.transfer(from, to, num(n) as u32)),
            _ => {}
        }
        self.act_on_flow(words).or_else(|| self.act_on_budget(words))
    }

    fn act_on_flow(&mut self, words: &[&str]) -> Option<String> {
        let name = words.get(1)?;
        if !self.flows.contains_key(*name) || STATES.contains(&words[0]) {
            return None;
        }
        let n = words.get(2).map_or(0, |word| num(word));
        let chunks = n as u32;
        let (budget, ledger) = self.flow_of(name);
        let granted = match words[0] {
            "establish" => return Some(word(budget.establish(ledger, NOW))),
            "open" => budget.rx_open(ledger, chunks, NOW),
            "fill" => budget.rx_fill(ledger, chunks, RxKind::InOrder, NOW),
            "ofo" => budget.rx_fill(ledger, chunks, RxKind::Ofo, NOW),
            "close" => budget.rx_close(ledger, chunks, NOW),
            "send" => budget.tx_grant(ledger, chunks, NOW),
            "raise" => return Some(yes(budget.host_raise(ledger, n, NOW))),
            other => {
                match other {
                    "settle" => budget.rx_settle(ledger, chunks),
                    "free" => budget.rx_free(ledger, chunks, NOW),
                    "prune" => budget.rx_prune(ledger, chunks, NOW),
                    "acked" => budget.tx_free(ledger, chunks, NOW),
                    "lower" => budget.host_lower(ledger, n, NOW),
                    "idle" => budget.set_idle(ledger, true, NOW),
                    "busy" => budget.set_idle(ledger, false, NOW),
                    _ => return None,
                }
                return Some(String::new());
            }
        };
        Some(granted.to_string())
    }

    fn act_on_budget(&mut self, words: &[&str]) -> Option<String> {
        if let ["share" | "publish", level, ..] = words {
            let level = self.levels[*level].clone();
            let share = match words[2..] {
                ["max"] => Share::NONE,
                [x] => Share::pages(num(x)),
                _ => fair_level(&self.children(), level.soft_effective()),
            };
            level.publish_share(share);
            return Some(share.of(1).to_string());
        }
        let [what, name, rest @ ..] = words else { return None };
        let parent = rest.first().and_then(|level| self.levels.get(*level).cloned());
        let Seat { budget, member, .. } = self.seats.get_mut(*name)?;
        let n = || num(rest[0]);
        let answer = match *what {
            "compact" => yes(budget.charge_compact(*member, n(), NOW)),
            "udp" => yes(budget.charge_udp(*member, n(), NOW)),
            "dev" => yes(budget.add_member(n()).is_ok()),
            "min" => yes(budget.set_min(n() * 4096, NOW).is_ok()),
            "parent" => word(budget.set_parent(parent, NOW)),
            "wake" => {
                budget.poll_wake(NOW).map_or_else(|| "none".to_owned(), |key| key.to_string())
            }
            other => {
                match other {
                    "uncompact" => budget.uncharge_compact(*member, n(), NOW),
                    "unudp" => budget.uncharge_udp(*member, n(), NOW),
                    "limit" => budget.set_limits(limits(rest[0], rest), NOW),
                    "wait" => budget.wait(n(), num(rest[1])),
                    "forget" => budget.forget(n()),
                    "leave" => budget.remove_member(*member, NOW),
                    _ => return None,
                }
                String::new()
            }
        };
        Some(answer)
    }

    fn children(&self) -> Vec<Child> {
        let child = |Seat { budget, .. }: &Seat| {
            let usage = budget.meter_stats(NOW).usage_bytes / 4096;
            Child { usage, ..budget.as_child() }
        };
        self.seats.values().map(child).collect()
    }

    fn transfer(&mut self, from: &str, to: &str, n: u32) -> String {
        let (giver, mut given) = self.flows.remove(from).expect("the giver");
        let (taker, mut taken) = self.flows.remove(to).expect("the taker");
        // Taken out of the map, because two budgets are borrowed at once.
        let mut a = self.seats.remove(&giver).expect("its budget");
        let b = &mut self.seat(&taker).budget;
        let moved = transfer(&mut a.budget, &mut given, b, &mut taken, n, NOW);
        self.seats.insert(giver.clone(), a);
        self.flows.insert(from.to_owned(), (giver, given));
        self.flows.insert(to.to_owned(), (taker, taken));
        moved.to_string()
    }

    // ---- statements ----

    fn look(&mut self, words: &[&str]) -> String {
        // A name may be a level, a flow or a budget: the word before it decides.
        let [what, name, _] = words else { panic!("not a statement: {}", self.step) };
        if let Some(level) = self.levels.get(*name) {
            return match *what {
                "level" => level.usage().to_string(),
                "failat" => level.failcnt().to_string(),
                "levelflag" => on(level.under_pressure()),
                "levelwake" => yes(level.take_wake()),
                _ => panic!("unknown statement {what}"),
            };
        }
        if STATES.contains(what) {
            let (_, ledger) = self.flow_of(name);
            return match *what {
                "held" => ledger.held(),
                "caps" => ledger.host(),
                "rmem" => ledger.rmem() / 4096,
                "credit" => ledger.credit() / 4096,
                _ => ledger.wmem() / 4096,
            }
            .to_string();
        }
        let Seat { budget, member, .. } = self.seat(name);
        let (meter, stats) = (budget.meter_stats(NOW), budget.member_stats(*member));
        match *what {
            "usage" => (meter.usage_bytes / 4096).to_string(),
            "bytes" => {
                let queues = stats.rmem + stats.ofo + stats.credit + stats.wmem + stats.reserve;
                (queues + stats.udp + stats.frag + stats.sock + stats.host + stats.dev).to_string()
            }
            "reserve" => stats.reserve.to_string(),
            "fail" => meter.failcnt.to_string(),
            "eff" => (meter.hard_effective_bytes.unwrap() / 4096).to_string(),
            "headroom" => budget.headroom().to_string(),
            "flag" => on(meter.pressure == Pressure::Soft
                || meter.pressure == Pressure::Hard && budget.under_pressure()),
            "pressure" => yes(budget.under_pressure()),
            "state" => format!("{:?}", meter.pressure).to_lowercase(),
            _ => panic!("unknown statement {what}"),
        }
    }
}

/// Statements about a flow.
const STATES: [&str; 5] = ["held", "caps", "rmem", "credit", "wmem"];

fn limits(hard: &str, rest: &[&str]) -> Limits {
    if hard == "none" {
        return Limits::NONE;
    }
    let hard = num(hard);
    if rest.contains(&"flat") {
        return Limits { low: hard, soft: hard, hard };
    }
    Limits { low: hard / 2, soft: 2 * hard / 3, hard }
}

fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == name)?;
    words.get(at + 1).copied()
}

fn num(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}

fn word(answer: Result<(), Refusal>) -> String {
    match answer {
        Ok(()) => "ok".to_owned(),
        Err(Refusal::Hard) => "hard".to_owned(),
        Err(Refusal::Ancestor(at)) => format!("ancestor{at}"),
        Err(Refusal::Share) => "share".to_owned(),
        Err(Refusal::HalfOpen) => "halfopen".to_owned(),
    }
}

fn yes(answer: bool) -> String {
    if answer { "yes" } else { "no" }.to_owned()
}

fn on(flag: bool) -> String {
    if flag { "on" } else { "off" }.to_owned()
}

impl Drop for World {
    /// After a failed assertion the ledgers are forgotten: their own panics would hide it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            core::mem::forget(core::mem::take(&mut self.flows));
        }
    }
}
