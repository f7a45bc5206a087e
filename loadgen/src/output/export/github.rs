//! The output for GitHub Actions: annotations, and the summary on the page of the job.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use super::cases::{CaseOutcome, Suite};
use crate::exit::Failure;
use crate::output::terminal::{print, print_stderr};

/// Maximum annotations per command. GitHub shows ten errors and ten warnings of a step; a sweep has thousands.
const ANNOTATIONS_MAX: usize = 50;

/// The variable with the path of the job's summary page.
const PAGE: &str = "GITHUB_STEP_SUMMARY";

pub(crate) fn is_here() -> bool {
    std::env::var("GITHUB_ACTIONS").is_ok_and(|v| v == "true")
}

/// Prints the annotations and appends the summary to `$GITHUB_STEP_SUMMARY`, if that is set. When standard output
/// carries JSON, the annotations go to standard error: the runner reads both.
pub(crate) fn write(suites: &[Suite], summary: &str, json: bool) -> Result<(), Failure> {
    let text = annotations(suites);
    if json && !text.is_empty() {
        print_stderr(&text);
    } else {
        print(&text)?;
    }
    // Outside a job there is no summary page, and runners of other vendors may set an empty name.
    let Some(path) = std::env::var_os(PAGE).filter(|path| !path.is_empty()) else { return Ok(()) };
    let file = OpenOptions::new().append(true).create(true).open(&path);
    let written = file.and_then(|mut f| f.write_all(section(summary).as_bytes()));
    written.map_err(|e| Failure::io(format!("{PAGE}={}", Path::new(&path).display()), e))
}

/// The summary between empty lines. A step may append several, and other tools append theirs: after an HTML element
/// such as `</details>`, Markdown takes the lines up to the next empty line for HTML (CommonMark 4.6).
fn section(summary: &str) -> String {
    format!("\n{}\n\n", summary.trim_end())
}

/// One error per failure, one warning per doubtful case; errors first.
pub(crate) fn annotations(suites: &[Suite]) -> String {
    let mut s = String::new();
    let mut shown = 0;
    for (outcome, level) in [(CaseOutcome::Failed, "error"), (CaseOutcome::Doubt, "warning")] {
        for suite in suites {
            for c in
                suite.cases.iter().filter(|c| c.outcome == outcome).take(ANNOTATIONS_MAX - shown)
            {
                let title = escape(&format!("{} / {}", suite.of, suite.name), true);
                let text = escape(&format!("{}: {}", c.name, c.detail), false);
                let _ = writeln!(s, "::{level} title={title}::{text}");
                shown += 1;
            }
        }
    }
    s
}

/// Escapes a text for a workflow command: a command is one line; a property ends at a comma or colon.
fn escape(text: &str, property: bool) -> String {
    let s = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if property { s.replace(':', "%3A").replace(',', "%2C") } else { s }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::export::cases::Case;

    /// Every heading follows an empty line, which ends the HTML of the section before.
    #[test]
    fn every_section_of_the_page_keeps_its_heading() {
        let summary = "## first\n\n<details>\n\n</details>\n";
        let page = ["</table>\n", &section(summary), &section(summary)].concat();
        assert_eq!(page.matches("\n\n## first").count(), 2, "{page}");
        assert!(page.ends_with("</details>\n\n"), "{page}");
    }

    #[test]
    fn errors_come_first_and_are_bounded() {
        let case = |outcome| Case { name: "a".to_owned(), outcome, detail: "b: 5 %\nc".to_owned() };
        let suite = Suite::new(
            "x",
            "y,z",
            vec![case(CaseOutcome::Doubt), case(CaseOutcome::Failed), case(CaseOutcome::Passed)],
        );
        let text = annotations(std::slice::from_ref(&suite));
        assert_eq!(
            text,
            "::error title=x / y%2Cz::a: b: 5 %25%0Ac\n::warning title=x / y%2Cz::a: b: 5 %25%0Ac\n"
        );
        // 400 failures and doubts.
        let many = vec![suite; 200];
        assert_eq!(annotations(&many).lines().count(), ANNOTATIONS_MAX);
    }
}
