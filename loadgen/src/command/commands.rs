//! The commands that read saved results.

mod compare;
pub(crate) mod list;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use crate::command::help;
use crate::command::selftest;
use crate::exit::{Exit, Failure};
use crate::judge::merge::{self, How};
use crate::measure::result::RunResult;
use crate::output::export::cases::{self, CaseOutcome, Suite};
use crate::output::export::{
    self, Format, OutputFile, Staged, github, json, junit, place, summary,
};
use crate::output::folder::{self, Folder};
use crate::output::report::{explain, table};
use crate::output::terminal::print;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write the files of a run again from its result.json: exit 0 whatever its verdict, which `gate` judges
    #[command(after_help = help::plain(help::REPORT))]
    Report {
        /// result.json or its folder
        result: PathBuf,
        /// Write to this folder [default: beside the result]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Compare two results: exit 4 if B is worse than A, 5 if the data do not decide
    #[command(after_help = help::judging(help::COMPARE))]
    Compare(Box<compare::Compare>),
    /// Merge several results of one scenario: histograms are added, nothing is averaged
    #[command(after_help = help::judging(help::MERGE))]
    Merge {
        /// Two or more: result.json or their folders
        #[arg(required = true, num_args = 2..)]
        results: Vec<PathBuf>,
        /// Parts of one run, or repetitions of the same run
        #[arg(long, value_enum, default_value = "repeats")]
        how: How,
        #[arg(long, value_name = "DIR", default_value = "out/merged")]
        out: PathBuf,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Check this binary against oracles with known answers, in seconds
    #[command(after_help = help::plain(help::SELFTEST))]
    Selftest,
    /// Print the JSON Schema of a file
    #[command(after_help = help::plain(help::SCHEMA))]
    Schema { which: SchemaName },
    /// Explain a metric, a gate or an exit code
    #[command(after_help = help::plain(help::EXPLAIN))]
    Explain {
        /// Topic; without one, list the topics
        topic: Option<String>,
    },
}

/// The files that a run writes.
#[derive(Debug, Args)]
pub(crate) struct Outputs {
    /// Formats to write, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    format: Vec<Format>,
    #[command(flatten)]
    github: Github,
}

#[derive(Debug, Args)]
pub(crate) struct Github {
    /// Write annotations and a job summary for GitHub Actions [default: when GITHUB_ACTIONS=true]
    #[arg(long)]
    github: bool,
}

impl Github {
    /// Whether `--github` was given, whatever the environment.
    fn is_asked_for(&self) -> bool {
        self.github
    }

    /// Writes annotations and the job summary, if `--github` or the environment requests them. `json`: standard output
    /// carries JSON only.
    pub(crate) fn speak(
        &self,
        suites: &[Suite],
        summary: impl FnOnce() -> String,
        json: bool,
    ) -> Result<(), Failure> {
        if self.github || github::is_here() {
            github::speak(suites, &summary(), json)
        } else {
            Ok(())
        }
    }
}

/// The outcome of a judging command that is not a run, as written for CI.
#[derive(Debug)]
pub(crate) struct Judged<'a> {
    /// Command and scenario, for the title.
    pub(crate) of: &'a str,
    pub(crate) word: &'a str,
    pub(crate) exit: u8,
    pub(crate) suites: &'a [Suite],
    /// The text as printed.
    pub(crate) text: &'a str,
}

impl Judged<'_> {
    /// Names of the files that [`Judged::publish`] adds to those of its caller.
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
        github.speak(self.suites, summary, json.is_some())?;
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

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SchemaName {
    Result,
    Verdict,
    Scenario,
    Compare,
    /// The file of `sweep` and `search`
    Sweep,
}

impl Outputs {
    /// Writes the files of a run; result and verdict are always among them. The verdict, the summary and the JUnit file
    /// appear last, after all output: a run that fails to print its result exits with 1, and no file may contradict
    /// that. `print` writes to standard output; `json`: that output is JSON.
    pub(crate) fn write(
        &self,
        dir: &Path,
        result: &RunResult,
        json: bool,
        print: impl FnOnce() -> Result<u8, Failure>,
    ) -> Result<(), Failure> {
        let mut formats = self.formats();
        formats.extend([Format::Result, Format::Verdict]);
        // In the order of the enum, each once: `--format` may repeat a format.
        formats.sort();
        formats.dedup();
        let mut staged = export::stage(dir, result, &formats)?;
        // The measurements and their charts exist before the output refers to them.
        staged.publish()?;
        self.speak(result, json)?;
        print()?;
        staged.finish()
    }

    /// Writes the GitHub output of a run, before the verdict line, which must be the last.
    pub(crate) fn speak(&self, result: &RunResult, json: bool) -> Result<(), Failure> {
        self.github.speak(&cases::of_run(result), || summary::render(result), json)
    }

    /// Refuses a folder with files that loadgen did not write and that these formats would overwrite. `own`: formats
    /// that the command replaces in any case.
    pub(crate) fn keep_foreign(&self, dir: &Path, own: &[Format]) -> Result<(), Failure> {
        let formats = self.formats();
        let written = formats.iter().filter(|format| !own.contains(format));
        place::keep_foreign(dir, written.flat_map(|format| format.names()))
    }

    fn formats(&self) -> Vec<Format> {
        if self.format.is_empty() { Format::all() } else { self.format.clone() }
    }
}

pub(crate) fn dispatch(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Report { result, out, outputs } => report(&result, out, &outputs),
        Command::Compare(compare) => compare.dispatch(),
        Command::Merge { results, how, out, outputs } => merged(&results, how, &out, &outputs),
        Command::Selftest => {
            let mut printed = Ok(0);
            // A full standard output must not end the checks.
            let exit = selftest::run(|line| {
                if let Err(e) = print(line) {
                    printed = Err(e);
                }
            });
            if exit == Exit::Passed.code() { printed } else { Ok(exit) }
        }
        Command::Schema { which } => print(match which {
            SchemaName::Result => include_str!("../../schema/result.schema.json"),
            SchemaName::Verdict => include_str!("../../schema/verdict.schema.json"),
            SchemaName::Scenario => include_str!("../../schema/scenario.schema.json"),
            SchemaName::Compare => include_str!("../../schema/compare.schema.json"),
            SchemaName::Sweep => include_str!("../../schema/sweep.schema.json"),
        }),
        Command::Explain { topic } => print(&explain::explain(topic.as_deref())?),
    }
}

/// Formats that a run replaces, by whichever program they were written.
pub(crate) const OF_EVERY_RUN: [Format; 2] = [Format::Result, Format::Verdict];

/// `merge`: adds the results and writes the files of the sum.
fn merged(from: &[PathBuf], how: How, out: &Path, outputs: &Outputs) -> Result<u8, Failure> {
    folder::apart(out, from)?;
    merged_apart(from, how, out, outputs).inspect_err(|_| folder::forget(out))
}

/// The same, with an output folder that holds no input.
fn merged_apart(from: &[PathBuf], how: How, out: &Path, outputs: &Outputs) -> Result<u8, Failure> {
    let parts = from.iter().map(|p| json::read_argument(p)).collect::<Result<Vec<_>, _>>()?;
    let sum = merge::merge(&parts, how)?;
    let folder = Folder::for_run(out)?;
    outputs.keep_foreign(out, &OF_EVERY_RUN)?;
    outputs.write(folder.dir(), &sum, false, || {
        let line = table::verdict_line(&sum, &out.display().to_string());
        print(&format!("{}\n{line}\n", table::render(&sum)))
    })?;
    Ok(sum.verdict.exit)
}

/// `report`: writes the files of a saved result again.
fn report(from: &Path, out: Option<PathBuf>, outputs: &Outputs) -> Result<u8, Failure> {
    let source = folder::of_result(from);
    let out = out.unwrap_or_else(|| source.clone());
    // In the result's own folder, keep its other files; in another folder, remove the files of a previous result.
    let beside = folder::apart(&out, std::slice::from_ref(&source)).is_err();
    let result = json::read_argument(from).inspect_err(|_| {
        // The files beside a result that cannot be read may be all that remains of it.
        if out != source && !beside {
            folder::forget(&out);
        }
    })?;
    let folder = if beside { Folder::beside(&out)? } else { Folder::take(&out)? };
    // Beside the result, its `result.json` is the file that was read.
    outputs.keep_foreign(&out, if beside { &OF_EVERY_RUN } else { &[] })?;
    let mut staged = export::stage(folder.dir(), &result, &outputs.formats())?;
    staged.publish()?;
    // The run itself has already written annotations to this job: repeat them only on request.
    if outputs.github.is_asked_for() {
        outputs.speak(&result, false)?;
    }
    let line = table::verdict_line(&result, &out.display().to_string());
    print(&format!("{}\n{line}\n", table::render(&result)))?;
    staged.finish()?;
    // Rendering judges nothing: exit 0, whatever the verdict.
    Ok(0)
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
            Judged { of: "gate step", word, exit, suites: &suites, text: "" }.junit()
        };
        let passed = junit(Exit::Passed);
        assert!(passed.contains("errors=\"0\" skipped=\"1\""), "{passed}");
        assert!(passed.contains("<skipped message=\"too few probes\"/>"), "{passed}");
        let doubtful = junit(Exit::Inconclusive);
        assert!(doubtful.contains("errors=\"1\" skipped=\"0\""), "{doubtful}");
    }
}
