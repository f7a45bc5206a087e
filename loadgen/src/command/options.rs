//! Options that several commands share.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::exit::Failure;
use crate::measure::result::RunResult;
use crate::output::export::cases::{self, Suite};
use crate::output::export::{self, Format, github, place, summary};
use crate::run;
use crate::target::{self, Target};

/// Options of every command that runs a scenario.
#[derive(Debug, clap::Args)]
pub(super) struct CommonOptions {
    /// Seed of the run: on the virtual target the same seed gives the same result
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Change a parameter (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Number of runs that are judged together, by the median of each gate: odd [default: 3 on the wall clock, 1
    /// on virtual, where every run is the same]
    #[arg(long, value_name = "N")]
    repeat: Option<usize>,
    /// Control socket of the daemon, for --target daemon [default: $SKBUDGET_SOCKET, or /run/skbudget/skbudget.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl CommonOptions {
    /// The target with this name.
    pub(super) fn target(&self, name: &str) -> Result<Box<dyn Target>, Failure> {
        target::find_at(name, self.socket.clone())
    }

    /// The number of runs: the option, the environment, or the default of the target.
    pub(super) fn repeats(&self, target: &dyn Target) -> Result<usize, Failure> {
        let usual = target.repeats();
        let Some(count) = self.repeat else {
            // `compare --exec` sets this variable: its pairs already repeat the run.
            let once = std::env::var(run::REPEAT_VARIABLE).is_ok_and(|v| v == "1");
            return Ok(if once { 1 } else { usual });
        };
        let what = match (count, usual) {
            (1, _) => return Ok(1),
            (_, 1) => "must be 1: on the virtual target every run of a seed is the same",
            // Odd, so that the median is one of the runs.
            (n, _) if n % 2 == 1 && n <= run::REPEATS_MAX => return Ok(n),
            _ => "must be an odd number from 1 to 99, for the median",
        };
        Err(Failure::Usage(format!("--repeat {count}: {what}")))
    }
}

/// The files that a run writes.
#[derive(Debug, Args)]
pub(crate) struct Outputs {
    /// Formats to write, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    format: Vec<Format>,
    #[command(flatten)]
    pub(super) github: Github,
}

#[derive(Debug, Args)]
pub(crate) struct Github {
    /// Write annotations and a job summary for GitHub Actions [default: when GITHUB_ACTIONS=true]
    #[arg(long)]
    github: bool,
}

impl Github {
    /// Whether `--github` was given, whatever the environment.
    pub(super) fn is_explicit(&self) -> bool {
        self.github
    }

    /// Writes annotations and the job summary, if `--github` or the environment requests them. `json`: standard output
    /// carries JSON only.
    pub(crate) fn write(
        &self,
        suites: &[Suite],
        summary: impl FnOnce() -> String,
        json: bool,
    ) -> Result<(), Failure> {
        if self.github || github::is_here() {
            github::write(suites, &summary(), json)
        } else {
            Ok(())
        }
    }
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
        self.write_github(result, json)?;
        print()?;
        staged.finish()
    }

    /// Writes the GitHub output of a run, before the verdict line, which must be the last.
    pub(crate) fn write_github(&self, result: &RunResult, json: bool) -> Result<(), Failure> {
        self.github.write(&cases::of_run(result), || summary::render(result), json)
    }

    /// Refuses a folder with files that loadgen did not write and that these formats would overwrite. `own`: formats
    /// that the command replaces in any case.
    pub(crate) fn keep_foreign(&self, dir: &Path, own: &[Format]) -> Result<(), Failure> {
        let formats = self.formats();
        let written = formats.iter().filter(|format| !own.contains(format));
        place::keep_foreign(dir, written.flat_map(|format| format.names()))
    }

    pub(super) fn formats(&self) -> Vec<Format> {
        if self.format.is_empty() { Format::all() } else { self.format.clone() }
    }
}

/// Formats that a run replaces, by whichever program they were written.
pub(crate) const OF_EVERY_RUN: [Format; 2] = [Format::Result, Format::Verdict];
