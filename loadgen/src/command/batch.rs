//! The commands that run a scenario many times: `sweep` and `search`.

use std::path::PathBuf;

use super::options::{CommonOptions, Github};
use super::outcome::CommandOutcome;
use crate::exit::{Exit, Failure};
use crate::output::export::cases;
use crate::run::interrupt;
use crate::run::sweep::{self, Batch, BatchKind, Range};
use crate::target::Control;

/// Options of a command that makes many runs.
#[derive(Debug, clap::Args)]
pub(super) struct BatchOptions {
    #[arg(long, default_value = "virtual")]
    target: String,
    #[command(flatten)]
    common: CommonOptions,
    /// Write to this folder [default: out/<command>-<scenario>-<seed>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    github: Github,
}

impl BatchOptions {
    /// Calls `run` with a batch of these options.
    fn batch<T>(
        &self,
        scenario: &str,
        kind: BatchKind,
        run: impl FnOnce(&Batch<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let CommonOptions { seed, set, .. } = &self.common;
        let ready = self.common.target(&self.target).and_then(|target| {
            let repeats = self.common.repeats(target.as_ref())?;
            Ok((target, repeats))
        });
        // A batch that does not start must not leave the verdict of an earlier one in its folder.
        let place = kind.place(self.out.as_deref(), scenario, &self.target, *seed);
        let (target, repeats) = ready.inspect_err(|_| place.forget())?;
        let out = self.out.clone();
        run(&Batch { scenario, target: target.as_ref(), seed: *seed, set, repeats, out })
    }
}

/// `sweep`: runs the scenario for each value of a parameter.
pub(super) fn sweep(scenario: &str, param: &str, options: &BatchOptions) -> Result<u8, Failure> {
    let stop = Control { stop: interrupt::watch() };
    let found =
        options.batch(scenario, BatchKind::Sweep, |batch| sweep::sweep(batch, param, stop))?;
    let judged = CommandOutcome {
        of: &format!("sweep {scenario}"),
        word: Exit::word_of(found.exit),
        exit: found.exit,
        suites: &found.suites,
        text: &found.text,
    };
    judged.publish(Some(found.folder.dir()), Vec::new(), &options.github, None)
}

/// `search`: finds the limit of a parameter.
pub(super) fn search(
    scenario: &str,
    range: &Range<'_>,
    options: &BatchOptions,
) -> Result<u8, Failure> {
    let stop = Control { stop: interrupt::watch() };
    let (text, exit) =
        options.batch(scenario, BatchKind::Search, |batch| sweep::search(batch, range, stop))?;
    let suites = [cases::of_search(scenario, range.key, &text, exit)];
    let judged = CommandOutcome {
        of: &format!("search {scenario}"),
        word: Exit::word_of(exit),
        exit,
        suites: &suites,
        text: &text,
    };
    // Only the GitHub output: a search writes neither summary.md nor junit.xml.
    judged.publish(None, Vec::new(), &options.github, None)
}
