use super::*;

fn number(name: &str) -> &'static Number {
    NUMBERS.iter().find(|n| n.name == name).unwrap()
}

/// The tolerance of a tap run.
fn tap() -> Noise {
    Noise { tolerance: 20, thresholds: Thresholds::wall(50_000_000) }
}

/// A percentage of 0 allows nothing: on a wall clock small increases of such a number are noise.
#[test]
fn a_baseline_of_zero_has_a_tolerance_on_a_wall_clock() {
    let tap = tap();
    let worse =
        |name: &str, old: u64, new: u64, noise| number(name).is_worse(Some(new), Some(old), noise);
    for (name, old, new, expected) in [
        ("recovery", 0, 50_000_000, false),
        ("recovery", 0, 101_000_000, true),
        ("recovery", 1_000_000_000, 1_150_000_000, false),
        ("not delivered", 0, 10, false),
        ("not delivered", 0, 501, true),
        ("longest stall", 1_000_000, 20_000_000, false),
        ("longest stall", 1_000_000, 30_000_000, true),
        ("throughput slowdown", 1000, 1200, false),
        ("throughput slowdown", 1000, 1201, true),
        ("overshoot", 0, 1, true),
    ] {
        assert_eq!(worse(name, old, new, Some(&tap)), expected, "{name}: {old}, then {new}");
        // Exactly in virtual time.
        assert!(worse(name, old, new, None), "{name}");
    }
    assert!(number("recovery").is_worse(None, Some(1), Some(&tap)));
    assert!(!number("recovery").is_worse(Some(1), None, Some(&tap)));
    // The largest tolerance that the command line accepts.
    let largest = Noise { tolerance: u64::MAX, ..tap };
    assert!(!worse("throughput slowdown", u64::MAX, u64::MAX, Some(&largest)));
    assert!(worse("throughput slowdown", 0, u64::MAX, Some(&largest)));
}

/// The median of the runs, not the number of the run that the result shows; of a counted number the worst.
#[test]
fn repeated_runs_are_compared_by_their_medians() {
    let arm = |recovery_ns: Option<u64>, overshoot_bytes: u64| {
        let fairness = Fairness { recovery_ns, overshoot_bytes, ..Fairness::default() };
        let (name, role) = ("container".to_owned(), ArmRole::Subject);
        ArmResult { name, role, fairness, ..ArmResult::default() }
    };
    let run = |a: ArmResult| crate::measure::result::Repeat { arms: vec![a], ..Default::default() };
    let shown = arm(Some(900), 0);
    let runs = vec![run(shown.clone()), run(arm(Some(100), 7)), run(arm(Some(200), 0))];
    let mut result = RunResult { arms: vec![shown.clone()], runs, ..RunResult::default() };
    assert_eq!(number("recovery").of(&result, &shown), Some(200));
    assert_eq!(number("overshoot").of(&result, &shown), Some(7));
    result.runs[2] = run(arm(None, 0));
    assert_eq!(number("recovery").of(&result, &shown), Some(900), "None is the worst");
    result.runs.clear();
    assert_eq!(number("overshoot").of(&result, &shown), Some(0));
}
