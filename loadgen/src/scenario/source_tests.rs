use crate::scenario::Scenario;

const TEXT: &str = r#"
name = "mine"
extends = "builtin:base"

[[group]]
name = "hog"
role = "hog"
count = 1
rate = "1Gbit"
budget = { hard = "4MiB" }
stuff = { conns = 10 }

[params]
hogs = "group.hog.count"
"#;

fn error(text: &str) -> String {
    let made = Scenario::parse("mine.toml", text, "virtual").and_then(|s| s.plan(1).map(|_| ()));
    made.unwrap_err().to_string()
}

/// Every error names file, line, the mistake, and what is allowed.
#[test]
fn mistakes_are_named_with_their_lines() {
    for (from, to, wants) in [
        ("count = 1", "cuont = 1", &["mine.toml:8", "cuont", "did you mean `count`"][..]),
        ("role = \"hog\"", "role = \"hgo\"", &["mine.toml:7", "hgo", "did you mean `hog`"]),
        ("conns = 10", "conns = \"many\"", &["mine.toml:11", "'many' is not a whole number"]),
        ("\"1Gbit\"", "\"1Gbits\"", &["mine.toml:9", "1Gbits", "Gbit"]),
        ("\"1Gbit\"", "\"1kbit\"", &["mine.toml:9", "group.hog.rate", "1Mbit"]),
        ("\"4MiB\"", "\"4KiB\"", &["mine.toml:10", "group.hog.budget.hard", "4KiB must be"]),
        ("stuff = ", "stuf = ", &["mine.toml:11", "stuf", "did you mean `stuff`"]),
        ("builtin:base", "builtin:bsae", &["mine.toml", "no built-in 'bsae'"]),
        ("name = \"mine\"", "name = ", &["mine.toml:2"]),
        ("[params]", "[on.tpa]\n[params]", &["mine.toml:13: on.tpa: no such target", "'tap'"]),
        ("conns = 10", "conns = 100000", &["mine.toml:11", "100000 must be 0 to 5000"]),
    ] {
        let e = error(&TEXT.replace(from, to));
        for want in wants {
            assert!(e.contains(want), "{to}: {e}");
        }
    }
}

/// No load is dropped silently.
#[test]
fn a_flood_has_no_load_beside_it() {
    assert!(
        error(&TEXT.replace("stuff = ", "flood = { conns = 1 }\nstuff = ")).contains("has no TCP")
    );
    for load in ["up", "down", "probe", "hoard", "orphans", "accept", "incast"] {
        let e =
            error(&TEXT.replace("stuff = { conns = 10 }", &format!("flood = {{}}\n{load} = {{}}")));
        assert!(e.contains("group.hog.flood") && e.contains("has no TCP"), "{load}: {e}");
    }
}

#[test]
fn impossible_schedules_are_refused_with_the_reason() {
    let step = |at: &str, action: &str| {
        format!("\n[[group.schedule]]\nat = \"{at}\"\naction = \"{action}\"\n")
    };
    let with = |steps: &str| TEXT.replace("\n[params]", &format!("{steps}\n[params]"));
    for (steps, wants) in [
        (step("contended", "stop"), "no start before it"),
        (step("solo", "start"), "the contended phase starts at"),
        (step("recovery+50ms", "start"), "the contended phase ends at"),
        (step("contented", "start"), "did you mean 'contended'"),
        (
            step("contended", "start") + &step("contended+10ms", "start"),
            "the load is already active",
        ),
        (
            step("contended+20ms", "leave") + &step("contended+30ms", "start"),
            "the container has already left",
        ),
        (step("contended", "leave"), "the schedule has no start"),
        (step("contended", "start") + "every = \"1us\"\n", "at least 1ms"),
    ] {
        let e = error(&with(&steps));
        assert!(e.contains(wants) && e.contains("mine.toml:"), "{steps}: {e}");
    }
    let good = step("contended", "start") + &step("contended+100ms", "stop");
    let plan = Scenario::parse("mine.toml", &with(&good), "virtual").unwrap().plan(1).unwrap();
    let hog = &plan.containers[0];
    assert_eq!(hog.active.len(), 1);
    assert_eq!(hog.active[0].to_ns - hog.active[0].from_ns, 100_000_000);
    assert_eq!(hog.leaves_ns, Some(plan.phases[1].end_ns));
}

/// Results find containers by name, and virtual time finds budgets by name: two groups with one name would share.
#[test]
fn no_two_groups_have_a_container_of_one_name() {
    let hog =
        |name: &str, more: &str| TEXT.replace("name = \"hog\"", name).replace("group.hog", more);
    let e = error(&hog("name = \"victim1\"", "group.victim1"));
    for want in ["mine.toml:6: group.victim1.name", "'victim1'", "group 'victim' too"] {
        assert!(e.contains(want), "{e}");
    }
    // Lives have numbers too, and share a budget.
    let churn = "churn = {}\nname = \"a\"";
    let twin = |name: &str| {
        format!(
            "\n[[group]]\nname = \"{name}\"\nrole = \"hog\"\ncount = 1\nrate = \"1Gbit\"\n\
             budget = {{ hard = \"4MiB\" }}\nstuff = {{ conns = 10 }}\n\n[params]"
        )
    };
    let with = |name: &str| hog(churn, "group.a").replace("\n[params]", &twin(name));
    assert!(error(&with("a-2")).contains("'a-2' would be a container of group 'a' too"));
    // `a1` is no life of `a`.
    let fine = Scenario::parse("mine.toml", &with("a1"), "virtual").unwrap().plan(1);
    assert!(fine.is_ok(), "{fine:?}");
    // From 11 members on, `victim1` has members of the same names.
    let many = |count: u64| {
        let one = "\n[[group]]\nname = \"victim1\"\nrole = \"victim\"\nrate = \"100Mbit\"\ncount = 1\n\
                   budget = { hard = \"4MiB\" }\ndown = {}\n";
        format!("{TEXT}{one}\n[[group]]\nname = \"victim\"\ncount = {count}\n")
    };
    assert!(error(&many(11)).contains("group.victim1.name: 'victim11'"), "{}", error(&many(11)));
    assert!(Scenario::parse("mine.toml", &many(10), "virtual").unwrap().plan(1).is_ok());
}

#[test]
fn a_wrong_setting_is_named() {
    let scenario = || Scenario::parse("mine.toml", TEXT, "virtual").unwrap();
    let e = |set: &str| {
        let mut s = scenario();
        s.set(set).and_then(|()| s.plan(1).map(|_| ())).unwrap_err().to_string()
    };
    assert!(e("hosg=1").contains("did you mean 'hogs'"));
    assert!(e("group.hog.stuff.cons=1").contains("did you mean `conns`"));
    assert!(e("group.hgo.count=1").contains("did you mean 'hog'"));
    assert!(e("hogs=99999").contains("--set hogs=99999"));
    assert!(e("hogs").contains("KEY=VALUE"));
    // The values of `on` and the names of parameters have been applied: changing them is without effect.
    assert!(e("on.virtual.solo=5s").contains("set the path itself, as 'run.solo'"));
    assert!(e("params.hogs=group.victim.count").contains("a parameter is only a name"));
    let e_group = e("group.hog=5");
    assert!(e_group.contains("'group.hog' is no value but a table with"), "{e_group}");
    assert!(e_group.contains("count"), "{e_group}");
    // Of two values that contradict, the one that was set.
    let e_window = e("run.window=1s");
    assert!(e_window.contains("--set run.window=1s: 1s is longer than run.recovery"), "{e_window}");
    // So too of limits: hard is 4 MiB in the file.
    for set in ["soft=8MiB", "low=8MiB", "hard=64KiB", "min=8MiB"] {
        let set = format!("group.victim.budget.{set}");
        assert!(e(&set).starts_with(&format!("--set {set}: ")), "{}", e(&set));
    }
    let mut both = scenario();
    both.set("run.window=30ms").and_then(|()| both.set("run.recovery=20ms")).unwrap();
    let e_both = both.plan(1).unwrap_err().to_string();
    assert!(e_both.contains("--set run.recovery=20ms: 20ms is shorter than a window"), "{e_both}");

    let mut s = scenario();
    s.set("hogs=3").unwrap();
    s.set("group.hog.stuff.conns=7").unwrap();
    let plan = s.plan(1).unwrap();
    assert_eq!(plan.containers.iter().filter(|c| c.group == "hog").count(), 3);
    assert!(plan.params.contains(&("hogs".to_owned(), 3)));
    // The recorded scenario runs again and gives the same plan.
    let again = Scenario::parse("again", &plan.toml, "virtual").unwrap().plan(1).unwrap();
    assert_eq!(format!("{:?}", again.containers), format!("{:?}", plan.containers));
}

#[test]
fn the_kernel_target_has_the_values_of_tap_and_its_own() {
    let on = "\n[on.tap]\n\"group.hog.count\" = 2\n\"group.victim.count\" = 3\n";
    let text = TEXT.to_owned() + on + "[on.kernel]\n\"group.hog.count\" = 4\n";
    for (target, hogs, victims) in [("virtual", 1, 2), ("tap", 2, 3), ("kernel", 4, 3)] {
        let plan = Scenario::parse("m", &text, target).unwrap().plan(1).unwrap();
        let count = |group: &str| plan.containers.iter().filter(|c| c.group == group).count();
        assert_eq!((count("hog"), count("victim")), (hogs, victims), "{target}");
    }
}

#[test]
fn what_is_extended_is_merged_by_name() {
    let text = TEXT.to_owned() + "[[group]]\nname = \"victim\"\ncount = 5\n";
    let plan = Scenario::parse("m", &text, "virtual").unwrap().plan(1).unwrap();
    let victims: Vec<_> = plan.victims().collect();
    assert_eq!(victims.len(), 5);
    assert!(victims.iter().all(|v| v.bits_per_second == 100_000_000));
}
