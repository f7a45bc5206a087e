//! What a judging command that is not a run prints and writes.

use std::path::Path;

use super::options::Github;
use crate::exit::{Exit, Failure};
use crate::output::export::cases::{CaseOutcome, Suite};
use crate::output::export::{OutputFile, Staged, junit, summary};
use crate::output::terminal::print;

/// The outcome of a judging command that is not a run, as written for CI.
#[derive(Debug)]
pub(crate) struct CommandOutcome<'a> {
    /// Command and scenario, for the title.
    pub(crate) of: &'a str,
    pub(crate) word: &'a str,
    pub(crate) exit: u8,
    pub(crate) suites: &'a [Suite],
    /// The text as printed.
    pub(crate) text: &'a str,
}

impl CommandOutcome<'_> {
    /// Names of the files that [`CommandOutcome::publish`] adds to those of its caller.
    pub(crate) const FILES: [&'static str; 2] = ["summary.md", "junit.xml"];

    /// Writes the GitHub output, prints the text, and writes `files`, `summary.md` and `junit.xml` into `dir`, if there
    /// is one. The files appear after all output: a command that fails to print exits with 1, and no file may
    /// contradict that. `json`: printed instead of the text. Returns the exit code.
    pub(crate) fn publish(
        &self,
        dir: Option<&Path>,
        mut files: Vec<OutputFile>,
        github: &Github,
        json: Option<&str>,
    ) -> Result<u8, Failure> {
        let summary = || summary::of_cases(self.of, self.word, self.exit, self.suites, self.text);
        let staged = match dir {
            Some(dir) => {
                files.push(("summary.md".to_owned(), summary()));
                files.push(("junit.xml".to_owned(), self.junit()));
                Some(Staged::new(dir, files)?)
            }
            None => None,
        };
        github.write(self.suites, summary, json.is_some())?;
        print(json.unwrap_or(self.text))?;
        staged.map_or(Ok(()), Staged::finish)?;
        Ok(self.exit)
    }

    /// The JUnit file. A CI server fails the job for an `error`, so a doubt that the exit code lets pass is `skipped`.
    fn junit(&self) -> String {
        if self.exit != Exit::Passed.code() {
            return junit::document(self.of, self.suites);
        }
        let mut suites = self.suites.to_vec();
        let doubts = suites.iter_mut().flat_map(|s| &mut s.cases);
        doubts
            .filter(|c| c.outcome == CaseOutcome::Doubt)
            .for_each(|c| c.outcome = CaseOutcome::Skipped);
        junit::document(self.of, &suites)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::export::cases::Case;

    /// `gate --inconclusive warn` exits with 0: an `error` in its JUnit file would fail the job nevertheless.
    #[test]
    fn a_doubt_that_passes_is_no_error_in_junit() {
        let detail = "too few probes".to_owned();
        let case = Case { name: "probes".to_owned(), outcome: CaseOutcome::Doubt, detail };
        let suites = [Suite::new("step", "container", vec![case])];
        let junit = |exit: Exit| {
            let (word, exit) = (exit.word(), exit.code());
            CommandOutcome { of: "gate step", word, exit, suites: &suites, text: "" }.junit()
        };
        let passed = junit(Exit::Passed);
        assert!(passed.contains("errors=\"0\" skipped=\"1\""), "{passed}");
        assert!(passed.contains("<skipped message=\"too few probes\"/>"), "{passed}");
        let doubtful = junit(Exit::Inconclusive);
        assert!(doubtful.contains("errors=\"1\" skipped=\"0\""), "{doubtful}");
    }
}
