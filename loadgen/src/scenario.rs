//! Scenarios: TOML files, built in or from the user, and the plans made from them.

pub(crate) mod bounded;
pub(crate) mod build;
mod catalogue;
pub mod expr;
mod file;
pub(crate) mod names;
pub mod plan;
mod schedule;
mod source;
mod values;

pub use catalogue::{names, text};

use self::source::Source;
use crate::exit::Failure;
use crate::scenario::plan::Plan;

/// Prefix in `extends` for built-in scenarios.
const BUILTIN: &str = "builtin:";

/// A scenario with the values of its target. `--set` changes it before a plan is made.
#[derive(Debug, Clone)]
pub struct Scenario {
    source: Source,
}

impl Scenario {
    /// Opens a built-in scenario by its name, or a file by its path.
    pub fn find(name: &str, target: &str) -> Result<Self, Failure> {
        let mut source = Source::open(name)?;
        source.on(target)?;
        Ok(Self { source })
    }
    /// Parses a text; `origin` names it in messages.
    pub fn parse(origin: &str, text: &str, target: &str) -> Result<Self, Failure> {
        let mut source = Source::parse(origin, text)?;
        source.on(target)?;
        Ok(Self { source })
    }

    /// Applies `key=value`: a parameter of the scenario, or a path like `group.hog.count`.
    pub fn set(&mut self, assignment: &str) -> Result<(), Failure> {
        self.set_by("--set", assignment)
    }
    /// The same for another command line option, which errors then name.
    pub fn set_by(&mut self, option: &str, assignment: &str) -> Result<(), Failure> {
        self.source.set(option, assignment)
    }
    /// Names and values of the scenario's parameters.
    pub fn params(&self) -> Result<Vec<(String, toml::Value)>, Failure> {
        self.source.params()
    }
    /// Paths and values of the scenario's own groups that no parameter covers.
    pub fn group_params(&self) -> Result<Vec<(String, toml::Value)>, Failure> {
        self.source.group_params()
    }
    /// The name that the file sets.
    pub fn name(&self) -> Result<String, Failure> {
        Ok(self.source.file()?.name)
    }
    /// One line about the scenario.
    pub fn about(&self) -> Result<String, Failure> {
        Ok(self.source.file()?.about)
    }
    /// The plan of a run with this seed.
    ///
    /// # Errors
    /// A value that cannot run; the error names its place in the file, or the option that set it.
    pub fn plan(&self, seed: u64) -> Result<Plan, Failure> {
        build::plan(&self.source, seed)
    }
}

#[cfg(test)]
mod tests;
