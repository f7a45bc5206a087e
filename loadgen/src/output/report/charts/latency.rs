//! Response times: by percentile, and over time. With thousands of victims only the worst and the median are drawn; the
//! curves of all others are below the worst.

use super::{COLOURS, Key, bands, seconds, short, time_axis};
use crate::judge::metrics::victims;
use crate::measure::hdr::{self, Counts};
use crate::measure::result::{ArmResult, ProbePhase, RunResult};
use crate::output::report::svg::{AxisFormat, Chart, Scale, Series, log_steps};
use crate::scenario::plan::{CONTENDED, SOLO};

type Points = Vec<(f64, f64)>;

/// Latency against log10(1/(1-p)), where each additional nine has the same width. The line is dotted from the point on
/// where only a lower bound is known, because of requests that did not complete.
pub(crate) fn by_percentile(result: &RunResult) -> (Chart, Vec<Key>) {
    let (mut series, mut keys) = (Vec::new(), Vec::new());
    for (i, arm) in result.arms.iter().enumerate() {
        let colour = format!("a{}", i % COLOURS);
        let mut drawn = false;
        // Solo dashed, contended solid.
        for (phase, style) in [(SOLO, " dash"), (CONTENDED, "")] {
            let Some(name) = result.phases.get(phase).map(|p| p.name.as_str()) else { continue };
            let probes = sorted(arm, phase);
            let Some(worst) = probes.last() else { continue };
            let mut add = |probe: &ProbePhase, who: &str, style: &str| {
                let (known, below) = curve(probe);
                drawn |= known.len() + below.len() > 0;
                let name = format!("{}, {name}, {who}", arm.name);
                let from_below = format!("{name}: at least");
                for (name, class, points) in [
                    (name, format!("{colour}{style}"), known),
                    (from_below, format!("{colour} dots"), below),
                ] {
                    series.push(Series { name, class, points, dots: false });
                }
            };
            // The median, if it differs from the worst and the best.
            if phase == CONTENDED && probes.len() > 2 {
                add(probes[probes.len() / 2], "median victim", " faint");
            }
            add(worst, "worst victim", style);
        }
        if drawn {
            keys.push((colour, arm.name.clone()));
        }
    }
    let all = || series.iter().flat_map(|s| &s.points);
    let nines = all().map(|p| p.0).fold(1.0, f64::max);
    let (y, y_ticks) = time_scale(all().map(|p| p.1));
    let names = [
        (std::f64::consts::LOG10_2, "p50"),
        (1.0, "p90"),
        (2.0, "p99"),
        (3.0, "p99.9"),
        (4.0, "p99.99"),
        (5.0, "p99.999"),
    ];
    let ticks = names.into_iter().filter(|t| t.0 <= nines);
    let chart = Chart {
        title: "Response time by percentile, worst victim".to_owned(),
        x: (0.0, nines),
        y,
        y_scale: Scale::Log10,
        x_ticks: ticks.map(|(x, t)| (x, t.to_owned())).collect(),
        y_ticks,
        x_grid: true,
        series,
        show: (AxisFormat::Nines, AxisFormat::Nanos),
        ..Chart::default()
    };
    (chart, keys)
}

/// The p99 of each second: of the worst victim, and of all requests of all victims.
pub(crate) fn over_time(result: &RunResult, arm: &ArmResult) -> (Chart, Vec<Key>) {
    let (worst, all, middle) = seconds_of(arm);
    let mut series = Vec::new();
    for (class, name, points) in [
        ("down wide", "p99, worst victim", worst),
        ("up", "p99, all victims", all),
        ("up faint", "p50, all victims", middle),
    ] {
        if !points.is_empty() {
            let (name, class) = (name.to_owned(), class.to_owned());
            series.push(Series { name, class, dots: points.len() <= 40, points });
        }
    }
    let keys = series.iter().map(|s| (s.class.clone(), s.name.clone())).collect();
    // One scale for all arms; otherwise the starved arm appears as fast as the other.
    let every: Vec<f64> = result
        .arms
        .iter()
        .map(seconds_of)
        .flat_map(|(a, b, c)| a.into_iter().chain(b).chain(c).map(|p| p.1))
        .collect();
    let (y, y_ticks) = time_scale(every.into_iter());
    let (x, x_ticks) = time_axis(result);
    let chart = Chart {
        title: format!("Response time over time, {}", arm.name),
        x,
        y,
        y_scale: Scale::Log10,
        x_ticks,
        y_ticks,
        bands: bands(result, arm),
        series,
        show: (AxisFormat::Seconds, AxisFormat::Nanos),
        ..Chart::default()
    };
    (chart, keys)
}

/// By second: p99 of the worst victim, p99 of all requests, p50 of all requests.
fn seconds_of(arm: &ArmResult) -> (Points, Points, Points) {
    let mut sums: std::collections::BTreeMap<u64, (f64, u64, Counts)> =
        std::collections::BTreeMap::new();
    let probes = victims(arm).flat_map(|c| &c.phases).filter_map(|p| p.probe.as_ref());
    for i in probes.flat_map(|b| &b.intervals) {
        let Ok(Some(h)) = hdr::decode(&i.hdr) else { continue };
        let p99 = h.value_at_quantile(0.99) as f64;
        let middle = i.start_ns + i.length_ns / 2;
        let sum = sums.entry(i.start_ns).or_insert_with(|| (0.0, middle, like(&h)));
        sum.0 = sum.0.max(p99);
        // Cannot fail: all histograms have the same bounds.
        let _ = sum.2.add(&h);
    }
    let mut out = (Points::new(), Points::new(), Points::new());
    for (worst, at, all) in sums.into_values() {
        let at = seconds(at);
        out.0.push((at, worst));
        out.1.push((at, all.value_at_quantile(0.99) as f64));
        out.2.push((at, all.value_at_quantile(0.5) as f64));
    }
    out
}

/// An empty histogram with the same bounds.
fn like(h: &Counts) -> Counts {
    let mut empty = h.clone();
    empty.reset();
    empty
}

/// A logarithmic axis for times, with room below the lowest line, so that it does not touch the axis.
fn time_scale(values: impl Iterator<Item = f64> + Clone) -> ((f64, f64), Vec<(f64, String)>) {
    let low = values.clone().fold(f64::MAX, f64::min).clamp(1.0, 1e9);
    let high = values.fold(0.0, f64::max).max(low * 4.0);
    let y = (low / 2.0, high * 1.5);
    (y, log_steps(y.0, y.1).into_iter().map(|t| (t, round_time(t))).collect())
}

/// `20 ms`, where `units::time` gives `20.0 ms`.
fn round_time(ns: f64) -> String {
    let (scale, unit) = match ns {
        n if n >= 1e9 => (1e9, "s"),
        n if n >= 1e6 => (1e6, "ms"),
        n if n >= 1e3 => (1e3, "us"),
        _ => (1.0, "ns"),
    };
    format!("{} {unit}", short(ns / scale))
}

/// The probes of the victims in a phase, sorted by p99; the worst is the last.
fn sorted(arm: &ArmResult, phase: usize) -> Vec<&ProbePhase> {
    let mut probes: Vec<&ProbePhase> =
        victims(arm).filter_map(|c| c.phases.get(phase)?.probe.as_ref()).collect();
    probes.retain(|b| b.p99.is_some());
    // A p99 without an upper bound is worse than any bounded one.
    probes.sort_by_key(|b| b.p99.map(|q| (q.at_least, q.ns)));
    probes
}

/// Splits a spectrum into the known part and the part with only lower bounds, which starts where the other ends.
fn curve(probe: &ProbePhase) -> (Points, Points) {
    let total = probe.completed + probe.outstanding + probe.shed + probe.failed;
    let answered = probe.completed as f64 / total.max(1) as f64;
    // Position of the last sample; a row at 100 % would be infinitely far to the right.
    let end = (total.max(2) as f64).log10();
    // Position in nines.
    let place = |part: f64| (-(1.0 - part).max(1e-12).log10()).min(end);
    let rows: Vec<(f64, f64)> = if probe.spectrum.is_empty() {
        spectrum(probe)
    } else {
        probe.spectrum.iter().map(|r| (r.quantile_ppb as f64 / 1e9, r.ns as f64)).collect()
    };
    let point = |(part, ns): &(f64, f64)| (place(*part), *ns);
    // The known part ends where missing requests may change the value, and beyond the completed requests.
    let below = |i: usize| probe.spectrum.get(i).is_some_and(|r| r.at_least);
    let edge = (0..rows.len()).find(|i| rows[*i].0 > answered || below(*i)).unwrap_or(rows.len());
    let known: Points = rows[..edge].iter().map(point).collect();
    // Start at the last known point, so that the two lines join.
    let below = rows[edge.saturating_sub(1)..].iter().map(point);
    let below = if edge < rows.len() { below.collect() } else { Points::new() };
    (known, below)
}

/// The spectrum of a probe without one, as in runs with many containers: computed from its histograms.
fn spectrum(probe: &ProbePhase) -> Points {
    let mut all: Option<Counts> = None;
    for h in [&probe.hdr, &probe.hdr_missing].iter().filter_map(|text| hdr::decode(text).ok()?) {
        match &mut all {
            // Cannot fail: both have the same bounds.
            Some(sum) => drop(sum.add(&h)),
            None => all = Some(h),
        }
    }
    let rows = all.iter().flat_map(|h| {
        h.iter_quantiles(5).map(|v| (v.quantile_iterated_to(), v.value_iterated_to() as f64))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::analyse::tests::{arm, container, phases};
    use crate::measure::result::IntervalHdr;
    use crate::scenario::plan::{ArmRole, Role};

    fn histogram(ms: &[u64]) -> String {
        let mut h = Counts::new_with_bounds(1, 60_000_000_000, 2).unwrap();
        ms.iter().for_each(|v| h.record(v * 1_000_000).unwrap());
        hdr::encode(&h)
    }

    /// With many victims, none has its own spectrum: the worst and the median are drawn from their histograms.
    #[test]
    fn many_victims_have_an_envelope() {
        let victim = |i: u64| {
            let mut c = container(&format!("v{i}"), Role::Victim, [100; 3], [2, 2 + i, 2]);
            for (phase, p) in c.phases.iter_mut().enumerate() {
                let p = p.probe.as_mut().unwrap();
                (p.completed, p.spectrum) = (100, Vec::new());
                p.hdr = histogram(&[2 + i * u64::from(phase == CONTENDED); 100]);
                let (start_ns, length_ns) = (phase as u64 * 1_000_000_000, 1_000_000_000);
                p.intervals = vec![IntervalHdr { start_ns, length_ns, hdr: p.hdr.clone() }];
            }
            c
        };
        let arms = vec![arm(ArmRole::Subject, (1..=99).map(victim).collect())];
        let result = RunResult { phases: phases(), arms, ..RunResult::default() };
        let (chart, keys) = by_percentile(&result);
        let top = |who: &str| {
            let line = chart.series.iter().find(|s| s.name.ends_with(&format!("contended, {who}")));
            line.unwrap().points.iter().map(|p| p.1 / 1e6).fold(0.0, f64::max)
        };
        // The worst of 99 victims has 101 ms contended, the median 52 ms.
        assert!((100.0..103.0).contains(&top("worst victim")), "{}", top("worst victim"));
        assert!((51.0..54.0).contains(&top("median victim")), "{}", top("median victim"));
        assert_eq!(keys.len(), 1);
        let (chart, _) = over_time(&result, &result.arms[0]);
        let p99 = |name: &str| chart.series.iter().find(|s| s.name == name).unwrap().points[1];
        let (at, worst) = p99("p99, worst victim");
        assert!(at == 1.5 && (100e6..103e6).contains(&worst), "{at} {worst}");
        assert!(p99("p50, all victims").1 < 55e6);
    }
}
