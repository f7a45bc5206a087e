//! `junit.xml`: one suite per arm, one test case per gate or metric. An inconclusive case is an `error`: never a pass,
//! but not a failure of the subject either. A case that was not judged is `skipped`.

use std::fmt::Write as _;

use super::cases::{self, Case, CaseOutcome, Suite};
use crate::measure::result::RunResult;

/// An XML comment by which a later run recognizes the file as loadgen's and may remove it.
pub(super) const MARK: &str = "<!-- loadgen.junit -->";

pub(crate) fn render(result: &RunResult) -> String {
    document(&format!("{} on {}", result.scenario, result.target), &cases::of_run(result))
}

pub(crate) fn document(name: &str, suites: &[Suite]) -> String {
    let mut s = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{MARK}\n");
    let all = counts(suites.iter().flat_map(|s| &s.cases));
    let _ = writeln!(s, "<testsuites name=\"{}\" {all}>", escape(name));
    for one in suites {
        suite(&mut s, one);
    }
    s.push_str("</testsuites>\n");
    s
}

fn suite(s: &mut String, suite: &Suite) {
    let name = escape(&format!("{}/{}", suite.of, suite.name));
    let _ = writeln!(s, "  <testsuite name=\"{name}\" {}>", counts(suite.cases.iter()));
    let _ = writeln!(s, "    <properties>");
    for (key, value) in &suite.properties {
        let (key, value) = (escape(key), escape(value));
        let _ = writeln!(s, "      <property name=\"{key}\" value=\"{value}\"/>");
    }
    let _ = writeln!(s, "    </properties>");
    let class = escape(&format!("{}.{}", suite.of, suite.name));
    for c in &suite.cases {
        let (name, detail) = (escape(&c.name), escape(&c.detail));
        let case = format!("<testcase classname=\"{class}\" name=\"{name}\" time=\"0\"");
        let _ = match c.outcome {
            CaseOutcome::Passed => writeln!(s, "    {case}/>"),
            CaseOutcome::Failed => {
                writeln!(s, "    {case}><failure type=\"gate\" message=\"{detail}\"/></testcase>")
            }
            CaseOutcome::Doubt => {
                writeln!(
                    s,
                    "    {case}><error type=\"inconclusive\" message=\"{detail}\"/></testcase>"
                )
            }
            CaseOutcome::Skipped => {
                writeln!(s, "    {case}><skipped message=\"{detail}\"/></testcase>")
            }
        };
    }
    let _ = writeln!(s, "  </testsuite>");
}

fn counts<'a>(cases: impl Iterator<Item = &'a Case>) -> String {
    let (mut tests, mut failures, mut errors, mut skipped) = (0, 0, 0, 0);
    for c in cases {
        tests += 1;
        match c.outcome {
            CaseOutcome::Passed => {}
            CaseOutcome::Failed => failures += 1,
            CaseOutcome::Doubt => errors += 1,
            CaseOutcome::Skipped => skipped += 1,
        }
    }
    format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\"")
}

/// Escapes a text for an attribute. XML 1.0 allows control characters nowhere, not even escaped.
fn escape(text: &str) -> String {
    let mut s = String::new();
    for c in text.chars() {
        match c {
            '&' => s.push_str("&amp;"),
            '<' => s.push_str("&lt;"),
            '>' => s.push_str("&gt;"),
            '"' => s.push_str("&quot;"),
            '\t' | '\n' | '\r' => s.push(' '),
            // U+FFFD shows that a character is missing.
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
    fn escaped_names_stay_text() {
        assert_eq!(escape("a<\"b\">&\u{1}\n"), "a&lt;&quot;b&quot;&gt;&amp;\u{fffd} ");
    }
}
