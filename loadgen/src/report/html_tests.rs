use super::*;
use crate::analyse::tests::{arm, container, phases};
use crate::plan::{ArmRole, Role};
use crate::result::{Meta, Verdict};

fn sample() -> RunResult {
    let containers = || {
        vec![
            container("hog", Role::Hog, [0, 500, 0], [0; 3]),
            container("<victim>", Role::Victim, [100, 10, 100], [2, 900, 2]),
        ]
    };
    RunResult {
        schema: "s".to_owned(),
        scenario: "starvation".to_owned(),
        target: "virtual".to_owned(),
        seed: 7,
        params: [("victims".to_owned(), 1)].into(),
        window_ns: 10_000_000,
        phases: phases(),
        arms: vec![arm(ArmRole::Control, containers()), arm(ArmRole::Subject, containers())],
        gates: Vec::new(),
        verdict: Verdict { word: "PASS".to_owned(), exit: 0, gates: 0, failed: 0 },
        meta: Meta::default(),
        ..RunResult::default()
    }
}

#[test]
fn nothing_is_loaded_from_anywhere_and_names_are_escaped() {
    let html = render(&sample()).unwrap();
    for bad in ["http:", "https:", "src=", "@import", "url(", "<script", "<victim>"] {
        assert!(!html.contains(bad), "{bad}");
    }
    assert!(html.contains("&lt;victim&gt;"));
    assert!(html.contains("prefers-color-scheme: dark"));
    for bad in ["NaN", "Minf", "Linf", " inf", "\"inf"] {
        assert!(!html.replace("inflation", "").replace("infinite", "").contains(bad), "{bad}");
    }
    assert_eq!(html, render(&sample()).unwrap());
}
