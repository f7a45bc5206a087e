//! The commands that work on results: no load is made here.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::print;
use crate::exit::Failure;
use crate::export::{self, Format, github, json};
use crate::report::{explain, table};
use crate::result::RunResult;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the files of a run again from its result.json
    Report {
        /// result.json or its directory
        result: PathBuf,
        /// Where to write [default: beside the result]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        #[command(flatten)]
        outputs: Outputs,
    },
    /// Print the JSON Schema of a file
    Schema { which: SchemaName },
    /// Say what a metric, a gate or an exit code means
    Explain {
        /// Leave out to list the topics
        topic: Option<String>,
    },
}

/// What a run writes.
#[derive(Debug, Args)]
pub(crate) struct Outputs {
    /// Formats to write, by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    format: Vec<Format>,
    /// Speak to GitHub Actions: job summary and annotations [default: when GITHUB_ACTIONS=true]
    #[arg(long)]
    github: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SchemaName {
    Result,
    Verdict,
}

impl Outputs {
    /// Writes a run's files; a verdict is never left out.
    pub(crate) fn write(&self, dir: &Path, result: &RunResult) -> Result<(), Failure> {
        let mut formats = self.formats();
        formats.extend([Format::Result, Format::Verdict]);
        formats.sort();
        formats.dedup();
        export::write(dir, result, &formats)?;
        if self.github || github::is_here() {
            github::speak(result)?;
        }
        Ok(())
    }

    fn formats(&self) -> Vec<Format> {
        if self.format.is_empty() { Format::all() } else { self.format.clone() }
    }
}

pub(crate) fn dispatch(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Report { result, out, outputs } => report(&result, out, &outputs),
        Command::Schema { which } => print(match which {
            SchemaName::Result => include_str!("../schema/result.schema.json"),
            SchemaName::Verdict => include_str!("../schema/verdict.schema.json"),
        }),
        Command::Explain { topic } => print(&explain::explain(topic.as_deref())?),
    }
}

fn report(from: &Path, out: Option<PathBuf>, outputs: &Outputs) -> Result<u8, Failure> {
    let result = json::read(from)?;
    let beside = || match from.is_dir() {
        true => from.to_path_buf(),
        false => from.parent().unwrap_or_else(|| Path::new(".")).to_path_buf(),
    };
    let out = out.unwrap_or_else(beside);
    export::write(&out, &result, &outputs.formats())?;
    let line = table::verdict_line(&result, &out.display().to_string());
    print(&format!("{}\n{line}\n", table::render(&result)))
}
