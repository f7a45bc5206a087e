//! `junit.xml`: a suite an arm, a test case a gate. What leaves a run in doubt is an `error`: never a pass, and not the
//! subject's failure either.

use std::fmt::Write as _;

use crate::result::{GateKind, GateResult, RunResult};

pub fn render(result: &RunResult) -> String {
    let mut s = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let all: Vec<&GateResult> = result.gates.iter().collect();
    let name = format!("{} on {}", result.scenario, result.target);
    let _ = writeln!(s, "<testsuites name=\"{}\" {}>", escape(&name), counts(&all));
    for arm in &result.arms {
        let gates: Vec<&GateResult> = all.iter().filter(|g| g.arm == arm.name).copied().collect();
        suite(&mut s, result, &arm.name, &gates);
    }
    // A gate may be about the run and no arm of it.
    let others = |g: &&GateResult| !result.arms.iter().any(|a| a.name == g.arm);
    let gates: Vec<&GateResult> = all.iter().copied().filter(others).collect();
    if !gates.is_empty() {
        suite(&mut s, result, "run", &gates);
    }
    s.push_str("</testsuites>\n");
    s
}

fn suite(s: &mut String, result: &RunResult, arm: &str, gates: &[&GateResult]) {
    let name = escape(&format!("{}/{arm}", result.scenario));
    let _ = writeln!(s, "  <testsuite name=\"{name}\" {}>", counts(gates));
    let _ = writeln!(s, "    <properties>");
    let params = result.params.iter().map(|(k, v)| (k.clone(), v.to_string()));
    let own = [("target", result.target.clone()), ("seed", result.seed.to_string())];
    for (key, value) in own.map(|(k, v)| (k.to_owned(), v)).into_iter().chain(params) {
        let (key, value) = (escape(&key), escape(&value));
        let _ = writeln!(s, "      <property name=\"{key}\" value=\"{value}\"/>");
    }
    let _ = writeln!(s, "    </properties>");
    for g in gates {
        let class = escape(&format!("{}.{arm}", result.scenario));
        let case =
            format!("<testcase classname=\"{class}\" name=\"{}\" time=\"0\"", escape(&g.name));
        let said = escape(&format!("{} (limit {})", g.observed, g.limit));
        let _ = match (g.passed, g.kind) {
            (true, _) => writeln!(s, "    {case}/>"),
            (false, GateKind::Subject) => {
                writeln!(s, "    {case}><failure type=\"gate\" message=\"{said}\"/></testcase>")
            }
            (false, GateKind::Sanity | GateKind::Control) => writeln!(
                s,
                "    {case}><error type=\"inconclusive\" message=\"{said}\"/></testcase>"
            ),
        };
    }
    let _ = writeln!(s, "  </testsuite>");
}

fn counts(gates: &[&GateResult]) -> String {
    let failed = |subject: bool| {
        let of = |g: &&&GateResult| !g.passed && (g.kind == GateKind::Subject) == subject;
        gates.iter().filter(of).count()
    };
    let (failures, errors) = (failed(true), failed(false));
    format!("tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"0\"", gates.len())
}

/// As an attribute. Control characters have no place in XML 1.0, not even escaped.
fn escape(text: &str) -> String {
    let mut s = String::new();
    for c in text.chars() {
        match c {
            '&' => s.push_str("&amp;"),
            '<' => s.push_str("&lt;"),
            '>' => s.push_str("&gt;"),
            '"' => s.push_str("&quot;"),
            '\t' | '\n' | '\r' => s.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => s.push('\u{fffd}'),
            c => s.push(c),
        }
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(escape("a<\"b\">&\u{1}\n"), "a&lt;&quot;b&quot;&gt;&amp;\u{fffd} ");
    }
}
