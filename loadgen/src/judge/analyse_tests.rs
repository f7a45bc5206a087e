use std::collections::BTreeMap;

use super::*;
use crate::measure::result::{BudgetResult, DirectionSteps, Quantile, RecoverySteps, RunResult};
use crate::scenario::plan::{ArmRole, Isolation, RuleSet};

const MS: u64 = 1_000_000;

pub(crate) fn phases() -> Vec<Phase> {
    let phase = |name: &str, s: u64, e: u64| Phase {
        name: name.to_owned(),
        start_ns: s * MS,
        end_ns: e * MS,
    };
    vec![phase("solo", 0, 1000), phase("contended", 1000, 2000), phase("recovery", 2000, 3000)]
}

/// A victim with a probe and without bulk: no byte in either direction, and response times of 2 ms and less.
pub(crate) fn newcomer() -> ContainerResult {
    let mut c = container("newcomer", Role::Victim, [0; 3], [2; 3]);
    (c.wants_up, c.wants_down) = (false, false);
    for p in &mut c.phases {
        (p.up_stall_ns, p.down_stall_ns, p.probe_bytes) = (1000 * MS, 1000 * MS, 1_000_000);
    }
    c
}

fn probe(p99_ns: u64, at_least: bool, delivered_ppm: u64) -> ProbePhase {
    let q = Some(Quantile { ns: p99_ns, at_least, at_most_ns: None });
    ProbePhase {
        intended: 2000,
        completed: 2000,
        outstanding: 0,
        shed: 0,
        failed: 0,
        in_deadline: 2000,
        saturated: 0,
        delivered_ppm: Some(delivered_ppm),
        p50: q,
        p99: q,
        p999: q,
        max: q,
        ..ProbePhase::default()
    }
}

/// A container with goodput in megabytes each way and p99 in milliseconds, per phase.
pub(crate) fn container(name: &str, role: Role, mb: [u64; 3], p99_ms: [u64; 3]) -> ContainerResult {
    let at = |i: usize| ContainerPhase {
        up_bytes: mb[i] * 1_000_000,
        down_bytes: mb[i] * 1_000_000,
        up_stall_ns: MS,
        down_stall_ns: 2 * MS,
        probe_bytes: 0,
        moved_bytes: 2 * mb[i] * 1_000_000,
        probe: (role == Role::Victim).then(|| probe(p99_ms[i] * MS, false, 1_000_000)),
    };
    let windows: Vec<u32> = (0..300).map(|w: usize| (mb[w / 100] * 10_000) as u32).collect();
    let steps: Vec<Vec<u32>> = windows.chunks(100).map(<[u32]>::to_vec).collect();
    let steps = DirectionSteps::of(&steps);
    ContainerResult {
        name: name.to_owned(),
        role,
        recovery: Some(RecoverySteps { step_ns: 10 * MS, up: steps.clone(), down: steps }),
        budget: 0,
        phases: (0..3).map(at).collect(),
        up_window_bytes: windows.clone(),
        down_window_bytes: windows,
        up_total_bytes: mb.iter().sum::<u64>() * 1_000_000,
        down_total_bytes: mb.iter().sum::<u64>() * 1_000_000,
        peak_held_bytes: 1 << 20,
        hard_bytes: 1 << 22,
        counters: BTreeMap::new(),
        stack_counters: BTreeMap::new(),
        guest_counters: BTreeMap::new(),
        flows_total: 3,
        corrupt: 0,
        bits_per_second: 1_000_000_000,
        wants_up: true,
        wants_down: true,
        ..ContainerResult::default()
    }
}

pub(crate) fn arm(role: ArmRole, containers: Vec<ContainerResult>) -> ArmResult {
    ArmResult {
        name: if role == ArmRole::Control { "shared" } else { "container" }.to_owned(),
        role,
        isolation: Isolation::Shared,
        rules: RuleSet::Linux,
        budgets: vec![BudgetResult {
            name: "pool".to_owned(),
            low_bytes: Some(1),
            soft_bytes: Some(2),
            hard_bytes: Some(1 << 22),
            max_usage_bytes: 1 << 20,
            overshoot_bytes: 0,
            pressure_ns: 0,
            failcnt: 0,
            usage_bytes: vec![1 << 20; 300],
        }],
        containers,
        ..ArmResult::default()
    }
}

pub(crate) fn settle(arm: &mut ArmResult) {
    let phases = phases();
    derive(arm, &phases);
}

fn judge(arm: &ArmResult) -> Fairness {
    let mut arm = arm.clone();
    settle(&mut arm);
    arm.fairness
}

#[test]
fn the_worst_victim_counts() {
    let a = arm(
        ArmRole::Subject,
        vec![
            container("hog", Role::Hog, [0, 500, 0], [0; 3]),
            container("victim1", Role::Victim, [100, 100, 100], [2, 2, 2]),
            container("victim2", Role::Victim, [120, 60, 120], [2, 5, 2]),
        ],
    );
    let f = judge(&a);
    assert_eq!(f.throughput_slowdown_milli, Some(2000));
    assert_eq!(f.throughput_slowdown_of, "victim2 up");
    assert_eq!(f.p99_inflation_milli, Some(2500));
    assert_eq!(f.p99_inflation_of, "victim2");
    assert_eq!(f.stall_ns, 2 * MS);
    assert_eq!(f.solo_share_ppm, 800_000);
    // (100 + 60)^2 / (2 (100^2 + 60^2))
    assert_eq!(f.jain_victims_ppm, 941_176);
    assert_eq!(f.recovery_ns, Some(0));
}

/// A victim with only a probe has no goodput: no number, row or chart of goodput counts its 0.
#[test]
fn a_victim_without_bulk_has_no_goodput_to_count() {
    let bulk = |name, mb| container(name, Role::Victim, mb, [2; 3]);
    let mut a = arm(
        ArmRole::Subject,
        vec![newcomer(), bulk("victim1", [110; 3]), bulk("victim2", [110, 55, 110])],
    );
    settle(&mut a);
    // (110 + 55)^2 / (2 (110^2 + 55^2))
    assert_eq!(a.fairness.jain_victims_ppm, 900_000);
    assert_eq!(crate::output::report::pick::worst(&a).unwrap().name, "victim2");

    let result = RunResult { arms: vec![a], phases: phases(), ..RunResult::default() };
    let rows = crate::output::report::table::cells(&result).1;
    // The name of a row that repeats is printed once.
    let at = |name: &str| rows.iter().position(|r| r.name == name).unwrap() + 1;
    assert_eq!(rows[at("goodput up, worst victim")].cells, ["440 Mbit/s"]);
    assert_eq!(rows[at("goodput down, worst victim")].cells, ["440 Mbit/s"]);
    assert_eq!(rows[at("longest stall of a victim")].cells, ["2.00 ms"], "as the gate");
    let (chart, keys) = crate::output::report::charts::goodput(&result, &result.arms[0]);
    assert!(!chart.series.is_empty());
    assert!(keys[0].1.starts_with("worst victim (victim2)"), "{keys:?}");
    let heat = crate::output::report::charts::heat(&result, &result.arms[0]);
    assert_eq!(heat.rows.len(), 4, "both directions of two victims");
}

#[test]
fn no_delivery_is_the_worst_slowdown() {
    let a = arm(
        ArmRole::Control,
        vec![
            container("victim1", Role::Victim, [100, 0, 0], [2, 2, 2]),
            container("victim2", Role::Victim, [100, 1, 100], [2, 2, 2]),
        ],
    );
    let f = judge(&a);
    assert_eq!(f.throughput_slowdown_milli, None);
    assert_eq!(f.throughput_slowdown_of, "victim1 up");
    assert_eq!(f.recovery_ns, None);
}

#[test]
fn a_percentile_known_only_from_below_gives_no_ratio() {
    let mut v = container("victim1", Role::Victim, [100, 100, 100], [2, 2, 2]);
    v.phases[CONTENDED].probe = Some(probe(3 * MS, true, 900_000));
    let f = judge(&arm(ArmRole::Control, vec![v]));
    assert_eq!(f.p99_inflation_milli, None);
    assert_eq!(f.delivered_ppm, Some(900_000));
}

/// Recovery needs two consecutive good steps in every direction that the victim wants.
#[test]
fn recovery_is_judged_by_steps() {
    let recovered = |up: &[u32], down: &[u32]| {
        let mut v = container("victim1", Role::Victim, [100, 10, 100], [2, 2, 2]);
        let steps = v.recovery.as_mut().unwrap();
        steps.up.recovery_bytes = up.to_vec();
        steps.down.recovery_bytes = down.to_vec();
        judge(&arm(ArmRole::Subject, vec![v])).recovery_ns
    };
    let good = 1_000_000;
    assert_eq!(recovered(&[good; 4], &[good; 4]), Some(0));
    assert_eq!(recovered(&[0, good, good, good], &[good; 4]), Some(10 * MS));
    assert_eq!(recovered(&[good, 0, good, good], &[good; 4]), Some(20 * MS));
    assert_eq!(recovered(&[good; 4], &[0, good, 0, good]), None);
    assert_eq!(recovered(&[good], &[good]), None);
    // The least solo step is the reference: 80 % here.
    let mut v = container("victim1", Role::Victim, [100, 10, 100], [2, 2, 2]);
    let steps = v.recovery.as_mut().unwrap();
    steps.up.solo_least_bytes = Some(800_000);
    steps.up.recovery_bytes = vec![800_000; 2];
    assert_eq!(judge(&arm(ArmRole::Subject, vec![v.clone()])).recovery_ns, Some(0));
    v.recovery.as_mut().unwrap().up.recovery_bytes = vec![790_000; 2];
    assert_eq!(judge(&arm(ArmRole::Subject, vec![v])).recovery_ns, None);
}

#[test]
fn jain_of_equals_is_one_and_of_nothing_zero() {
    assert_eq!(jain([5000, 5000, 5000].into_iter()), 1_000_000);
    assert_eq!(jain([5000, 0].into_iter()), 500_000);
    assert_eq!(jain([0, 0].into_iter()), 0);
}

/// Where no limit is enforced, no rendering shows the hog's peak against a limit.
#[test]
fn an_arm_without_limits_shows_none() {
    let hog = container("hog", Role::Hog, [0, 500, 0], [0; 3]);
    let mut a = arm(ArmRole::Baseline, vec![hog, container("v", Role::Victim, [9; 3], [2; 3])]);
    settle(&mut a);
    assert_eq!(a.fairness.hog_hard_bytes, Some(1 << 22));
    assert_eq!(crate::output::report::table::hog_memory(&a), "1.00 MiB / 4.00 MiB");

    // As in a result of an earlier version, with the scenario's budget in the place of the limit.
    a.isolation = Isolation::Off;
    assert_eq!(crate::output::report::table::hog_memory(&a), "1.00 MiB / none");
    settle(&mut a);
    assert_eq!(a.fairness.hog_hard_bytes, None);

    let result = RunResult { arms: vec![a], phases: phases(), ..RunResult::default() };
    let text = crate::output::report::table::render(&result);
    assert!(text.contains("1.00 MiB / none") && text.contains("no limit"), "{text}");
    let summary = crate::output::export::summary::render(&result);
    assert!(summary.contains("| 1.00 MiB / none |"), "{summary}");
    assert!(summary.contains("hard limit) | - |"), "{summary}");
    let html = crate::output::report::html::render(&result).unwrap();
    assert!(html.contains("1.00\u{a0}MiB\u{a0}&#x2f; none"), "{html}");
}
