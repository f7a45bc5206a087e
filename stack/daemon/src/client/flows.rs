//! `skbudget flows`.

use std::fmt::Write as _;

use super::{names, path_of, send, try_send};
use crate::cli::FlowsArgs;
use crate::exit::Failure;
use crate::flows::{self, FlowList, FlowQuery, FlowReport, SCHEMA};
use crate::stdout::{self, print};

/// Least widths of the columns: the parts of a list are printed as they arrive, and are to be aligned.
const WIDTHS: [usize; 6] = [5, 11, 6, 6, 22, 22];

/// Spaces in front of a line that continues another.
const INDENT: &str = "      ";

/// Prints the flows of one container, or of all.
pub fn flows(args: FlowsArgs) -> Result<u8, Failure> {
    let FlowsArgs { name, json, protocol, state, port, addr, client } = args;
    let query = FlowQuery { protocol, state, port, addr, ..FlowQuery::default() };
    let mut out = Printer { json, width: stdout::width(), first: true, several: name.is_none() };
    if let Some(name) = name {
        // Outside of the loop below: this container must exist.
        list(&name, query, &mut out, |path| send(&client, "GET", path, None::<&()>).map(Some))?;
        return out.end().map(|()| 0);
    }
    for name in names(&client)? {
        // A container that has ended since it was listed has no flows.
        list(&name, query.clone(), &mut out, |path| try_send(&client, path))?;
    }
    out.end().map(|()| 0)
}

/// Prints the flows of one container, part after part. `get` returns `None` for a container that has ended.
fn list(
    name: &str,
    mut query: FlowQuery,
    out: &mut Printer,
    get: impl Fn(&str) -> Result<Option<FlowList>, Failure>,
) -> Result<(), Failure> {
    loop {
        // A new path for each part: it contains where the part starts.
        let path = path_of("containers", name, &format!("/flows{}", query.to_path()))?;
        let Some(part) = get(&path)? else { return Ok(()) };
        out.flows(name, &part.flows)?;
        query.after = part.next;
        if query.after.is_none() {
            return Ok(());
        }
    }
}

/// Prints flows as they arrive: a list of all flows may be large.
#[derive(Debug)]
struct Printer {
    json: bool,
    /// Of the terminal; `None`: stdout is another file.
    width: Option<usize>,
    /// Nothing is printed yet.
    first: bool,
    /// The flows of several containers: each line has the name.
    several: bool,
}

impl Printer {
    /// Prints a part of the list.
    fn flows(&mut self, name: &str, flows: &[FlowReport]) -> Result<(), Failure> {
        let mut text = String::new();
        for flow in flows {
            if self.json {
                self.json(name, flow, &mut text)?;
            } else {
                if std::mem::take(&mut self.first) {
                    self.line("CONTAINER", &flows::HEAD.map(str::to_owned), &mut text);
                }
                self.line(name, &flows::row(flow), &mut text);
            }
        }
        print(&text)
    }

    /// One object, in an array that is printed as it grows.
    fn json(&mut self, name: &str, flow: &FlowReport, text: &mut String) -> Result<(), Failure> {
        let failed = |e: serde_json::Error| Failure::other(e.to_string());
        // Added here: the daemon's answer has the name once, for all of its flows.
        let mut object = serde_json::to_value(flow).map_err(failed)?;
        object["container"] = name.into();
        let start = self.start();
        // Writing to a String does not fail.
        let _ = write!(text, "{start}{object}");
        Ok(())
    }

    /// What is in front of the next element.
    fn start(&mut self) -> String {
        match std::mem::take(&mut self.first) {
            true => format!("{{\"schema\":\"{SCHEMA}\",\"flows\":["),
            false => ",".to_owned(),
        }
    }

    /// One flow. On a terminal that is too narrow the details follow on lines of their own.
    fn line(&self, name: &str, cells: &[String; 7], text: &mut String) {
        let [columns @ .., details] = cells;
        // Names are longer at times; then only this line is not aligned.
        let mut line = if self.several { format!("{name:<12}  ") } else { String::new() };
        for (cell, width) in columns.iter().zip(WIDTHS) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        // Characters and not bytes: a name may have more bytes than columns.
        let fits = |width| line.chars().count() + details.chars().count() <= width;
        if self.width.is_none_or(fits) {
            let _ = writeln!(text, "{line}{details}");
            return;
        }
        let width = self.width.unwrap_or(usize::MAX);
        let line: String = line.trim_end().chars().take(width).collect();
        let _ = writeln!(text, "{line}");
        text.push_str(&wrapped(details, width));
    }

    /// Prints what follows the last flow.
    fn end(mut self) -> Result<(), Failure> {
        match (self.json, self.first) {
            (true, true) => print(&format!("{}]}}\n", self.start())),
            (true, false) => print("]}\n"),
            // A table without rows has its head, too.
            (false, true) => {
                let mut text = String::new();
                self.line("CONTAINER", &flows::HEAD.map(str::to_owned), &mut text);
                print(&text)
            }
            (false, false) => Ok(()),
        }
    }
}

/// The words as lines of that width, as far as the words allow, with an indent.
fn wrapped(words: &str, width: usize) -> String {
    let (mut text, mut line) = (String::new(), INDENT.to_owned());
    for word in words.split(' ') {
        // A word that is longer than the line has a line of its own.
        if line.len() > INDENT.len() && line.len() + word.len() > width {
            let _ = writeln!(text, "{}", line.trim_end());
            line = INDENT.to_owned();
        }
        let _ = write!(line, "{word} ");
    }
    let _ = writeln!(text, "{}", line.trim_end());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells() -> [String; 7] {
        ["tcp", "ESTAB", "0", "12", "10.0.2.100:40000", "127.0.0.1:80", "skmem:(r0,d0) rto:200 x"]
            .map(str::to_owned)
    }

    #[test]
    fn details_follow_below_on_a_narrow_terminal_only() {
        let printer = |width, several| Printer { json: false, width, first: false, several };
        let mut text = String::new();
        printer(None, true).line("web", &cells(), &mut text);
        assert!(text.starts_with("web           tcp    ESTAB        0       12      10.0.2.100"));
        assert!(text.ends_with("  skmem:(r0,d0) rto:200 x\n") && text.lines().count() == 1);
        let mut text = String::new();
        printer(Some(30), false).line("web", &cells(), &mut text);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1..], ["      skmem:(r0,d0) rto:200 x"]);
        assert!(lines[0].chars().count() <= 30);
        assert_eq!(wrapped("aaa bbb cc", 10), "      aaa\n      bbb\n      cc\n");
    }
}
