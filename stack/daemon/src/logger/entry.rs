//! One message: its text, its fields, and the line that it becomes.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::Level;
use tracing::field::{Field, Visit};

use crate::clock;

/// Maximum length of a message, bytes. With its prefix and suffix it is a line that a pipe takes whole (PIPE_BUF is
/// 4096), in JSON too, where its control characters and quotes are longer.
const MESSAGE_MAX: usize = 3072;

/// Fields that precede the message in a line of text, in their order.
const SUBJECTS: [&str; 2] = ["budget", "container"];

/// Most bytes of the fields of a message.
const FIELDS_MAX: usize = 512;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line, with time, level, message, and the container or budget that it is about.
    Json,
}

/// The format of this process is [`LogFormat::Json`].
static JSON: AtomicBool = AtomicBool::new(false);

impl LogFormat {
    /// The format of this process.
    pub(super) fn current() -> Self {
        if JSON.load(Ordering::Relaxed) { Self::Json } else { Self::Text }
    }

    /// Sets the format of this process.
    pub(super) fn set(self) {
        JSON.store(self == Self::Json, Ordering::Relaxed);
    }
}

/// A message before it is written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// `None`: why the process ends.
    level: Option<Level>,
    message: String,
    fields: Vec<(&'static str, String)>,
    /// Messages of the same kind that were suppressed before this one.
    left_out: u64,
}

/// The JSON form, in the order of the keys.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: String,
    message: &'a str,
    #[serde(flatten)]
    fields: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suppressed: Option<u64>,
}

impl Entry {
    /// A message without fields.
    pub(super) fn new(level: Option<Level>, message: impl fmt::Display) -> Self {
        Self { level, message: message.to_string(), ..Self::default() }
    }

    /// The message of an event, with its fields.
    pub(super) fn of(event: &tracing::Event<'_>, left_out: u64) -> Self {
        let level = Some(*event.metadata().level());
        let mut entry = Self { level, left_out, ..Self::default() };
        event.record(&mut entry);
        entry
    }

    /// One line in the format of this process.
    pub(super) fn line(&self) -> String {
        match LogFormat::current() {
            LogFormat::Text => self.text(),
            LogFormat::Json => self.json(clock::unix_time_ns()),
        }
    }

    /// Control characters are escaped, since parts of the text may come from a guest or from the command line.
    fn text(&self) -> String {
        let mut text = String::from("skbudget: ");
        // Writing to a String does not fail.
        if let Some(level) = self.level {
            let _ = write!(text, "{}: ", level.as_str().to_lowercase());
        }
        let is_subject = |name: &str| SUBJECTS.contains(&name);
        let mut whole = String::new();
        for subject in SUBJECTS {
            let found = self.fields.iter().filter(|(name, _)| *name == subject);
            found.for_each(|(name, value)| whole.push_str(&format!("{name} {value}: ")));
        }
        whole.push_str(&self.message);
        let others = self.fields.iter().filter(|(name, _)| !is_subject(name));
        others.for_each(|(name, value)| whole.push_str(&format!(" {name}={value}")));
        for c in whole.chars() {
            if text.len() > MESSAGE_MAX {
                text.push_str("...");
                break;
            }
            if c.is_control() {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        if self.left_out > 0 {
            let _ = write!(text, " ({} similar messages suppressed)", self.left_out);
        }
        text.push('\n');
        text
    }

    fn json(&self, unix_ns: u64) -> String {
        // Why the process ends is an error.
        let level = self.level.map_or("error", |level| level.as_str()).to_lowercase();
        let cut = |text: &str, max| cut(text, max);
        let field = |(name, value): &(&'static str, String)| {
            ((*name).to_owned(), Value::from(cut(value, FIELDS_MAX / self.fields.len().max(1))))
        };
        let line = Line {
            time: rfc3339(unix_ns),
            level,
            message: &cut(&self.message, MESSAGE_MAX),
            fields: self.fields.iter().map(field).collect(),
            suppressed: Some(self.left_out).filter(|left_out| *left_out > 0),
        };
        // Serializing texts and numbers does not fail.
        serde_json::to_string(&line).unwrap_or_default() + "\n"
    }
}

impl Visit for Entry {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.fields.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// The start of the text, which takes at most `max` bytes in JSON.
fn cut(text: &str, max: usize) -> String {
    let mut bytes = 0;
    let fits = |(_, c): &(usize, char)| {
        bytes += match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            // As \u and four digits.
            c if c.is_control() => 6,
            c => c.len_utf8(),
        };
        bytes <= max
    };
    let end = text.char_indices().take_while(fits).last().map_or(0, |(at, c)| at + c.len_utf8());
    if end == text.len() { text.to_owned() } else { format!("{}...", &text[..end]) }
}

/// A time of day in UTC with microseconds (RFC 3339).
fn rfc3339(unix_ns: u64) -> String {
    let (seconds, micros) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000 / 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The calendar repeats every 400 years of 146,097 days. Years start in March here, so that the leap day is the last
    // one; the first such cycle starts 719,468 days before 1970.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    let (year, hour, minute) = (year + era * 400, second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{micros:06}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(level: Option<Level>, message: &str, left_out: u64) -> Entry {
        Entry { level, message: message.to_owned(), fields: Vec::new(), left_out }
    }

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let hostile = "a\nskbudget: b\u{1b}[2J\r";
        assert_eq!(
            entry(Some(Level::WARN), hostile, 0).text(),
            "skbudget: warn: a\\nskbudget: b\\u{1b}[2J\\r\n"
        );
        assert_eq!(entry(None, "x", 3).text(), "skbudget: x (3 similar messages suppressed)\n");
        let mut long = entry(None, &"\u{1b}ä\"".repeat(10_000), u64::MAX);
        let text = long.text();
        assert!((MESSAGE_MAX..4096).contains(&text.len()), "{}", text.len());
        assert_eq!(text.matches('\n').count(), 1);
        long.fields = vec![("container", "\u{1}".repeat(1000)), ("budget", "b".repeat(1000))];
        let json = long.json(0);
        assert!((MESSAGE_MAX..4096).contains(&json.len()), "{}", json.len());
        assert_eq!(json.matches('\n').count(), 1);
    }

    #[test]
    fn subjects_precede_the_message_and_are_fields_in_json() {
        let mut entry = entry(Some(Level::INFO), "flow \"refused\"", 2);
        entry.fields =
            ["container", "port", "budget"].map(|name| (name, format!("a-{name}"))).into();
        let expected = "skbudget: info: budget a-budget: container a-container: flow \"refused\" \
                        port=a-port (2 similar messages suppressed)\n";
        assert_eq!(entry.text(), expected);
        let json: Value = serde_json::from_str(&entry.json(1_764_336_302_123_456_789)).unwrap();
        let expected = serde_json::json!({
            "time": "2025-11-28T13:25:02.123456Z", "level": "info", "message": "flow \"refused\"",
            "container": "a-container", "port": "a-port", "budget": "a-budget", "suppressed": 2,
        });
        assert_eq!(json, expected);
        let json: Value = serde_json::from_str(&Entry::new(None, "x").json(0)).unwrap();
        let expected = serde_json::json!({"time": "1970-01-01T00:00:00.000000Z", "level": "error", "message": "x"});
        assert_eq!(json, expected);
    }

    #[test]
    fn dates_of_leap_years_and_ends_of_years() {
        for (seconds, date) in [
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_799, "2000-02-29T23:59:59"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_735_689_600, "2025-01-01T00:00:00"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000_000_000), format!("{date}.000000Z"));
        }
    }
}
