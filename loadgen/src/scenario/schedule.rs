//! Computes when the containers of a group exist, and when their loads are active.

use super::file::{GroupTable, ScheduleAction, ScheduleStep};
use crate::scenario::plan::{CONTENDED, Phase, Role, Span};
use crate::units::{Unit, hint};

/// The phases that times refer to.
#[derive(Debug, Clone)]
pub(super) struct Times {
    pub(super) phases: Vec<Phase>,
}

/// One life of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Presence {
    pub(super) joins_ns: u64,
    pub(super) active: Vec<Span>,
    pub(super) leaves_ns: Option<u64>,
}

/// The path of a wrong value, and the error message.
pub(super) type Wrong = (Vec<String>, String);

/// The contended phase.
fn contended(times: &Times) -> &Phase {
    &times.phases[CONTENDED]
}

/// Maximum number of steps that a step with `every` expands to.
const STEPS_MAX: usize = 10_000;

/// Victims exist all the time, hogs are active in the contended phase; a schedule or churn changes that for hogs.
pub(super) fn presence(g: &GroupTable, times: &Times) -> Result<Vec<Presence>, Wrong> {
    let wrong = |key: &str, message: String| {
        Err((vec!["group".to_owned(), g.name.clone(), key.to_owned()], message))
    };
    if g.role == Role::Victim {
        if !g.schedule.is_empty() || g.churn.is_some() {
            let what = "a victim runs in all phases: schedule and churn are not allowed";
            return wrong("schedule", what.to_owned());
        }
        let always = Span { from_ns: 0, to_ns: u64::MAX };
        return Ok(vec![Presence { joins_ns: 0, active: vec![always], leaves_ns: None }]);
    }
    let phase = contended(times);
    if let Some(churn) = &g.churn {
        if !g.schedule.is_empty() {
            return wrong("churn", "schedule and churn cannot be combined".to_owned());
        }
        let (every, life) = (churn.every.0, churn.life.0);
        let fits = every >= 1_000_000 && life >= 1_000_000 && life < every;
        if !fits || phase.nanos() / every > STEPS_MAX as u64 {
            let what = "every and life must be at least 1ms, and life must be less than every";
            return wrong("churn", what.to_owned());
        }
        let lives = (0..).map(|i| phase.start_ns + i * every);
        // Only lives that end within the phase: none may run into the recovery.
        let lives = lives.take_while(|at| at + life <= phase.end_ns);
        let one = |from_ns| Presence {
            joins_ns: from_ns,
            active: vec![Span { from_ns, to_ns: from_ns + life }],
            leaves_ns: Some(from_ns + life),
        };
        let lives: Vec<Presence> = lives.map(one).collect();
        if lives.is_empty() {
            return wrong("churn", "no life fits into the contended phase".to_owned());
        }
        return Ok(lives);
    }
    if g.schedule.is_empty() {
        let span = Span { from_ns: phase.start_ns, to_ns: phase.end_ns };
        let leaves_ns = Some(phase.end_ns);
        return Ok(vec![Presence { joins_ns: 0, active: vec![span], leaves_ns }]);
    }
    steps(&g.schedule, times).map(|p| vec![p]).or_else(|e| wrong("schedule", e))
}

/// The presence of a container with a schedule.
fn steps(schedule: &[ScheduleStep], times: &Times) -> Result<Presence, String> {
    let phase = contended(times);
    let mut all: Vec<(u64, ScheduleAction)> = Vec::new();
    for step in schedule {
        let (first, end) = moment(&step.at, times)?;
        // A single step.
        let Some(every) = step.every else {
            all.push((first, step.action));
            continue;
        };
        if every.0 < 1_000_000 || step.action == ScheduleAction::Leave {
            return Err(format!("every {every}: must be at least 1ms, and a leave cannot repeat"));
        }
        let again = (0..STEPS_MAX as u64).map(|i| first + i * every.0);
        all.extend(again.take_while(|at| *at < end).map(|at| (at, step.action)));
    }
    // The sort is stable: steps at the same time keep the order of the file.
    all.sort_by_key(|(at, _)| *at);
    let show = |ns: u64| Unit::Nanos.show(ns);
    let (mut active, mut since, mut leaves_ns) = (Vec::new(), None, None);
    for (at, action) in all {
        if leaves_ns.is_some() {
            return Err(format!("step at {}: the container has already left", show(at)));
        }
        // A load outside the contended phase would distort the solo reference or the recovery.
        if at < phase.start_ns {
            let (at, solo) = (show(at), show(phase.start_ns));
            return Err(format!("step at {at}: the contended phase starts at {solo}"));
        }
        if at > phase.end_ns {
            let (at, end) = (show(at), show(phase.end_ns));
            return Err(format!("step at {at}: the contended phase ends at {end}"));
        }
        match (action, since) {
            (ScheduleAction::Start, None) => since = Some(at),
            (ScheduleAction::Start, Some(_)) => {
                return Err(format!("start at {}: the load is already active", show(at)));
            }
            (ScheduleAction::Stop, Some(from_ns)) if at > from_ns => {
                active.push(Span { from_ns, to_ns: at });
                since = None;
            }
            (ScheduleAction::Stop, _) => {
                return Err(format!("stop at {}: no start before it", show(at)));
            }
            // Leaving also ends an active load.
            (ScheduleAction::Leave, started) => {
                active.extend(started.map(|from_ns| Span { from_ns, to_ns: at }));
                since = None;
                leaves_ns = Some(at);
            }
        }
    }
    // Loads still active end with the phase; otherwise there is no recovery to measure.
    active.extend(since.map(|from_ns| Span { from_ns, to_ns: phase.end_ns }));
    if active.is_empty() {
        return Err("the schedule has no start".to_owned());
    }
    Ok(Presence { joins_ns: 0, active, leaves_ns: Some(leaves_ns.unwrap_or(phase.end_ns)) })
}

/// Parses a time; returns it with the end of its phase.
fn moment(at: &str, times: &Times) -> Result<(u64, u64), String> {
    let (word, plus) = at.split_once('+').unwrap_or((at, "0ns"));
    let end = |ns: u64| {
        let phase = times.phases.iter().find(|p| (p.start_ns..p.end_ns).contains(&ns));
        phase.map_or(ns, |p| p.end_ns)
    };
    if let Ok(ns) = Unit::Nanos.parse(at.trim()) {
        return Ok((ns, end(ns)));
    }
    let Some(phase) = times.phases.iter().find(|p| p.name == word.trim()) else {
        let hint = hint(word.trim(), times.phases.iter().map(|p| p.name.as_str()));
        return Err(format!("at '{at}': must be a phase or a time{hint}"));
    };
    let ns = phase.start_ns + Unit::Nanos.parse(plus.trim())?;
    Ok((ns, end(ns)))
}
