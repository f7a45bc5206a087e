//! The goodput of each victim over time, relative to its solo goodput. The two directions are never added: a stalled
//! upload would hide behind a download that continues.

use super::{bands, seconds, short, time_axis};
use crate::measure::result::{ArmResult, BytesOf, ContainerResult, RunResult};
use crate::output::report::pick::worst_bulk_first;
use crate::output::report::svg::{Heat, HeatPart, HeatRow};
use crate::scenario::plan::{Phase, SOLO};

/// Maximum rows and columns.
const ROWS_MAX: usize = 40;
const COLUMNS_MAX: usize = 100;

/// One direction of one container.
struct DirectionWindows<'a> {
    of: &'a ContainerResult,
    name: &'static str,
    windows: &'a [u32],
    bytes: BytesOf,
}

fn ways(c: &ContainerResult) -> Vec<DirectionWindows<'_>> {
    let up =
        DirectionWindows { of: c, name: "up", windows: &c.up_window_bytes, bytes: |p| p.up_bytes };
    let down = DirectionWindows {
        of: c,
        name: "down",
        windows: &c.down_window_bytes,
        bytes: |p| p.down_bytes,
    };
    [(c.wants_up, up), (c.wants_down, down)]
        .into_iter()
        .filter_map(|(wanted, way)| wanted.then_some(way))
        .collect()
}

/// Draws a row per victim and direction if they fit. Otherwise victims are sorted by goodput and bundled, and each row
/// shows the worst of its bundle and both directions, so that one starving victim among a thousand stays visible.
pub(crate) fn heat(result: &RunResult, arm: &ArmResult) -> Heat {
    let order = worst_bulk_first(arm);
    let all: Vec<Vec<DirectionWindows<'_>>> = order.iter().map(|c| ways(c)).collect();
    let apart = all.iter().map(Vec::len).sum::<usize>() <= ROWS_MAX;
    let rows: Vec<HeatRow> = if apart {
        let each = all.iter().flatten().map(|way| {
            row(result, arm, format!("{} {}", way.of.name, way.name), std::slice::from_ref(way))
        });
        each.collect()
    } else {
        let bundle = order.len().div_ceil(ROWS_MAX).max(1);
        let some = order.chunks(bundle).map(|some| {
            let name = match (some.first(), some.last()) {
                (Some(a), Some(b)) if some.len() > 1 => {
                    format!("{} to {}: worst of {}, both directions", a.name, b.name, some.len())
                }
                (Some(a), _) => format!("{}, the worse direction", a.name),
                (None, _) => String::new(),
            };
            let ways: Vec<DirectionWindows<'_>> = some.iter().flat_map(|c| ways(c)).collect();
            row(result, arm, name, &ways)
        });
        some.collect()
    };
    let (x, x_ticks) = time_axis(result);
    let what = "Goodput of the victims over time, relative to solo";
    Heat {
        title: format!("{what}, {}", arm.name),
        row_names: row_names(&rows, apart),
        rows,
        x,
        x_ticks,
        bands: bands(result, arm),
    }
}

/// Names on the axis: the directions if they fit, otherwise "worst" and "best" at the ends. The tooltip shows the
/// victims of a row.
fn row_names(rows: &[HeatRow], apart: bool) -> Vec<(usize, String)> {
    const NAMED_MAX: usize = 10;
    // The direction is the last word of a row's name.
    let direction = |r: &HeatRow| r.name.rsplit(' ').next().unwrap_or_default().to_owned();
    if apart && rows.len() <= NAMED_MAX {
        return rows.iter().map(direction).enumerate().collect();
    }
    match rows.len() {
        0 | 1 => vec![(0, "worst".to_owned())],
        n => vec![(0, "worst".to_owned()), (n - 1, "best".to_owned())],
    }
}

fn row(
    result: &RunResult,
    arm: &ArmResult,
    name: String,
    ways: &[DirectionWindows<'_>],
) -> HeatRow {
    let parts: Vec<Vec<Option<f64>>> = ways.iter().map(|way| parts(result, arm, way)).collect();
    let columns = parts.iter().map(Vec::len).max().unwrap_or(0);
    let worst = |i: usize| {
        // The least of the bundle's directions that are measured here.
        let here = parts.iter().filter_map(|p| p.get(i).copied().flatten());
        here.reduce(f64::min)
    };
    let parts: Vec<Option<f64>> = (0..columns).map(worst).collect();
    let texts = result.phases.iter().filter_map(|p| phase_text(result, &parts, p)).collect();
    HeatRow { name, parts, texts }
}

/// The text of one phase of a row.
fn phase_text(result: &RunResult, parts: &[Option<f64>], phase: &Phase) -> Option<HeatPart> {
    let end = result.phases.last().map_or(1, |p| p.end_ns).max(1) as f64;
    let at = |ns: u64| ns as f64 / end * parts.len() as f64;
    // Columns that lie completely in the phase.
    let (from, to) = (at(phase.start_ns).ceil() as usize, at(phase.end_ns).floor() as usize);
    let here: Vec<f64> = parts.get(from..to)?.iter().copied().flatten().collect();
    let least = here.iter().copied().reduce(f64::min)?;
    let mean = here.iter().sum::<f64>() / here.len() as f64;
    let percent = |p: f64| format!("{} %", short((p * 100.0).round()));
    Some(HeatPart {
        from: seconds(phase.start_ns),
        to: seconds(phase.end_ns),
        text: format!("{}: mean {}, minimum {}", phase.name, percent(mean), percent(least)),
    })
}

/// The share of the solo goodput per column; `None`: not measured, or the container did not exist.
fn parts(result: &RunResult, arm: &ArmResult, way: &DirectionWindows<'_>) -> Vec<Option<f64>> {
    let end = result.phases.last().map_or(0, |p| p.end_ns);
    let windows = (end / result.window_ns.max(1)) as usize;
    let step = windows.div_ceil(COLUMNS_MAX).max(1);
    let solo = way.of.phases.get(SOLO).zip(result.phases.get(SOLO));
    let alone = solo.map_or(0.0, |(p, phase)| {
        (way.bytes)(p) as f64 / phase.until(arm.ended_ns).nanos().max(1) as f64
    });
    let column = |from: usize| {
        let here = from..(from + step).min(windows);
        // An interrupted run has fewer windows than planned.
        let counted = here.start.min(way.windows.len())..here.end.min(way.windows.len());
        let bytes: f64 = way.windows[counted].iter().map(|b| f64::from(*b)).sum();
        let ns = here.len() as f64 * result.window_ns as f64;
        let (at, until) = (from as u64 * result.window_ns, here.end as u64 * result.window_ns);
        // Outside its life a container has no share.
        let there = at >= way.of.joined_ns && way.of.left_ns.is_none_or(|left| at < left);
        let measured = arm.ended_ns.is_none_or(|ended| until <= ended);
        (alone > 0.0 && there && measured).then_some(bytes / ns.max(1.0) / alone)
    };
    (0..windows).step_by(step).map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::analyse::tests::{arm, container, phases};
    use crate::scenario::plan::{ArmRole, Role};

    fn result(containers: Vec<ContainerResult>) -> RunResult {
        RunResult {
            window_ns: 10_000_000,
            phases: phases(),
            arms: vec![arm(ArmRole::Subject, containers)],
            ..RunResult::default()
        }
    }

    /// The download continues, so the sum of both directions would only be halved.
    #[test]
    fn an_upload_that_stalls_is_seen() {
        let stalled = |name: &str| {
            let mut c = container(name, Role::Victim, [100, 100, 100], [2, 2, 2]);
            c.up_window_bytes[100..200].fill(0);
            c
        };
        let few = result(vec![stalled("v1")]);
        let map = heat(&few, &few.arms[0]);
        let names: Vec<&str> = map.rows.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["v1 up", "v1 down"]);
        assert_eq!(map.rows[0].parts[50], Some(0.0));
        assert_eq!(map.rows[1].parts[50], Some(1.0));
        assert!(
            map.rows[0].texts[1].text.contains("contended: mean 0 %"),
            "{:?}",
            map.rows[0].texts
        );
        // With many victims, a row shows the worse direction.
        let fine = |i: usize| container(&format!("v{i}"), Role::Victim, [100; 3], [2; 3]);
        let many = result((0..99).map(fine).chain([stalled("bad")]).collect());
        let map = heat(&many, &many.arms[0]);
        assert!(map.rows.len() <= ROWS_MAX);
        let starved = |r: &&HeatRow| r.parts[50] == Some(0.0);
        assert_eq!(map.rows.iter().filter(starved).count(), 1);
    }

    #[test]
    fn unmeasured_time_is_not_shown_as_zero() {
        let mut stopped = result(vec![container("v", Role::Victim, [100, 0, 0], [2, 2, 2])]);
        stopped.interrupted = true;
        // Half of the contended phase.
        stopped.arms[0].ended_ns = Some(1_500_000_000);
        let map = heat(&stopped, &stopped.arms[0]);
        assert_eq!(map.rows[0].parts[45], Some(0.0), "contended, and nothing came");
        assert!(map.rows[0].parts[50..].iter().all(Option::is_none));
        assert!(map.rows[0].texts.iter().all(|s| !s.text.starts_with("recovery")));
        assert!(map.bands.iter().any(|b| b.name == "not measured" && (b.from, b.to) == (1.5, 3.0)));
    }
}
