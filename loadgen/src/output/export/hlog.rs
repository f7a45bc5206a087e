//! `latency.hlog`: the HdrHistogram interval log, as read by HistogramLogProcessor and similar tools.
//!
//! Readers accept only deflated V2 histograms, and by default only lines without a tag. So the untagged lines are the
//! sum of all victims of the last subject arm, and every container of every arm has its own lines with a tag. Tags
//! contain neither commas nor spaces. The library writes neither the version line nor the legend, which some readers
//! require.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::plain;
use crate::exit::Failure;
use crate::judge::metrics::victims;
use crate::measure::hdr::{self, Counts};
use crate::measure::result::{ArmResult, ContainerResult, RunResult};
use crate::scenario::plan::ArmRole;

/// Recorded values are nanoseconds; the Interval_Max column is in milliseconds.
const DIVISOR: f64 = 1e6;

/// Start and length in nanoseconds, then the tag: the sort order of the lines.
type LineKey = (u64, u64, Option<String>);

pub(crate) fn render(result: &RunResult) -> Result<String, Failure> {
    let mut lines: BTreeMap<LineKey, Counts> = BTreeMap::new();
    for arm in &result.arms {
        for c in &arm.containers {
            // `plain` replaces commas and spaces, which would end the tag.
            let tag = format!("{}.{}", plain(&arm.name), plain(&c.name));
            add(&mut lines, c, Some(&tag))?;
        }
    }
    if let Some(arm) = aggregate(result) {
        for c in victims(arm) {
            add(&mut lines, c, None)?;
        }
    }
    fill_gaps(&mut lines);
    write(result, &lines).map_err(|e| Failure::io("latency.hlog", e))
}

/// The arm of the lines without a tag.
fn aggregate(result: &RunResult) -> Option<&ArmResult> {
    // On the kernel target no arm is a subject: use the last one.
    let subject = result.arms.iter().rev().find(|a| a.role == ArmRole::Subject);
    subject.or_else(|| result.arms.last())
}

/// Adds the intervals of a container to the lines with this tag.
fn add(
    lines: &mut BTreeMap<LineKey, Counts>,
    c: &ContainerResult,
    tag: Option<&str>,
) -> Result<(), Failure> {
    let bad = |e: String| Failure::Io(format!("{}: {e}", c.name));
    let intervals = c.phases.iter().filter_map(|p| p.probe.as_ref()).flat_map(|p| &p.intervals);
    for i in intervals {
        let Some(samples) = hdr::decode(&i.hdr).map_err(bad)? else { continue };
        let at = (i.start_ns, i.length_ns, tag.map(str::to_owned));
        // Late responses of a phase are in the same second as the start of the next phase.
        match lines.entry(at) {
            Entry::Vacant(line) => drop(line.insert(samples)),
            Entry::Occupied(mut line) => {
                let added = line.get_mut().add(&samples);
                added.map_err(|e| bad(format!("histogram: {e}")))?;
            }
        }
    }
    Ok(())
}

/// Adds an empty line for each second without a sample between two seconds with samples: silence is data.
fn fill_gaps(lines: &mut BTreeMap<LineKey, Counts>) {
    let mut last: BTreeMap<Option<String>, (u64, u64)> = BTreeMap::new();
    let mut silent = Vec::new();
    for ((start, length, tag), samples) in lines.iter() {
        let seen = last.insert(tag.clone(), (*start, *length));
        let mut at = seen.map_or(*start, |(s, l)| s + l);
        while at + length <= *start && *length > 0 {
            let mut none = samples.clone();
            // Keep the bounds of the histogram and drop its counts.
            none.reset();
            silent.push(((at, *length, tag.clone()), none));
            at += length;
        }
    }
    lines.extend(silent);
}

/// The log as text, with version line and legend.
fn write(result: &RunResult, lines: &BTreeMap<LineKey, Counts>) -> Result<String, String> {
    let mut out = String::new();
    let _ = writeln!(out, "#[Logged with loadgen {}]", result.meta.loadgen_version);
    // Readers check the version; the library does not write it.
    let _ = writeln!(out, "#[Histogram log format version 1.3]");
    // Readers show the wall-clock time of the start.
    let started = UNIX_EPOCH + Duration::from_millis(result.meta.started_unix_ms);
    let (mut bytes, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut builder = IntervalLogWriterBuilder::new();
    builder.with_start_time(started).with_base_time(started).with_max_value_divisor(DIVISOR);
    let log = builder.begin_log_with(&mut bytes, &mut serializer);
    let mut log = log.map_err(|e| e.to_string())?;
    for ((start, length, tag), samples) in lines {
        let (start, length) = (Duration::from_nanos(*start), Duration::from_nanos(*length));
        let tag = tag.as_deref().and_then(Tag::new);
        log.write_histogram(samples, start, length, tag).map_err(|e| e.to_string())?;
    }
    let body = String::from_utf8(bytes).map_err(|e| e.to_string())?;
    // The legend goes between the header lines and the first interval.
    let at = body.lines().take_while(|l| l.starts_with('#')).map(|l| l.len() + 1).sum::<usize>();
    out.push_str(&body[..at]);
    let _ = writeln!(
        out,
        "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\""
    );
    out.push_str(&body[at..]);
    Ok(out)
}
