//! Combines several runs into one judgement. On a wall clock, an event in one run of three is an accident; an event in
//! two of three is a property of the subject.

use super::{JudgedGate, doubt};
use crate::measure::result::{GateKind, GateResult, GateRun};

/// Takes each gate from its median run; a counted gate from its worst run.
pub(super) fn combine(mut runs: Vec<Vec<JudgedGate>>) -> Vec<GateResult> {
    if runs.len() == 1 {
        let mut only = runs.remove(0);
        doubt(&mut only, &[GateKind::Sanity, GateKind::Control]);
        return only.into_iter().map(|j| j.gate).collect();
    }
    // The arms of one run are measured one after another. So a control that starves less in one run proves nothing
    // about the subject of that run; only the median control counts, below. A fault of the measurement counts here.
    runs.iter_mut().for_each(|run| doubt(run, &[GateKind::Sanity]));
    let mut names: Vec<(String, String)> = Vec::new();
    for j in runs.iter().flatten() {
        let name = (j.gate.arm.clone(), j.gate.name.clone());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of = |(arm, name): &(String, String)| {
        let is = |j: &&JudgedGate| j.gate.arm == *arm && j.gate.name == *name;
        runs.iter().filter_map(|gates| gates.iter().find(is)).collect::<Vec<_>>()
    };
    let count = runs.len();
    let mut judged: Vec<JudgedGate> = names.iter().map(|n| one(&of(n), count)).collect();
    // Each run may fail another gate, so the combined set must be checked for doubt again.
    doubt(&mut judged, &[GateKind::Sanity, GateKind::Control]);
    // Keep the gates of one arm together even if the first run lacks one of them.
    judged.sort_by_key(|j| names.iter().position(|(arm, _)| *arm == j.gate.arm));
    judged.into_iter().map(|j| j.gate).collect()
}

/// Combines one gate. `seen` is in the order of the runs; it is shorter than `count` if some runs lack the gate.
fn one(seen: &[&JudgedGate], count: usize) -> JudgedGate {
    let mut order: Vec<&JudgedGate> = seen.to_vec();
    // Passed runs first, then by severity, so that the middle element is the median verdict.
    order.sort_by(|a, b| (!a.gate.passed).cmp(&!b.gate.passed).then(a.worse.total_cmp(&b.worse)));
    let exact = order.iter().any(|j| j.exact);
    let at = if exact { order.len() - 1 } else { order.len() / 2 };
    let mut judged = order[at].clone();
    let run = |j: &&JudgedGate| GateRun {
        observed: j.gate.observed.clone(),
        passed: j.gate.passed,
        in_doubt: j.gate.in_doubt,
    };
    judged.gate.runs = seen.iter().map(run).collect();
    if judged.gate.kind == GateKind::Subject && !exact {
        // A majority of all runs must show the fault: doubtful runs do not outvote runs that passed.
        let faults = seen.iter().filter(|j| j.gate.is_fault()).count();
        judged.gate.in_doubt = faults * 2 <= count && !judged.gate.passed;
    }
    judged
}

/// Index of the median run by the number of failed gates, which reports show. `runs`: the gates of each run.
pub(crate) fn middle(runs: &[Vec<GateResult>]) -> usize {
    let failed = |gates: &Vec<GateResult>| gates.iter().filter(|g| !g.passed).count();
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(|i| failed(&runs[*i]));
    order.get(runs.len() / 2).copied().unwrap_or(0)
}
