//! `search`: finds how far a parameter may rise or fall before a gate of a subject fails.

use std::fmt::Write as _;

use super::{Batch, BatchKind, point, table, verdict_line};
use crate::exit::{Exit, Failure};
use crate::measure::result::{GateKind, GateResult, RunResult};
use crate::run;
use crate::scenario::plan::Plan;
use crate::target::Control;
use crate::units::Unit;

/// The range to search: from a value that is expected to pass to one that may fail, in either direction.
#[derive(Debug)]
pub(crate) struct Range<'a> {
    pub key: &'a str,
    pub from: &'a str,
    pub to: &'a str,
    /// Maximum number of halvings.
    pub steps: u32,
}

/// The outcome of a run at one value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SearchOutcome {
    Passes,
    Fails,
    /// Neither, with the reason: a value with too few probes does not count as failing.
    Inconclusive(String),
}

/// Finds the last value between the two at which no gate of a subject fails. Assumes that if a value passes, all values
/// nearer to `from` pass.
pub(crate) fn search(
    batch: &Batch<'_>,
    range: &Range<'_>,
    control: Control<'_>,
) -> Result<(String, u8), Failure> {
    let (bounds, plan) = ready(batch, range).inspect_err(|_| batch.forget(BatchKind::Search))?;
    let folder = batch.place(BatchKind::Search, &plan)?;
    let out = folder.dir();
    let mut points = Vec::new();
    let mut try_at = |n: u64| {
        let value = bounds.unit.show(n);
        let plan = batch.subject(range.key, &value)?;
        let result = run::repeated(&plan, batch.target, control, batch.repeats)?;
        // A partial search has no answer.
        if result.interrupted {
            return Err(Failure::Interrupted);
        }
        points.push(point(&value, &result));
        batch.write_sweep(out, range.key, &points)?;
        Ok(outcome(&result))
    };
    let found = bisect(&bounds, range.steps, &mut try_at)?;
    let which = if bounds.from < bounds.to { "largest" } else { "smallest" };
    let mut text = format!(
        "{} on the {} target: the {which} {} that passes, {} to {}\n\n{}\n",
        batch.scenario,
        batch.target.name(),
        range.key,
        range.from,
        range.to,
        table(range.key, &points)
    );
    let (line, exit) = conclusion(range.key, &bounds, &found);
    let _ = writeln!(text, "{line}\n{}", verdict_line(exit, out));
    Ok((text, exit.code()))
}

/// The range, and the plan of its first value.
fn ready(batch: &Batch<'_>, range: &Range<'_>) -> Result<(Bounds, Plan), Failure> {
    let bounds = bounds(range)?;
    let plan = batch.subject(range.key, range.from)?;
    // The far end must make a plan too, before the first run.
    batch.subject(range.key, range.to)?;
    Ok((bounds, plan))
}

/// The last line of a search, and its exit code.
fn conclusion(key: &str, bounds: &Bounds, found: &SearchResult) -> (String, Exit) {
    let show = |n: u64| bounds.unit.show(n);
    match (found.best, &found.beyond) {
        (Some(best), None) => {
            (format!("{key} = {}, the end of the range", show(best)), Exit::Passed)
        }
        (Some(best), Some((n, SearchOutcome::Inconclusive(why)))) => {
            let why = format!("{key} = {}; {} is inconclusive: {why}", show(best), show(*n));
            (why, Exit::Inconclusive)
        }
        (Some(best), Some((n, _))) => {
            (format!("{key} = {}; {} fails", show(best), show(*n)), Exit::Passed)
        }
        (None, Some((n, SearchOutcome::Inconclusive(why)))) => {
            (format!("{key} = {} is inconclusive: {why}", show(*n)), Exit::Inconclusive)
        }
        (None, beyond) => {
            let n = beyond.as_ref().map_or(bounds.from, |b| b.0);
            (format!("{key} = {} fails already", show(n)), Exit::GateFailed)
        }
    }
}

/// A search has no control arm, so a doubt has another cause: a sanity gate, which is named first.
fn outcome(result: &RunResult) -> SearchOutcome {
    if result.gates.iter().any(GateResult::is_fault) {
        return SearchOutcome::Fails;
    }
    let failed = || result.gates.iter().filter(|g| !g.passed && g.kind != GateKind::Control);
    let sanity = failed().find(|g| g.kind == GateKind::Sanity);
    match sanity.or_else(|| failed().next()) {
        Some(g) => SearchOutcome::Inconclusive(format!("{} {} ({})", g.name, g.observed, g.limit)),
        None => SearchOutcome::Passes,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    unit: Unit,
    from: u64,
    to: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SearchResult {
    /// The last value that passed; `None`: not even the first.
    best: Option<u64>,
    /// The nearest tested value beyond it that did not pass, if any.
    beyond: Option<(u64, SearchOutcome)>,
}

/// Halves the range until the last passing and the first other value are neighbours.
fn bisect(
    bounds: &Bounds,
    steps: u32,
    try_at: &mut impl FnMut(u64) -> Result<SearchOutcome, Failure>,
) -> Result<SearchResult, Failure> {
    let first = try_at(bounds.from)?;
    if first != SearchOutcome::Passes {
        return Ok(SearchResult { best: None, beyond: Some((bounds.from, first)) });
    }
    // If the far end passes, no search is needed.
    let last = try_at(bounds.to)?;
    if last == SearchOutcome::Passes {
        return Ok(SearchResult { best: Some(bounds.to), beyond: None });
    }
    let (mut best, mut beyond) = (bounds.from, (bounds.to, last));
    // Both ends are known now: halve the interval between them.
    let grain = grain(bounds, steps);
    for _ in 0..steps {
        // Without a value between the two, the search is finished.
        let Some(middle) = middle(best, beyond.0, grain) else { break };
        match try_at(middle)? {
            SearchOutcome::Passes => best = middle,
            other => beyond = (middle, other),
        }
    }
    Ok(SearchResult { best: Some(best), beyond: Some(beyond) })
}

/// A multiple of `grain` between the two; `None`: there is none.
fn middle(a: u64, b: u64, grain: u64) -> Option<u64> {
    let (low, high) = (a.min(b), a.max(b));
    let exact = low + (high - low) / 2;
    let round = exact / grain * grain;
    // Rounding down may leave the interval.
    let round = if round <= low { round + grain } else { round };
    (round > low && round < high).then_some(round)
}

/// The largest round step that is not coarser than the final interval: `1398 KiB` instead of 1431655 bytes.
fn grain(bounds: &Bounds, steps: u32) -> u64 {
    // Sizes are round in powers of two, other units in powers of ten.
    let base = if bounds.unit == Unit::Bytes { 2 } else { 10 };
    let finest = bounds.from.abs_diff(bounds.to) >> steps.min(63);
    let grains = std::iter::successors(Some(1u64), |g| g.checked_mul(base));
    grains.take_while(|g| *g <= finest).last().unwrap_or(1)
}

/// Parses both ends with a common unit.
fn bounds(range: &Range<'_>) -> Result<Bounds, Failure> {
    let units = [Unit::Count, Unit::Nanos, Unit::BitsPerSecond, Unit::Bytes];
    let both =
        units.iter().find_map(|u| Some((*u, u.parse(range.from).ok()?, u.parse(range.to).ok()?)));
    let (unit, from, to) = both.ok_or_else(|| {
        let (from, to) = (range.from, range.to);
        Failure::Usage(format!(
            "--from {from} --to {to}: both must be numbers with the same kind of unit"
        ))
    })?;
    if from == to {
        let what = format!("--from {} --to {}: the values must differ", range.from, range.to);
        return Err(Failure::Usage(what));
    }
    Ok(Bounds { unit, from, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u64, to: u64) -> Bounds {
        Bounds { unit: Unit::Count, from, to }
    }

    /// Upwards, values up to the edge pass. Downwards, values from the edge on pass.
    #[test]
    fn bisection_finds_the_last_that_passes_in_both_directions() {
        // Edges at the start, within, before and at the end, and below the range.
        for (edge, to) in [(10, 11), (57, 58), (99, 100), (100, 0), (5, 10)] {
            let mut tried = 0;
            let mut up = |n: u64| {
                tried += 1;
                Ok(if n <= edge { SearchOutcome::Passes } else { SearchOutcome::Fails })
            };
            let found = bisect(&range(10, 100), 20, &mut up).unwrap();
            let beyond = (to > 0).then_some((to, SearchOutcome::Fails));
            assert_eq!(found, SearchResult { best: (edge >= 10).then_some(edge), beyond });
            assert!(tried <= 9, "{tried}");
        }
        for (edge, to) in [(57, 56), (11, 10), (10, 0)] {
            let mut down =
                |n: u64| Ok(if n >= edge { SearchOutcome::Passes } else { SearchOutcome::Fails });
            let found = bisect(&range(100, 10), 20, &mut down).unwrap();
            let beyond = (to > 0).then_some((to, SearchOutcome::Fails));
            assert_eq!(found, SearchResult { best: Some(edge), beyond });
        }
    }

    /// An inconclusive value ends the search as a failing one does, but is not reported as failing.
    #[test]
    fn an_inconclusive_value_is_not_reported_as_failing() {
        let why = || SearchOutcome::Inconclusive("probes a phase 100 (>= 2000)".to_owned());
        let mut at = |n: u64| {
            Ok(match n {
                0..=30 => SearchOutcome::Passes,
                31..=60 => why(),
                _ => SearchOutcome::Fails,
            })
        };
        let found = bisect(&range(1, 100), 20, &mut at).unwrap();
        assert_eq!(found, SearchResult { best: Some(30), beyond: Some((31, why())) });
        let (line, exit) = conclusion("conns", &range(1, 100), &found);
        assert_eq!(line, "conns = 30; 31 is inconclusive: probes a phase 100 (>= 2000)");
        assert_eq!(exit, Exit::Inconclusive);

        let found = bisect(&range(40, 100), 20, &mut at).unwrap();
        let (line, exit) = conclusion("conns", &range(40, 100), &found);
        assert!(line.starts_with("conns = 40 is inconclusive"), "{line}");
        assert_eq!(exit, Exit::Inconclusive);

        // An inconclusive value beyond a failing one has no effect.
        let mut at = |n: u64| {
            Ok(match n {
                0..=30 => SearchOutcome::Passes,
                31..=60 => SearchOutcome::Fails,
                _ => why(),
            })
        };
        let found = bisect(&range(1, 100), 20, &mut at).unwrap();
        assert_eq!(
            found,
            SearchResult { best: Some(30), beyond: Some((31, SearchOutcome::Fails)) }
        );
        assert_eq!(conclusion("conns", &range(1, 100), &found).1, Exit::Passed);
    }

    #[test]
    fn values_are_round_where_the_steps_allow_it() {
        let bytes = Bounds { unit: Unit::Bytes, from: 4 << 20, to: 256 << 10 };
        let grain = grain(&bytes, 8);
        assert_eq!(Unit::Bytes.show(middle(4 << 20, 256 << 10, grain).unwrap()), "2176KiB");
        assert_eq!(super::grain(&range(1, 20), 8), 1);
        assert_eq!((middle(3, 4, 1), middle(4, 3, 1), middle(3, 5, 1)), (None, None, Some(4)));
        assert_eq!(middle(10, 30, 16), Some(16));
        assert_eq!(middle(17, 30, 16), None);
    }

    #[test]
    fn bounds_have_one_unit() {
        let range = |from, to| Range { key: "k", from, to, steps: 8 };
        let found = |from, to| bounds(&range(from, to)).map(|b| (b.unit, b.from, b.to));
        assert_eq!(found("1MiB", "2MiB").unwrap(), (Unit::Bytes, 1 << 20, 2 << 20));
        assert_eq!(found("20", "1").unwrap(), (Unit::Count, 20, 1));
        assert!(found("20", "20").is_err());
        assert!(found("1ms", "1MiB").is_err());
    }
}
