//! The judgement: gates over the fairness numbers, and the exit they come to.

mod expr;
pub mod words;

pub use expr::Expr;

use crate::analyse::{Pair, latency_pairs};
use crate::exit::Exit;
use crate::plan::{ArmRole, GatePlan};
use crate::result::{ArmResult, ContainerResult, Fairness, GateKind, GateResult, Verdict};
use crate::units::{after, bytes, percent, time, times};

/// What a victim may pay for its neighbour. Exact in virtual time, with room for a busy machine on the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    pub slowdown_milli: u64,
    pub p99_inflation_milli: u64,
    /// And the difference is at most this; `None` asks for the ratio alone.
    pub p99_delta_ns: Option<u64>,
    /// Beyond the longest stall alone.
    pub stall_ns: u64,
    pub delivered_ppm: u64,
    pub overshoot_bytes: u64,
    /// Back at 95 % of solo within this after the hog left.
    pub recovery_ns: u64,
}

impl Thresholds {
    pub const fn exact(rtt_ns: u64, window_ns: u64) -> Self {
        Self {
            slowdown_milli: 1050,
            p99_inflation_milli: 1200,
            p99_delta_ns: None,
            stall_ns: if 4 * rtt_ns > 1_000_000 { 4 * rtt_ns } else { 1_000_000 },
            delivered_ppm: 1_000_000,
            overshoot_bytes: 0,
            recovery_ns: 2 * window_ns,
        }
    }
    pub fn wall() -> Self {
        Self {
            slowdown_milli: 1150,
            p99_inflation_milli: 2000,
            p99_delta_ns: Some(500_000),
            stall_ns: 50_000_000,
            delivered_ppm: 999_000,
            overshoot_bytes: 0,
            recovery_ns: 200_000_000,
        }
    }
}

/// The control starved: at least this much slower, or this long without a byte.
const STARVED_MILLI: u64 = 5000;
const STARVED_NS: u64 = 1_000_000_000;
/// Memory is to blame if it was refused to a victim, or scarce for this long where a victim draws on it.
const PRESSED_NS: u64 = 100_000_000;
/// A generator that looks at its requests later than this measures itself.
const LAG_NS: u64 = 5_000_000;
/// A victim alone must use its link, or the slowdown compares two idle links.
const SOLO_SHARE_PPM: u64 = 800_000;

struct Bench<'a> {
    arm: &'a ArmResult,
    out: &'a mut Vec<GateResult>,
}

impl Bench<'_> {
    fn gate(&mut self, kind: GateKind, name: &str, passed: bool, observed: String, limit: String) {
        let (arm, name) = (self.arm.name.clone(), name.to_owned());
        self.out.push(GateResult { arm, kind, name, observed, limit, passed });
    }
}

/// `own`: the scenario's own conditions.
pub fn judge(
    arms: &[ArmResult],
    limits: Thresholds,
    own: &[GatePlan],
) -> (Vec<GateResult>, Verdict) {
    let mut gates = Vec::new();
    for arm in arms {
        let mut bench = Bench { arm, out: &mut gates };
        sanity(&mut bench);
        match arm.role {
            ArmRole::Control => control(&mut bench, own.iter().any(|g| g.arm == arm.name)),
            ArmRole::Subject => subject(&mut bench, limits),
            ArmRole::Baseline => {}
        }
        for gate in own.iter().filter(|g| g.arm == arm.name) {
            let (ok, seen) = gate.expr.judge(arm);
            let kind = match arm.role {
                ArmRole::Control => GateKind::Control,
                ArmRole::Subject => GateKind::Subject,
                ArmRole::Baseline => GateKind::Sanity,
            };
            bench.gate(kind, &gate.expr.to_string(), ok, seen, "holds".to_owned());
        }
    }
    let verdict = verdict(&gates);
    (gates, verdict)
}

/// Of a run that was stopped.
pub fn interrupted() -> Verdict {
    let exit = Exit::Interrupted;
    Verdict { word: exit.word().to_owned(), exit: exit.code(), gates: 0, failed: 0 }
}

/// What gates come to.
pub fn exit_of(gates: &[GateResult]) -> Exit {
    let failed = |kind| gates.iter().any(|g| g.kind == kind && !g.passed);
    // A failed subject is a fault whatever else is doubtful; doubt comes before success.
    if failed(GateKind::Subject) {
        Exit::GateFailed
    } else if failed(GateKind::Control) || failed(GateKind::Sanity) || gates.is_empty() {
        Exit::Inconclusive
    } else {
        Exit::Passed
    }
}

fn verdict(gates: &[GateResult]) -> Verdict {
    let exit = exit_of(gates);
    Verdict {
        word: exit.word().to_owned(),
        exit: exit.code(),
        gates: gates.len(),
        failed: gates.iter().filter(|g| !g.passed).count(),
    }
}

/// Does the run measure what it claims to?
fn sanity(bench: &mut Bench<'_>) {
    let alone = bench.arm.fairness.solo_share_ppm;
    let (ok, seen) = (alone >= SOLO_SHARE_PPM, percent(alone));
    bench.gate(GateKind::Sanity, "goodput alone, of the link", ok, seen, ">= 80 %".to_owned());
    let pairs = latency_pairs(bench.arm);
    let least = pairs.iter().map(|p| p.samples).min().unwrap_or(0);
    let ok = !pairs.is_empty() && pairs.iter().all(Pair::enough);
    let limit = ">= 2000 for a p99".to_owned();
    bench.gate(GateKind::Sanity, "probes a phase", ok, least.to_string(), limit);
    let lag = bench.arm.generator_lag_p99_ns;
    let ok = lag <= LAG_NS;
    bench.gate(GateKind::Sanity, "generator's lag, p99", ok, time(lag), "<= 5 ms".to_owned());
    let wrong = bench.arm.containers.iter().find_map(unbalanced);
    let ok = wrong.is_none();
    let seen = wrong.unwrap_or_else(|| "all add up".to_owned());
    bench.gate(GateKind::Sanity, "conservation", ok, seen, "nothing lost in counting".to_owned());
}

/// Sums that do not add up: a fault of loadgen.
fn unbalanced(c: &ContainerResult) -> Option<String> {
    for (name, windows, total) in [
        ("up", &c.up_window_bytes, c.up_total_bytes),
        ("down", &c.down_window_bytes, c.down_total_bytes),
    ] {
        let sum: u64 = windows.iter().map(|w| u64::from(*w)).sum();
        if sum != total {
            return Some(format!("{} {name}: windows {sum}, total {total}", c.name));
        }
    }
    for p in c.phases.iter().filter_map(|p| p.probe.as_ref()) {
        let sum = p.completed + p.outstanding + p.shed + p.failed;
        if sum != p.intended {
            return Some(format!("{} probes: intended {}, found {sum}", c.name, p.intended));
        }
    }
    None
}

/// `own`: the scenario says itself what it takes for starved.
fn control(bench: &mut Bench<'_>, own: bool) {
    let f = &bench.arm.fairness;
    if !own {
        let slow = f.throughput_slowdown_milli.is_none_or(|s| s >= STARVED_MILLI);
        let starved = slow || f.stall_ns >= STARVED_NS;
        let seen = format!("{}, stall {}", slowdown(f), time(f.stall_ns));
        let limit = ">= 5x or a stall >= 1 s".to_owned();
        bench.gate(GateKind::Control, "the control starves", starved, seen, limit);
    }
    let (refused, pressed) = (f.victim_refusals, f.victim_pressure_ns.unwrap_or(0));
    bench.gate(
        GateKind::Control,
        "and for lack of memory",
        refused > 0 || pressed >= PRESSED_NS,
        format!("{refused} refusals, {} of pressure", time(pressed)),
        "a refusal or 0.1 s".to_owned(),
    );
}

fn subject(bench: &mut Bench<'_>, limits: Thresholds) {
    const KIND: GateKind = GateKind::Subject;
    // A generator that was late measured itself: what it says about time is no verdict on the subject.
    let late = bench.arm.generator_lag_p99_ns > LAG_NS;
    let timed = if late { GateKind::Sanity } else { KIND };
    let f = bench.arm.fairness.clone();
    let most = format!("<= {}", times(limits.slowdown_milli));
    let ok = f.throughput_slowdown_milli.is_some_and(|s| s <= limits.slowdown_milli);
    bench.gate(timed, "worst throughput slowdown", ok, slowdown(&f), most);
    // With too few samples there is no p99 to judge; the sanity gate says so.
    if latency_pairs(bench.arm).iter().all(|p| p.samples == 0 || p.enough()) {
        let (ok, seen) = inflation(bench.arm, limits);
        let mut most = format!("<= {}", times(limits.p99_inflation_milli));
        if let Some(delta) = limits.p99_delta_ns {
            most.push_str(&format!(" and {} more", time(delta)));
        }
        bench.gate(timed, "worst p99 inflation", ok, seen, most);
    }
    let most = f.stall_solo_ns + limits.stall_ns;
    let (ok, seen) = (f.stall_ns <= most, time(f.stall_ns));
    bench.gate(timed, "longest stall", ok, seen, format!("<= {}", time(most)));
    let (delivered, least) = (f.delivered_ppm.unwrap_or(0), limits.delivered_ppm);
    let ok = delivered >= least;
    bench.gate(timed, "least delivered ratio", ok, percent(delivered), percent(least));
    let ok = f.recovery_ns.is_some_and(|ns| ns <= limits.recovery_ns);
    let seen = after(f.recovery_ns);
    bench.gate(timed, "recovery", ok, seen, format!("<= {}", time(limits.recovery_ns)));
    let over = f.overshoot_bytes;
    let ok = over <= limits.overshoot_bytes;
    bench.gate(KIND, "hard limit overshoot", ok, bytes(over), bytes(limits.overshoot_bytes));
    let leaked = bench.arm.leaked_bytes;
    bench.gate(KIND, "charged to nobody", leaked == 0, bytes(leaked), "0 B".to_owned());
    let ok = f.corrupt == 0 && f.broken == 0;
    let seen = format!("{} wrong, {} connections broken", f.corrupt, f.broken);
    bench.gate(KIND, "every byte arrives intact", ok, seen, "0 and 0".to_owned());
}

/// Per victim, since the ratio and the difference must be those of one and the same.
fn inflation(arm: &ArmResult, limits: Thresholds) -> (bool, String) {
    let f = &arm.fairness;
    let Some(worst) = f.p99_inflation_milli else {
        return (false, format!("not known ({})", f.p99_inflation_of));
    };
    let pairs = latency_pairs(arm);
    let delta = |p: &Pair| p.known().map_or(0, |(solo, contended)| contended.saturating_sub(solo));
    let within = |p: &Pair| {
        let most = limits.p99_delta_ns.unwrap_or(u64::MAX);
        p.known().is_some_and(|(s, c)| c * 1000 <= s * limits.p99_inflation_milli)
            && delta(p) <= most
    };
    let mut seen = times(worst);
    if limits.p99_delta_ns.is_some() {
        let most = pairs.iter().map(delta).max().unwrap_or(0);
        seen.push_str(&format!(", {} more", time(most)));
    }
    (pairs.iter().all(within), seen)
}

fn slowdown(f: &Fairness) -> String {
    f.throughput_slowdown_milli.map_or_else(|| "nothing delivered".to_owned(), times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::tests::{arm, container, settle};
    use crate::plan::Role::Victim;

    const EXACT: Thresholds = Thresholds::exact(100_000, 10_000_000);

    fn exit(control_mb: [u64; 3], subject_mb: [u64; 3], subject_p99: [u64; 3]) -> u8 {
        let mut arms = [
            arm(ArmRole::Control, vec![container("v", Victim, control_mb, [2, 900, 2])]),
            arm(ArmRole::Subject, vec![container("v", Victim, subject_mb, subject_p99)]),
        ];
        arms[0].containers[0].counters.insert("PruneCalled".to_owned(), 7);
        arms.iter_mut().for_each(settle);
        judge(&arms, EXACT, &[]).1.exit
    }

    #[test]
    fn exits_follow_the_gates() {
        let fine = [110, 110, 110];
        assert_eq!(exit([110, 10, 110], fine, [2, 2, 2]), 0);
        assert_eq!(exit([110, 0, 110], fine, [2, 2, 2]), 0);
        // The control did not starve.
        assert_eq!(exit(fine, fine, [2, 2, 2]), 5);
        // The subject did, in throughput or in latency; that comes first.
        assert_eq!(exit([110, 10, 110], [110, 100, 110], [2, 2, 2]), 3);
        assert_eq!(exit([110, 10, 110], fine, [2, 3, 2]), 3);
        assert_eq!(exit(fine, [110, 0, 110], [2, 2, 2]), 3);
        // Alone it never used its link.
        assert_eq!(exit([50, 5, 50], [50, 50, 50], [2, 2, 2]), 5);
    }

    #[test]
    fn starved_without_memory_to_blame_is_no_proof() {
        let mut a = arm(ArmRole::Control, vec![container("v", Victim, [110, 1, 110], [2, 2, 2])]);
        settle(&mut a);
        let (gates, verdict) = judge(&[a], EXACT, &[]);
        assert_eq!(verdict.exit, 5);
        assert!(gates.iter().any(|g| g.name == "and for lack of memory" && !g.passed));
    }

    #[test]
    fn windows_that_do_not_add_up_make_a_run_invalid() {
        let mut a = arm(ArmRole::Subject, vec![container("v", Victim, [110; 3], [2; 3])]);
        a.containers[0].up_window_bytes[3] += 1;
        settle(&mut a);
        let (gates, verdict) = judge(&[a], EXACT, &[]);
        assert_eq!(verdict.exit, 5);
        assert!(gates.iter().any(|g| g.name == "conservation" && !g.passed));
    }

    #[test]
    fn a_victim_that_got_nothing_passes_no_gate() {
        let mut c = container("v", Victim, [110, 0, 0], [2; 3]);
        for p in &mut c.phases {
            p.probe = None;
        }
        let mut a = arm(ArmRole::Subject, vec![c]);
        settle(&mut a);
        let (gates, verdict) = judge(&[a], EXACT, &[]);
        assert_eq!(verdict.exit, 3);
        assert!(gates.iter().any(|g| g.name == "least delivered ratio" && !g.passed));
    }

    #[test]
    fn a_late_generator_is_no_verdict_on_time_but_wrong_bytes_are_wrong() {
        let mut a = arm(ArmRole::Subject, vec![container("v", Victim, [110, 1, 110], [2; 3])]);
        a.generator_lag_p99_ns = LAG_NS + 1;
        settle(&mut a);
        assert_eq!(judge(&[a.clone()], Thresholds::wall(), &[]).1.exit, 5);
        a.containers[0].corrupt = 1;
        settle(&mut a);
        assert_eq!(judge(&[a], Thresholds::wall(), &[]).1.exit, 3);
    }

    #[test]
    fn no_gates_is_not_a_pass() {
        assert_eq!(judge(&[], EXACT, &[]).1.exit, 5);
    }
}
