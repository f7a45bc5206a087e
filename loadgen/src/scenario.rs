//! The built-in scenarios: names, parameters, and the plans they make.

mod starvation;

use crate::exit::Failure;
use crate::plan::Plan;
use crate::units::{Unit, nearest};

/// One parameter of a scenario.
#[derive(Debug, Clone)]
pub struct Param {
    pub key: &'static str,
    pub unit: Unit,
    pub value: u64,
    pub help: &'static str,
}

/// The parameters of a scenario, to be changed by `--set` before a plan is made of them.
#[derive(Debug, Clone)]
pub struct Params(Vec<Param>);

impl Params {
    fn new(rows: &[(&'static str, Unit, u64, &'static str)]) -> Self {
        let param = |&(key, unit, value, help)| Param { key, unit, value, help };
        Self(rows.iter().map(param).collect())
    }

    /// The value of a key that the scenario itself names.
    pub fn value(&self, key: &str) -> u64 {
        self.0.iter().find(|p| p.key == key).map_or(0, |p| p.value)
    }

    /// `key=value`, as on the command line.
    pub fn set(&mut self, assignment: &str) -> Result<(), Failure> {
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(Failure::Usage(format!("--set '{assignment}': key=value is wanted")));
        };
        let key = key.trim();
        let Some(at) = self.0.iter().position(|p| p.key == key) else {
            let hint = nearest(key, self.0.iter().map(|p| p.key));
            let hint = hint.map_or_else(String::new, |h| format!("; did you mean '{h}'?"));
            return Err(Failure::Usage(format!("--set '{key}': no such key{hint}")));
        };
        let param = &mut self.0[at];
        let parsed = param.unit.parse(text.trim());
        param.value = parsed.map_err(|e| Failure::Usage(format!("--set {key}: {e}")))?;
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.0.iter()
    }

    fn record(&self) -> Vec<(String, u64)> {
        let name = |p: &Param| format!("{}{}", p.key.replace('-', "_"), p.unit.suffix());
        self.0.iter().map(|p| (name(p), p.value)).collect()
    }
}

/// A built-in scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    params: fn(&str) -> Params,
    plan: fn(&Params, u64) -> Result<Plan, Failure>,
}

pub const SCENARIOS: &[Scenario] = &[starvation::SCENARIO];

impl Scenario {
    pub fn find(name: &str) -> Result<Self, Failure> {
        if let Some(s) = SCENARIOS.iter().find(|s| s.name == name) {
            return Ok(*s);
        }
        let hint = nearest(name, SCENARIOS.iter().map(|s| s.name));
        let hint = hint.map_or_else(
            || "; `loadgen list` names them".to_owned(),
            |h| format!("; did you mean '{h}'?"),
        );
        Err(Failure::Usage(format!("no scenario '{name}'{hint}")))
    }

    /// The defaults on a target.
    pub fn params(&self, target: &str) -> Params {
        (self.params)(target)
    }
    pub fn plan(&self, params: &Params, seed: u64) -> Result<Plan, Failure> {
        (self.plan)(params, seed)
    }
}
