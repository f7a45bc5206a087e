//! Writes `result.json` and `verdict.json`, and reads results back.

use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;

use crate::exit::Failure;
use crate::measure::result::{GateResult, RunResult, SCHEMA, Verdict, shape};
use crate::scenario::bounded;

/// The schema of `verdict.json`.
pub const VERDICT_SCHEMA: &str = "loadgen.verdict/1";

/// The text of `result.json`.
pub fn result(result: &RunResult) -> Result<String, Failure> {
    pretty("result.json", result)
}

/// What a script needs: exit code and gates, without the measurements.
#[derive(Debug, Serialize)]
struct VerdictFile<'a> {
    schema: &'static str,
    scenario: &'a str,
    target: &'a str,
    seed: u64,
    verdict: &'a Verdict,
    gates: &'a [GateResult],
}

/// The text of `verdict.json`.
pub fn verdict(result: &RunResult) -> Result<String, Failure> {
    let file = VerdictFile {
        schema: VERDICT_SCHEMA,
        scenario: &result.scenario,
        target: &result.target,
        seed: result.seed,
        verdict: &result.verdict,
        gates: &result.gates,
    };
    pretty("verdict.json", &file)
}

/// Pretty-printed JSON with each series of numbers on one line.
pub fn pretty(name: &str, value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::io(name, e))?;
    Ok(compact_series(&text) + "\n")
}

/// Joins series of numbers: otherwise a result has thousands of lines with one number each.
fn compact_series(pretty: &str) -> String {
    let mut out = String::with_capacity(pretty.len());
    let mut in_series = false;
    for (i, line) in pretty.lines().enumerate() {
        let word = line.trim();
        let number = word.trim_end_matches(',');
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        if is_number || (in_series && word.starts_with(']')) {
            // `pretty` ends the line before the first number; later numbers follow on the same line.
            out.push_str(if is_number && in_series { " " } else { "" });
            out.push_str(word);
        } else {
            out.push_str(if i == 0 { "" } else { "\n" });
            out.push_str(line);
        }
        in_series = is_number;
    }
    out
}

/// Reads a result: the file, or the folder of a run. A file with another schema is no usable baseline.
pub fn read(path: &Path) -> Result<RunResult, Failure> {
    let file = if path.is_dir() { path.join("result.json") } else { path.to_path_buf() };
    let shown = file.display();
    let text = bounded::read(&file, bounded::RESULT_BYTES_MAX).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Failure::NoBaseline(format!("{shown}: no such file")),
        // Not a regular file, or larger than any result.
        ErrorKind::InvalidInput => Failure::Usage(format!("{shown}: {e}")),
        ErrorKind::InvalidData => Failure::NoBaseline(format!("{shown} is not JSON: {e}")),
        _ => Failure::io(shown.to_string(), e),
    })?;
    // First as a generic value, so that another schema gets its own error.
    let value: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Failure::NoBaseline(format!("{shown} is not JSON: {e}")))?;
    let schema = value.get("schema").and_then(|s| s.as_str()).unwrap_or("none");
    if schema != SCHEMA {
        return Err(Failure::NoBaseline(format!("{shown}: schema {schema}, not {SCHEMA}")));
    }
    let wrong =
        |why: String| Failure::NoBaseline(format!("{shown} does not conform to {SCHEMA}: {why}"));
    let result: RunResult = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
    shape::check(&result).map_err(wrong)?;
    Ok(result)
}

/// Reads a result that a command judges or shows: without it the command line is wrong, whereas a baseline may be
/// missing, for example in the first build.
pub fn read_argument(path: &Path) -> Result<RunResult, Failure> {
    read(path).map_err(Failure::of_argument)
}
