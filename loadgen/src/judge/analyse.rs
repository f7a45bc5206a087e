//! Computes the fairness numbers from an arm's records.

use crate::measure::PhaseLatency;
use crate::measure::result::{
    ArmResult, BytesOf, ContainerPhase, ContainerResult, Cost, DirectionSteps, Fairness,
    GroupResult, ProbePhase, Quantile,
};
use crate::scenario::plan::{CONTENDED, Phase, Role, SOLO};

/// Counters of data or connections that were refused or dropped for lack of memory.
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

/// Fills in the derived values of an arm, from the planned `phases`: the cost of each container, the groups, and the
/// fairness of the whole arm.
pub(crate) fn derive(arm: &mut ArmResult, phases: &[Phase]) {
    // An interrupted run measured only the part of each phase before it ended.
    let phases: Vec<Phase> = phases.iter().map(|p| p.until(arm.ended_ns)).collect();
    for c in &mut arm.containers {
        // Costs before the fairness, which reads them.
        c.cost = cost(c, &phases);
    }
    arm.groups = groups(arm);
    arm.fairness = fairness(arm, &phases);
}

/// Values of the worst victim, and values of the whole arm.
fn fairness(arm: &ArmResult, phases: &[Phase]) -> Fairness {
    let victims: Vec<&ContainerResult> =
        arm.containers.iter().filter(|c| c.role == Role::Victim).collect();
    let with_bulk = victims.iter().filter(|c| c.wants_bulk());
    let hogs = || arm.containers.iter().filter(|c| c.role == Role::Hog);
    let mut f = Fairness {
        // Goodput leaves out the probe's responses: jain(victims) compares bulk transfer only, of the victims that have
        // any.
        jain_victims_ppm: jain(with_bulk.map(|c| goodput(&c.phases[CONTENDED]))),
        jain_all_ppm: jain(arm.containers.iter().map(|c| c.phases[CONTENDED].moved_bytes)),
        hog_peak_bytes: hogs().map(|c| c.peak_held_bytes).max().unwrap_or(0),
        hog_hard_bytes: hogs().map(|c| c.hard_bytes).max().filter(|_| arm.is_limited()),
        overshoot_bytes: arm.budgets.iter().map(|b| b.overshoot_bytes).max().unwrap_or(0),
        victim_refusals: victims.iter().map(|c| refusals(c)).sum(),
        victim_pressure_ns: victims.iter().map(|c| arm.budgets[c.budget].pressure_ns).max(),
        corrupt: arm.containers.iter().map(|c| c.corrupt).sum(),
        broken: victims.iter().map(|c| c.broken).sum(),
        // Start values: the identity of the min and max that follow. `None` is the worst value and wins over any
        // number.
        solo_share_ppm: u64::MAX,
        throughput_slowdown_milli: Some(0),
        p99_inflation_milli: Some(0),
        recovery_ns: Some(0),
        ..Fairness::default()
    };
    for c in victims {
        throughput(&mut f, c, phases);
        stalls(&mut f, c);
        if let Some(contended) = &c.phases[CONTENDED].probe {
            let d = contended.delivered_ppm;
            f.delivered_ppm = f.delivered_ppm.map_or(d, |least| Some(least.min(d.unwrap_or(0))));
        }
        // One victim that never recovers leaves the arm without a value.
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

/// `None` is worse than any number: no response arrived, or no upper bound of its delay is known.
fn worse(new: Option<u64>, old: Option<u64>) -> bool {
    match (new, old) {
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
        (_, None) => false,
    }
}

/// The cost to one container, contended against solo.
fn cost(c: &ContainerResult, phases: &[Phase]) -> Cost {
    let mut cost = Cost { throughput_slowdown_milli: Some(0), ..Cost::default() };
    for d in directions(c) {
        let slowdown = slowdown(c, d, phases);
        if worse(slowdown, cost.throughput_slowdown_milli) {
            cost.throughput_slowdown_milli = slowdown;
        }
    }
    cost.p99_inflation_milli = Pair::of_container(c).and_then(|p| p.inflation_milli());
    cost.stall_ns = stall(c, CONTENDED);
    cost.recovery_ns = recovery(c, phases);
    cost
}

/// Merges the containers of each group: bytes are added, histograms are merged.
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
            PhaseLatency::merged(members.iter().filter_map(|c| c.phases[p].probe.as_ref()))
                .unwrap_or_default()
        };
        if members.iter().any(|c| c.phases.iter().any(|p| p.probe.is_some())) {
            g.probes = (0..phases).map(merge).collect();
        }
    }
    out
}

/// The p99 of a victim, or of a group of victims, alone and contended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub of: String,
    pub solo: Option<Quantile>,
    pub contended: Option<Quantile>,
    /// Number of requests in the phase with fewer.
    pub samples: u64,
}

impl Pair {
    /// A p99 is meaningful only when at least 20 samples lie beyond it.
    pub(crate) const SAMPLES_MIN: u64 = 2000;

    fn new(of: &str, solo: &ProbePhase, contended: &ProbePhase) -> Self {
        let samples = solo.intended.min(contended.intended);
        Self { of: of.to_owned(), solo: solo.p99, contended: contended.p99, samples }
    }
    fn of_container(c: &ContainerResult) -> Option<Self> {
        let probe = |phase: usize| c.phases.get(phase)?.probe.as_ref();
        Some(Self::new(&c.name, probe(SOLO)?, probe(CONTENDED)?))
    }
    /// Lower bound of the solo p99 and upper bound of the contended p99, in nanoseconds; `None` unless both phases have
    /// an upper bound and enough samples. Their quotient is the worst possible inflation.
    pub(crate) fn known(&self) -> Option<(u64, u64)> {
        // A solo p99 without an upper bound is no reference.
        self.solo.and_then(|q| q.upper_ns())?;
        let pair = self.solo.zip(self.contended.and_then(|q| q.upper_ns()));
        pair.filter(|_| self.enough()).map(|(solo, most)| (solo.ns, most))
    }
    /// Whether a p99 of these samples is meaningful.
    pub(crate) fn enough(&self) -> bool {
        self.samples >= Self::SAMPLES_MIN
    }
    /// `None`: too few samples (see `enough`), or a p99 without an upper bound.
    pub(crate) fn inflation_milli(&self) -> Option<u64> {
        self.known().map(|(solo, contended)| contended * 1000 / solo.max(1))
    }
}

/// The pairs of all groups of victims.
pub(crate) fn latency_pairs(arm: &ArmResult) -> Vec<Pair> {
    let victims = arm.groups.iter().filter(|g| g.role == Role::Victim);
    victims.flat_map(|g| group_pairs(arm, g)).collect()
}

/// One pair for each victim of a group. A group with several victims, at least one of them with too few samples, has
/// one pair for the merged group instead.
pub(crate) fn group_pairs(arm: &ArmResult, g: &GroupResult) -> Vec<Pair> {
    let of = |c: &&ContainerResult| c.group == g.name && c.role == g.role;
    let pairs: Vec<Pair> =
        arm.containers.iter().filter(of).filter_map(Pair::of_container).collect();
    match &g.probes[..] {
        // A single victim cannot be merged; the sanity gate reports its few samples.
        [solo, contended, ..] if pairs.len() > 1 && !pairs.iter().all(Pair::enough) => {
            vec![Pair::new(&g.name, solo, contended)]
        }
        _ => pairs,
    }
}

/// How often data or connections of a container were refused or dropped for lack of memory.
pub(crate) fn refusals(c: &ContainerResult) -> u64 {
    count(c, REFUSALS)
}

/// Bulk bytes in both directions, without the probe's responses.
fn goodput(p: &ContainerPhase) -> u64 {
    p.up_bytes + p.down_bytes
}

fn count(c: &ContainerResult, of: &[&str]) -> u64 {
    of.iter().filter_map(|name| c.counters.get(*name)).sum()
}

/// Jain's index, (sum x)^2 / (n sum x^2), in millionths. All zero gives 0: the shares are equal, but no container moves
/// any data.
fn jain(xs: impl Iterator<Item = u64>) -> u64 {
    let (mut n, mut sum, mut squares) = (0u128, 0u128, 0u128);
    for x in xs {
        // Kilobytes, so that squares of sums fit for any run.
        let x = u128::from(x / 1000);
        n += 1;
        sum += x;
        squares += x * x;
    }
    // The divisor is 0 when no container moved a kilobyte.
    (sum * sum * 1_000_000).checked_div(n * squares).unwrap_or(0) as u64
}

/// Bytes per second, over the length of the phase.
fn per_second(bytes: u64, phase: &Phase) -> u64 {
    (u128::from(bytes) * 1_000_000_000 / u128::from(phase.nanos().max(1))) as u64
}

/// A direction in which a container transfers data: its name, the bytes that count as its goodput, and all bytes that
/// its link carries in that direction.
#[derive(Debug, Clone, Copy)]
struct Direction {
    name: &'static str,
    bytes: BytesOf,
    carried: BytesOf,
}

/// The directions that count for a container. A container without bulk transfer is measured by its probe's responses.
fn directions(c: &ContainerResult) -> Vec<Direction> {
    let up = Direction { name: "up", bytes: |p| p.up_bytes, carried: |p| p.up_bytes };
    // The link carries the probe's responses beside the bulk.
    let carried: BytesOf = |p| p.down_bytes + p.probe_bytes;
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

/// Solo rate over contended rate in thousandths; `None` when nothing arrives in the contended phase.
fn slowdown(c: &ContainerResult, d: Direction, phases: &[Phase]) -> Option<u64> {
    let solo = per_second((d.bytes)(&c.phases[SOLO]), &phases[SOLO]);
    let contended = per_second((d.bytes)(&c.phases[CONTENDED]), &phases[CONTENDED]);
    // `None`: nothing arrived beside the hog.
    (u128::from(solo) * 1000).checked_div(u128::from(contended)).map(|s| s as u64)
}

/// Takes a victim's directions into the worst slowdown and the least share of a link.
fn throughput(f: &mut Fairness, c: &ContainerResult, phases: &[Phase]) {
    for d in directions(c) {
        // The share of the link in the solo phase: a generator that did not fill the link alone proves nothing.
        if c.bits_per_second > 0 && (c.wants_up || c.wants_down) {
            let carried = per_second((d.carried)(&c.phases[SOLO]), &phases[SOLO]);
            let share =
                (u128::from(carried) * 8_000_000).checked_div(u128::from(c.bits_per_second));
            f.solo_share_ppm = f.solo_share_ppm.min(share.unwrap_or(0) as u64);
        }
        let slowdown = slowdown(c, d, phases);
        if worse(slowdown, f.throughput_slowdown_milli) {
            f.throughput_slowdown_milli = slowdown;
            f.throughput_slowdown_of = format!("{} {}", c.name, d.name);
        }
    }
}

/// Longest time without a wanted byte. A container without bulk transfer counts as stalled while a response is
/// outstanding: its longest latency.
pub(crate) fn stall(c: &ContainerResult, phase: usize) -> u64 {
    let p = &c.phases[phase];
    if c.wants_bulk() {
        // An unwanted direction is one gap as long as the phase: ignore it.
        let up = if c.wants_up { p.up_stall_ns } else { 0 };
        return up.max(if c.wants_down { p.down_stall_ns } else { 0 });
    }
    p.probe.as_ref().and_then(|p| p.max).map_or(0, |q| q.ns)
}

/// Takes a victim's stalls into the longest of the arm.
fn stalls(f: &mut Fairness, c: &ContainerResult) {
    f.stall_solo_ns = f.stall_solo_ns.max(stall(c, SOLO));
    if c.cost.stall_ns > f.stall_ns {
        f.stall_ns = c.cost.stall_ns;
        f.stall_of.clone_from(&c.name);
    }
}

/// Time from the departure of the hog to the first of two consecutive steps that are as good as solo, in every
/// direction the container wants. As good as solo: 95 % of the solo mean, or the least of the solo steps if that is
/// lower, because a step holds few segments of a slow link.
fn recovery(c: &ContainerResult, phases: &[Phase]) -> Option<u64> {
    let Some(record) = &c.recovery else {
        // A result of an earlier version has no steps: it derived this value from the windows of the charts. Keep it.
        return c.cost.recovery_ns;
    };
    let wanted = |steps: &DirectionSteps, bytes: u64| {
        let mean = per_second(bytes, &phases[SOLO]) * record.step_ns / 1_000_000_000;
        let most = mean * 95 / 100;
        // A solo step without a byte is no reference.
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
    // `None` when no two consecutive steps are good: the container did not recover within the recorded time.
    let at = (0..steps.saturating_sub(1)).find(|at| good(*at) && good(at + 1))?;
    Some(at as u64 * record.step_ns)
}

#[cfg(test)]
#[path = "analyse_tests.rs"]
pub(crate) mod tests;
