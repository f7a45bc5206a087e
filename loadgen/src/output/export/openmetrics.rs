//! `metrics.prom`: OpenMetrics text for a Prometheus text-file collector or a push gateway.
//!
//! Gauges for the metrics of each arm, a coarse histogram of the victims' responses per phase, and gauges per container
//! while there are few of them: one series for each of thousands would be expensive to store. No counters and no
//! timestamps: the numbers belong to one finished run, and the older Prometheus format accepts the same lines.

use std::fmt::Write as _;

use crate::exit::Failure;
use crate::judge::metrics::{METRICS, MetricUnit, victims};
use crate::measure::hdr;
use crate::measure::result::{ArmResult, RunResult};

/// With more containers than this, no series per container.
const CONTAINERS_MAX: usize = 200;
/// Upper bounds of the histogram's buckets, in seconds.
const BOUNDS: &[&str] = &[
    "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1",
    "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0", "60.0",
];

pub(crate) fn render(result: &RunResult) -> Result<String, Failure> {
    let mut s = String::new();
    let run =
        format!("scenario=\"{}\",target=\"{}\"", label(&result.scenario), label(&result.target));
    for m in METRICS {
        let (unit, scale) = match m.unit {
            MetricUnit::Nanos => ("seconds", 1e-9),
            MetricUnit::BitsPerSecond => ("bits_per_second", 1.0),
            MetricUnit::Bytes => ("bytes", 1.0),
            MetricUnit::Ratio | MetricUnit::Part => ("ratio", 1.0),
        };
        let name = format!("loadgen_{}_{unit}", m.key.replace('-', "_"));
        family(&mut s, &name, "gauge", unit, m.about);
        for arm in &result.arms {
            if let Some(r) = m.read(result, arm) {
                let of = format!("{run},arm=\"{}\"", label(&arm.name));
                let _ = writeln!(s, "{name}{{{of}}} {}", number(r.value * scale));
            }
        }
    }
    from_below(&mut s, result, &run);
    responses(&mut s, result, &run)?;
    containers(&mut s, result, &run);
    let name = "loadgen_gate_passed_ratio";
    family(&mut s, name, "gauge", "ratio", "1 for a gate that passed, 0 for one that did not");
    for g in &result.gates {
        let of = format!("{run},arm=\"{}\",gate=\"{}\"", label(&g.arm), label(&g.name));
        let _ = writeln!(s, "{name}{{{of}}} {}", u8::from(g.passed));
    }
    family(&mut s, "loadgen_exit_code", "gauge", "", "the exit code of the run");
    let _ = writeln!(s, "loadgen_exit_code{{{run}}} {}", result.verdict.exit);
    // OpenMetrics requires this last line; the older format reads it as a comment.
    s.push_str("# EOF\n");
    Ok(s)
}

/// Lists which of the values above are lower bounds, because a gauge cannot express that.
fn from_below(s: &mut String, result: &RunResult, run: &str) {
    let name = "loadgen_at_least";
    let help = "1 if only a lower bound of the metric is known; the metric's value is that bound";
    family(s, name, "gauge", "", help);
    for arm in &result.arms {
        for m in METRICS {
            if m.read(result, arm).is_some_and(|r| r.at_least) {
                let of = format!("{run},arm=\"{}\",metric=\"{}\"", label(&arm.name), m.key);
                let _ = writeln!(s, "{name}{{{of}}} 1");
            }
        }
    }
}

/// The metadata lines of a metric family.
fn family(s: &mut String, name: &str, kind: &str, unit: &str, help: &str) {
    let _ = writeln!(s, "# TYPE {name} {kind}");
    if !unit.is_empty() {
        let _ = writeln!(s, "# UNIT {name} {unit}");
    }
    let _ = writeln!(s, "# HELP {name} {}", label(help));
}

/// All requests by phase, as in every other file: a request without a response counts with its waiting time.
fn responses(s: &mut String, result: &RunResult, run: &str) -> Result<(), Failure> {
    let name = "loadgen_response_seconds";
    let help = "all victims' requests, from the intended start to the response, or the waiting time without one";
    family(s, name, "histogram", "seconds", help);
    for arm in &result.arms {
        for (i, phase) in result.phases.iter().enumerate() {
            let (arm_name, phase) = (label(&arm.name), label(&phase.name));
            let of = format!("{run},arm=\"{arm_name}\",phase=\"{phase}\"");
            let (counts, total, sum) = buckets(arm, i)?;
            for (bound, count) in BOUNDS.iter().zip(counts) {
                let _ = writeln!(s, "{name}_bucket{{{of},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(s, "{name}_bucket{{{of},le=\"+Inf\"}} {total}");
            let _ = writeln!(s, "{name}_count{{{of}}} {total}");
            let _ = writeln!(s, "{name}_sum{{{of}}} {}", number(sum));
        }
    }
    Ok(())
}

/// Returns cumulative counts per bucket, the total count, and the sum in seconds.
fn buckets(arm: &ArmResult, phase: usize) -> Result<(Vec<u64>, u64, f64), Failure> {
    let (mut counts, mut total, mut sum) = (vec![0; BOUNDS.len()], 0, 0.0);
    let limits: Vec<f64> = BOUNDS.iter().map(|b| b.parse().unwrap_or(f64::MAX) * 1e9).collect();
    for p in victims(arm).filter_map(|c| c.phases.get(phase)?.probe.as_ref()) {
        // Both histograms: without the missing requests, a starved victim would look fast.
        for text in [&p.hdr, &p.hdr_missing] {
            let decoded =
                hdr::decode(text).map_err(|e| Failure::Io(format!("{}: {e}", arm.name)))?;
            for v in decoded.iter().flat_map(|c| c.iter_recorded()) {
                let (ns, n) = (v.value_iterated_to() as f64, u64::from(v.count_at_value()));
                // Buckets are cumulative: count the value in its own bucket and in every larger one.
                let from = limits.partition_point(|limit| *limit < ns);
                counts[from..].iter_mut().for_each(|c| *c += n);
                total += n;
                sum += ns / 1e9 * n as f64;
            }
        }
    }
    Ok((counts, total, sum))
}

/// Goodput by container, for arms with few containers.
fn containers(s: &mut String, result: &RunResult, run: &str) {
    // One series per container and phase only where there are few.
    let few = |a: &&ArmResult| a.containers.len() <= CONTAINERS_MAX;
    let name = "loadgen_container_moved_bytes";
    family(s, name, "gauge", "bytes", "goodput of a container in a phase");
    for arm in result.arms.iter().filter(few) {
        for c in &arm.containers {
            for (phase, p) in result.phases.iter().zip(&c.phases) {
                for (way, bytes) in [("up", p.up_bytes), ("down", p.down_bytes)] {
                    let names = [&arm.name, &c.name, &phase.name].map(|n| label(n));
                    let [arm, container, phase] = names;
                    let _ = writeln!(
                        s,
                        "{name}{{{run},arm=\"{arm}\",container=\"{container}\",phase=\"{phase}\",way=\"{way}\"}} \
                         {bytes}",
                    );
                }
            }
        }
    }
}

/// Escapes a label value as both formats require.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The shortest digits that parse back to the same number.
fn number(v: f64) -> String {
    if v.is_finite() { format!("{v}") } else { "NaN".to_owned() }
}
