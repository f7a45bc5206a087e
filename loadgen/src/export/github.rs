//! What a GitHub Actions job shows of a run: annotations on stdout, and the summary on the job's page.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;

use super::summary;
use crate::cli::print;
use crate::exit::Failure;
use crate::result::{GateKind, RunResult};

pub fn is_here() -> bool {
    std::env::var("GITHUB_ACTIONS").is_ok_and(|v| v == "true")
}

/// Prints the annotations and appends the summary to `$GITHUB_STEP_SUMMARY`, if that is set.
pub fn speak(result: &RunResult) -> Result<(), Failure> {
    print(&annotations(result))?;
    let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY") else { return Ok(()) };
    let file = OpenOptions::new().append(true).create(true).open(&path);
    let written = file.and_then(|mut f| f.write_all(summary::render(result).as_bytes()));
    written.map_err(|e| Failure::io(std::path::Path::new(&path).display(), e))
}

/// An error for each gate the subject failed, a warning for each doubt.
pub fn annotations(result: &RunResult) -> String {
    let mut s = String::new();
    for g in result.gates.iter().filter(|g| !g.passed) {
        let level = if g.kind == GateKind::Subject { "error" } else { "warning" };
        let title = escape(&format!("{} / {}", result.scenario, g.arm), true);
        let text = escape(&format!("{}: {} ({})", g.name, g.observed, g.limit), false);
        let _ = writeln!(s, "::{level} title={title}::{text}");
    }
    s
}

/// Workflow commands are lines; properties end at commas and colons.
fn escape(text: &str, property: bool) -> String {
    let s = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if property { s.replace(':', "%3A").replace(',', "%2C") } else { s }
}
