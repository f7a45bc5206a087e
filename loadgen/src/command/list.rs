//! `list` and `show`: the built-in scenarios.

use std::path::Path;

use crate::exit::Failure;
use crate::scenario::bounded;
use crate::scenario::{self, Scenario};

/// Maximum characters per line.
const WIDTH: usize = 100;

/// Prints the parameters that most scenarios share once, then those of each scenario.
pub(crate) fn list() -> Result<String, Failure> {
    let base = Scenario::find("base", "virtual")?.params()?;
    let mut s =
        String::from("Parameters of all scenarios (exceptions are listed with the scenario):\n");
    settings(&mut s, &base);
    s.push('\n');
    for name in scenario::names() {
        let scenario = Scenario::find(name, "virtual")?;
        s.push_str(&format!("{name}\n    {}\n", scenario.about()?));
        // Only the parameters with another value than in the common base.
        let own = scenario.params()?.into_iter().filter(|p| !base.contains(p));
        let all: Vec<(String, toml::Value)> = own.chain(scenario.group_params()?).collect();
        settings(&mut s, &all);
    }
    s.push_str(
        "\nAny other value of a scenario file is set by its path: --set group.victim.probe.deadline=2s\n",
    );
    Ok(s)
}

/// Appends parameters as `--set` arguments, wrapped to the width of a line.
fn settings(s: &mut String, all: &[(String, toml::Value)]) {
    let word = |(key, value): &(String, toml::Value)| match value {
        toml::Value::String(text) => format!("{key}={text}"),
        other => format!("{key}={other}"),
    };
    let mut line = String::from("    --set");
    for word in all.iter().map(word) {
        if line.len() + word.len() > WIDTH {
            s.push_str(&line);
            s.push('\n');
            line = String::from("         ");
        }
        line.push(' ');
        line.push_str(&word);
    }
    if !all.is_empty() {
        s.push_str(&line);
        s.push('\n');
    }
}

/// The text of a scenario file.
pub(crate) fn show(name: &str) -> Result<String, Failure> {
    match scenario::text(name) {
        Some(text) => Ok(text.to_owned()),
        // No built-in scenario: a name without a file fails here with the list of the built-in ones.
        None => Scenario::find(name, "virtual").and_then(|_| {
            bounded::read(Path::new(name), bounded::SCENARIO_BYTES_MAX)
                .map_err(|e| Failure::Usage(format!("{name}: {e}")))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::report::explain::explain;
    use crate::scenario::plan::{ContainerPlan, Load};

    #[test]
    fn the_common_block_is_printed_once_and_hogs_have_their_parameters() {
        let text = list().unwrap();
        for common in ["probe-rate=2000", "rtt=1ms", "recovery=200ms"] {
            // Once in the common block; a few scenarios may set it too.
            assert!(text.matches(common).count() <= 3, "{common}:\n{text}");
        }
        let of = |name: &str| {
            let from = text.split(&format!("\n{name}\n")).nth(1).unwrap();
            from.lines().take_while(|l| l.starts_with(' ')).collect::<Vec<_>>().join("\n")
        };
        assert!(of("step").contains("group.hog.stuff.conns=150"), "{}", of("step"));
        assert!(of("step").contains("group.hog.budget.hard=6MiB"));
        assert!(of("tiny-segments").contains("group.hog.flood.rate=100000"));
        // A parameter with a short name is listed by that name only.
        assert!(
            of("starvation").contains("stuff=300") && !of("starvation").contains("group.hog.stuff")
        );
        assert!(text.lines().all(|l| l.len() <= 120));
    }

    /// Every listed parameter can be set.
    #[test]
    fn every_listed_parameter_can_be_set() {
        for name in scenario::names() {
            let scenario = Scenario::find(name, "virtual").unwrap();
            for (key, value) in scenario.group_params().unwrap() {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                scenario.clone().set(&format!("{key}={text}")).unwrap();
            }
        }
    }

    /// A reader of the list finds each load in `explain`: `group.hog.stuff.conns` and `stuff` are explained by `stuff`.
    #[test]
    fn every_listed_load_is_explained() {
        let mut loads = std::collections::BTreeSet::new();
        for name in scenario::names() {
            let scenario = Scenario::find(name, "virtual").unwrap();
            let load = |c: &ContainerPlan| c.loads.iter().map(Load::word).collect::<Vec<_>>();
            loads.extend(scenario.plan(1).unwrap().containers.iter().flat_map(load));
        }
        assert!(loads.len() > 7, "{loads:?}");
        for word in loads.into_iter().chain(["churn", "shed"]) {
            assert!(explain(Some(word)).unwrap().len() > 40, "{word}");
        }
    }
}
