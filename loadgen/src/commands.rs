//! The commands that read saved results.

mod compare;
pub(crate) mod list;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use crate::exit::Failure;
use crate::export::cases::{self, Suite};
use crate::export::{self, Format, github, json, junit, summary};
use crate::folder::{self, Folder};
use crate::help;
use crate::merge::{self, How};
use crate::report::{explain, table};
use crate::result::RunResult;
use crate::selftest;
use crate::terminal::print;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write the files of a run again from its result.json
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
    /// Writes `summary.md` and `junit.xml` into `dir`, if there is one, and the GitHub output.
    pub(crate) fn publish(
        &self,
        dir: Option<&Path>,
        github: &Github,
        json: bool,
    ) -> Result<(), Failure> {
        let summary = || summary::of_cases(self.of, self.word, self.exit, self.suites, self.text);
        if let Some(dir) = dir {
            export::write_file(dir, "summary.md", summary())?;
            export::write_file(dir, "junit.xml", junit::document(self.of, self.suites))?;
        }
        github.speak(self.suites, summary, json)
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
    /// Writes the files of a run; result and verdict are always among them. The verdict appears last, after all output:
    /// a run that fails to print its result exits with 1, and no verdict may contradict that. `print` writes to
    /// standard output; `json`: that output is JSON.
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
        // The files exist before the output refers to them.
        staged.publish()?;
        self.speak(result, json)?;
        print()?;
        staged.finish()
    }

    /// Writes the GitHub output of a run, before the verdict line, which must be the last.
    pub(crate) fn speak(&self, result: &RunResult, json: bool) -> Result<(), Failure> {
        self.github.speak(&cases::of_run(result), || summary::render(result), json)
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
        // A closed standard output must not change the outcome of the checks.
        Command::Selftest => Ok(selftest::run(|line| drop(print(line)))),
        Command::Schema { which } => print(match which {
            SchemaName::Result => include_str!("../schema/result.schema.json"),
            SchemaName::Verdict => include_str!("../schema/verdict.schema.json"),
            SchemaName::Scenario => include_str!("../schema/scenario.schema.json"),
            SchemaName::Compare => include_str!("../schema/compare.schema.json"),
            SchemaName::Sweep => include_str!("../schema/sweep.schema.json"),
        }),
        Command::Explain { topic } => print(&explain::explain(topic.as_deref())?),
    }
}

/// `merge`: adds the results and writes the files of the sum.
fn merged(from: &[PathBuf], how: How, out: &Path, outputs: &Outputs) -> Result<u8, Failure> {
    folder::apart(out, from)?;
    let parts = from.iter().map(|p| json::read_argument(p)).collect::<Result<Vec<_>, _>>()?;
    let sum = merge::merge(&parts, how)?;
    let folder = Folder::for_run(out)?;
    outputs.write(folder.dir(), &sum, false, || {
        let line = table::verdict_line(&sum, &out.display().to_string());
        print(&format!("{}\n{line}\n", table::render(&sum)))
    })?;
    Ok(sum.verdict.exit)
}

/// `report`: writes the files of a saved result again.
fn report(from: &Path, out: Option<PathBuf>, outputs: &Outputs) -> Result<u8, Failure> {
    let result = json::read_argument(from)?;
    let source = folder::of_result(from);
    let out = out.unwrap_or_else(|| source.clone());
    // In the result's own folder, keep its other files; in another folder, remove the files of a previous result.
    let beside = folder::apart(&out, std::slice::from_ref(&source)).is_err();
    let folder = if beside { Folder::beside(&out)? } else { Folder::take(&out)? };
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
