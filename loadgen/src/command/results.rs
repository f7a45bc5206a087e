//! The commands that read saved results.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};

use super::compare::Compare;
use super::help;
use super::options::{OF_EVERY_RUN, Outputs};
use super::selftest;
use crate::exit::{Exit, Failure};
use crate::judge::merge::{self, How};
use crate::output::export::{self, json};
use crate::output::folder::{self, Folder};
use crate::output::report::{explain, table};
use crate::output::terminal::print;

#[derive(Debug, Subcommand)]
pub(crate) enum ResultCommand {
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
    Compare(Box<Compare>),
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

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SchemaName {
    Result,
    Verdict,
    Scenario,
    Compare,
    /// The file of `sweep` and `search`
    Sweep,
}

pub(crate) fn dispatch(command: ResultCommand) -> Result<u8, Failure> {
    match command {
        ResultCommand::Report { result, out, outputs } => report(&result, out, &outputs),
        ResultCommand::Compare(compare) => compare.dispatch(),
        ResultCommand::Merge { results, how, out, outputs } => {
            merged(&results, how, &out, &outputs)
        }
        ResultCommand::Selftest => {
            let mut printed = Ok(0);
            // A full standard output must not end the checks.
            let exit = selftest::run(|line| {
                if let Err(e) = print(line) {
                    printed = Err(e);
                }
            });
            if exit == Exit::Passed.code() { printed } else { Ok(exit) }
        }
        ResultCommand::Schema { which } => print(match which {
            SchemaName::Result => include_str!("../../schema/result.schema.json"),
            SchemaName::Verdict => include_str!("../../schema/verdict.schema.json"),
            SchemaName::Scenario => include_str!("../../schema/scenario.schema.json"),
            SchemaName::Compare => include_str!("../../schema/compare.schema.json"),
            SchemaName::Sweep => include_str!("../../schema/sweep.schema.json"),
        }),
        ResultCommand::Explain { topic } => print(&explain::explain(topic.as_deref())?),
    }
}

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
    if outputs.github.is_explicit() {
        outputs.write_github(&result, false)?;
    }
    let line = table::verdict_line(&result, &out.display().to_string());
    print(&format!("{}\n{line}\n", table::render(&result)))?;
    staged.finish()?;
    // Rendering judges nothing: exit 0, whatever the verdict.
    Ok(0)
}
