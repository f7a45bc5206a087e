//! The virtual target: the stack, smoltcp guests, seeded virtual time. Bit-exact, no privileges.

mod apps;
mod build;
mod collect;
mod flood;
mod loads;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use skbudget_controller::Instant;
use skbudget_sim::World;

use self::build::{ArmRun, ContainerRun};
use self::collect::{UsageSamples, collect};
use super::{Control, Target};
use crate::exit::Failure;
use crate::judge::gate::Thresholds;
use crate::measure::result::ArmResult;
use crate::scenario::plan::{ArmPlan, CONTENDED, Plan, SOLO};

#[derive(Debug, Clone, Copy)]
pub(super) struct Virtual;

impl Target for Virtual {
    fn name(&self) -> &'static str {
        "virtual"
    }
    fn recovery_step_ns(&self, plan: &Plan) -> u64 {
        plan.recovery_step_ns(build::STEP_NS)
    }
    fn thresholds(&self, plan: &Plan) -> Thresholds {
        Thresholds::exact(plan.link.rtt_ns, self.recovery_step_ns(plan))
    }
    fn repeats(&self) -> usize {
        1
    }
    fn parallel(&self) -> bool {
        true
    }

    fn run_arm(
        &self,
        plan: &Plan,
        arm: &ArmPlan,
        control: Control<'_>,
    ) -> Result<ArmResult, Failure> {
        let mut world = World::new(plan.seed);
        let mut run = build::arm_run(&mut world, plan, arm)?;
        let mut samples = UsageSamples::new(&run);
        let mut stopped = false;
        for stop in stops(plan) {
            // Checked at every pause: the wall-clock time between two is short.
            stopped = control.stop.load(Ordering::Relaxed);
            if stopped {
                break;
            }
            world.run_until(Instant(stop.at_ns));
            for action in stop.actions {
                apply(action, &mut world, &mut run, plan)?;
            }
            if stop.held {
                let phase = &plan.phases[CONTENDED];
                // Without both ends: there the hog has just arrived or left.
                let contended = (phase.start_ns + 1..phase.end_ns).contains(&stop.at_ns);
                samples.take_held(&world, &run, arm.rules, contended);
            }
            if stop.sample {
                samples.take_usage(&world, &run);
                // Nothing reads the events here; drain them so that they do not accumulate.
                for (id, _) in &run.budgets {
                    while world.budget_mut(*id).poll_event().is_some() {}
                }
            }
        }
        let ended_ns = stopped.then(|| world.now().0);
        if let Some(now) = ended_ns {
            // Keep the records if anything was measured.
            if now <= plan.phases[SOLO].start_ns {
                return Err(Failure::Interrupted);
            }
            cut_short(&world, &mut run, plan);
        }
        Ok(ArmResult { ended_ns, ..collect(&world, &run, plan, arm, samples) })
    }
}

/// Actions between two spans of virtual time. At one instant they run in the order of the variants. Numbers are indices
/// of phases or containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    EndPhase(usize),
    Leave(usize),
    BeginPhase(usize),
    Join(usize),
    StartLoads(usize),
    ClosePhase(usize),
}

/// A time at which the world pauses, with its actions.
#[derive(Debug, Default)]
struct Stop {
    at_ns: u64,
    actions: Vec<Action>,
    /// A window of the charts ends.
    sample: bool,
    /// The charged memory is sampled.
    held: bool,
}

/// Interval of samples of charged memory, independent of the windows of the charts, because gates depend on them.
const HELD_EVERY_NS: u64 = 10_000_000;

/// All pauses of a plan in the order of time.
fn stops(plan: &Plan) -> Vec<Stop> {
    let mut at: BTreeMap<u64, Stop> = BTreeMap::new();
    let mut add = |ns: u64, action: Option<Action>| {
        let stop = at.entry(ns).or_default();
        stop.at_ns = ns;
        stop.actions.extend(action);
        // Without an action: the end of a window.
        stop.sample |= action.is_none();
    };
    for i in 1..=plan.end_ns().div_ceil(plan.window_ns) {
        add(i * plan.window_ns, None);
    }
    for (i, phase) in plan.phases.iter().enumerate() {
        add(phase.start_ns, Some(Action::BeginPhase(i)));
        add(phase.end_ns, Some(Action::EndPhase(i)));
        // Late responses count until the end of the grace time.
        add(phase.end_ns + plan.grace_ns, Some(Action::ClosePhase(i)));
    }
    for (i, c) in plan.containers.iter().enumerate() {
        add(c.joins_ns, Some(Action::Join(i)));
        if let Some(first) = c.active.first() {
            add(first.from_ns, Some(Action::StartLoads(i)));
        }
        if let Some(ns) = c.leaves_ns {
            add(ns, Some(Action::Leave(i)));
        }
    }
    for i in 1..=plan.end_ns().div_ceil(HELD_EVERY_NS) {
        let stop = at.entry(i * HELD_EVERY_NS).or_default();
        (stop.at_ns, stop.held) = (i * HELD_EVERY_NS, true);
    }
    let mut stops: Vec<Stop> = at.into_values().collect();
    // Actions at one instant run in the order of the variants of `Action`.
    stops.iter_mut().for_each(|s| s.actions.sort_unstable());
    stops
}

/// Carries out one action.
fn apply(action: Action, world: &mut World, run: &mut ArmRun, plan: &Plan) -> Result<(), Failure> {
    let now = world.now().0;
    match action {
        Action::BeginPhase(_) => {
            for c in &mut run.containers {
                c.up.borrow_mut().begin(now);
                c.down.borrow_mut().begin(now);
                // The counter is cumulative: remember its value at the start of the phase.
                c.moved_before = moved(world, c);
            }
        }
        Action::EndPhase(_) => end_phase(world, run),
        Action::ClosePhase(i) => {
            for c in &run.containers {
                c.probe.borrow_mut().close(i, now);
            }
        }
        Action::Join(i) => build::join(world, &mut run.containers[i], plan)?,
        Action::StartLoads(i) => {
            // Stagger containers that exist from the start.
            let apart = STAGGER_NS.min(STAGGER_ALL_NS / plan.containers.len() as u64);
            let first = if now == 0 { i as u64 * apart } else { now };
            loads::start_loads(world, &run.containers[i], plan, Instant(first));
            loads::connect_clients(world, &run.containers[i]);
        }
        Action::Leave(i) => {
            let c = &mut run.containers[i];
            if let Some(node) = c.node {
                // Save the counters now: they are removed with the member.
                c.last_stats = Some(world.budget(c.budget).member_stats(world.member(node)));
                world.stop(node);
            }
        }
    }
    Ok(())
}

/// Interval between the starts of two containers, and limit of the interval between the first and the last of many.
const STAGGER_NS: u64 = 100_000;
const STAGGER_ALL_NS: u64 = 50_000_000;

fn end_phase(world: &World, run: &mut ArmRun) {
    let now = world.now().0;
    for c in &mut run.containers {
        c.up.borrow_mut().end(now);
        c.down.borrow_mut().end(now);
        // A container that has ended counts as 0, so the difference saturates.
        let moved = moved(world, c).saturating_sub(c.moved_before);
        c.moved.push(moved);
    }
}

/// Ends the run early: closes open phases; those that have not started stay empty.
fn cut_short(world: &World, run: &mut ArmRun, plan: &Plan) {
    let now = world.now().0;
    if plan.phases.iter().any(|p| (p.start_ns..p.end_ns).contains(&now)) {
        end_phase(world, run);
    }
    for c in &run.containers {
        c.up.borrow_mut().stop(now);
        c.down.borrow_mut().stop(now);
        for i in 0..plan.phases.len() {
            c.probe.borrow_mut().close(i, now);
        }
    }
}

fn moved(world: &World, c: &ContainerRun) -> u64 {
    let Some(node) = c.node else { return 0 };
    let s = world.container(node).stats();
    s.bytes_from_guest + s.bytes_to_guest
}
