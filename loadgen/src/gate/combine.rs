//! One judgement of several runs. A wall clock has bad moments: what happens in one run of three is no property of the
//! subject, and what happens in two of them is no accident.

use super::{Judged, doubt};
use crate::result::{GateKind, GateResult, GateRun};

/// Each gate as it is in the middle of the runs. What is counted is as it is in the worst.
pub(super) fn combine(mut runs: Vec<Vec<Judged>>) -> Vec<GateResult> {
    if runs.len() == 1 {
        return runs.remove(0).into_iter().map(|j| j.gate).collect();
    }
    let mut names: Vec<(String, String)> = Vec::new();
    for j in runs.iter().flatten() {
        let name = (j.gate.arm.clone(), j.gate.name.clone());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of = |(arm, name): &(String, String)| {
        let is = |j: &&Judged| j.gate.arm == *arm && j.gate.name == *name;
        runs.iter().filter_map(|gates| gates.iter().find(is)).collect::<Vec<_>>()
    };
    let count = runs.len();
    let mut judged: Vec<Judged> = names.iter().map(|n| one(&of(n), count)).collect();
    // The runs may differ in what fails, and most of them still be doubtful.
    doubt(&mut judged);
    // Gates of one arm stay together, though one may be missing in the first run.
    judged.sort_by_key(|j| names.iter().position(|(arm, _)| *arm == j.gate.arm));
    judged.into_iter().map(|j| j.gate).collect()
}

/// One gate: `seen` in the order of the runs, of which it may be missing in some of `count`.
fn one(seen: &[&Judged], count: usize) -> Judged {
    let mut order: Vec<&Judged> = seen.to_vec();
    order.sort_by(|a, b| (!a.gate.passed).cmp(&!b.gate.passed).then(a.worse.total_cmp(&b.worse)));
    let exact = order.iter().any(|j| j.exact);
    let at = if exact { order.len() - 1 } else { order.len() / 2 };
    let mut judged = order[at].clone();
    let run = |j: &&Judged| GateRun {
        observed: j.gate.observed.clone(),
        passed: j.gate.passed,
        in_doubt: j.gate.in_doubt,
    };
    judged.gate.runs = seen.iter().map(run).collect();
    if judged.gate.kind == GateKind::Subject && !exact {
        // Runs that prove nothing do not help to outvote those that passed.
        let faults = seen.iter().filter(|j| j.gate.is_fault()).count();
        judged.gate.in_doubt = faults * 2 <= count && !judged.gate.passed;
    }
    judged
}

/// The run in the middle by the number of gates that it fails: what reports show. `runs`: the gates of each.
pub fn middle(runs: &[Vec<GateResult>]) -> usize {
    let failed = |gates: &Vec<GateResult>| gates.iter().filter(|g| !g.passed).count();
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(|i| failed(&runs[*i]));
    order.get(runs.len() / 2).copied().unwrap_or(0)
}
