use super::*;

const MIB: u64 = 1 << 20;

/// Every built-in scenario makes a plan on the virtual target, and on the real targets that support it.
#[test]
fn every_built_in_makes_a_plan() {
    for name in names() {
        let scenario = Scenario::find(name, "virtual").unwrap();
        assert!(!scenario.about().unwrap().is_empty(), "{name}");
        let plan = scenario.plan(1).unwrap();
        assert_eq!(plan.scenario, name);
        for pair in plan.phases.windows(2) {
            assert!(pair[0].end_ns <= pair[1].start_ns, "{name}");
        }
        assert!(plan.phases[1].start_ns - plan.phases[0].end_ns >= plan.grace_ns, "{name}");
        assert!(plan.phases.iter().skip(1).all(|q| q.start_ns % plan.window_ns == 0), "{name}");
        Scenario::find(name, "tap").unwrap().plan(1).unwrap();
    }
}

#[test]
fn both_arms_of_starvation_have_the_same_memory() {
    let p = Scenario::find("starvation", "virtual").unwrap().plan(1).unwrap();
    assert_eq!(p.pool_bytes(), (32 + 4 * 4) * MIB);
    assert_eq!(p.containers.len(), 5);
    assert_eq!(p.containers[0].name, "hog");
}

#[test]
fn lives_that_follow_each_other_have_one_budget() {
    let p = Scenario::find("churn", "virtual").unwrap().plan(1).unwrap();
    let hogs: Vec<_> = p.containers.iter().filter(|c| c.group == "hog").collect();
    assert_eq!(hogs.len(), 50);
    assert!(hogs.iter().all(|h| h.budget_name == "hog"));
    assert_eq!(p.pool_bytes(), (6 + 2 * 2) * MIB);
}

#[test]
fn bad_values_name_the_range() {
    let mut s = Scenario::find("starvation", "virtual").unwrap();
    s.set("victims=0").unwrap();
    let e = s.plan(1).unwrap_err().to_string();
    assert!(e.contains("victims=0") && e.contains("1 to 4096"), "{e}");
    assert!(s.set("victms=3").unwrap_err().to_string().contains("'victims'"));
    assert!(s.set("victims").is_err());
    assert!(s.set("rate=fast").is_err());
}
