use super::lateness::tightest_gate_ns;
use super::*;
use crate::judge::analyse::tests::{arm, container, settle};
use crate::scenario::expr::Expr;
use crate::scenario::plan::Role::Victim;

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
    // The subject starved, in throughput or in latency.
    assert_eq!(exit([110, 10, 110], [110, 100, 110], [2, 2, 2]), 3);
    assert_eq!(exit([110, 10, 110], fine, [2, 3, 2]), 3);
    // Both: a load that starves no control proves nothing about the subject.
    assert_eq!(exit(fine, [110, 0, 110], [2, 2, 2]), 5);
    // The link was not used in the solo phase.
    assert_eq!(exit([50, 5, 50], [50, 50, 50], [2, 2, 2]), 5);
}

#[test]
fn a_control_starved_for_another_reason_proves_nothing() {
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
fn a_victim_that_received_nothing_passes_no_gate() {
    let mut c = container("v", Victim, [110, 0, 0], [2; 3]);
    for p in &mut c.phases[1..] {
        let probe = p.probe.as_mut().unwrap();
        (probe.completed, probe.outstanding, probe.delivered_ppm) = (0, 2000, Some(0));
    }
    let mut a = arm(ArmRole::Subject, vec![c]);
    settle(&mut a);
    let (gates, verdict) = judge(&[a.clone()], EXACT, &[]);
    assert_eq!(verdict.exit, 3);
    assert!(gates.iter().any(|g| g.name == "least delivered ratio" && g.is_fault()));
    // Without a probe there is no proof.
    a.containers[0].phases.iter_mut().for_each(|p| p.probe = None);
    settle(&mut a);
    let (gates, verdict) = judge(&[a], EXACT, &[]);
    assert_eq!(verdict.exit, 5);
    assert!(gates.iter().any(|g| g.name == "least delivered ratio" && g.in_doubt));
}

/// Sanity first: if a run proves nothing, a victim's times are in doubt, but corrupt bytes are a fault nevertheless.
#[test]
fn doubt_precedes_failure_but_not_of_counted_bytes() {
    type Change = fn(&mut ArmResult);
    let doubts: [(&str, Change); 4] = [
        ("probes a phase", |a| {
            a.containers[0].phases[1].probe.as_mut().unwrap().intended = 1999;
        }),
        ("recovery phase", |a| {
            let steps = a.containers[0].recovery.as_mut().unwrap();
            steps.up.recovery_bytes.truncate(3);
            steps.down.recovery_bytes.truncate(3);
        }),
        ("goodput alone, of the link", |a| a.containers[0].bits_per_second = 10_000_000_000),
        ("conservation", |a| a.containers[0].up_total_bytes += 1),
    ];
    for (name, change) in doubts {
        let starved = container("v", Victim, [110, 10, 110], [2, 900, 2]);
        let mut a = arm(ArmRole::Subject, vec![starved]);
        settle(&mut a);
        assert_eq!(judge(&[a.clone()], EXACT, &[]).1.exit, 3);
        change(&mut a);
        settle(&mut a);
        let (gates, verdict) = judge(&[a.clone()], EXACT, &[]);
        assert!(gates.iter().any(|g| g.name == name && !g.passed), "{name}: {gates:#?}");
        assert_eq!(verdict.exit, 5, "{name}");
        for wrong in [
            (|a| a.budgets[0].overshoot_bytes = 1) as Change,
            |a| a.leaked_bytes = 1,
            |a| a.containers[0].corrupt = 1,
        ] {
            let mut a = a.clone();
            wrong(&mut a);
            settle(&mut a);
            assert_eq!(judge(&[a], EXACT, &[]).1.exit, 3, "{name}");
        }
        // Conditions of the scenario: one on bytes is a fault, one on time is in doubt.
        for (text, exit) in [("leaked > 0", 3), ("worst(v.stall) <= 1ns", 5)] {
            let expr = Expr::parse(text, &["v"]).unwrap();
            let own = [GatePlan { arm: a.name.clone(), expr }];
            assert_eq!(judge(&[a.clone()], EXACT, &own).1.exit, exit, "{name}: {text}");
        }
    }
}

#[test]
fn a_late_generator_excuses_times_but_no_wrong_bytes() {
    let mut a = arm(ArmRole::Subject, vec![container("v", Victim, [110, 1, 110], [2; 3])]);
    a.generator_lag_p99_ns = LAG_NS + 1;
    settle(&mut a);
    assert_eq!(judge(&[a.clone()], Thresholds::wall(50_000_000), &[]).1.exit, 5);
    a.containers[0].corrupt = 1;
    settle(&mut a);
    assert_eq!(judge(&[a], Thresholds::wall(50_000_000), &[]).1.exit, 3);
}

#[test]
fn no_gates_is_not_a_pass() {
    assert_eq!(judge(&[], EXACT, &[]).1.exit, 5);
}

fn wall(p99_ms: u64, lag_ns: u64) -> [ArmResult; 1] {
    let mut a = arm(ArmRole::Subject, vec![container("v", Victim, [110; 3], [2, p99_ms, 2])]);
    a.generator_lag_p99_ns = lag_ns;
    settle(&mut a);
    [a]
}

fn of_three(runs: [(u64, u64); 3]) -> (Vec<GateResult>, u8) {
    let runs = runs.map(|(p99, lag)| wall(p99, lag));
    let runs: Vec<&[ArmResult]> = runs.iter().map(|r| &r[..]).collect();
    let (gates, verdict) = judge_all(&runs, Thresholds::wall(50_000_000), &[]);
    (gates, verdict.exit)
}

/// The generator's lag must be below the limit of the tightest gate of its metric: 500 us of difference, twice the solo
/// p99, or a condition of the scenario.
#[test]
fn the_bound_on_lateness_follows_the_tightest_gate() {
    let limits = Thresholds::wall(50_000_000);
    let bound = |a: &ArmResult, own: &[&GatePlan]| tightest_gate_ns(a, limits, own);
    let [mut a] = wall(2, 0);
    assert_eq!(bound(&a, &[]), 500_000);
    let solo = a.containers[0].phases[0].probe.as_mut().unwrap();
    solo.p99.as_mut().unwrap().ns = 300_000;
    settle(&mut a);
    assert_eq!(bound(&a, &[]), 300_000);
    let expr = Expr::parse("worst(v.response.p99) <= 200us", &["v"]).unwrap();
    assert_eq!(bound(&a, &[&GatePlan { arm: a.name.clone(), expr }]), 200_000);
    a.role = ArmRole::Control;
    assert_eq!(bound(&a, &[]), LAG_NS);
    // A real case: 2.8 ms of lag, and a p99 of 16 times the solo p99.
    assert_eq!(judge(&wall(32, 2_800_000), limits, &[]).1.exit, 5);
    assert_eq!(judge(&wall(32, 100_000), limits, &[]).1.exit, 3);
}

/// Lateness beside the hog excuses a failure and taints no pass; lateness alone may hide an inflation.
#[test]
fn a_late_generator_counts_where_it_can_mislead() {
    let limits = Thresholds::wall(50_000_000);
    let late = |p99_ms: u64, solo_us: u64, contended_us: u64| {
        let [mut a] = wall(p99_ms, solo_us.max(contended_us) * 1000);
        for (phase, us) in a.containers[0].phases.iter_mut().zip([solo_us, contended_us]) {
            phase.probe.as_mut().unwrap().lag.p99_ns = Some(us * 1000);
        }
        let (gates, verdict) = judge(&[a], limits, &[]);
        let of = |name: &str| gates.iter().find(|g| g.name == name).unwrap();
        let lag = of("generator's lag, p99");
        (verdict.exit, of("worst p99 inflation").mark(), lag.mark(), lag.limit.clone())
    };
    let (tight, held) = ("<= 500 us".to_owned(), "<= 5.00 ms, as response times hold".to_owned());
    assert_eq!(late(2, 100, 100), (0, "ok", "ok", tight.clone()));
    assert_eq!(late(2, 100, 1300), (0, "ok", "ok", held.clone()));
    assert_eq!(late(2, 1300, 1300), (0, "ok", "ok", held.clone()));
    assert_eq!(late(2, 1300, 800), (0, "ok", "ok", held));
    // Alone 501 us later than beside the hog: 500 us more might not be seen.
    assert_eq!(late(2, 1300, 799), (5, "ok", "FAIL", tight.clone()));
    // A failure is in doubt whenever the generator was late, and later than 5 ms proves nothing at all.
    assert_eq!(late(32, 1300, 1300), (5, "doubt", "FAIL", tight.clone()));
    assert_eq!(late(32, 100, 501), (5, "doubt", "FAIL", tight.clone()));
    assert_eq!(late(32, 100, 500), (3, "FAIL", "ok", tight.clone()));
    assert_eq!(late(2, 5001, 5001), (5, "ok", "FAIL", tight));
}

/// A lag of a millisecond is no excuse for a goodput of a tenth.
#[test]
fn lateness_excuses_response_times_and_nothing_else() {
    let slow = |lag_ns: u64| {
        let mut a = arm(ArmRole::Subject, vec![container("v", Victim, [110, 11, 110], [2, 32, 2])]);
        a.generator_lag_p99_ns = lag_ns;
        settle(&mut a);
        let (gates, verdict) = judge(&[a], Thresholds::wall(50_000_000), &[]);
        let mark = |name: &str| gates.iter().find(|g| g.name == name).unwrap().mark();
        (verdict.exit, mark("worst throughput slowdown"), mark("worst p99 inflation"))
    };
    assert_eq!(slow(0), (3, "FAIL", "FAIL"));
    assert_eq!(slow(2_800_000), (3, "FAIL", "doubt"));
    assert_eq!(slow(LAG_NS + 1), (5, "doubt", "doubt"));
}

/// A control starves by goodput: a generator that was late beside it neither explains that nor taints the subject.
#[test]
fn a_late_generator_of_a_control_counts_only_for_conditions_on_response_times() {
    let [mut control, subject] = [ArmRole::Control, ArmRole::Subject]
        .map(|role| arm(role, vec![container("v", Victim, [110, 1, 110], [2; 3])]));
    control.containers[0].counters.insert("PruneCalled".to_owned(), 7);
    control.generator_lag_p99_ns = 11_700_000;
    let mut arms = [control, subject];
    arms.iter_mut().for_each(settle);
    let limits = Thresholds::wall(50_000_000);
    assert_eq!(judge(&arms, limits, &[]).1.exit, 3);
    let expr = Expr::parse("worst(v.p99-contended) >= 1ns", &["v"]).unwrap();
    let own = [GatePlan { arm: arms[0].name.clone(), expr }];
    assert_eq!(judge(&arms, limits, &own).1.exit, 5);
}

/// Arms are measured one after another, so a control that starves less in one run of three taints no subject.
#[test]
fn the_median_control_counts() {
    let run = |control_mb: u64, subject_mb: u64| {
        let one = |role, mb| arm(role, vec![container("v", Victim, [110, mb, 110], [2; 3])]);
        let mut arms = [one(ArmRole::Control, control_mb), one(ArmRole::Subject, subject_mb)];
        arms[0].containers[0].counters.insert("PruneCalled".to_owned(), 7);
        arms.iter_mut().for_each(settle);
        arms
    };
    let exit = |runs: [(u64, u64); 3]| {
        let runs = runs.map(|(control, subject)| run(control, subject));
        let runs: Vec<&[ArmResult]> = runs.iter().map(|r| &r[..]).collect();
        judge_all(&runs, Thresholds::wall(50_000_000), &[]).1.exit
    };
    assert_eq!(exit([(1, 110), (60, 110), (1, 110)]), 0);
    assert_eq!(exit([(1, 11), (60, 11), (1, 110)]), 3);
    // Most controls did not starve: neither a pass nor a fault is proved.
    assert_eq!(exit([(1, 110), (60, 110), (60, 110)]), 5);
    assert_eq!(exit([(1, 11), (60, 11), (60, 11)]), 5);
}

#[test]
fn several_runs_are_judged_by_the_median_of_each_gate() {
    let (gates, exit) = of_three([(2, 0), (32, 0), (2, 0)]);
    assert_eq!(exit, 0);
    let p99 = gates.iter().find(|g| g.name == "worst p99 inflation").unwrap();
    assert!(p99.observed.starts_with("1.00x"), "{}", p99.observed);
    let each: Vec<_> = p99.runs.iter().map(|r| (r.passed, r.observed.as_str())).collect();
    assert_eq!(each.iter().map(|r| r.0).collect::<Vec<_>>(), [true, false, true]);
    assert!(each[1].1.starts_with("16.00x"), "{each:?}");
    // Two of three are no accident; the median run is shown.
    let (gates, exit) = of_three([(32, 0), (2, 0), (5, 0)]);
    assert_eq!(exit, 3);
    let p99 = gates.iter().find(|g| g.name == "worst p99 inflation").unwrap();
    assert!(p99.observed.starts_with("2.50x") && p99.is_fault(), "{p99:?}");
    assert_eq!(p99.mark(), "FAIL");
}

/// A run with a late generator does not count towards a fault, whatever the other runs show.
#[test]
fn a_late_generator_is_never_a_fault() {
    const LATE: u64 = 2_800_000;
    assert_eq!(of_three([(32, LATE), (32, LATE), (32, LATE)]).1, 5);
    assert_eq!(of_three([(32, LATE), (32, LATE), (2, 0)]).1, 5);
    // One late, one bad: neither two faults nor two passes.
    assert_eq!(of_three([(32, LATE), (32, 0), (2, 0)]).1, 5);
    assert_eq!(of_three([(32, LATE), (2, 0), (2, 0)]).1, 0);
    assert_eq!(of_three([(32, LATE), (32, 0), (32, 0)]).1, 3);
}

/// A counted value is not subject to chance: one run is enough.
#[test]
fn a_counted_gate_takes_the_worst_run() {
    let mut runs = [wall(2, 0), wall(2, 0), wall(2, 0)];
    runs[0][0].budgets[0].overshoot_bytes = 1;
    settle(&mut runs[0][0]);
    let runs: Vec<&[ArmResult]> = runs.iter().map(|r| &r[..]).collect();
    let (gates, verdict) = judge_all(&runs, Thresholds::wall(50_000_000), &[]);
    assert_eq!(verdict.exit, 3);
    let over = gates.iter().find(|g| g.name == "hard limit overshoot").unwrap();
    assert_eq!((over.observed.as_str(), over.runs.len()), ("1 B", 3));
}
