//! What a command judged, case by case, in the shape that CI shows: JUnit, annotations, a summary's table. One list for
//! all of them, whichever command it was.

use crate::compare::{Comparison, Judgement};
use crate::gate;
use crate::metrics::{Reading, find};
use crate::report::table;
use crate::result::{ArmResult, GateResult, RunResult};
use crate::scenario::Scenario;
use crate::target;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// A fault of what was measured.
    Failed,
    /// Never a pass, and not the subject's failure either: the measurement proves nothing.
    Doubt,
    /// It was not come to.
    Skipped,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    pub outcome: Outcome,
    /// What was seen, and what would be right.
    pub said: String,
}

/// Cases that belong together, as those of an arm.
#[derive(Debug, Clone)]
pub struct Suite {
    /// Of what: a scenario, or a point of a sweep.
    pub of: String,
    pub name: String,
    pub properties: Vec<(String, String)>,
    pub cases: Vec<Case>,
}

impl Suite {
    pub fn new(of: &str, name: &str, cases: Vec<Case>) -> Self {
        Self { of: of.to_owned(), name: name.to_owned(), properties: Vec::new(), cases }
    }
}

pub fn of_gate(g: &GateResult) -> Case {
    let outcome = match (g.passed, g.is_fault()) {
        (true, _) => Outcome::Passed,
        (false, true) => Outcome::Failed,
        (false, false) => Outcome::Doubt,
    };
    let mut said = match g.limit.as_str() {
        // A condition in the scenario's own words is its own limit.
        "must hold" => format!("{} (must hold)", g.observed),
        limit => format!("{} (limit {limit})", g.observed),
    };
    if !g.runs.is_empty() {
        let each: Vec<&str> = g.runs.iter().map(|r| r.observed.as_str()).collect();
        said.push_str(&format!("; run by run: {}", each.join("; ")));
    }
    Case { name: g.name.clone(), outcome, said }
}

/// A suite an arm. A gate may be about the run and no arm of it.
pub fn of_gates(of: &str, gates: &[GateResult]) -> Vec<Suite> {
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

pub fn of_run(result: &RunResult) -> Vec<Suite> {
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

/// Half a run is no verdict: what would have been judged is skipped, and that it was not is an error, or a build that
/// was stopped would look green.
fn unjudged(result: &RunResult) -> Vec<Suite> {
    let said = table::interruption(result).unwrap_or_default();
    let gates = planned(result).unwrap_or_default();
    let mut suites = of_gates(&result.scenario, &gates);
    for case in suites.iter_mut().flat_map(|s| &mut s.cases) {
        (case.outcome, case.said) = (Outcome::Skipped, said.clone());
    }
    let ended = Case { name: "measured to its end".to_owned(), outcome: Outcome::Doubt, said };
    suites.push(Suite::new(&result.scenario, "run", vec![ended]));
    suites
}

/// The gates that its scenario would have been held to. Of what they would have shown there is nothing in them.
fn planned(result: &RunResult) -> Option<Vec<GateResult>> {
    let target = target::find(&result.target).ok()?;
    let scenario = Scenario::parse("result", &result.scenario_toml, "").ok()?;
    let plan = scenario.plan(result.seed).ok()?;
    let arms: Vec<ArmResult> = target.arms(&plan).iter().map(ArmResult::of).collect();
    Some(gate::judge(&arms, target.thresholds(&plan), &plan.gates).0)
}

/// One case: what was found is the line before the verdict's.
pub fn of_search(scenario: &str, key: &str, text: &str, exit: u8) -> Suite {
    let outcome = match exit {
        0 => Outcome::Passed,
        3 => Outcome::Failed,
        _ => Outcome::Doubt,
    };
    let said = text.lines().rev().nth(1).unwrap_or_default().to_owned();
    Suite::new("search", scenario, vec![Case { name: key.to_owned(), outcome, said }])
}

/// A suite an arm, a case a metric.
///
/// `both`: an improvement is a failure too.
pub fn of_comparison(c: &Comparison, both: bool) -> Vec<Suite> {
    let mut suites: Vec<Suite> = Vec::new();
    for l in &c.lines {
        let outcome = match l.judgement {
            Judgement::Same => Outcome::Passed,
            Judgement::Better if !both => Outcome::Passed,
            Judgement::Worse | Judgement::Better => Outcome::Failed,
            Judgement::Unclear => Outcome::Doubt,
        };
        let show = |value: f64| match find(l.metric) {
            _ if value == f64::MAX => "none".to_owned(),
            Some(m) => m.show(Reading { value, at_least: false }),
            None => value.to_string(),
        };
        let mut said = format!("{}, then {}", show(l.a), show(l.b));
        if !l.reason.is_empty() {
            said.push_str(&format!(": {}", l.reason));
        }
        let case = Case { name: l.metric.to_owned(), outcome, said };
        match suites.iter_mut().find(|s| s.name == l.arm) {
            Some(suite) => suite.cases.push(case),
            None => suites.push(Suite::new("compare", &l.arm, vec![case])),
        }
    }
    if suites.is_empty() {
        let outcome = if c.exit == 0 { Outcome::Passed } else { Outcome::Doubt };
        let said = c
            .discarded
            .first()
            .or_else(|| c.notes.first())
            .cloned()
            .unwrap_or_else(|| "no metric differs".to_owned());
        let case = Case { name: "every metric".to_owned(), outcome, said };
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
    fn a_search_says_what_it_found() {
        let text = "a table\n\nstuff = 120; 121 fails\nVERDICT: PASS exit=0 out=x\n";
        let suite = of_search("step", "stuff", text, 0);
        assert_eq!(
            (suite.cases[0].outcome, suite.cases[0].said.as_str()),
            (Outcome::Passed, "stuff = 120; 121 fails")
        );
        assert_eq!(of_search("step", "stuff", text, 3).cases[0].outcome, Outcome::Failed);
        assert_eq!(of_search("step", "stuff", text, 5).cases[0].outcome, Outcome::Doubt);
    }

    /// Stopped before anything was measured: its tests are there all the same, and none of them is a pass.
    #[test]
    fn a_stopped_run_has_the_tests_it_would_have_had() {
        let plan = Scenario::find("step", "virtual").unwrap().plan(1).unwrap();
        let suites = of_run(&stopped(&plan.toml));
        let of = |name: &str| &suites.iter().find(|s| s.name == name).unwrap().cases;
        assert!(of("shared").len() >= 5 && of("container").len() >= 10);
        assert!(of("container").iter().any(|c| c.name == "longest stall"));
        for suite in ["shared", "container"] {
            assert!(of(suite).iter().all(|c| c.outcome == Outcome::Skipped));
        }
        assert_eq!(of("run")[0].outcome, Outcome::Doubt);
        // A result that does not hold its scenario has that one alone.
        assert_eq!(of_run(&stopped("")).len(), 1);
    }
}
