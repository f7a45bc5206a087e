//! Checks whether two results are of the same load, so that their numbers can be compared or added.

use std::collections::BTreeSet;

use crate::exit::Failure;
use crate::measure::result::RunResult;
use crate::scenario::plan::ArmRole;

/// Lists the differences that make two results incomparable; empty if they are comparable.
fn incomparable(a: &RunResult, b: &RunResult, params_too: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: &str, a: String, b: String| {
        if a != b {
            found.push(format!("{what}: {a} against {b}"));
        }
    };
    check("scenario", a.scenario.clone(), b.scenario.clone());
    check("target", a.target.clone(), b.target.clone());
    let phases = |r: &RunResult| {
        let all = r.phases.iter().map(|p| format!("{} {} ms", p.name, p.nanos() / 1_000_000));
        all.collect::<Vec<_>>().join(", ")
    };
    if params_too {
        check("phases", phases(a), phases(b));
        // Keys of either side: a parameter that one side lacks is a difference.
        let keys: BTreeSet<_> = a.params.keys().chain(b.params.keys()).collect();
        let of = |r: &RunResult, k: &String| {
            r.params.get(k).map_or_else(|| "none".to_owned(), u64::to_string)
        };
        for key in keys {
            check(key, of(a, key), of(b, key));
        }
    }
    if params_too && found.is_empty() {
        // Not every key of a load is a parameter: `--set group.hog.stuff.conns` changes the scenario only. A difference
        // of the parameters is in the scenario too, and is reported already.
        found.extend(first_difference(&a.scenario_toml, &b.scenario_toml).map(|(a, b)| {
            let line =
                |l: Option<&str>| l.map_or_else(|| "its end".to_owned(), |l| format!("'{l}'"));
            format!("scenario file: {} against {}", line(a), line(b))
        }));
    }
    let arms = |r: &RunResult| {
        let all = r.arms.iter().filter(|a| a.role == ArmRole::Subject).map(|a| a.name.as_str());
        all.collect::<Vec<_>>().join(", ")
    };
    if arms(a) != arms(b) {
        found.push(format!("subject arms: {} against {}", arms(a), arms(b)));
    }
    found
}

/// Returns an error that lists every difference, if there is one.
pub(crate) fn comparable(a: &RunResult, b: &RunResult, params_too: bool) -> Result<(), Failure> {
    let found = incomparable(a, b, params_too);
    if found.is_empty() {
        return Ok(());
    }
    Err(Failure::NoBaseline(format!(
        "these runs cannot be compared; they differ in:\n  {}",
        found.join("\n  ")
    )))
}

/// The first lines in which two scenario files differ; `None` at the end of the shorter one.
pub(crate) fn first_difference<'a>(
    a: &'a str,
    b: &'a str,
) -> Option<(Option<&'a str>, Option<&'a str>)> {
    let (mut a, mut b) = (a.lines(), b.lines());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return None,
            (a, b) if a != b => return Some((a, b)),
            _ => {}
        }
    }
}
