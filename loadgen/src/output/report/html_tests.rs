use super::*;
use crate::judge::analyse::tests::{arm, container, phases};
use crate::measure::result::{Meta, Verdict};
use crate::scenario::plan::{ArmRole, Role};

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
        assert!(!html.replace("inflation", "").contains(bad), "{bad}");
    }
    assert_eq!(html, render(&sample()).unwrap());
}

/// A thousand containers are bundled, selected and thinned: the page stays small and still shows the one that starves.
#[test]
fn a_thousand_containers_fit_in_a_page() {
    let containers = || {
        let victim = |i: usize| {
            let mut c = container(&format!("victim{i}"), Role::Victim, [100, 100, 100], [2, 2, 2]);
            // Noise that differs between neighbouring cells, which needs the most bytes.
            for (w, b) in c.up_window_bytes.iter_mut().enumerate() {
                *b = (*b as usize * ((w * 7 + i * 13) % 11) / 10) as u32;
            }
            c
        };
        let mut all: Vec<_> = (0..1000).map(victim).collect();
        all[500].phases[1].up_bytes = 0;
        all[500].phases[1].down_bytes = 0;
        all.push(container("hog", Role::Hog, [0, 500, 0], [0; 3]));
        all
    };
    let mut result = sample();
    result.arms = vec![arm(ArmRole::Control, containers()), arm(ArmRole::Subject, containers())];
    let html = render(&result).unwrap();
    assert!(html.len() < 1_000_000, "{} bytes", html.len());
    assert!(html.contains("victim500") && html.contains("nothing received"));
    let summary = crate::output::export::summary::render(&result);
    assert!(summary.len() < 200 << 10, "{} bytes", summary.len());
    assert!(summary.contains("victim500") && summary.contains("the worst 20 of 1000"));
}

/// Results of other shapes: no arms, no phases, no victims. All render to a page.
#[test]
fn missing_parts_are_omitted() {
    let mut result = sample();
    result.arms[0].containers.clear();
    result.arms[1].budgets.clear();
    result.arms[1].containers.retain(|c| c.role == Role::Hog);
    let html = render(&result).unwrap();
    assert!(!html.contains("NaN"));
    result.arms.clear();
    result.phases.clear();
    assert!(render(&result).unwrap().contains("How it was measured"));
}
