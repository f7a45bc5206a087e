//! Scenarios: TOML files, built in or the user's, and the plans they make.

pub(crate) mod build;
mod catalogue;
pub mod file;
mod schedule;
mod source;
pub mod values;

pub use catalogue::{names, text};
pub use source::Source;

use crate::exit::Failure;
use crate::plan::Plan;

/// What `extends` calls those that come with the program.
const BUILTIN: &str = "builtin:";

/// A scenario with the values it has on a target, to be changed by `--set` before a plan is made of it.
#[derive(Debug, Clone)]
pub struct Scenario {
    source: Source,
}

impl Scenario {
    /// A built-in one by its name, or a file by its path.
    pub fn find(name: &str, target: &str) -> Result<Self, Failure> {
        let mut source = Source::open(name)?;
        source.on(target)?;
        Ok(Self { source })
    }
    /// From a text; `origin` names it in messages.
    pub fn parse(origin: &str, text: &str, target: &str) -> Result<Self, Failure> {
        let mut source = Source::parse(origin, text)?;
        source.on(target)?;
        Ok(Self { source })
    }

    /// `key=value`: a parameter of the scenario, or a path like `group.hog.count`.
    pub fn set(&mut self, assignment: &str) -> Result<(), Failure> {
        self.set_by("--set", assignment)
    }
    /// The same from another option of the command line, which is the one that errors name.
    pub fn set_by(&mut self, option: &str, assignment: &str) -> Result<(), Failure> {
        self.source.set(option, assignment)
    }
    /// Names and values of what the scenario calls its parameters.
    pub fn params(&self) -> Result<Vec<(String, toml::Value)>, Failure> {
        self.source.params()
    }
    /// What its own groups have, by paths, where no parameter stands for it.
    pub fn knobs(&self) -> Result<Vec<(String, toml::Value)>, Failure> {
        self.source.knobs()
    }
    pub fn about(&self) -> Result<String, Failure> {
        Ok(self.source.file()?.about)
    }
    pub fn plan(&self, seed: u64) -> Result<Plan, Failure> {
        build::plan(&self.source, seed)
    }
}

#[cfg(test)]
#[path = "scenario_tests.rs"]
mod tests;
