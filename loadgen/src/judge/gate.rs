//! Judges the fairness numbers by gates and derives the exit code.
//!
//! ```text
//!  arms of a run ──▶ judge_run: its gates ──▶ doubt: mark gates that the run cannot decide ┐
//!  arms of the next run ──▶ ...                                                            ├─▶ combine ──▶ exit
//! ```
//! Sanity and control gates come first. While one of them fails, times measured on a subject are in doubt (exit 5).
//! Values that are counted byte by byte do not depend on the clock: if one is wrong, the exit is 3 regardless.

mod combine;
mod evaluate;
mod lateness;
mod limits;

pub(crate) use combine::middle;
pub use limits::Thresholds;

use self::combine::combine;
use crate::exit::Exit;
use crate::judge::analyse::{Pair, latency_pairs};
use crate::measure::result::{ArmResult, ContainerResult, Fairness, GateKind, GateResult, Verdict};
use crate::scenario::plan::{ArmRole, GatePlan};
use crate::units::{after, bytes, percent, time, times};

/// The control counts as starved when it is at least this much slower, or without a byte for this long.
const STARVED_MILLI: u64 = 5000;
const STARVED_NS: u64 = 1_000_000_000;
/// Memory counts as the cause if a victim was refused memory, or its budget was under pressure for at least this time.
const PRESSED_NS: u64 = 100_000_000;
/// Upper limit of the generator's lag, whatever the gates: beyond it the generator measures its own lateness.
const LAG_NS: u64 = 5_000_000;
/// Least share of its link that a victim must use alone; otherwise the slowdown compares two idle links.
const SOLO_SHARE_PPM: u64 = 800_000;

/// Steps that must follow the last permitted start of a recovery, which needs two consecutive good steps.
const STEPS_AFTER: u64 = 2;

/// One gate of one run.
#[derive(Debug, Clone)]
struct JudgedGate {
    gate: GateResult,
    /// Observed value over the limit; larger is worse. The median of several runs is taken in this order.
    worse: f64,
    /// Counted, not timed: never in doubt, and of several runs the worst decides.
    exact: bool,
    /// Judges response times. A failed sanity gate of this kind puts only such gates in doubt.
    latency: bool,
}

/// The observation that a gate judges.
struct Seen {
    passed: bool,
    worse: f64,
    observed: String,
    limit: String,
}

impl Seen {
    /// Passes when `seen` is at most `limit`. `None` is beyond every limit.
    fn at_most(seen: Option<u64>, limit: u64, observed: String, shown: String) -> Self {
        let worse = seen.map_or(f64::INFINITY, |seen| seen as f64 / limit.max(1) as f64);
        let passed = seen.is_some_and(|seen| seen <= limit);
        Self { passed, worse, observed, limit: shown }
    }
    fn at_least(seen: u64, limit: u64, observed: String, shown: String) -> Self {
        let worse = limit as f64 / seen.max(1) as f64;
        Self { passed: seen >= limit, worse, observed, limit: shown }
    }
    fn holds(passed: bool, observed: String, limit: &str) -> Self {
        let worse = f64::from(u8::from(!passed));
        Self { passed, worse, observed, limit: limit.to_owned() }
    }
}

/// Collects the gates of one arm.
struct GateSheet<'a> {
    arm: &'a ArmResult,
    out: &'a mut Vec<JudgedGate>,
}

impl GateSheet<'_> {
    fn gate(&mut self, kind: GateKind, name: &str, seen: Seen) {
        self.add(kind, name, seen, false);
    }
    fn exact(&mut self, kind: GateKind, name: &str, seen: Seen) {
        self.add(kind, name, seen, true);
    }
    fn add(&mut self, kind: GateKind, name: &str, seen: Seen, exact: bool) {
        let Seen { passed, worse, observed, limit } = seen;
        let (arm, name) = (self.arm.name.clone(), name.to_owned());
        let gate = GateResult { arm, kind, name, observed, limit, passed, ..GateResult::default() };
        self.out.push(JudgedGate { gate, worse, exact, latency: false });
    }
    /// Marks the gate that was added last as one of response times.
    fn of_latency(&mut self) {
        if let Some(last) = self.out.last_mut() {
            last.latency = true;
        }
    }
}

/// Judges one run. `own`: conditions from the scenario file.
pub(crate) fn judge(
    arms: &[ArmResult],
    limits: Thresholds,
    own: &[GatePlan],
) -> (Vec<GateResult>, Verdict) {
    judge_all(&[arms], limits, own)
}

/// Judges several runs of one plan together, by the median of each gate.
pub(crate) fn judge_all(
    runs: &[&[ArmResult]],
    limits: Thresholds,
    own: &[GatePlan],
) -> (Vec<GateResult>, Verdict) {
    let gates = combine(runs.iter().map(|arms| judge_run(arms, limits, own)).collect());
    let verdict = verdict(&gates);
    (gates, verdict)
}

/// All gates of one run, without the doubts that one casts on another.
fn judge_run(arms: &[ArmResult], limits: Thresholds, own: &[GatePlan]) -> Vec<JudgedGate> {
    let mut gates = Vec::new();
    for arm in arms {
        let own: Vec<&GatePlan> = own.iter().filter(|g| g.arm == arm.name).collect();
        let from = gates.len();
        let mut sheet = GateSheet { arm, out: &mut gates };
        sanity(&mut sheet, limits);
        let after_sanity = sheet.out.len();
        // A baseline is judged only by sanity and the conditions of its own.
        match arm.role {
            ArmRole::Control => control(&mut sheet, !own.is_empty()),
            ArmRole::Subject => subject(&mut sheet, limits),
            ArmRole::Baseline => {}
        }
        for gate in &own {
            let (ok, seen) = evaluate::judge(&gate.expr, arm);
            let kind = match arm.role {
                ArmRole::Control => GateKind::Control,
                ArmRole::Subject => GateKind::Subject,
                ArmRole::Baseline => GateKind::Sanity,
            };
            // An undecided condition does not pass.
            let seen = Seen::holds(ok == Some(true), seen, "must hold");
            sheet.add(kind, &gate.expr.to_string(), seen, gate.expr.is_exact());
            if let Some(added) = sheet.out.last_mut() {
                added.latency = gate.expr.is_latency();
                // A value that was not measured is not the subject's fault.
                added.gate.in_doubt = ok.is_none();
            }
        }
        // Last: whether lateness matters depends on which gates of response times hold.
        lateness::judge(&mut sheet, limits, &own, from, after_sanity);
    }
    gates
}

/// Marks the timed gates of subjects as doubtful if a gate of one of these kinds failed, in whichever arm.
fn doubt(gates: &mut [JudgedGate], kinds: &[GateKind]) {
    let failed = |j: &&JudgedGate| kinds.contains(&j.gate.kind) && !j.gate.passed;
    let of_latency = gates.iter().any(|j| failed(&j));
    let of_all = gates.iter().filter(failed).any(|j| !j.latency);
    for j in gates.iter_mut().filter(|j| j.gate.kind == GateKind::Subject && !j.exact) {
        j.gate.in_doubt |= of_all || of_latency && j.latency;
    }
}

/// The verdict of a run that was stopped.
pub(crate) fn interrupted() -> Verdict {
    let exit = Exit::Interrupted;
    Verdict { word: exit.word().to_owned(), exit: exit.code(), gates: 0, failed: 0 }
}

/// The exit code of a set of gates: a fault first, then a doubt.
pub(crate) fn exit_of(gates: &[GateResult]) -> Exit {
    // A fault outweighs doubts: `is_fault` is false for a gate in doubt.
    if gates.iter().any(GateResult::is_fault) {
        Exit::GateFailed
    } else if gates.is_empty() || gates.iter().any(|g| !g.passed) {
        Exit::Inconclusive
    } else {
        Exit::Passed
    }
}

/// Exit code and counts of a set of gates.
fn verdict(gates: &[GateResult]) -> Verdict {
    let exit = exit_of(gates);
    Verdict {
        word: exit.word().to_owned(),
        exit: exit.code(),
        gates: gates.len(),
        failed: gates.iter().filter(|g| !g.passed).count(),
    }
}

/// Checks that the run measures what it claims to measure.
fn sanity(sheet: &mut GateSheet<'_>, limits: Thresholds) {
    const KIND: GateKind = GateKind::Sanity;
    let alone = sheet.arm.fairness.solo_share_ppm;
    let seen = Seen::at_least(alone, SOLO_SHARE_PPM, percent(alone), ">= 80 %".to_owned());
    sheet.gate(KIND, "goodput alone, of the link", seen);
    let pairs = latency_pairs(sheet.arm);
    // An arm without a probe has 0 samples and fails.
    let least = pairs.iter().map(|p| p.samples).min().unwrap_or(0);
    let limit = ">= 2000 for a p99".to_owned();
    let seen = Seen::at_least(least, Pair::SAMPLES_MIN, least.to_string(), limit);
    sheet.gate(KIND, "probes a phase", seen);
    // Only a subject has a limit of its recovery.
    if sheet.arm.role == ArmRole::Subject {
        recovery_phase(sheet, limits);
    }
    let wrong = sheet.arm.containers.iter().find_map(unbalanced);
    let ok = wrong.is_none();
    let seen = wrong.unwrap_or_else(|| "all add up".to_owned());
    sheet.exact(KIND, "conservation", Seen::holds(ok, seen, "nothing lost in counting"));
}

/// The recovery phase must be long enough to contain the slowest recovery that passes.
fn recovery_phase(sheet: &mut GateSheet<'_>, limits: Thresholds) {
    let victims = crate::judge::metrics::victims(sheet.arm).filter_map(|c| c.recovery.as_ref());
    let steps = |r: &crate::measure::result::RecoverySteps| {
        r.up.recovery_bytes.len().max(r.down.recovery_bytes.len())
    };
    let spans = victims.map(|r| (steps(r) as u64 * r.step_ns, r.step_ns));
    // Results of earlier versions have no recovery steps.
    let Some((seen, step_ns)) = spans.min() else { return };
    let least = limits.recovery_ns + STEPS_AFTER * step_ns;
    let seen = Seen::at_least(seen, least, time(seen), format!(">= {}", time(least)));
    sheet.gate(GateKind::Sanity, "recovery phase", seen);
}

/// Checks that totals equal the sum of their parts; a difference is a fault of loadgen.
fn unbalanced(c: &ContainerResult) -> Option<String> {
    // Every byte is in a window.
    for (name, windows, total) in [
        ("up", &c.up_window_bytes, c.up_total_bytes),
        ("down", &c.down_window_bytes, c.down_total_bytes),
    ] {
        let sum: u64 = windows.iter().map(|w| u64::from(*w)).sum();
        if sum != total {
            return Some(format!("{} {name}: windows {sum}, total {total}", c.name));
        }
    }
    // Every request has exactly one outcome.
    for p in c.phases.iter().filter_map(|p| p.probe.as_ref()) {
        let sum = p.completed + p.outstanding + p.shed + p.failed;
        if sum != p.intended {
            return Some(format!("{} probes: intended {}, found {sum}", c.name, p.intended));
        }
    }
    None
}

/// `own`: the scenario file defines itself when the control counts as starved.
fn control(sheet: &mut GateSheet<'_>, own: bool) {
    let f = &sheet.arm.fairness;
    if !own {
        let slow = f.throughput_slowdown_milli.map_or(f64::INFINITY, |s| s as f64);
        // Either symptom is enough: 1 or more means starved.
        let reached = (slow / STARVED_MILLI as f64).max(f.stall_ns as f64 / STARVED_NS as f64);
        let observed = format!("{}, stall {}", slowdown(f), time(f.stall_ns));
        let limit = ">= 5x or a stall >= 1 s".to_owned();
        let seen = Seen { passed: reached >= 1.0, worse: reached.recip(), observed, limit };
        sheet.gate(GateKind::Control, "the control starves", seen);
    }
    // A control that is slow for another reason, such as CPU, does not show what the run claims to show.
    let (refused, pressed) = (f.victim_refusals, f.victim_pressure_ns.unwrap_or(0));
    let passed = refused > 0 || pressed >= PRESSED_NS;
    let seen = Seen {
        passed,
        worse: if refused > 0 { 0.0 } else { PRESSED_NS as f64 / pressed.max(1) as f64 },
        observed: format!("{refused} refusals, {} of pressure", time(pressed)),
        limit: "a refusal or 0.1 s".to_owned(),
    };
    sheet.gate(GateKind::Control, "and for lack of memory", seen);
}

/// The limits that a subject must keep.
fn subject(sheet: &mut GateSheet<'_>, limits: Thresholds) {
    const KIND: GateKind = GateKind::Subject;
    let f = sheet.arm.fairness.clone();
    let most = limits.slowdown_milli;
    let seen = Seen::at_most(
        f.throughput_slowdown_milli,
        most,
        slowdown(&f),
        format!("<= {}", times(most)),
    );
    sheet.gate(KIND, "worst throughput slowdown", seen);
    // With too few samples there is no p99 to judge; the sanity gate reports that.
    if latency_pairs(sheet.arm).iter().all(|p| p.samples == 0 || p.enough()) {
        let seen = inflation(sheet.arm, limits);
        sheet.gate(KIND, "worst p99 inflation", seen);
        sheet.of_latency();
    }
    // Relative to solo: on a slow link gaps occur without a neighbour too.
    let most = f.stall_solo_ns + limits.stall_ns;
    let shown = format!("<= {}", time(most));
    sheet.gate(
        KIND,
        "longest stall",
        Seen::at_most(Some(f.stall_ns), most, time(f.stall_ns), shown),
    );
    // Without a due request nothing counts as delivered.
    let (delivered, least) = (f.delivered_ppm.unwrap_or(0), limits.delivered_ppm);
    let seen = Seen::at_least(delivered, least, percent(delivered), percent(least));
    sheet.gate(KIND, "least delivered ratio", seen);
    let most = limits.recovery_ns;
    let seen =
        Seen::at_most(f.recovery_ns, most, after(f.recovery_ns), format!("<= {}", time(most)));
    sheet.gate(KIND, "recovery", seen);
    let (over, most) = (f.overshoot_bytes, limits.overshoot_bytes);
    sheet.exact(
        KIND,
        "hard limit overshoot",
        Seen::at_most(Some(over), most, bytes(over), bytes(most)),
    );
    let leaked = sheet.arm.leaked_bytes;
    let seen = Seen::at_most(Some(leaked), 0, bytes(leaked), "0 B".to_owned());
    sheet.exact(KIND, "charged to nobody", seen);
    let ok = f.corrupt == 0 && f.broken == 0;
    let seen = format!("{} wrong, {} connections broken", f.corrupt, f.broken);
    sheet.exact(KIND, "every byte arrives intact", Seen::holds(ok, seen, "0 and 0"));
}

/// Judges ratio and difference together per victim: both must be those of the same victim.
fn inflation(arm: &ArmResult, limits: Thresholds) -> Seen {
    let mut limit = format!("<= {}", times(limits.p99_inflation_milli));
    if let Some(delta) = limits.p99_delta_ns {
        limit.push_str(&format!(" and {} more", time(delta)));
    }
    let f = &arm.fairness;
    // No upper bound of the contended p99 is known.
    let Some(worst) = f.p99_inflation_milli else {
        let observed = format!("not known ({})", f.p99_inflation_of);
        return Seen { passed: false, worse: f64::INFINITY, observed, limit };
    };
    let pairs = latency_pairs(arm);
    let delta = |p: &Pair| p.known().map_or(0, |(solo, contended)| contended.saturating_sub(solo));
    let worse = |p: &Pair| {
        let Some((solo, contended)) = p.known() else { return f64::INFINITY };
        let ratio = contended as f64 * 1000.0 / (solo * limits.p99_inflation_milli).max(1) as f64;
        let more = limits.p99_delta_ns.map_or(0.0, |most| delta(p) as f64 / most.max(1) as f64);
        ratio.max(more)
    };
    let worse = pairs.iter().map(worse).fold(0.0, f64::max);
    let mut observed = times(worst);
    if limits.p99_delta_ns.is_some() {
        let most = pairs.iter().map(delta).max().unwrap_or(0);
        observed.push_str(&format!(", {} more", time(most)));
    }
    Seen { passed: worse <= 1.0, worse, observed, limit }
}

fn slowdown(f: &Fairness) -> String {
    f.throughput_slowdown_milli.map_or_else(|| "nothing delivered".to_owned(), times)
}

#[cfg(test)]
#[path = "gate/tests.rs"]
mod tests;
