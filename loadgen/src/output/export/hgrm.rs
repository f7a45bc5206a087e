//! `.hgrm`: percentile text for plotFiles, hdr-plot and similar tools.
//!
//! Their parsers are strict: columns separated by spaces only; exactly four columns in every row but the last, which
//! has three (`Infinity` would end up on an axis); leading white space; and both footers, without which one of them
//! crashes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::place::HGRM_HEAD;
use super::{OutputFile, plain};
use crate::exit::Failure;
use crate::measure::PhaseLatency;
use crate::measure::result::{ArmResult, ProbePhase, RunResult};
use crate::output::report::pick::group_of;

/// With more containers than this, only the groups have files.
const CONTAINERS_MAX: usize = 32;

/// `<arm>-<group>-<phase>.hgrm`, and with few containers the same for each of them.
pub(crate) fn files(result: &RunResult) -> Result<Vec<OutputFile>, Failure> {
    let mut out = BTreeMap::new();
    for arm in &result.arms {
        for (i, phase) in result.phases.iter().enumerate() {
            let mut put = |who: &str, probe: &ProbePhase| {
                let name =
                    format!("{}-{}-{}.hgrm", plain(&arm.name), plain(who), plain(&phase.name));
                out.insert(name, render(probe));
            };
            for (group, probes) in groups(arm, i) {
                // Add the histograms: percentiles must not be averaged.
                let merged = PhaseLatency::merged(probes).map_err(|e| Failure::io(group, e))?;
                put(group, &merged);
            }
            // With few containers also one file each.
            if arm.containers.len() <= CONTAINERS_MAX {
                for c in &arm.containers {
                    if let Some(p) = c.phases.get(i).and_then(|p| p.probe.as_ref()) {
                        put(&c.name, p);
                    }
                }
            }
        }
    }
    Ok(out.into_iter().collect())
}

/// The probes of each group in a phase.
fn groups(arm: &ArmResult, phase: usize) -> BTreeMap<&str, Vec<&ProbePhase>> {
    let mut groups: BTreeMap<&str, Vec<&ProbePhase>> = BTreeMap::new();
    for c in &arm.containers {
        if let Some(p) = c.phases.get(phase).and_then(|p| p.probe.as_ref()) {
            groups.entry(group_of(c)).or_default().push(p);
        }
    }
    groups
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

pub(crate) fn render(probe: &ProbePhase) -> String {
    let mut s = String::new();
    let missing = probe.outstanding + probe.shed + probe.failed;
    let _ = writeln!(s, "{HGRM_HEAD}");
    let _ =
        writeln!(s, "# not completed: {missing}, counted with their waiting time (lower bound)");
    let _ = writeln!(s, "       Value     Percentile TotalCount 1/(1-Percentile)");
    let _ = writeln!(s);
    for (i, row) in probe.spectrum.iter().enumerate() {
        let p = row.quantile_ppb as f64 / 1e9;
        let _ = write!(s, "{:12.3} {p:14.12} {:10}", ms(row.ns), row.count);
        // The last row has no fourth column: 1/(1-p) is infinite at 100 %.
        if i + 1 < probe.spectrum.len() && row.quantile_ppb < 1_000_000_000 {
            let _ = write!(s, " {:14.2}", 1.0 / (1.0 - p));
        }
        let _ = writeln!(s);
    }
    // Both footers are required, even for an empty histogram.
    let (mean, dev) = (ms(probe.mean_ns), ms(probe.stddev_ns));
    let max = ms(probe.max.map_or(0, |q| q.ns));
    let count = probe.completed + missing;
    let _ = writeln!(s, "#[Mean    = {mean:12.3}, StdDeviation   = {dev:12.3}]");
    let _ = writeln!(s, "#[Max     = {max:12.3}, Total count    = {count:12}]");
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::ProbeRecorder;
    use crate::scenario::plan::Phase;

    fn sample() -> ProbePhase {
        let phase = Phase { name: "p".to_owned(), start_ns: 0, end_ns: 10_000_000_000 };
        let mut log = ProbeRecorder::new(&[phase], 1_000_000_000);
        for i in 0..10_000u64 {
            log.intend(i, i * 1_000_000);
            log.complete(i, i * 1_000_000 + 100_000 + i * 37);
        }
        log.close(0, 10_000_000_000);
        log.latencies()[0].summary()
    }

    /// plotFiles: trim, skip `#`, split on spaces, rows of exactly four fields count.
    #[test]
    fn plot_files_reads_every_row_but_the_last() {
        let text = render(&sample());
        assert!(!text.contains('\t') && !text.contains("inf") && !text.contains("Inf"));
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
            .map(|l| l.split(' ').filter(|f| !f.is_empty()).collect())
            .collect();
        let (header, rows) = rows.split_first().unwrap();
        assert_eq!(header.as_slice(), ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        let (last, rows) = rows.split_last().unwrap();
        assert_eq!(last.len(), 3);
        assert!(rows.len() > 20);
        let mut before = (0.0, 0.0);
        for row in rows {
            assert_eq!(row.len(), 4, "{row:?}");
            let at = (row[0].parse::<f64>().unwrap(), row[3].parse::<f64>().unwrap());
            // Neither the values nor the positions on the axis may fall.
            assert!(at.0 >= before.0 && at.1 >= before.1 && at.1 >= 1.0);
            before = at;
        }
    }

    /// hdr-plot: `\s+([0-9.]+)\s+([0-9.]+)\s+([0-9.]+)\s+([0-9.]+)` and the first match of each footer.
    #[test]
    fn hdr_plot_finds_rows_and_both_footers() {
        let text = render(&sample());
        let rows = text.lines().filter(|l| {
            let f: Vec<&str> = l.split_whitespace().collect();
            l.starts_with(' ') && f.len() == 4 && f.iter().all(|x| x.parse::<f64>().is_ok())
        });
        assert!(rows.count() > 20);
        // A pair of numbers in each footer, with these names.
        let footer = |start: &str, words: [&str; 2]| {
            let line = text.lines().find(|l| l.starts_with(start)).unwrap();
            let inner = line.trim_start_matches("#[").trim_end_matches(']');
            for (part, word) in inner.split(',').zip(words) {
                let (name, value) = part.split_once('=').unwrap();
                assert_eq!(name.trim(), word);
                assert!(value.trim().parse::<f64>().is_ok(), "{part}");
            }
        };
        footer("#[Mean", ["Mean", "StdDeviation"]);
        footer("#[Max", ["Max", "Total count"]);
    }
}
