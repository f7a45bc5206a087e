//! Several runs: `sweep` runs a parameter over values, `search` finds the last value that still passes.

mod search;

pub(crate) use search::{Range, search};

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::judge::metrics::{any_bulk, victims};
use crate::measure::result::{ArmResult, ContainerPhase, RunResult};
use crate::output::export::cases::{self, Suite};
use crate::output::export::{self, Format, json};
use crate::output::folder::{self, Folder, Place};
use crate::run;
use crate::scenario::plan::{ArmRole, Plan};
use crate::target::{Control, Target, open_files};
use crate::units::{bytes, percent, time, times};

/// The settings that all runs of a sweep or a search share.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub scenario: &'a str,
    pub target: &'a dyn Target,
    pub seed: u64,
    pub set: &'a [String],
    /// Number of runs that are judged together at each value.
    pub repeats: usize,
    pub out: Option<PathBuf>,
}

/// The two commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchKind {
    Sweep,
    Search,
}

impl BatchKind {
    /// Of the name of its default folder.
    fn prefix(self) -> &'static str {
        match self {
            Self::Sweep => "sweep-",
            Self::Search => "search-",
        }
    }

    /// The files that it writes into its folder.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Sweep => &["sweep.json", "summary.md", "junit.xml"],
            Self::Search => &["sweep.json"],
        }
    }

    /// Where it writes.
    pub(crate) fn place<'a>(
        self,
        out: Option<&'a Path>,
        scenario: &'a str,
        target: &'a str,
        seed: u64,
    ) -> Place<'a> {
        Place { out, prefix: self.prefix(), label: None, scenario, target, seed }
    }
}

/// One run of a sweep.
#[derive(Debug, Clone, Serialize)]
struct Point {
    value: String,
    exit: u8,
    elapsed_ms: u64,
    containers: u64,
    arms: Vec<ArmRow>,
}

/// One arm of a run. Ratios in thousandths.
#[derive(Debug, Clone, Serialize)]
struct ArmRow {
    arm: String,
    throughput_slowdown_milli: Option<u64>,
    p99_inflation_milli: Option<u64>,
    stall_ns: u64,
    delivered_ppm: Option<u64>,
    overshoot_bytes: u64,
    jain_victims_ppm: u64,
    /// Minimum over maximum of the victims' goodput, contended.
    victims_mmr_ppm: u64,
}

#[derive(Debug, Serialize)]
struct SweepFile<'a> {
    schema: &'static str,
    scenario: &'a str,
    target: &'a str,
    seed: u64,
    param: &'a str,
    points: &'a [Point],
}

/// The values of a sweep, each with its plan.
type Values<'p> = Vec<(&'p str, Plan)>;

/// Maximum number of values of a sweep.
const VALUES_MAX: usize = 1000;

/// The outcome of a sweep.
#[derive(Debug)]
pub(crate) struct Swept {
    /// The table, and the path of the files.
    pub text: String,
    /// The worst exit code of all runs.
    pub exit: u8,
    /// The suites of all runs.
    pub suites: Vec<Suite>,
    pub folder: Folder,
}

/// Runs the scenario for each value. `param`: `key=value,value,...`.
pub(crate) fn sweep(
    batch: &Batch<'_>,
    param: &str,
    control: Control<'_>,
) -> Result<Swept, Failure> {
    let (key, values) = batch.values(param).inspect_err(|_| batch.forget(BatchKind::Sweep))?;
    let folder = batch.place(BatchKind::Sweep, &values[0].1)?;
    let out = folder.dir();
    // Each locked folder takes a descriptor.
    open_files::raise()?;
    // The folders stay locked until the end: a run beside the sweep must not write into one of them. A killed sweep
    // must not leave verdicts of an earlier one.
    let places = folder::points_for_run(out, key, values.iter().map(|(value, _)| *value))?;
    let (mut points, mut suites) = (Vec::new(), Vec::new());
    for (value, plan) in &values {
        let result = run::repeated(plan, batch.target, control, batch.repeats)?;
        let dir = folder::point(out, key, value);
        export::write(&dir, &result, &[Format::Result, Format::Verdict])?;
        points.push(point(value, &result));
        // The value distinguishes the suites of the points.
        suites.extend(cases::of_run(&result).into_iter().map(|s| {
            let of = format!("{} {key}={value}", s.of);
            Suite { of, ..s }
        }));
        // Write after every point: a killed sweep keeps its finished points.
        batch.write_sweep(out, key, &points)?;
        if result.interrupted {
            break;
        }
    }
    drop(places);
    let exit = Exit::worst(points.iter().map(|p| p.exit));
    let text = format!(
        "{} over {key} on the {} target, seed {}\n\n{}\n{}\n",
        batch.scenario,
        batch.target.name(),
        batch.seed,
        table(key, &points),
        verdict_line(exit, out)
    );
    Ok(Swept { text, exit: exit.code(), suites, folder })
}

impl Batch<'_> {
    /// The parameter of a sweep, and each of its values with its plan. Makes all plans before the first run: a wrong
    /// value must not end a sweep half-way.
    fn values<'p>(&self, param: &'p str) -> Result<(&'p str, Values<'p>), Failure> {
        let (key, values) = param.split_once('=').ok_or_else(|| {
            Failure::Usage(format!("--param '{param}': must be KEY=VALUE,VALUE,..."))
        })?;
        // An empty value, as after a trailing comma, is ignored.
        let values: Vec<&str> =
            values.split(',').map(str::trim).filter(|v| !v.is_empty()).collect();
        if values.is_empty() || values.len() > VALUES_MAX {
            return Err(Failure::Usage(format!("--param '{param}': 1 to {VALUES_MAX} values")));
        }
        let planned = |value| Ok((value, self.plan(&format!("{key}={value}"))?));
        Ok((key, values.into_iter().map(planned).collect::<Result<_, Failure>>()?))
    }

    /// Removes the verdict of an earlier batch from the folder of one that does not start.
    fn forget(&self, kind: BatchKind) {
        kind.place(self.out.as_deref(), self.scenario, self.target.name(), self.seed).forget();
    }

    /// The plan with one more setting, `key=value`.
    fn plan(&self, param: &String) -> Result<Plan, Failure> {
        let set = self.set.iter().map(|s| ("--set", s)).chain([("--param", param)]);
        run::plan(self.scenario, self.target, set, self.seed)
    }

    /// The plan with the subject arms only: a search does not test whether a control starves.
    fn subject(&self, key: &str, value: &str) -> Result<Plan, Failure> {
        let mut plan = self.plan(&format!("{key}={value}"))?;
        // Controls and baselines only cost time here.
        plan.arms.retain(|a| a.role == ArmRole::Subject);
        if !self.target.arms(&plan).iter().any(|a| a.role == ArmRole::Subject) {
            let (scenario, target) = (self.scenario, self.target.name());
            let what = "has no subject arm, which a search needs";
            return Err(Failure::Usage(format!("{scenario} on the {target} target {what}")));
        }
        Ok(plan)
    }

    /// The locked output folder of a batch.
    fn place(&self, kind: BatchKind, plan: &Plan) -> Result<Folder, Failure> {
        let default =
            || folder::default_out(self.scenario, kind.prefix(), &plan.scenario, self.seed);
        let out = self.out.clone().map_or_else(default, Ok)?;
        let folder = Folder::for_batch(&out)?;
        export::place::keep_foreign(&out, kind.files())?;
        Ok(folder)
    }

    /// Writes `sweep.json` with the points so far.
    fn write_sweep(&self, out: &Path, param: &str, points: &[Point]) -> Result<(), Failure> {
        let file = SweepFile {
            schema: "loadgen.sweep/1",
            scenario: self.scenario,
            target: self.target.name(),
            seed: self.seed,
            param,
            points,
        };
        export::write_file(out, "sweep.json", json::pretty("sweep.json", &file)?)
    }
}

fn point(value: &str, result: &RunResult) -> Point {
    let row = |a: &ArmResult| ArmRow {
        arm: a.name.clone(),
        throughput_slowdown_milli: a.fairness.throughput_slowdown_milli,
        p99_inflation_milli: a.fairness.p99_inflation_milli,
        stall_ns: a.fairness.stall_ns,
        delivered_ppm: a.fairness.delivered_ppm,
        overshoot_bytes: a.fairness.overshoot_bytes,
        jain_victims_ppm: a.fairness.jain_victims_ppm,
        victims_mmr_ppm: mmr(a),
    };
    Point {
        value: value.to_owned(),
        exit: result.verdict.exit,
        elapsed_ms: result.meta.elapsed_ms,
        containers: result.arms.first().map_or(0, |a| a.containers.len() as u64),
        arms: result.arms.iter().map(row).collect(),
    }
}

/// Minimum over maximum of the victims' contended goodput, in millionths; 0 without any. The few bytes of a probe do
/// not compare with bulk: victims without bulk count only if no victim has bulk.
fn mmr(arm: &ArmResult) -> u64 {
    use crate::scenario::plan::CONTENDED;
    let bulk = any_bulk(arm);
    let bytes = |p: &ContainerPhase| p.up_bytes + p.down_bytes + p.probe_bytes;
    let counted = victims(arm).filter(|c| c.wants_bulk() == bulk);
    let got: Vec<u64> = counted.map(|c| c.phases.get(CONTENDED).map_or(0, bytes)).collect();
    let least = got.iter().copied().min().unwrap_or(0);
    let most = got.iter().copied().max().unwrap_or(0);
    (u128::from(least) * 1_000_000).checked_div(u128::from(most)).unwrap_or(0) as u64
}

fn table(key: &str, points: &[Point]) -> String {
    let head = [key, "arm", "slowdown", "p99", "stall", "delivered", "overshoot", "exit"];
    let mut rows: Vec<Vec<String>> = vec![head.iter().map(|h| (*h).to_owned()).collect()];
    for p in points {
        for r in &p.arms {
            let times = |m: Option<u64>| m.map_or_else(|| "-".to_owned(), times);
            rows.push(vec![
                p.value.clone(),
                r.arm.clone(),
                times(r.throughput_slowdown_milli),
                times(r.p99_inflation_milli),
                time(r.stall_ns),
                r.delivered_ppm.map_or_else(|| "-".to_owned(), percent),
                bytes(r.overshoot_bytes),
                p.exit.to_string(),
            ]);
        }
    }
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut s = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(text, width)| format!("{text:>width$}")).collect();
        let _ = writeln!(s, "{}", cells.join("  "));
    }
    s
}

fn verdict_line(exit: Exit, out: &Path) -> String {
    format!("VERDICT: {} exit={} out={}", exit.word(), exit.code(), out.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_outweighs_a_doubt() {
        assert_eq!(Exit::worst([0, 5, 3, 0]).code(), 3);
        assert_eq!(Exit::worst([0, 5]).code(), 5);
        assert_eq!(Exit::worst([0]).code(), 0);
    }

    /// The bytes of a probe are no starved bulk.
    #[test]
    fn the_ratio_of_victims_is_of_those_with_bulk() {
        use crate::judge::analyse::tests::{arm, container, newcomer};
        let bulk = |name: &str, mb: u64| {
            container(name, crate::scenario::plan::Role::Victim, [mb; 3], [2; 3])
        };
        let of = |containers| mmr(&arm(ArmRole::Subject, containers));
        assert_eq!(of(vec![bulk("victim1", 100), bulk("victim2", 50)]), 500_000);
        assert_eq!(of(vec![newcomer(), bulk("victim1", 100), bulk("victim2", 50)]), 500_000);
        assert_eq!(of(vec![newcomer(), newcomer()]), 1_000_000);
    }
}
