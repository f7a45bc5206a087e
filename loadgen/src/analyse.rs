//! Fairness numbers out of an arm's records.

use crate::plan::{CONTENDED, Phase, RECOVERY, Role, SOLO};
use crate::result::{ArmResult, ContainerPhase, ContainerResult, Fairness, ProbePhase};

/// What the numbers are measured against.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub phases: &'a [Phase],
    pub window_ns: u64,
    pub bits_per_second: u64,
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

pub fn fairness(arm: &ArmResult, frame: Frame<'_>) -> Fairness {
    let victims: Vec<&ContainerResult> =
        arm.containers.iter().filter(|c| c.role == Role::Victim).collect();
    let hogs = || arm.containers.iter().filter(|c| c.role == Role::Hog);
    let mut f = Fairness {
        jain_victims_ppm: jain(victims.iter().map(|c| goodput(&c.phases[CONTENDED]))),
        jain_all_ppm: jain(arm.containers.iter().map(|c| c.phases[CONTENDED].moved_bytes)),
        hog_peak_bytes: hogs().map(|c| c.peak_held_bytes).max().unwrap_or(0),
        hog_hard_bytes: hogs().map(|c| c.hard_bytes).max().unwrap_or(0),
        overshoot_bytes: arm.budgets.iter().map(|b| b.overshoot_bytes).max().unwrap_or(0),
        victim_refusals: victims.iter().map(|c| count(c, REFUSALS)).sum(),
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
        latency(&mut f, c);
        stalls(&mut f, c);
        let t = recovery(c, frame);
        f.recovery_ns = f.recovery_ns.zip(t).map(|(a, b)| a.max(b));
    }
    f
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

fn throughput(f: &mut Fairness, c: &ContainerResult, frame: Frame<'_>) {
    type Bytes = fn(&ContainerPhase) -> u64;
    // The link carries the probe's responses beside the bulk.
    let directions: [(&str, Bytes, Bytes); 2] = [
        ("up", |p| p.up_bytes, |p| p.up_bytes),
        ("down", |p| p.down_bytes, |p| p.down_bytes + p.probe_bytes),
    ];
    for (name, bytes, carried) in directions {
        let solo = per_second(bytes(&c.phases[SOLO]), &frame.phases[SOLO]);
        let contended = per_second(bytes(&c.phases[CONTENDED]), &frame.phases[CONTENDED]);
        let carried = per_second(carried(&c.phases[SOLO]), &frame.phases[SOLO]);
        let share =
            (u128::from(carried) * 8_000_000).checked_div(u128::from(frame.bits_per_second));
        f.solo_share_ppm = f.solo_share_ppm.min(share.unwrap_or(0) as u64);
        let slowdown = (u128::from(solo) * 1000).checked_div(u128::from(contended));
        let slowdown = slowdown.map(|s| s as u64);
        // `None` (nothing came) is the worst there is.
        let worse = match (slowdown, f.throughput_slowdown_milli) {
            (None, Some(_)) => true,
            (Some(a), Some(b)) => a > b,
            (_, None) => false,
        };
        if worse {
            f.throughput_slowdown_milli = slowdown;
            f.throughput_slowdown_of = format!("{} {name}", c.name);
        }
    }
}

/// A percentile means something when at least 20 samples lie beyond it.
pub fn enough(probe: &ProbePhase, one_in: u64) -> bool {
    probe.intended / one_in >= 20
}

fn latency(f: &mut Fairness, c: &ContainerResult) {
    let (Some(solo), Some(contended)) = (&c.phases[SOLO].probe, &c.phases[CONTENDED].probe) else {
        return;
    };
    f.delivered_ppm = match (f.delivered_ppm, contended.delivered_ppm) {
        (None, d) => d,
        (Some(a), d) => Some(a.min(d.unwrap_or(0))),
    };
    let known = enough(solo, 100) && enough(contended, 100);
    let pair = solo.p99.zip(contended.p99).filter(|(s, c)| known && !s.at_least && !c.at_least);
    let inflation = pair.map(|(s, c)| c.ns * 1000 / s.ns.max(1));
    let worse = match (inflation, f.p99_inflation_milli) {
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
        (_, None) => false,
    };
    if worse {
        f.p99_inflation_milli = inflation;
        f.p99_inflation_of.clone_from(&c.name);
    }
}

fn stalls(f: &mut Fairness, c: &ContainerResult) {
    let of = |p: &ContainerPhase| p.up_stall_ns.max(p.down_stall_ns);
    f.stall_solo_ns = f.stall_solo_ns.max(of(&c.phases[SOLO]));
    if of(&c.phases[CONTENDED]) > f.stall_ns {
        f.stall_ns = of(&c.phases[CONTENDED]);
        f.stall_of.clone_from(&c.name);
    }
}

/// From the hog's leaving to the first of two windows in a row with 95 % of solo, both ways.
fn recovery(c: &ContainerResult, frame: Frame<'_>) -> Option<u64> {
    let phase = frame.phases.get(RECOVERY)?;
    let solo = &frame.phases[SOLO];
    let good = |windows: &[u32], bytes: u64, w: usize| {
        let per_window = per_second(bytes, solo) * frame.window_ns / 1_000_000_000;
        u64::from(windows.get(w).copied().unwrap_or(0)) * 100 >= per_window * 95
    };
    let both = |w: usize| {
        good(&c.up_window_bytes, c.phases[SOLO].up_bytes, w)
            && good(&c.down_window_bytes, c.phases[SOLO].down_bytes, w)
    };
    let first = (phase.start_ns / frame.window_ns) as usize;
    let last = (phase.end_ns / frame.window_ns) as usize;
    let at = (first..last.saturating_sub(1)).find(|w| both(*w) && both(w + 1))?;
    Some((at - first) as u64 * frame.window_ns)
}

#[cfg(test)]
#[path = "analyse_tests.rs"]
pub(crate) mod tests;
