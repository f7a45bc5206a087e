//! All output of this program passes through here. Names and messages come from files of other people; a control
//! character in them would move the cursor, or change colours or the window's title. It is printed as `\u001b`, which
//! JSON and TOML parse as that character.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use crate::exit::Failure;

/// Prints to standard output; returns the exit code of success. On a terminal, marks of failures are coloured.
pub(crate) fn print(text: &str) -> Result<u8, Failure> {
    let shown = escape(text);
    let shown = if colours() { Cow::Owned(paint(&shown)) } else { shown };
    match io::stdout().write_all(shown.as_bytes()) {
        // A full disk behind the redirection loses the verdict: the caller must see it.
        Err(e) if !is_reader_gone(&e) => Err(Failure::io("stdout", e)),
        Ok(()) | Err(_) => Ok(0),
    }
}

/// Prints one or more lines to standard error; ignores errors, because there is no other place to report them.
pub(crate) fn print_stderr(text: &str) {
    let _ = writeln!(io::stderr(), "{}", escape(text.trim_end()));
}

/// The same, but only on a terminal: progress messages are of no use in a log.
pub(crate) fn note(text: &str) {
    if io::stderr().is_terminal() {
        print_stderr(text);
    }
}

/// Replaces the last line of standard error, which is a terminal.
pub(crate) fn progress(line: &str) {
    let _ = write!(io::stderr(), "\r\x1b[K{}", escape(line));
}

/// A closed reader (a pager, `head`, a terminal that hung up) is not an error.
fn is_reader_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::BrokenPipe || e.raw_os_error() == Some(nix::libc::EIO)
}

/// Escapes control characters, but keeps line breaks and tabs. Direction marks are not control characters in Unicode,
/// but they reorder the text on the screen.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    let bad = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if bad(c) {
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// <https://no-color.org>: a variable counts if it is set and not empty.
fn colours() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

const RED: &str = "1;31";
const YELLOW: &str = "1;33";
const GREEN: &str = "1;32";
/// Starts of lines, and their colours.
const MARKS: &[(&str, &str)] = &[
    ("FAIL", RED),
    ("WORSE", RED),
    ("unclear", YELLOW),
    ("doubt", YELLOW),
    ("VERDICT: PASS", GREEN),
    ("VERDICT: INCONCLUSIVE", YELLOW),
    ("VERDICT: INTERRUPTED", YELLOW),
    ("VERDICT: FAIL", RED),
    ("VERDICT: REGRESSION", RED),
    ("VERDICT: NO-BASELINE", RED),
    ("VERDICT: ERROR", RED),
];

/// Colours the marks at the starts of lines.
fn paint(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.split_inclusive('\n') {
        let mark = MARKS.iter().find_map(|(m, c)| Some((*m, line.strip_prefix(m)?, *c)));
        let _ = match mark {
            Some((mark, rest, colour)) => write!(out, "\x1b[{colour}m{mark}\x1b[0m{rest}"),
            None => write!(out, "{line}"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn no_control_character_gets_through_and_json_stays_json() {
        assert_eq!(
            escape("a\x1b[31mb\u{9b}c\u{7f}\r\n\td"),
            "a\\u001b[31mb\\u009bc\\u007f\\u000d\n\td"
        );
        assert_eq!(escape("\u{202e}abc"), "\\u202eabc");
        let json = "{\"name\":\"x\u{9b}y\"}";
        let read: serde_json::Value = serde_json::from_str(&escape(json)).unwrap();
        assert_eq!(read["name"], "x\u{9b}y");
        assert!(matches!(escape("plain ≥ 1 ms\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn only_marks_at_the_start_of_a_line_have_a_colour() {
        let text = "ok    a\nFAIL  b FAIL\nVERDICT: FAIL exit=3\n";
        let want =
            "ok    a\n\x1b[1;31mFAIL\x1b[0m  b FAIL\n\x1b[1;31mVERDICT: FAIL\x1b[0m exit=3\n";
        assert_eq!(paint(text), want);
    }

    /// The agent's report to its parent goes through a pipe.
    #[test]
    fn nothing_else_in_this_crate_prints() {
        fn walk(dir: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
                let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if entry.is_dir() {
                    walk(&entry, found);
                } else if !["terminal.rs", "agent.rs"].contains(&name.as_str()) {
                    let text = fs::read_to_string(&entry).unwrap_or_default();
                    // The agent is exempt: its standard output is the pipe to its parent.
                    let words = ["::stdout()", "::stderr()", "println!(", "print!("];
                    let prints = |l: &&str| words.iter().any(|w| l.contains(w));
                    found.extend(text.lines().filter(prints).map(|l| format!("{name}: {l}")));
                }
            }
        }
        let mut found = Vec::new();
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        found.retain(|l| !l.contains("is_terminal()"));
        assert!(found.is_empty(), "{found:#?}");
    }
}
