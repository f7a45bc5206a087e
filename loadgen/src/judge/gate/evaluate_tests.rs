use super::*;
use crate::judge::analyse::tests::{arm, container, settle};
use crate::scenario::plan::{ArmRole, Role};

fn holds(text: &str) -> bool {
    let mut c = container("victim1", Role::Victim, [110, 100, 110], [2, 3, 2]);
    c.group = "victim".to_owned();
    let mut a = arm(ArmRole::Subject, vec![c]);
    settle(&mut a);
    judge(&Expr::parse(text, &["victim"]).unwrap(), &a).0 == Some(true)
}

#[test]
fn conditions_hold_or_not() {
    for text in [
        "worst(victim.slowdown.throughput) <= 1.1",
        "worst(victim.slowdown.p99) == 1.5x",
        "min(victim.delivered) == 100%",
        "worst(victim.response.p99) <= 3ms && overshoot == 0",
        "worst(victim.stall) > 1s || (leaked < 1 && max(victim.held) >= 1MiB)",
        "max(victim.held) / min(victim.held) == 1",
    ] {
        assert!(holds(text), "{text}");
        assert!(!holds(&format!("{text} && leaked > 0")), "{text}");
    }
    assert!(!holds("worst(victim.slowdown.throughput) <= 1.05"));
}

#[test]
fn a_condition_on_an_empty_group_does_not_pass() {
    let a = arm(ArmRole::Subject, Vec::new());
    let e = Expr::parse("worst(victim.stall) <= 1s", &["victim"]).unwrap();
    assert_eq!(judge(&e, &a).0, None);
}

/// A group without a probe has no response times: other values may decide the condition, otherwise it stays undecided.
#[test]
fn an_unmeasured_value_decides_nothing() {
    let mut c = container("hog1", Role::Hog, [110, 100, 110], [2, 3, 2]);
    c.group = "hog".to_owned();
    c.phases.iter_mut().for_each(|p| p.probe = None);
    let mut a = arm(ArmRole::Subject, vec![c]);
    settle(&mut a);
    let verdict = |text: &str| judge(&Expr::parse(text, &["hog"]).unwrap(), &a).0;
    let unknown = "worst(hog.p99-contended) <= 5ms";
    assert_eq!(verdict(unknown), None);
    assert_eq!(verdict("worst(hog.p99-contended) / worst(hog.p50-contended) >= 1"), None);
    assert_eq!(verdict(&format!("{unknown} && leaked == 0")), None);
    assert_eq!(verdict(&format!("{unknown} && leaked > 0")), Some(false));
    assert_eq!(verdict(&format!("{unknown} || leaked == 0")), Some(true));
    assert_eq!(verdict(&format!("leaked > 0 || {unknown}")), None);
}

/// Recursion over a condition of any length would overflow the stack.
#[test]
fn a_condition_has_a_depth_and_a_length() {
    let nested = |n: usize| format!("{}0 == leaked{}", "(".repeat(n), ")".repeat(n));
    let chain = |n: usize, join: &str| vec!["0 == leaked"; n].join(join);
    let ratio = |n: usize| format!("0 == leaked{}", " / 1".repeat(n - 1));
    let e = |text: &str| Expr::parse(text, &[]).map(|e| judge(&e, &ArmResult::default()).0);
    for text in [nested(64), chain(500, " && "), chain(500, " || "), ratio(999)] {
        assert_eq!(e(&text), Ok(Some(true)), "{}", text.len());
    }
    // Closed parentheses do not count.
    assert_eq!(e(&vec!["(0 == leaked)"; 100].join(" && ")), Ok(Some(true)));
    for (text, says) in [
        (nested(65), "more than 64 parentheses"),
        (nested(100_000), "more than 64 parentheses"),
        ("(".repeat(100_000), "more than 64 parentheses"),
        (chain(501, " && "), "more than 1000 terms"),
        (chain(100_000, " || "), "more than 1000 terms"),
        (ratio(100_000), "more than 1000 terms"),
    ] {
        assert!(e(&text).expect_err(says).contains(says));
    }
}

/// A victim with too few requests for a p99 has no inflation of its own; the gate of the p99 takes that of its group.
#[test]
fn few_samples_are_judged_by_group_or_not_at_all() {
    let of_group = |victims: usize, intended: u64, text: &str| {
        let of = |i: usize| {
            let mut c = container(&format!("victim{i}"), Role::Victim, [110, 100, 110], [2, 3, 2]);
            c.group = "victim".to_owned();
            c.phases
                .iter_mut()
                .filter_map(|p| p.probe.as_mut())
                .for_each(|p| p.intended = intended);
            c
        };
        let mut a = arm(ArmRole::Subject, (1..=victims).map(of).collect());
        settle(&mut a);
        // The merged probes: 3 ms alone, 6 ms beside the hog.
        let mut probes: Vec<_> =
            a.containers[0].phases.iter().filter_map(|p| p.probe.clone()).collect();
        for (probe, ms) in probes.iter_mut().zip([3, 6, 3]) {
            probe.intended = intended * victims as u64;
            probe.p99 = Some(Quantile { ns: ms * 1_000_000, ..Default::default() });
        }
        a.groups[0].probes = probes;
        judge(&Expr::parse(text, &["victim"]).unwrap(), &a)
    };
    let text = "worst(victim.p99-inflation) <= 1.5";
    assert_eq!(of_group(3, 2000, text), (Some(true), "1.500x".to_owned()), "each its own");
    assert_eq!(of_group(3, 800, text), (Some(false), "2.000x".to_owned()), "the group");
    assert_eq!(of_group(3, 800, "worst(victim.p99-inflation) >= 5").0, Some(false));
    for few in [of_group(3, 600, text), of_group(1, 800, text), of_group(3, 0, text)] {
        assert_eq!(few, (None, "not known".to_owned()));
    }
}

/// Hogs do not run alone first: no value of theirs is relative to solo.
#[test]
fn a_hog_has_no_value_relative_to_solo() {
    let mut c = container("hog1", Role::Hog, [0, 0, 0], [2; 3]);
    c.group = "hog".to_owned();
    let mut a = arm(ArmRole::Subject, vec![c]);
    settle(&mut a);
    for metric in ["throughput-slowdown", "p99-inflation"] {
        let e = Expr::parse(&format!("worst(hog.{metric}) <= 1"), &["hog"]).unwrap();
        assert_eq!(judge(&e, &a).0, None, "{metric}");
    }
    for metric in ["recovery", "stall"] {
        let e = Expr::parse(&format!("worst(hog.{metric}) <= 1ms"), &["hog"]).unwrap();
        assert_eq!(judge(&e, &a).0, None, "{metric}");
    }
}

#[test]
fn observed_values_have_units() {
    let seen = |text| {
        let mut c = container("victim1", Role::Victim, [110, 100, 110], [2, 3, 2]);
        c.group = "victim".to_owned();
        let mut a = arm(ArmRole::Subject, vec![c]);
        settle(&mut a);
        judge(&Expr::parse(text, &["victim"]).unwrap(), &a).1
    };
    assert_eq!(seen("worst(victim.response.p99) <= 3ms"), "3.00 ms");
    assert_eq!(seen("max(victim.held) >= 1MiB"), "1.00 MiB (1048576 B)");
    assert_eq!(seen("worst(victim.slowdown.p99) > 1"), "1.500x");
    assert_eq!(seen("min(victim.delivered) == 100% && overshoot == 0"), "100.00 %, 0 B");
    assert_eq!(seen("sum(victim.flows) > 1"), "3");
}
