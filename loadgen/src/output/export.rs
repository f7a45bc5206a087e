//! The files that a run writes. Each is made from the result alone, so `loadgen report` can make them again.

pub(crate) mod bench;
pub(crate) mod cases;
pub(crate) mod containers;
pub(crate) mod github;
pub(crate) mod hgrm;
pub(crate) mod hlog;
pub mod json;
pub(crate) mod junit;
pub(crate) mod openmetrics;
pub(crate) mod place;
pub(crate) mod summary;
pub(crate) mod windows;

use clap::ValueEnum;

use crate::exit::Failure;
use crate::measure::result::RunResult;
use crate::output::report::html;

pub(crate) use place::{Staged, stage, write, write_file};

/// Formats of the output. A run always writes `result.json` and `verdict.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Format {
    /// result.json: everything, schema loadgen.result/1
    Result,
    /// verdict.json: the gates and the exit code
    Verdict,
    /// report.html: curves, one file, no network
    Html,
    /// summary.md: for the page of a CI job
    Md,
    /// junit.xml: one test case per gate
    Junit,
    /// gab.json and gab-bigger.json: github-action-benchmark
    Gab,
    /// bmf.json: Bencher
    Bmf,
    /// metrics.prom: OpenMetrics text
    Openmetrics,
    /// containers.csv and windows.csv
    Csv,
    /// windows.ndjson
    Ndjson,
    /// *.hgrm: percentile text, for plotFiles and hdr-plot
    Hgrm,
    /// latency.hlog: HdrHistogram interval log
    Hlog,
}

impl Format {
    /// Every format.
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// Names of the files of this format that do not depend on the scenario.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Result => &["result.json"],
            Self::Verdict => &["verdict.json"],
            Self::Html => &["report.html"],
            Self::Md => &["summary.md"],
            Self::Junit => &["junit.xml"],
            // The action compares smaller and bigger numbers in two files.
            Self::Gab => &["gab.json", "gab-bigger.json"],
            Self::Bmf => &["bmf.json"],
            Self::Openmetrics => &["metrics.prom"],
            Self::Csv => &["containers.csv", "windows.csv"],
            Self::Ndjson => &["windows.ndjson"],
            // Named after arm, group and phase.
            Self::Hgrm => &[],
            Self::Hlog => &["latency.hlog"],
        }
    }
}

/// Name and content of a file.
pub type OutputFile = (String, String);

/// Renders the files of one format.
pub fn render(result: &RunResult, format: Format) -> Result<Vec<OutputFile>, Failure> {
    let one = |name: &str, text: String| vec![(name.to_owned(), text)];
    Ok(match format {
        Format::Result => one("result.json", json::result(result)?),
        Format::Verdict => one("verdict.json", json::verdict(result)?),
        Format::Html => one("report.html", html::render(result)?),
        Format::Md => one("summary.md", summary::render(result)),
        Format::Junit => one("junit.xml", junit::render(result)),
        Format::Gab => bench::github_action_benchmark(result)?,
        Format::Bmf => one("bmf.json", bench::bencher(result)?),
        Format::Openmetrics => one("metrics.prom", openmetrics::render(result)?),
        Format::Csv => vec![
            ("containers.csv".to_owned(), containers::csv(result)),
            ("windows.csv".to_owned(), windows::csv(result)),
        ],
        Format::Ndjson => one("windows.ndjson", windows::ndjson(result)),
        Format::Hgrm => hgrm::files(result)?,
        Format::Hlog => one("latency.hlog", hlog::render(result)?),
    })
}

/// Makes a name safe as part of a file name or a tag: keeps letters, digits, `.`, `_` and `-`; others become `_`.
pub(crate) fn plain(name: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    name.chars().map(|c| if keep(c) { c } else { '_' }).collect()
}
