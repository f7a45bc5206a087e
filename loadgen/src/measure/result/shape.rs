//! Checks a result that was read: its lists must have the lengths that the program indexes, and its times those of a
//! run. Any program may have written the file.

use super::{ArmResult, BLOCK_NS, ContainerResult, ProbePhase, RunResult};
use crate::scenario::plan::RECOVERY;

const SECOND: u64 = 1_000_000_000;
/// Latest end of a phase: more than the longest warm-up, phases and grace time that a scenario may have.
const END_MAX_NS: u64 = 3600 * SECOND;
/// Latest sample after the last phase: more than the longest deadline of a probe and the longest grace time.
const LATE_MAX_NS: u64 = 120 * SECOND;

/// Checks the arms of a result, and those of each of its runs.
///
/// # Errors
/// Names the first value that no run has.
pub fn check(result: &RunResult) -> Result<(), String> {
    for p in &result.phases {
        // A bound on the end keeps sums of times far from overflow.
        if p.start_ns > p.end_ns || p.end_ns > END_MAX_NS {
            let (name, start, end) = (&p.name, p.start_ns, p.end_ns);
            return Err(format!(
                "phase {name}: {start} to {end} ns; its end is at least its start, at most {END_MAX_NS}"
            ));
        }
    }
    let runs = result.runs.iter().flat_map(|run| &run.arms);
    result.arms.iter().chain(runs).try_for_each(|arm| check_arm(result, arm))
}

fn check_arm(result: &RunResult, arm: &ArmResult) -> Result<(), String> {
    let phases = result.phases.len();
    // Only the result of a target that cannot run has no phases, and it has no arms either.
    if phases != RECOVERY + 1 {
        return Err(format!("{phases} phases; a run has {}", RECOVERY + 1));
    }
    let end_ns = result.phases.last().map_or(0, |p| p.end_ns) + LATE_MAX_NS;
    for c in &arm.containers {
        let budgets = arm.budgets.len();
        check_container(c, phases, budgets, end_ns)
            .map_err(|why| format!("arm {}: {}: {why}", arm.name, c.name))?;
    }
    for g in &arm.groups {
        let checked = g.probes.iter().try_for_each(|p| check_intervals(p, end_ns));
        checked.map_err(|why| format!("arm {}: group {}: {why}", arm.name, g.name))?;
    }
    Ok(())
}

fn check_container(
    c: &ContainerResult,
    phases: usize,
    budgets: usize,
    end_ns: u64,
) -> Result<(), String> {
    // Phases are indexed by number: solo, contended, recovery.
    if c.phases.len() != phases {
        return Err(format!("{} phases; the run has {phases}", c.phases.len()));
    }
    if c.budget >= budgets {
        return Err(format!("budget {}; the arm has {budgets}, counted from 0", c.budget));
    }
    c.phases.iter().filter_map(|p| p.probe.as_ref()).try_for_each(|p| check_intervals(p, end_ns))
}

/// The interval log has a line for every interval up to the last one, whether or not it has samples.
fn check_intervals(probe: &ProbePhase, end_ns: u64) -> Result<(), String> {
    // An interval of another length, or a late one, would make the log as long as its number of empty lines.
    let fits = |start: u64, length: u64| length == BLOCK_NS && start <= end_ns;
    let wrong = probe.intervals.iter().find(|i| !fits(i.start_ns, i.length_ns));
    wrong.map_or(Ok(()), |i| {
        let (start, length) = (i.start_ns, i.length_ns);
        Err(format!(
            "an interval of {length} ns at {start} ns; its length is {BLOCK_NS}, its start at most {end_ns}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::result::{BudgetResult, IntervalHdr, Repeat};

    fn sample() -> RunResult {
        let mut result = crate::command::selftest::sample();
        result.arms[0].budgets = vec![BudgetResult::default()];
        result
    }

    /// Each change made the program panic or run without an end.
    #[test]
    fn a_result_that_no_run_has_is_refused() {
        assert_eq!(check(&sample()), Ok(()));
        assert_eq!(check(&RunResult::default()), Ok(()));
        type Change = fn(&mut RunResult);
        let changes: [(Change, &str); 8] = [
            (|r| r.arms[0].containers[0].phases.clear(), "0 phases; the run has 3"),
            (|r| r.arms[0].containers[0].phases.truncate(1), "1 phases; the run has 3"),
            (|r| r.arms[0].budgets.clear(), "the arm has 0"),
            (|r| r.arms[0].containers[0].budget = 99, "budget 99"),
            (|r| r.phases.clear(), "a run has 3"),
            (|r| r.phases[2].end_ns = u64::MAX, "3600000000000"),
            (|r| interval(r).start_ns = u64::MAX, "18446744073709551615 ns"),
            (|r| interval(r).length_ns = 1, "an interval of 1 ns"),
        ];
        for (change, text) in changes {
            let mut result = sample();
            change(&mut result);
            let why = check(&result).unwrap_err();
            assert!(why.contains(text), "{text}: {why}");
            // The runs of a repeated measurement are checked too.
            let arms = std::mem::replace(&mut result.arms, sample().arms);
            result.runs = vec![Repeat { arms, ..Repeat::default() }];
            assert!(check(&result).is_err(), "{text}");
        }
    }

    fn interval(r: &mut RunResult) -> &mut IntervalHdr {
        let mut probes =
            r.arms.iter_mut().flat_map(|a| &mut a.containers).flat_map(|c| &mut c.phases);
        let probe = probes.find_map(|p| p.probe.as_mut().filter(|p| !p.intervals.is_empty()));
        &mut probe.unwrap().intervals[0]
    }
}
