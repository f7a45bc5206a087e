//! Fairness numbers out of an arm's records.

use crate::measure::Book;
use crate::plan::{CONTENDED, Phase, Role, SOLO};
use crate::result::{
    ArmResult, ContainerPhase, ContainerResult, Cost, DirectionSteps, Fairness, GroupResult,
    ProbePhase, Quantile,
};

/// What the numbers are measured against.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub phases: &'a [Phase],
}

/// Counters that mean somebody's data or connection was turned away for lack of memory.
const REFUSALS: &[&str] = &[
    "PruneCalled",
    "RcvPruned",
    "OfoPruned",
    "TCPRcvQDrop",
    "TCPOFODrop",
    "TCPZeroWindowDrop",
    "TCPAbortOnMemory",
    "AdmissionDenied",
    "AdmissionDelayed",
];

/// Fills in what follows from the records: each container's cost, the groups, the fairness of the whole.
pub fn derive(arm: &mut ArmResult, frame: Frame<'_>) {
    let measured: Vec<Phase> = frame.phases.iter().map(|p| p.until(arm.ended_ns)).collect();
    let frame = Frame { phases: &measured };
    for c in &mut arm.containers {
        c.cost = cost(c, frame);
    }
    arm.groups = groups(arm);
    arm.fairness = fairness(arm, frame);
}

fn fairness(arm: &ArmResult, frame: Frame<'_>) -> Fairness {
    let victims: Vec<&ContainerResult> =
        arm.containers.iter().filter(|c| c.role == Role::Victim).collect();
    let hogs = || arm.containers.iter().filter(|c| c.role == Role::Hog);
    let mut f = Fairness {
        jain_victims_ppm: jain(victims.iter().map(|c| goodput(&c.phases[CONTENDED]))),
        jain_all_ppm: jain(arm.containers.iter().map(|c| c.phases[CONTENDED].moved_bytes)),
        hog_peak_bytes: hogs().map(|c| c.peak_held_bytes).max().unwrap_or(0),
        hog_hard_bytes: hogs().map(|c| c.hard_bytes).max().filter(|_| arm.is_limited()),
        overshoot_bytes: arm.budgets.iter().map(|b| b.overshoot_bytes).max().unwrap_or(0),
        victim_refusals: victims.iter().map(|c| refusals(c)).sum(),
        victim_pressure_ns: victims.iter().map(|c| arm.budgets[c.budget].pressure_ns).max(),
        corrupt: arm.containers.iter().map(|c| c.corrupt).sum(),
        broken: victims.iter().map(|c| c.broken).sum(),
        solo_share_ppm: u64::MAX,
        throughput_slowdown_milli: Some(0),
        p99_inflation_milli: Some(0),
        recovery_ns: Some(0),
        ..Fairness::default()
    };
    for c in victims {
        throughput(&mut f, c, frame);
        stalls(&mut f, c);
        if let Some(contended) = &c.phases[CONTENDED].probe {
            let d = contended.delivered_ppm;
            f.delivered_ppm = f.delivered_ppm.map_or(d, |least| Some(least.min(d.unwrap_or(0))));
        }
        f.recovery_ns = f.recovery_ns.zip(c.cost.recovery_ns).map(|(a, b)| a.max(b));
    }
    for pair in latency_pairs(arm) {
        let inflation = pair.inflation_milli();
        if worse(inflation, f.p99_inflation_milli) {
            f.p99_inflation_milli = inflation;
            f.p99_inflation_of = pair.of;
        }
    }
    f
}

/// `None` (nothing came, or nobody knows how late) is the worst there is.
fn worse(new: Option<u64>, old: Option<u64>) -> bool {
    match (new, old) {
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
        (_, None) => false,
    }
}

fn cost(c: &ContainerResult, frame: Frame<'_>) -> Cost {
    let mut cost = Cost { throughput_slowdown_milli: Some(0), ..Cost::default() };
    for d in directions(c) {
        let slowdown = slowdown(c, d, frame);
        if worse(slowdown, cost.throughput_slowdown_milli) {
            cost.throughput_slowdown_milli = slowdown;
        }
    }
    cost.p99_inflation_milli = Pair::of_container(c).and_then(|p| p.inflation_milli());
    cost.stall_ns = stall(c, CONTENDED);
    cost.recovery_ns = recovery(c, frame);
    cost
}

/// The containers of each group as one.
fn groups(arm: &ArmResult) -> Vec<GroupResult> {
    let mut out: Vec<GroupResult> = Vec::new();
    for c in &arm.containers {
        if !out.iter().any(|g| g.name == c.group && g.role == c.role) {
            let (name, role) = (c.group.clone(), c.role);
            out.push(GroupResult { name, role, ..GroupResult::default() });
        }
    }
    for g in &mut out {
        let of = |c: &&ContainerResult| c.group == g.name && c.role == g.role;
        let members: Vec<_> = arm.containers.iter().filter(of).collect();
        g.containers = members.len() as u64;
        let phases = members.first().map_or(0, |c| c.phases.len());
        g.bytes =
            (0..phases).map(|p| members.iter().map(|c| c.phases[p].moved_bytes).sum()).collect();
        let merge = |p: usize| {
            Book::merged(members.iter().filter_map(|c| c.phases[p].probe.as_ref()))
                .unwrap_or_default()
        };
        if members.iter().any(|c| c.phases.iter().any(|p| p.probe.is_some())) {
            g.probes = (0..phases).map(merge).collect();
        }
    }
    out
}

/// The p99 of somebody, alone and contended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub of: String,
    pub solo: Option<Quantile>,
    pub contended: Option<Quantile>,
    /// Requests, in the phase with fewer.
    pub samples: u64,
}

impl Pair {
    /// A percentile means something when at least 20 samples lie beyond it.
    pub const SAMPLES_MIN: u64 = 2000;

    fn new(of: &str, solo: &ProbePhase, contended: &ProbePhase) -> Self {
        let samples = solo.intended.min(contended.intended);
        Self { of: of.to_owned(), solo: solo.p99, contended: contended.p99, samples }
    }
    fn of_container(c: &ContainerResult) -> Option<Self> {
        Some(Self::new(
            &c.name,
            c.phases[SOLO].probe.as_ref()?,
            c.phases[CONTENDED].probe.as_ref()?,
        ))
    }
    /// Both in nanoseconds, if they are known from above: the least it may have been alone and the most beside the hog.
    pub fn known(&self) -> Option<(u64, u64)> {
        self.solo.and_then(|q| q.upper_ns())?;
        let pair = self.solo.zip(self.contended.and_then(|q| q.upper_ns()));
        pair.filter(|_| self.enough()).map(|(solo, most)| (solo.ns, most))
    }
    pub fn enough(&self) -> bool {
        self.samples >= Self::SAMPLES_MIN
    }
    fn inflation_milli(&self) -> Option<u64> {
        self.known().map(|(solo, contended)| contended * 1000 / solo.max(1))
    }
}

/// Of each victim; or, where each has too few samples, of each group of victims together.
pub fn latency_pairs(arm: &ArmResult) -> Vec<Pair> {
    let mut out = Vec::new();
    for g in arm.groups.iter().filter(|g| g.role == Role::Victim) {
        let of = |c: &&ContainerResult| c.group == g.name && c.role == g.role;
        let members = arm.containers.iter().filter(of);
        let pairs: Vec<Pair> = members.filter_map(Pair::of_container).collect();
        match &g.probes[..] {
            [solo, contended, ..] if pairs.len() > 1 && !pairs.iter().all(Pair::enough) => {
                out.push(Pair::new(&g.name, solo, contended));
            }
            _ => out.extend(pairs),
        }
    }
    out
}

/// How often data or connections of a container were turned away for lack of memory.
pub fn refusals(c: &ContainerResult) -> u64 {
    count(c, REFUSALS)
}

fn goodput(p: &ContainerPhase) -> u64 {
    p.up_bytes + p.down_bytes
}

fn count(c: &ContainerResult, of: &[&str]) -> u64 {
    of.iter().filter_map(|name| c.counters.get(*name)).sum()
}

/// (sum x)^2 / (n sum x^2), in millionths. All zero: nobody has more than another, but nobody has anything: 0.
fn jain(xs: impl Iterator<Item = u64>) -> u64 {
    let (mut n, mut sum, mut squares) = (0u128, 0u128, 0u128);
    for x in xs {
        // Kilobytes, so that squares of sums fit for any run.
        let x = u128::from(x / 1000);
        n += 1;
        sum += x;
        squares += x * x;
    }
    (sum * sum * 1_000_000).checked_div(n * squares).unwrap_or(0) as u64
}

/// Bytes a second.
fn per_second(bytes: u64, phase: &Phase) -> u64 {
    (u128::from(bytes) * 1_000_000_000 / u128::from(phase.nanos().max(1))) as u64
}

type Bytes = fn(&ContainerPhase) -> u64;

/// A direction in which a container wants something: its name, what comes of it, and what its link carries for it.
#[derive(Debug, Clone, Copy)]
struct Direction {
    name: &'static str,
    bytes: Bytes,
    carried: Bytes,
}

/// Who has no bulk wants answers.
fn directions(c: &ContainerResult) -> Vec<Direction> {
    let up = Direction { name: "up", bytes: |p| p.up_bytes, carried: |p| p.up_bytes };
    // The link carries the probe's responses beside the bulk.
    let carried: Bytes = |p| p.down_bytes + p.probe_bytes;
    let down = Direction { name: "down", bytes: |p| p.down_bytes, carried };
    let probe = Direction { name: "probe", bytes: |p| p.probe_bytes, carried };
    let mut all = Vec::new();
    all.extend(c.wants_up.then_some(up));
    all.extend(c.wants_down.then_some(down));
    if all.is_empty() {
        all.push(probe);
    }
    all
}

fn slowdown(c: &ContainerResult, d: Direction, frame: Frame<'_>) -> Option<u64> {
    let solo = per_second((d.bytes)(&c.phases[SOLO]), &frame.phases[SOLO]);
    let contended = per_second((d.bytes)(&c.phases[CONTENDED]), &frame.phases[CONTENDED]);
    (u128::from(solo) * 1000).checked_div(u128::from(contended)).map(|s| s as u64)
}

fn throughput(f: &mut Fairness, c: &ContainerResult, frame: Frame<'_>) {
    for d in directions(c) {
        if c.bits_per_second > 0 && (c.wants_up || c.wants_down) {
            let carried = per_second((d.carried)(&c.phases[SOLO]), &frame.phases[SOLO]);
            let share =
                (u128::from(carried) * 8_000_000).checked_div(u128::from(c.bits_per_second));
            f.solo_share_ppm = f.solo_share_ppm.min(share.unwrap_or(0) as u64);
        }
        let slowdown = slowdown(c, d, frame);
        if worse(slowdown, f.throughput_slowdown_milli) {
            f.throughput_slowdown_milli = slowdown;
            f.throughput_slowdown_of = format!("{} {}", c.name, d.name);
        }
    }
}

/// Longest time without a byte that was wanted. Who has no bulk is stalled while a response is owed.
fn stall(c: &ContainerResult, phase: usize) -> u64 {
    let p = &c.phases[phase];
    if c.wants_up || c.wants_down {
        let up = if c.wants_up { p.up_stall_ns } else { 0 };
        return up.max(if c.wants_down { p.down_stall_ns } else { 0 });
    }
    p.probe.as_ref().and_then(|p| p.max).map_or(0, |q| q.ns)
}

fn stalls(f: &mut Fairness, c: &ContainerResult) {
    f.stall_solo_ns = f.stall_solo_ns.max(stall(c, SOLO));
    if c.cost.stall_ns > f.stall_ns {
        f.stall_ns = c.cost.stall_ns;
        f.stall_of.clone_from(&c.name);
    }
}

/// From the hog's leaving to the first of two steps in a row that are as good as solo, in every direction it wants:
/// 95 % of its mean, or what its own least step had, for a step holds few segments of a slow link.
fn recovery(c: &ContainerResult, frame: Frame<'_>) -> Option<u64> {
    let Some(record) = &c.recovery else {
        // Of an earlier version, which judged it by the charts' windows: as it was found then.
        return c.cost.recovery_ns;
    };
    let wanted = |steps: &DirectionSteps, bytes: u64| {
        let mean = per_second(bytes, &frame.phases[SOLO]) * record.step_ns / 1_000_000_000;
        let most = mean * 95 / 100;
        // A step without a byte is no measure.
        steps.solo_least_bytes.filter(|b| *b > 0).map_or(most, |least| most.min(least))
    };
    let (up, down) = (&record.up, &record.down);
    let wanted_up = wanted(up, c.phases[SOLO].up_bytes);
    let wanted_down = wanted(down, c.phases[SOLO].down_bytes);
    let enough = |steps: &DirectionSteps, wanted: u64, at: usize| {
        steps.recovery_bytes.get(at).is_some_and(|bytes| u64::from(*bytes) >= wanted)
    };
    let good = |at: usize| {
        (!c.wants_up || enough(up, wanted_up, at))
            && (!c.wants_down || enough(down, wanted_down, at))
    };
    let steps = up.recovery_bytes.len().max(down.recovery_bytes.len());
    let at = (0..steps.saturating_sub(1)).find(|at| good(*at) && good(at + 1))?;
    Some(at as u64 * record.step_ns)
}

#[cfg(test)]
#[path = "analyse_tests.rs"]
pub(crate) mod tests;
