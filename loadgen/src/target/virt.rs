//! The virtual target: our stack, smoltcp guests, seeded virtual time. Bit-exact, no privileges.

mod build;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use skbudget_controller::{Counter, Instant, MemberStats};
use skbudget_stack::sim::World;

use self::build::{Cast, Player};
use super::{Control, Target};
use crate::exit::Failure;
use crate::gate::Thresholds;
use crate::plan::{ArmPlan, Plan, Role, RuleSet};
use crate::result::{ArmResult, BudgetResult, ContainerPhase, ContainerResult};

#[derive(Debug, Clone, Copy)]
pub struct Virtual;

impl Target for Virtual {
    fn name(&self) -> &'static str {
        "virtual"
    }
    fn thresholds(&self, plan: &Plan) -> Thresholds {
        Thresholds::exact(plan.link.rtt_ns)
    }
    fn parallel(&self) -> bool {
        true
    }
    fn has_link_rate(&self) -> bool {
        true
    }

    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure> {
        let mut world = World::new(plan.seed);
        let mut cast = build::cast(&mut world, plan, arm)?;
        let mut samples = Samples::new(&cast);
        for stop in stops(plan) {
            if control.stop.load(Ordering::Relaxed) {
                return Err(Failure::Interrupted);
            }
            world.run_until(Instant(stop.at_ns));
            for act in stop.acts {
                perform(act, &mut world, &mut cast, plan);
            }
            if stop.sample {
                samples.take(&world, &cast, arm.rules);
                for (id, _) in &cast.budgets {
                    while world.budget_mut(*id).poll_event().is_some() {}
                }
            }
        }
        Ok(collect(&world, &cast, plan, arm, samples))
    }
}

/// What happens between two stretches of virtual time, in this order at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    EndPhase(usize),
    HogLeaves,
    BeginPhase(usize),
    HogArrives,
    CloseBook(usize),
}

#[derive(Debug, Default)]
struct Stop {
    at_ns: u64,
    acts: Vec<Act>,
    sample: bool,
}

fn stops(plan: &Plan) -> Vec<Stop> {
    let mut at: BTreeMap<u64, Stop> = BTreeMap::new();
    let mut add = |ns: u64, act: Option<Act>| {
        let stop = at.entry(ns).or_default();
        stop.at_ns = ns;
        stop.acts.extend(act);
        stop.sample |= act.is_none();
    };
    for i in 1..=plan.end_ns().div_ceil(plan.window_ns) {
        add(i * plan.window_ns, None);
    }
    for (i, phase) in plan.phases.iter().enumerate() {
        add(phase.start_ns, Some(Act::BeginPhase(i)));
        add(phase.end_ns, Some(Act::EndPhase(i)));
        add(phase.end_ns + plan.grace_ns, Some(Act::CloseBook(i)));
    }
    let (from, to) = plan.hog_span();
    add(from, Some(Act::HogArrives));
    add(to, Some(Act::HogLeaves));
    let mut stops: Vec<Stop> = at.into_values().collect();
    stops.iter_mut().for_each(|s| s.acts.sort_unstable());
    stops
}

fn perform(act: Act, world: &mut World, cast: &mut Cast, plan: &Plan) {
    let now = world.now().0;
    match act {
        Act::BeginPhase(_) => {
            for p in &mut cast.players {
                p.up.borrow_mut().begin(now);
                p.down.borrow_mut().begin(now);
                p.moved_before = moved(world, p);
            }
        }
        Act::EndPhase(_) => {
            for p in &mut cast.players {
                p.up.borrow_mut().end(now);
                p.down.borrow_mut().end(now);
                // A container that left counts from zero to what it had.
                let moved = moved(world, p).saturating_sub(p.moved_before);
                p.moved.push(moved);
            }
        }
        Act::CloseBook(i) => {
            for p in &cast.players {
                p.probe.borrow_mut().close(i, now);
            }
        }
        Act::HogArrives => {
            for p in cast.players.iter().filter(|p| p.role == Role::Hog) {
                build::raise_loads(world, p, plan, Instant(now));
            }
        }
        Act::HogLeaves => {
            for p in cast.players.iter_mut().filter(|p| p.role == Role::Hog) {
                // The counters leave with the member.
                p.last_stats = Some(world.budget(p.budget).member_stats(world.member(p.node)));
                world.stop(p.node);
            }
        }
    }
}

fn moved(world: &World, p: &Player) -> u64 {
    let s = world.container(p.node).stats();
    s.bytes_from_guest + s.bytes_to_guest
}

fn stats_of(world: &World, p: &Player) -> MemberStats {
    p.last_stats.unwrap_or_else(|| world.budget(p.budget).member_stats(world.member(p.node)))
}

/// What is charged for a container. Under the linux rules host sockets are recorded and charged to nobody.
fn held(s: &MemberStats, rules: RuleSet) -> u64 {
    let MemberStats { rmem, ofo, credit, wmem, fwd, reserve, udp, sock, host, dev, .. } = *s;
    let host = if rules == RuleSet::Strict { host } else { 0 };
    rmem + ofo + credit + wmem + fwd + reserve + udp + sock + host + dev
}

/// Usage at the end of every window.
#[derive(Debug)]
struct Samples {
    usage: Vec<Vec<u64>>,
    peak_held: Vec<u64>,
}

impl Samples {
    fn new(cast: &Cast) -> Self {
        Self { usage: vec![Vec::new(); cast.budgets.len()], peak_held: vec![0; cast.players.len()] }
    }
    fn take(&mut self, world: &World, cast: &Cast, rules: RuleSet) {
        for (series, (id, _)) in self.usage.iter_mut().zip(&cast.budgets) {
            series.push(world.budget(*id).meter_stats(world.now()).usage_bytes);
        }
        for (peak, p) in self.peak_held.iter_mut().zip(&cast.players) {
            *peak = (*peak).max(held(&stats_of(world, p), rules));
        }
    }
}

fn collect(world: &World, cast: &Cast, plan: &Plan, arm: &ArmPlan, samples: Samples) -> ArmResult {
    let budgets = cast.budgets.iter().zip(samples.usage);
    let budgets = budgets.map(|((id, name), usage)| {
        let m = world.budget(*id).meter_stats(world.now());
        BudgetResult {
            name: name.clone(),
            low_bytes: m.low_bytes,
            soft_bytes: m.soft_bytes,
            hard_bytes: m.hard_bytes,
            max_usage_bytes: m.max_usage_bytes,
            overshoot_bytes: m.hard_bytes.map_or(0, |h| m.max_usage_bytes.saturating_sub(h)),
            pressure_ns: m.pressure_ns,
            failcnt: m.failcnt,
            usage_bytes: usage,
        }
    });
    let players = cast.players.iter().zip(samples.peak_held);
    ArmResult {
        name: arm.name.to_owned(),
        role: arm.role,
        isolation: arm.isolation,
        rules: arm.rules,
        budgets: budgets.collect(),
        containers: players.map(|(p, peak)| container(world, cast, p, peak, plan)).collect(),
        ..ArmResult::default()
    }
}

fn container(world: &World, cast: &Cast, p: &Player, peak: u64, plan: &Plan) -> ContainerResult {
    let (up, down, probe) = (p.up.borrow(), p.down.borrow(), p.probe.borrow());
    let books: Vec<_> = probe.books().iter().map(|b| p.spec.map(|_| b.summary())).collect();
    let answered = |i: usize| books[i].as_ref().map_or(0, |b| b.completed);
    let response = p.spec.map_or(0, |s| u64::from(s.response_bytes));
    let phase = |i: usize| ContainerPhase {
        up_bytes: up.phases()[i].bytes,
        down_bytes: down.phases()[i].bytes,
        up_stall_ns: up.phases()[i].stall_ns,
        down_stall_ns: down.phases()[i].stall_ns,
        moved_bytes: p.moved[i],
        probe_bytes: answered(i) * response,
        probe: books[i].clone(),
    };
    let stats = world.container(p.node).stats();
    let budget = cast.budgets.iter().position(|(id, _)| *id == p.budget).unwrap_or(0);
    ContainerResult {
        name: p.name.clone(),
        role: p.role,
        budget,
        phases: (0..plan.phases.len()).map(phase).collect(),
        up_window_bytes: up.windows().to_vec(),
        down_window_bytes: down.windows().to_vec(),
        up_total_bytes: up.total(),
        down_total_bytes: down.total(),
        peak_held_bytes: peak,
        hard_bytes: p.hard_bytes,
        counters: memory_counters(&stats_of(world, p)),
        stack_counters: named(stats.counters.iter().map(|(n, v)| (*n, *v))),
        guest_counters: BTreeMap::new(),
        flows_total: stats.flows_total,
        corrupt: up.corrupt() + down.corrupt() + probe.corrupt() + world.host(p.node).corrupt(),
        broken: up.broken() + down.broken() + probe.broken() + Rc::clone(&p.sender).borrow().broken,
        wants_up: true,
        wants_down: true,
        ..ContainerResult::default()
    }
}

/// Nonzero counters by the kernel's names.
pub(super) fn memory_counters(s: &MemberStats) -> BTreeMap<String, u64> {
    named(COUNTERS.iter().map(|(name, c)| (*name, s.counters[*c as usize])))
}

pub(super) fn named<'a>(all: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    all.filter(|(_, v)| *v > 0).map(|(n, v)| (n.to_owned(), v)).collect()
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), Counter::$name)),*] };
}

pub(super) const COUNTERS: &[(&str, Counter)] = counters![
    TCPMemoryPressures,
    TCPMemoryPressuresChrono,
    PruneCalled,
    RcvPruned,
    OfoPruned,
    TCPRcvCollapsed,
    TCPRcvQDrop,
    TCPOFOQueue,
    TCPOFODrop,
    TCPZeroWindowDrop,
    TCPFromZeroWindowAdv,
    TCPToZeroWindowAdv,
    TCPWantZeroWindowAdv,
    TCPAbortOnMemory,
    AdmissionDelayed,
    AdmissionDenied,
    CreditDemoted,
    DemotedTrim,
    HostMemExcess,
    TWRecycled,
    EventsLost,
];
