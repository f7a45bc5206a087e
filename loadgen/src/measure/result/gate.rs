//! The gates of a run and its verdict.

use serde::{Deserialize, Serialize};

/// The purpose of a gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateKind {
    /// The run can be trusted.
    #[default]
    Sanity,
    /// The control starves.
    Control,
    /// The subject does not starve.
    Subject,
}

/// One judged gate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateResult {
    /// Name of the arm; empty: the whole run.
    pub arm: String,
    /// The purpose of the gate.
    pub kind: GateKind,
    /// Name of the gate, or the condition of the scenario.
    pub name: String,
    /// The observed value; of several runs that of the median run, or of the worst run for a counted gate.
    pub observed: String,
    /// The limit, as text for people.
    pub limit: String,
    /// The observed value keeps the limit.
    pub passed: bool,
    /// The run proves nothing about this gate, for example because the generator fell behind: a failure is not the
    /// subject's fault.
    #[serde(default)]
    pub in_doubt: bool,
    /// The outcome of each run; empty if there was one.
    #[serde(default)]
    pub runs: Vec<GateRun>,
}

impl GateResult {
    /// The subject failed, and the measurement is not in doubt: exit 3.
    pub fn is_fault(&self) -> bool {
        !self.passed && self.kind == GateKind::Subject && !self.in_doubt
    }

    /// The word in front of the gate in lists. A failure in doubt is no failure of the subject.
    pub fn mark(&self) -> &'static str {
        match (self.passed, self.kind == GateKind::Subject && self.in_doubt) {
            (true, _) => "ok",
            (false, true) => "doubt",
            (false, false) => "FAIL",
        }
    }
}

/// One gate in one of several runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateRun {
    /// The observed value, as text for people.
    pub observed: String,
    /// The observed value keeps the limit.
    pub passed: bool,
    /// As in [`GateResult`].
    pub in_doubt: bool,
}

/// The verdict of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The word for the exit code.
    pub word: String,
    /// The exit code of the run.
    pub exit: u8,
    /// Number of gates.
    pub gates: usize,
    /// Number of gates that did not pass.
    pub failed: usize,
}
