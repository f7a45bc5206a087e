//! `loadgen compare`: compares two results, two folders of results, or two binaries or configurations that it runs now.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::options::Github;
use super::outcome::CommandOutcome;
use crate::exit::Failure;
use crate::judge::compare::{
    Comparison, PAIRS_MIN, Question, RunValues, comparable, exact, paired, text, unpaired,
};
use crate::judge::merge::distinct;
use crate::judge::metrics::{METRICS, Metric, find};
use crate::measure::result::RunResult;
use crate::output::export::cases;
use crate::output::export::{json, place};
use crate::output::folder::{self, Folder};
use crate::output::terminal::note;
use crate::run;
use crate::run::interrupt;
use crate::run::pairs::{self, Side};
use crate::target;
use crate::units::hint;

const VIRTUAL: &str = "virtual";
/// The default folder of `--exec`, and its folders of the runs of each side.
const OUT: &str = "out/compare";
const SIDES: [&str; 2] = ["a", "b"];
const FILE: &str = "compare.json";
/// Metrics tested by default: each additional metric needs more pairs (Holm's correction).
const METRICS_DEFAULT: &[&str] = &["goodput-up", "goodput-down", "p99-contended", "stall"];

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The older side: result.json, its folder, or a folder of such folders; with --exec a loadgen binary
    a: Option<PathBuf>,
    /// The newer side
    b: Option<PathBuf>,
    /// Run A and B now, interleaved; without A and B run this binary, to compare configurations or to measure its noise
    #[arg(long)]
    exec: bool,
    #[command(flatten)]
    now: Now,
    /// Metrics that decide, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    metrics: Vec<String>,
    /// Ignore changes up to this size, in percent [default: 5, on the virtual target 0]
    #[arg(long, value_name = "PERCENT")]
    margin: Option<f64>,
    /// Pair the runs of the same name in the two folders: they ran next to each other
    #[arg(long)]
    paired: bool,
    /// Compare even if parameters, the scenario's file or the seed differ
    #[arg(long)]
    any_params: bool,
    /// Exit 4 for an improvement too
    #[arg(long)]
    both: bool,
    /// Write compare.json, summary.md, junit.xml and the runs made now to this folder [default: out/compare with
    /// --exec, otherwise not written]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print compare.json instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    github: Github,
}

/// Options that apply only to runs made now (`--exec`). Without a value they stay `None` instead of a default, so that
/// [`Compare::consistent`] can refuse an option given for saved results.
#[derive(Debug, Args)]
struct Now {
    /// With --exec: number of pairs of runs, at least 6, on the virtual target 1 [default: 10, on the virtual target 1]
    #[arg(long, value_name = "PAIRS")]
    rounds: Option<usize>,
    /// With --exec: scenario to run [default: starvation]
    #[arg(long)]
    scenario: Option<String>,
    /// With --exec: target; virtual needs no pairs and is compared exactly [default: virtual]
    #[arg(long)]
    target: Option<String>,
    /// With --exec: seed of the first pair, and of the order [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// With --exec: change a parameter on both sides (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// With --exec: change a parameter on side A only
    #[arg(long, value_name = "KEY=VALUE")]
    set_a: Vec<String>,
    /// With --exec: change a parameter on side B only
    #[arg(long, value_name = "KEY=VALUE")]
    set_b: Vec<String>,
}

impl Now {
    /// The first option that was given, if any.
    fn given(&self) -> Option<&'static str> {
        let all = [
            ("--rounds", self.rounds.is_some()),
            ("--scenario", self.scenario.is_some()),
            ("--target", self.target.is_some()),
            ("--seed", self.seed.is_some()),
            ("--set", !self.set.is_empty()),
            ("--set-a", !self.set_a.is_empty()),
            ("--set-b", !self.set_b.is_empty()),
        ];
        all.into_iter().find_map(|(option, given)| given.then_some(option))
    }
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(10)
    }
    fn scenario(&self) -> &str {
        self.scenario.as_deref().unwrap_or("starvation")
    }
    fn target(&self) -> &str {
        self.target.as_deref().unwrap_or(VIRTUAL)
    }
    fn seed(&self) -> u64 {
        self.seed.unwrap_or(1)
    }

    /// The settings of both sides, then those of one side, each with the option that set it.
    fn settings<'a>(
        &'a self,
        (option, own): (&'static str, &'a [String]),
    ) -> impl Iterator<Item = (&'a str, &'a String)> {
        let both = self.set.iter().map(|s| ("--set", s));
        both.chain(own.iter().map(move |s| (option, s)))
    }
}

impl Compare {
    pub(crate) fn dispatch(&self) -> Result<u8, Failure> {
        // With `--exec`, A and B are programs.
        let inputs: Vec<PathBuf> =
            [&self.a, &self.b].into_iter().flatten().filter(|_| !self.exec).cloned().collect();
        let out = self.out.as_deref().or_else(|| self.exec.then(|| Path::new(OUT)));
        out.map_or(Ok(()), |out| folder::apart(out, &inputs))?;
        // A comparison that fails must not leave the verdict of an earlier one.
        self.compared().inspect_err(|_| out.map_or((), folder::forget))
    }

    /// Compares, with an output folder that holds no input.
    fn compared(&self) -> Result<u8, Failure> {
        self.consistent()?;
        let (comparison, folder) = match (&self.a, &self.b) {
            (Some(a), Some(b)) if !self.exec => {
                let comparison = self.saved(a, b)?;
                (comparison, self.out.as_deref().map(Folder::beside).transpose()?)
            }
            // A comparison needs both positional arguments or, with `--exec`, none.
            (Some(_), None) => {
                return Err(Failure::Usage("B is missing: give two results, A and B".to_owned()));
            }
            (None, _) if !self.exec => {
                let what = "A and B are missing: give two results, or --exec to run both sides now";
                return Err(Failure::Usage(what.to_owned()));
            }
            _ => {
                let (comparison, folder) = self.executed()?;
                (comparison, Some(folder))
            }
        };
        self.publish(&comparison, folder.as_ref().map(Folder::dir))
    }

    /// Writes the files of a comparison and prints it; returns the exit code.
    fn publish(&self, comparison: &Comparison, dir: Option<&Path>) -> Result<u8, Failure> {
        let json = json::pretty("compare.json", comparison)?;
        let table = format!("{}\n{}\n", text::render(comparison), text::verdict_line(comparison));
        let judged = CommandOutcome {
            of: "compare",
            word: &comparison.word,
            exit: comparison.exit,
            suites: &cases::of_comparison(comparison, self.both),
            text: &table,
        };
        let files = vec![(FILE.to_owned(), json.clone())];
        judged.publish(dir, files, &self.github, self.json.then_some(&json))
    }

    /// The folder for runs made now, without the runs of an earlier comparison.
    fn place(&self) -> Result<Folder, Failure> {
        let folder = Folder::take(self.out.as_deref().unwrap_or_else(|| Path::new(OUT)))?;
        place::keep_foreign(folder.dir(), [&[FILE][..], &CommandOutcome::FILES].concat())?;
        for side in SIDES {
            pairs::clear(&folder.dir().join(side))?;
        }
        Ok(folder)
    }

    /// Refuses options that the chosen mode would ignore.
    fn consistent(&self) -> Result<(), Failure> {
        let what = if self.exec {
            let of_saved = [("--paired", self.paired), ("--any-params", self.any_params)];
            let given = of_saved.into_iter().find_map(|(o, given)| given.then_some(o));
            given.map(|o| format!("{o} applies to saved results, not to --exec"))
        } else {
            let given = self.now.given().filter(|_| self.a.is_some());
            given.map(|o| format!("{o} requires --exec; without it, A and B are saved results"))
        };
        what.map_or(Ok(()), |what| Err(Failure::Usage(what)))
    }

    /// The selected metrics and limits. The default margin of virtual runs is 0, because they have no noise.
    fn question(&self, virtual_time: bool) -> Result<Question, Failure> {
        let margin = self.margin.unwrap_or(if virtual_time { 0.0 } else { 5.0 }) / 100.0;
        if !(0.0..=10.0).contains(&margin) {
            return Err(Failure::Usage("--margin must be 0 to 1000 percent".to_owned()));
        }
        let keys: Vec<&str> = match self.metrics.as_slice() {
            [] => METRICS_DEFAULT.to_vec(),
            some => some.iter().map(String::as_str).collect(),
        };
        let metrics = keys.into_iter().map(metric).collect::<Result<_, _>>()?;
        let selected = !self.metrics.is_empty();
        Ok(Question { metrics, selected, margin, both: self.both, seed: 1 })
    }

    /// Compares saved results.
    fn saved(&self, a: &Path, b: &Path) -> Result<Comparison, Failure> {
        // Only A is a baseline, which may be missing.
        let (of_a, of_b) = (load(a)?, load(b).map_err(Failure::of_argument)?);
        let (Some((_, first)), Some((_, second))) = (of_a.first(), of_b.first()) else {
            return Err(Failure::NoBaseline("no results found".to_owned()));
        };
        // Compare every run of both sides with one reference: within a side the runs must match too.
        for (_, other) in of_a.iter().chain(&of_b) {
            comparable(first, other, !self.any_params)?;
        }
        for (path, side) in [(a, &of_a), (b, &of_b)] {
            // A copy of a run would count as a further run.
            let named = |e| Failure::Usage(format!("{}: {e}", path.display()));
            distinct(side.iter().map(|(_, result)| result)).map_err(named)?;
        }
        let (name_a, name_b) = (a.display().to_string(), b.display().to_string());
        let names = (name_a.as_str(), name_b.as_str());
        let question = self.question(first.target == VIRTUAL)?;
        // Deterministic runs need no statistics.
        if first.target == VIRTUAL && of_a.len() == 1 && of_b.len() == 1 {
            if first.seed != second.seed && !self.any_params {
                // In virtual time another seed is another run: the difference is not that of the builds.
                let seeds = format!("seed: {} against {}", first.seed, second.seed);
                return Err(Failure::NoBaseline(format!(
                    "these runs cannot be compared; they differ in:\n  {seeds}"
                )));
            }
            return exact::compare(first, second, names, &question);
        }
        let runs = |all: &[(String, RunResult)]| -> Vec<RunValues> {
            all.iter().map(|(name, r)| RunValues::of(name, r)).collect()
        };
        if !self.paired {
            return Ok(unpaired(&runs(&of_a), &runs(&of_b), names, &question));
        }
        let name_of = |all: &[(String, RunResult)]| -> Vec<String> {
            all.iter().map(|(name, _)| name.clone()).collect()
        };
        // Pairs are formed by position, so the sorted names must be equal.
        if name_of(&of_a) != name_of(&of_b) {
            let why = "--paired: both folders must contain runs of the same names".to_owned();
            return Err(Failure::NoBaseline(why));
        }
        Ok(paired(&runs(&of_a), &runs(&of_b), names, &question))
    }

    /// Runs both sides and compares them.
    fn executed(&self) -> Result<(Comparison, Folder), Failure> {
        let now = &self.now;
        let virtual_time = now.target() == VIRTUAL;
        let question = self.question(virtual_time)?;
        // Every virtual run of a seed is the same: one pair suffices.
        let rounds = if virtual_time { 1 } else { now.rounds() };
        match now.rounds {
            Some(n) if virtual_time && n != 1 => {
                let why = "the virtual target makes one pair: only 1 is allowed";
                return Err(Failure::Usage(format!("--rounds {n}: {why}")));
            }
            Some(n) if !virtual_time && n < PAIRS_MIN => {
                let why = format!("at least {PAIRS_MIN} pairs are needed");
                return Err(Failure::Usage(format!("--rounds {n}: {why}")));
            }
            _ => {}
        }
        let (a, b) = (
            self.side(SIDES[0], self.a.as_ref(), ("--set-a", &now.set_a))?,
            self.side(SIDES[1], self.b.as_ref(), ("--set-b", &now.set_b))?,
        );
        // Before the first run: an unusable folder must not waste the runs.
        let folder = self.place()?;
        let plan = pairs::Rounds { wanted: rounds, replace: !virtual_time, seed: now.seed() };
        let pairs = pairs::pairs(&a, &b, plan, folder.dir(), interrupt::watch(), note)?;
        // Parameters may differ on purpose (`--set-a`, `--set-b`): check scenario and target only.
        for (of_a, of_b) in &pairs {
            comparable(of_a, of_b, false)?;
        }
        let shown = |s: &Side, own: &[String]| format!("{} {}", s.binary.display(), own.join(" "));
        let (name_a, name_b) = (shown(&a, &now.set_a), shown(&b, &now.set_b));
        let names = (name_a.trim(), name_b.trim());
        let comparison = match pairs.first() {
            Some((of_a, of_b)) if virtual_time => exact::compare(of_a, of_b, names, &question)?,
            _ => {
                let label = |side: &str, i: usize| format!("{side}/{:02}", i + 1);
                let runs = pairs.iter().enumerate();
                let runs = runs.map(|(i, (a, b))| {
                    (RunValues::of(&label("a", i), a), RunValues::of(&label("b", i), b))
                });
                let (of_a, of_b): (Vec<RunValues>, Vec<RunValues>) = runs.unzip();
                let mut comparison = paired(&of_a, &of_b, names, &question);
                // Reports how many pairs were replaced because one of their runs failed a sanity gate.
                comparison.notes.extend(plan.note(comparison.runs_a, pairs.len()));
                comparison
            }
        };
        Ok((comparison, folder))
    }

    /// One side of `--exec`: its binary and arguments.
    fn side(
        &self,
        name: &str,
        binary: Option<&PathBuf>,
        own: (&'static str, &[String]),
    ) -> Result<Side, Failure> {
        let now = &self.now;
        let this = || {
            // Check the settings first if this binary runs them; another binary checks its own.
            let target = target::find(now.target())?;
            run::plan(now.scenario(), target.as_ref(), now.settings(own), now.seed())?;
            std::env::current_exe().map_err(|e| Failure::io("this binary", e))
        };
        let binary = binary.map_or_else(this, |p| Ok(p.clone()))?;
        let mut args: Vec<OsString> = vec![now.scenario().into()];
        args.extend(["--target".into(), OsString::from(now.target())]);
        for (_, set) in now.settings(own) {
            args.extend(["--set".into(), OsString::from(set)]);
        }
        Ok(Side { name: name.to_owned(), binary, args })
    }
}

fn metric(key: &str) -> Result<&'static Metric, Failure> {
    find(key).ok_or_else(|| {
        let hint = hint(key, METRICS.iter().map(|m| m.key));
        Failure::Usage(format!("no metric '{key}'{hint}"))
    })
}

/// Loads one result, or the results in the subfolders of a folder, sorted by name.
fn load(path: &Path) -> Result<Vec<(String, RunResult)>, Failure> {
    // A file, or a folder with a result.json: a single result.
    if path.exists() && !path.is_dir() || path.join("result.json").exists() {
        return Ok(vec![(path.display().to_string(), json::read(path)?)]);
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::NoBaseline(format!("{}: no such file or folder", path.display())));
        }
        Err(e) => return Err(Failure::io(path.display(), e)),
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.join("result.json").exists()).collect();
    found.sort();
    if found.is_empty() {
        return Err(Failure::NoBaseline(format!(
            "{}: no result.json in it or its subfolders",
            path.display()
        )));
    }
    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    found.iter().map(|p| Ok((name(p), json::read(p)?))).collect()
}
