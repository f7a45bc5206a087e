//! The cases that a command judged, as CI shows them: JUnit, annotations, the table of a summary. One list serves all
//! three formats and all commands.

use crate::judge::compare::text::shown;
use crate::judge::compare::{Comparison, Judgement};
use crate::judge::gate;
use crate::measure::result::{ArmResult, GateResult, RunResult};
use crate::output::report::table;
use crate::scenario::Scenario;
use crate::target;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CaseOutcome {
    Passed,
    /// The subject failed.
    Failed,
    /// The measurement proves nothing: never a pass, but not a failure of the subject either.
    Doubt,
    /// Not judged.
    Skipped,
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub name: String,
    pub outcome: CaseOutcome,
    /// The observed value and its limit.
    pub detail: String,
}

/// Cases that belong together, for example those of one arm.
#[derive(Debug, Clone)]
pub(crate) struct Suite {
    /// A scenario, or a point of a sweep.
    pub of: String,
    pub name: String,
    pub properties: Vec<(String, String)>,
    pub cases: Vec<Case>,
}

impl Suite {
    pub(crate) fn new(of: &str, name: &str, cases: Vec<Case>) -> Self {
        Self { of: of.to_owned(), name: name.to_owned(), properties: Vec::new(), cases }
    }
}

/// The case of a gate.
pub(crate) fn of_gate(g: &GateResult) -> Case {
    let outcome = match (g.passed, g.is_fault()) {
        (true, _) => CaseOutcome::Passed,
        (false, true) => CaseOutcome::Failed,
        (false, false) => CaseOutcome::Doubt,
    };
    let mut detail = match g.limit.as_str() {
        // A condition from the scenario file contains its own limit.
        "must hold" => format!("{} (must hold)", g.observed),
        limit => format!("{} (limit {limit})", g.observed),
    };
    if !g.runs.is_empty() {
        let each: Vec<&str> = g.runs.iter().map(|r| r.observed.as_str()).collect();
        detail.push_str(&format!("; each run: {}", each.join("; ")));
    }
    Case { name: g.name.clone(), outcome, detail }
}

/// One suite per arm. A gate without an arm concerns the whole run.
pub(crate) fn of_gates(of: &str, gates: &[GateResult]) -> Vec<Suite> {
    let mut suites: Vec<Suite> = Vec::new();
    for g in gates {
        let name = if g.arm.is_empty() { "run" } else { &g.arm };
        match suites.iter_mut().find(|s| s.name == name) {
            Some(suite) => suite.cases.push(of_gate(g)),
            None => suites.push(Suite::new(of, name, vec![of_gate(g)])),
        }
    }
    suites
}

/// The suites of a run.
pub(crate) fn of_run(result: &RunResult) -> Vec<Suite> {
    let mut suites = if result.interrupted {
        unjudged(result)
    } else {
        of_gates(&result.scenario, &result.gates)
    };
    let params = result.params.iter().map(|(k, v)| (k.clone(), v.to_string()));
    let own = [("target", result.target.clone()), ("seed", result.seed.to_string())];
    let properties: Vec<_> =
        own.map(|(k, v)| (k.to_owned(), v)).into_iter().chain(params).collect();
    suites.iter_mut().for_each(|s| s.properties.clone_from(&properties));
    suites
}

/// An interrupted run has no verdict: its gates are skipped, and one more case fails with an error, because a stopped
/// build must not appear green.
fn unjudged(result: &RunResult) -> Vec<Suite> {
    let detail = table::interruption(result).unwrap_or_default();
    // A result whose target or scenario is unknown has no gates to list.
    let gates = planned(result).unwrap_or_default();
    let mut suites = of_gates(&result.scenario, &gates);
    for case in suites.iter_mut().flat_map(|s| &mut s.cases) {
        (case.outcome, case.detail) = (CaseOutcome::Skipped, detail.clone());
    }
    let ended =
        Case { name: "measured to its end".to_owned(), outcome: CaseOutcome::Doubt, detail };
    suites.push(Suite::new(&result.scenario, "run", vec![ended]));
    suites
}

/// The gates that the scenario would have been judged by, over arms without data: only their names are used.
fn planned(result: &RunResult) -> Option<Vec<GateResult>> {
    let target = target::find(&result.target).ok()?;
    let scenario = Scenario::parse("result", &result.scenario_toml, "").ok()?;
    let plan = scenario.plan(result.seed).ok()?;
    let arms: Vec<ArmResult> = target.arms(&plan).iter().map(ArmResult::of).collect();
    Some(gate::judge(&arms, target.thresholds(&plan), &plan.gates).0)
}

/// One case: its text is the line before the verdict line.
pub(crate) fn of_search(scenario: &str, key: &str, text: &str, exit: u8) -> Suite {
    // 3: the first value fails already. Others are inconclusive.
    let outcome = match exit {
        0 => CaseOutcome::Passed,
        3 => CaseOutcome::Failed,
        _ => CaseOutcome::Doubt,
    };
    let detail = text.lines().rev().nth(1).unwrap_or_default().to_owned();
    Suite::new("search", scenario, vec![Case { name: key.to_owned(), outcome, detail }])
}

/// One suite per arm, one case per metric.
///
/// `both`: an improvement is a failure too.
pub(crate) fn of_comparison(c: &Comparison, both: bool) -> Vec<Suite> {
    let mut suites: Vec<Suite> = Vec::new();
    for l in &c.lines {
        let outcome = match l.judgement {
            Judgement::Same => CaseOutcome::Passed,
            Judgement::Better if !both => CaseOutcome::Passed,
            Judgement::Worse | Judgement::Better => CaseOutcome::Failed,
            Judgement::Unclear => CaseOutcome::Doubt,
        };
        let (a, b) = (shown(l, l.a, l.a_at_least), shown(l, l.b, l.b_at_least));
        let mut detail = format!("{a} in A, {b} in B");
        if !l.reason.is_empty() {
            detail.push_str(&format!(": {}", l.reason));
        }
        let case = Case { name: l.metric.to_owned(), outcome, detail };
        match suites.iter_mut().find(|s| s.name == l.arm) {
            Some(suite) => suite.cases.push(case),
            None => suites.push(Suite::new("compare", &l.arm, vec![case])),
        }
    }
    if !c.newly_failed.is_empty() {
        let gate = |g: &GateResult| Case { name: format!("{}: {}", g.arm, g.name), ..of_gate(g) };
        let cases = c.newly_failed.iter().map(gate).collect();
        suites.push(Suite::new("compare", "fails in B only", cases));
    }
    // Without lines, identical runs pass; discarded runs are in doubt.
    if suites.is_empty() {
        let outcome = if c.exit == 0 { CaseOutcome::Passed } else { CaseOutcome::Doubt };
        let detail = c
            .discarded
            .first()
            .or_else(|| c.notes.first())
            .cloned()
            .unwrap_or_else(|| "no metric differs".to_owned());
        let case = Case { name: "every metric".to_owned(), outcome, detail };
        suites.push(Suite::new("compare", "run", vec![case]));
    }
    suites
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(toml: &str) -> RunResult {
        RunResult {
            scenario: "step".to_owned(),
            target: "virtual".to_owned(),
            scenario_toml: toml.to_owned(),
            interrupted: true,
            ..RunResult::default()
        }
    }

    #[test]
    fn the_case_of_a_search_has_its_last_line() {
        let text = "a table\n\nstuff = 120; 121 fails\nVERDICT: PASS exit=0 out=x\n";
        let suite = of_search("step", "stuff", text, 0);
        assert_eq!(
            (suite.cases[0].outcome, suite.cases[0].detail.as_str()),
            (CaseOutcome::Passed, "stuff = 120; 121 fails")
        );
        assert_eq!(of_search("step", "stuff", text, 3).cases[0].outcome, CaseOutcome::Failed);
        assert_eq!(of_search("step", "stuff", text, 5).cases[0].outcome, CaseOutcome::Doubt);
    }

    /// Stopped before any measurement: the cases are listed nevertheless, and none of them passes.
    #[test]
    fn a_stopped_run_lists_the_gates_of_a_complete_one() {
        let plan = Scenario::find("step", "virtual").unwrap().plan(1).unwrap();
        let suites = of_run(&stopped(&plan.toml));
        let of = |name: &str| &suites.iter().find(|s| s.name == name).unwrap().cases;
        // The control arm has fewer gates than the subject.
        assert!(of("shared").len() >= 5 && of("container").len() >= 10);
        assert!(of("container").iter().any(|c| c.name == "longest stall"));
        for suite in ["shared", "container"] {
            assert!(of(suite).iter().all(|c| c.outcome == CaseOutcome::Skipped));
        }
        assert_eq!(of("run")[0].outcome, CaseOutcome::Doubt);
        // A result without its scenario has only the case of the run.
        assert_eq!(of_run(&stopped("")).len(), 1);
    }
}
