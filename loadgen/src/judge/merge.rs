//! Merges several results of one scenario into one: histograms, counts and blocks are added, and percentiles are read
//! again from the sums. Nothing is averaged.
//!
//! Results of generators on several hosts become one run with the containers of all; colliding names get the number of
//! their part. Windows of the same arm, container and name are never added: they are of different moments.

use std::collections::BTreeMap;

use crate::exit::{Exit, Failure};
use crate::judge::analyse;
use crate::judge::compare::comparable;
use crate::measure::PhaseLatency;
use crate::measure::result::{
    ArmResult, ContainerPhase, ContainerResult, Cost, GateResult, Meta, ProbePhase, RunResult,
    Verdict,
};

/// How the results relate to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum How {
    /// Parts of one run at the same time: the containers of all parts are listed together
    Hosts,
    /// The same run again: the samples of each container are added
    Repeats,
}

/// Merges results.
///
/// # Errors
/// The parts have different scenarios, targets or arms, or a histogram cannot be decoded.
pub(crate) fn merge(parts: &[RunResult], how: How) -> Result<RunResult, Failure> {
    let Some((first, rest)) = parts.split_first() else {
        return Err(Failure::Usage("no results to merge".to_owned()));
    };
    let mut sum = first.clone();
    // First refuse a run that occurs twice: its samples would count twice.
    sum.merged_of = distinct(parts)?;
    // The sums do not belong to any single run.
    sum.runs.clear();
    for (i, part) in rest.iter().enumerate() {
        // Hosts may differ in parameters, for example the number of containers; repetitions may not.
        comparable(first, part, how == How::Repeats)?;
        sum.interrupted |= part.interrupted;
        sum.meta.elapsed_ms = sum.meta.elapsed_ms.max(part.meta.elapsed_ms);
        for arm in &part.arms {
            let into = sum.arms.iter_mut().find(|a| a.name == arm.name);
            let into = into.ok_or_else(|| {
                Failure::NoBaseline(format!("arm {} is not in all results", arm.name))
            })?;
            match how {
                How::Hosts => beside(into, arm, i + 2),
                How::Repeats => again(into, arm)?,
            }
        }
    }
    derive(&mut sum, parts);
    Ok(sum)
}

/// The fingerprints of all parts, including those that a merged part was made of.
///
/// # Errors
/// A run occurs twice.
pub(crate) fn distinct<'a>(
    parts: impl IntoIterator<Item = &'a RunResult>,
) -> Result<Vec<String>, Failure> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (i, part) in parts.into_iter().enumerate() {
        // A merged part counts as the runs it was made of.
        let own = if part.merged_of.is_empty() {
            vec![fingerprint(part)?]
        } else {
            part.merged_of.clone()
        };
        for print in own {
            if let Some(before) = seen.insert(print, i) {
                return Err(Failure::Usage(format!(
                    "results {} and {} contain the same run; its samples would count twice",
                    before + 1,
                    i + 1
                )));
            }
        }
    }
    Ok(seen.into_keys().collect())
}

/// Fingerprint of the measurements without `meta`: FNV-1a, 64 bits. In virtual time the same seed gives the same run.
fn fingerprint(result: &RunResult) -> Result<String, Failure> {
    let bare = RunResult { meta: Meta::default(), ..result.clone() };
    let bytes = serde_json::to_vec(&bare).map_err(|e| Failure::io("merge", e))?;
    // Prime and offset basis of FNV-1a with 64 bits.
    let step = |hash: u64, b: &u8| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    Ok(format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)))
}

/// Adds budgets and containers of another host. `number`: of the part, to distinguish equal names.
fn beside(into: &mut ArmResult, arm: &ArmResult, number: usize) {
    let shift = into.budgets.len();
    for b in &arm.budgets {
        let name = free(&b.name, number, |n| into.budgets.iter().any(|o| o.name == n));
        let mut b = b.clone();
        b.name = name;
        into.budgets.push(b);
    }
    for c in &arm.containers {
        let name = free(&c.name, number, |n| into.containers.iter().any(|o| o.name == n));
        let mut c = c.clone();
        c.name = name;
        // The budgets of this part were appended after those of the earlier parts.
        c.budget += shift;
        into.containers.push(c);
    }
    into.generator_lag_p99_ns = into.generator_lag_p99_ns.max(arm.generator_lag_p99_ns);
    into.leaked_bytes += arm.leaked_bytes;
}

/// A name that is not taken: `name`, or `name@number` with the number of its part, or the next free number.
fn free(name: &str, number: usize, taken: impl Fn(&str) -> bool) -> String {
    if !taken(name) {
        return name.to_owned();
    }
    // A merged part may contain the number of this part already.
    (number..).map(|n| format!("{name}@{n}")).find(|n| !taken(n)).unwrap_or_else(|| name.to_owned())
}

/// Adds a repetition: counts and samples add up, peaks and durations keep the worst.
fn again(into: &mut ArmResult, arm: &ArmResult) -> Result<(), Failure> {
    into.generator_lag_p99_ns = into.generator_lag_p99_ns.max(arm.generator_lag_p99_ns);
    into.leaked_bytes = into.leaked_bytes.max(arm.leaked_bytes);
    for (b, more) in into.budgets.iter_mut().zip(&arm.budgets) {
        // Peaks and durations of the worst run; event counts add up.
        b.max_usage_bytes = b.max_usage_bytes.max(more.max_usage_bytes);
        b.overshoot_bytes = b.overshoot_bytes.max(more.overshoot_bytes);
        b.pressure_ns = b.pressure_ns.max(more.pressure_ns);
        b.failcnt += more.failcnt;
    }
    for c in &mut into.containers {
        let other = arm.containers.iter().find(|o| o.name == c.name);
        let other =
            other.ok_or_else(|| Failure::NoBaseline(format!("{} is not in all", c.name)))?;
        container(c, other)?;
    }
    Ok(())
}

/// Adds the samples of both. Of bytes and gaps keeps the worse run, because a mean hides the run that starved. Bytes,
/// windows and recovery steps are those of one run, because they are compared with each other; of gaps each is the
/// longest of both.
fn container(c: &mut ContainerResult, other: &ContainerResult) -> Result<(), Failure> {
    let worse = if harm(&other.cost) > harm(&c.cost) { other.clone() } else { c.clone() };
    for ((p, more), bytes) in c.phases.iter_mut().zip(&other.phases).zip(worse.phases) {
        let merged = ContainerPhase {
            up_stall_ns: p.up_stall_ns.max(more.up_stall_ns),
            down_stall_ns: p.down_stall_ns.max(more.down_stall_ns),
            probe: probes(p.probe.as_ref(), more.probe.as_ref())?,
            ..bytes
        };
        *p = merged;
    }
    c.up_window_bytes = worse.up_window_bytes;
    c.down_window_bytes = worse.down_window_bytes;
    c.up_total_bytes = worse.up_total_bytes;
    c.down_total_bytes = worse.down_total_bytes;
    c.recovery = worse.recovery;
    c.mean_held_bytes = worse.mean_held_bytes;
    // For the next part: `derive` computes the cost of the sum only at the end.
    c.cost = worse.cost;
    c.peak_held_bytes = c.peak_held_bytes.max(other.peak_held_bytes);
    c.corrupt += other.corrupt;
    c.broken += other.broken;
    for (name, n) in &other.counters {
        *c.counters.entry(name.clone()).or_default() += n;
    }
    Ok(())
}

/// Order of the cost in bytes: larger is worse. Without a value nothing arrived, or the container did not recover.
fn harm(cost: &Cost) -> (u64, u64) {
    let worst = |n: Option<u64>| n.unwrap_or(u64::MAX);
    (worst(cost.throughput_slowdown_milli), worst(cost.recovery_ns))
}

/// The merged probe, if either side has one.
fn probes(a: Option<&ProbePhase>, b: Option<&ProbePhase>) -> Result<Option<ProbePhase>, Failure> {
    let both: Vec<&ProbePhase> = a.into_iter().chain(b).collect();
    match both.as_slice() {
        [] => Ok(None),
        some => PhaseLatency::merged(some.iter().copied())
            .map(Some)
            .map_err(|e| Failure::io("merge", e)),
    }
}

/// Derives the values that follow from the sums. Gates stay judged per part; the worst verdict of the parts is that of
/// all.
fn derive(sum: &mut RunResult, parts: &[RunResult]) {
    for arm in &mut sum.arms {
        analyse::derive(arm, &sum.phases);
    }
    let named = |(i, part): (usize, &RunResult)| {
        let rename = move |g: &GateResult| GateResult {
            name: format!("{} (part {})", g.name, i + 1),
            ..g.clone()
        };
        part.gates.iter().map(rename).collect::<Vec<_>>()
    };
    sum.gates = parts.iter().enumerate().flat_map(named).collect();
    let worst = Exit::worst(parts.iter().map(|p| p.verdict.exit));
    sum.verdict = Verdict {
        word: worst.word().to_owned(),
        exit: worst.code(),
        gates: sum.gates.len(),
        failed: sum.gates.iter().filter(|g| !g.passed).count(),
    };
}
