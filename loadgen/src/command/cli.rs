//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Parser, Subcommand};

use super::batch::{self, BatchOptions};
use super::gate::{self, GateOptions};
use super::options::{CommonOptions, Github, OF_EVERY_RUN, Outputs};
use super::results::{self, ResultCommand};
use super::{help, list};
use crate::exit::{Exit, Failure};
use crate::measure::result::RunResult;
use crate::output::export;
use crate::output::folder::{self, Folder, Place};
use crate::output::report::table;
use crate::output::terminal::{print, print_stderr};
use crate::run::progress::Progress;
use crate::run::{self, interrupt, sweep};
use crate::scenario::plan::Plan;
use crate::target::{self, Control, Target};

#[derive(Debug, Parser)]
#[command(name = "loadgen", version, about, max_term_width = 100, after_help = help::codes())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the demo: a hog and its victims, first with one shared budget, then with a budget each
    #[command(after_help = help::judging(help::REPRO))]
    Repro {
        #[command(flatten)]
        options: RunOptions,
    },
    /// Run a scenario
    #[command(after_help = help::judging(help::RUN))]
    Run {
        /// A built-in scenario (`loadgen list` prints them), or a file
        scenario: String,
        /// Where to run: virtual (seeded virtual time, no privileges), tap (real namespaces; root), daemon (containers
        /// of a running `skbudget serve`; root) or kernel (the kernel's own stack and limits as a reference; root and
        /// cgroup v1)
        #[arg(long, default_value = "virtual")]
        target: String,
        #[command(flatten)]
        options: RunOptions,
    },
    /// List the built-in scenarios and their parameters
    #[command(after_help = help::plain(help::LIST))]
    List,
    /// Print the file of a built-in scenario, to copy and edit
    #[command(after_help = help::plain(help::SHOW))]
    Show { name: String },
    /// Run a scenario once for each value of a parameter: writes a table, sweep.json, and a result for each value
    #[command(after_help = help::judging(help::SWEEP))]
    Sweep {
        scenario: String,
        /// Parameter and its values: `containers=10,100`
        #[arg(long, value_name = "KEY=VALUE,...")]
        param: String,
        #[command(flatten)]
        options: BatchOptions,
    },
    /// Search the limit between --from and --to: the value of a parameter up to which no gate of a subject fails
    #[command(after_help = help::judging(help::SEARCH))]
    Search {
        scenario: String,
        /// Parameter to vary: `stuff`, or a path such as `group.hog.stuff.conns`
        #[arg(long, value_name = "KEY")]
        param: String,
        /// Start value, which is expected to pass
        #[arg(long, value_name = "VALUE")]
        from: String,
        /// End value, above or below --from
        #[arg(long, value_name = "VALUE")]
        to: String,
        /// Maximum number of halvings
        #[arg(long, default_value_t = 8)]
        steps: u32,
        #[command(flatten)]
        options: BatchOptions,
    },
    /// Judge a saved result: exit 3 when a gate fails, 4 when it is worse than the baseline, 6 without one
    #[command(after_help = help::judging(help::GATE))]
    Gate {
        /// result.json or its folder
        result: PathBuf,
        /// Another result: fail if the result is worse than this one
        #[arg(long, value_name = "PATH")]
        baseline: Option<PathBuf>,
        /// An additional condition on every subject (repeatable): 'worst(victim.p99-contended) <= 5ms'
        #[arg(long, value_name = "EXPR")]
        expr: Vec<String>,
        /// Percent by which a wall-clock run may be worse than its baseline
        #[arg(long, default_value_t = 20)]
        tolerance: u64,
        /// Treat an inconclusive result as a failure, or only warn
        #[arg(long, value_enum, default_value_t = Inconclusive::Fail)]
        inconclusive: Inconclusive,
        /// Write summary.md and junit.xml of this judgement to this folder [default: not written]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        #[command(flatten)]
        github: Github,
    },
    #[command(name = crate::target::agent::SUBCOMMAND, hide = true)]
    Agent,
    #[command(flatten)]
    OfResults(ResultCommand),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Inconclusive {
    Fail,
    Warn,
}

/// Options of a single run.
#[derive(Debug, clap::Args)]
struct RunOptions {
    #[command(flatten)]
    common: CommonOptions,
    /// Write the result to this folder [default: out/<name>-<seed>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print result.json instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    outputs: Outputs,
}

/// Runs the command line of this process and returns its exit code.
pub fn main() -> u8 {
    run_with(std::env::args_os())
}

/// Parses and runs a command line; returns the exit code.
pub fn run_with(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Render as plain text: the message quotes the arguments, and the terminal module escapes their control
            // characters.
            let text = e.render().to_string();
            if e.use_stderr() {
                print_stderr(&text);
                return Exit::Usage.code();
            }
            return print(&text).unwrap_or_else(|f| f.exit().code());
        }
    };
    match dispatch(cli.command) {
        Ok(exit) => exit,
        Err(failure) => {
            print_stderr(&format!("loadgen: {failure}"));
            failure.exit().code()
        }
    }
}

/// Runs a command; returns the exit code.
fn dispatch(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Repro { options } => {
            run_one("starvation", "virtual", Some("repro"), &options, interrupt::watch())
        }
        Command::Run { scenario: name, target, options } => {
            run_one(&name, &target, None, &options, interrupt::watch())
        }
        Command::List => print(&list::list()?),
        Command::Show { name } => print(&list::show(&name)?),
        Command::Sweep { scenario, param, options } => batch::sweep(&scenario, &param, &options),
        Command::Search { scenario, param, from, to, steps, options } => {
            let range = sweep::Range { key: &param, from: &from, to: &to, steps };
            batch::search(&scenario, &range, &options)
        }
        Command::Gate { result, baseline, expr, tolerance, inconclusive, out, github } => {
            let options = GateOptions {
                baseline: baseline.as_deref(),
                exprs: &expr,
                tolerance,
                warn_only: inconclusive == Inconclusive::Warn,
            };
            gate::gate_command(&result, &options, out.as_deref(), &github)
        }
        // The agent process of the wall-clock targets.
        Command::Agent => target::agent::main().map(|()| 0).map_err(Failure::Io),
        Command::OfResults(command) => results::dispatch(command),
    }
}

/// `run` and `repro`: runs a scenario, writes its files and prints the table. `label` replaces the scenario's name.
fn run_one(
    name: &str,
    target: &str,
    label: Option<&str>,
    options: &RunOptions,
    stop: &AtomicBool,
) -> Result<u8, Failure> {
    let found = options.common.target(target);
    let ready = found.and_then(|target| {
        let (plan, repeats) = ready(name, target.as_ref(), options)?;
        Ok((target, plan, repeats))
    });
    // A run that does not start must not leave the verdict of an earlier run in its folder.
    let seed = options.common.seed;
    let earlier =
        Place { out: options.out.as_deref(), prefix: "", label, scenario: name, target, seed };
    let (target, plan, repeats) = ready.inspect_err(|_| earlier.forget())?;
    let label = label.unwrap_or(&plan.scenario);
    // Evaluated only without `--out`: a name that gives no valid folder is an error only then.
    let default = || folder::default_out(name, "", label, seed);
    let out = options.out.clone().map_or_else(default, Ok)?;
    if let Err(failure) = target.check(&plan) {
        match &failure {
            // CI reads a verdict even where the target cannot run: "unavailable" is inconclusive, not a missing file.
            Failure::Unavailable(why) => {
                write_unavailable(&out, &run::unavailable(&plan, target.as_ref(), why));
            }
            _ => earlier.forget(),
        }
        return Err(failure);
    }
    let folder = Folder::for_run(&out)?;
    options.outputs.keep_foreign(&out, &OF_EVERY_RUN)?;

    // `expected` is for one run.
    let expected = expected(&plan, target.as_ref()).map(|once| once * repeats as u32);
    let shown = Progress::start(&format!("{label} on {}", target.name()), expected);
    let result = run::repeated(&plan, target.as_ref(), Control { stop }, repeats);
    // Clears the progress line before the result is printed.
    drop(shown);
    let result = result?;
    options.outputs.write(folder.dir(), &result, options.json, || {
        let line = table::verdict_line(&result, &out.display().to_string());
        // Standard output carries JSON only, so the verdict line goes to standard error.
        if options.json {
            print(&export::json::result(&result)?)?;
            print_stderr(&line);
            return Ok(0);
        }
        print(&format!("{}\n{line}\n", table::render(&result)))
    })?;
    Ok(result.verdict.exit)
}

/// The plan to run, and how many times.
fn ready(name: &str, target: &dyn Target, options: &RunOptions) -> Result<(Plan, usize), Failure> {
    let CommonOptions { seed, set, .. } = &options.common;
    let repeats = options.common.repeats(target)?;
    let set = set.iter().map(|s| ("--set", s));
    Ok((run::parsed(name, target, set, *seed)?, repeats))
}

/// Writes the verdict of a run that its target cannot run on this machine. The exit code stays that of the target.
fn write_unavailable(out: &Path, result: &RunResult) {
    let formats = [export::Format::Verdict, export::Format::Junit];
    let written =
        Folder::for_run(out).and_then(|folder| export::write(folder.dir(), result, &formats));
    if let Err(e) = written {
        print_stderr(&format!("loadgen: cannot write the verdict: {e}"));
    }
}

/// Expected duration: on the wall clock the arms run one after another. Unknown (`None`) for virtual time.
fn expected(plan: &Plan, target: &dyn Target) -> Option<Duration> {
    let all = Duration::from_nanos(plan.end_ns()) * target.arms(plan).len() as u32;
    (!target.parallel()).then_some(all)
}
