use super::*;

#[test]
fn an_unknown_word_is_named_with_a_suggestion() {
    let e = |text| Expr::parse(text, &["victim", "hog"]).unwrap_err();
    assert!(e("wurst(victim.stall) < 1").contains("did you mean 'worst'"));
    assert!(e("worst(victm.stall) < 1").contains("did you mean 'victim'"));
    assert!(e("worst(victim.stal) < 1").contains("did you mean 'stall'"));
    assert!(e("worst(victim.stall)").contains("<="));
    assert!(e("worst(victim.stall) < 1parsec").contains("parsec"));
    assert!(e("worst(victim.stall) < 1 and").contains("'and'"));
}

/// Both sides must have the same kind; the error names the part that is refused.
#[test]
fn seconds_are_not_compared_with_bytes() {
    let e = |text| Expr::parse(text, &["victim", "hog"]);
    for (text, says) in [
        ("worst(victim.stall) <= 4KiB", "'worst(victim.stall)' is a time and '4KiB' is a size"),
        ("max(victim.held) <= 5ms", "is a size and '5ms' is a time"),
        ("worst(victim.response.p99) <= 5", "a time needs a unit, for example 5ms"),
        ("3 > worst(victim.recovery)", "a time needs a unit"),
        ("sum(hog.refusals) > 1ms", "is a number and '1ms' is a time"),
        ("worst(victim.delivered) >= 1KiB", "is a number and '1KiB' is a size"),
        ("max(hog.held) > 5x", "is a size and '5x' is a number"),
        ("worst(victim.slowdown.p99) < max(hog.held)", "is a number and 'max(hog.held)' is a size"),
        ("max(hog.held) / worst(victim.stall) < 5", "cannot be divided"),
        ("overshoot == 0 && worst(victim.stall) / 2 < 1MiB", "is a time"),
    ] {
        let error = e(text).expect_err(text);
        assert!(error.contains(says), "{text}: {error}");
    }
    // Literals alone are no condition, whatever their kinds.
    for text in ["1 == 1", "overshoot == 0 || 1 < 2", "1 / 2 < 3 / 4", "1ms < 1s"] {
        assert!(e(text).expect_err(text).contains("are literals"), "{text}");
    }
    for text in [
        "overshoot == 0",
        "leaked < 4096",
        "1 > overshoot / 2",
        "worst(victim.stall) > 0",
        "max(hog.held) / max(victim.held) <= 1.5",
        "worst(victim.response.p99) / worst(victim.response.p50) < 3x",
        "max(hog.held) / 2 <= 4MiB",
        "mmr(victim.moved) >= 95%",
        "sum(hog.flows) >= 100",
    ] {
        assert!(e(text).is_ok(), "{text}: {:?}", e(text));
    }
}

/// A term that no run can measure would leave its gate undecided for ever.
#[test]
fn a_term_that_is_never_measured_is_refused() {
    let facts = [
        GroupFacts { name: "hog", is_hog: true, probes: false },
        GroupFacts { name: "victim", is_hog: false, probes: true },
        GroupFacts { name: "bulk", is_hog: false, probes: false },
    ];
    let groups = ["hog", "victim", "bulk"];
    let e = |text: &str| Expr::parse(text, &groups).unwrap().measurable(&facts).map(|_| ());
    for (text, says) in [
        ("worst(hog.stall) <= 5ms", "'hog.stall' is never measured: a hog"),
        ("leaked == 0 || worst(hog.recovery) <= 5ms", "'hog.recovery' is never measured"),
        ("1 < worst(hog.slowdown.throughput) / 2", "'hog.throughput-slowdown' is never"),
        ("worst(hog.p99-contended) <= 5ms", "the group has no probe"),
        ("worst(bulk.delivered) == 1x", "the group has no probe"),
        ("worst(bulk.p99-inflation) <= 1.2", "the group has no probe"),
    ] {
        let error = e(text).expect_err(text);
        assert!(error.contains(says), "{text}: {error}");
    }
    for text in [
        "worst(victim.p99-inflation) <= 1.2 && worst(victim.delivered) == 1x",
        "worst(bulk.stall) <= 5ms && worst(bulk.recovery) <= 5ms",
        "sum(hog.refusals) > 0 && max(hog.held) / max(bulk.held) < 2",
    ] {
        assert_eq!(e(text), Ok(()), "{text}");
    }
}

#[test]
fn an_expression_knows_whether_it_is_exact_or_of_latency() {
    let of = |text| Expr::parse(text, &["victim"]).unwrap();
    assert!(of("overshoot == 0 && leaked == 0").is_exact());
    assert!(!of("overshoot == 0 || worst(victim.stall) < 1s").is_exact());
    let both = of("worst(victim.response.p99) <= 300us && 2ms >= worst(victim.response.max)");
    assert_eq!(both.least_latency_ns(), Some(300_000));
    assert_eq!(of("worst(victim.response.p99) >= 1us").least_latency_ns(), None);
}

/// A condition may be as long as a command line.
#[test]
fn a_long_condition_is_cut_in_its_error() {
    let long = "x".repeat(100_000);
    let nested = vec!["(overshoot / 2)"; 10_000].join(" / ");
    for text in [
        long.clone(),
        format!("leaked == 0 {long}"),
        format!("leaked {long}"),
        format!("worst({long}.stall) < 1s"),
        format!("worst(victim.{long}) < 1s"),
        format!("worst(victim.stall {long}"),
        format!("leaked < 1{long}"),
        format!("overshoot{} == 1ms", " / overshoot".repeat(500)),
        nested,
    ] {
        let error = Expr::parse(&text, &["victim"]).unwrap_err();
        assert!(error.len() < 700, "{} of {}: {error}", error.len(), text.len());
    }
}
