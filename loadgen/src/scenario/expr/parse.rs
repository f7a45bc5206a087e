//! Parses a condition, and refuses everything that cannot be judged.

use super::{FUNS, METRICS, Node, OPS, Term, ValueKind, words};
use crate::units::{Unit, excerpt, hint_or_all};

/// Maximum depth of parentheses, and number of terms of a condition. Parser, evaluation and drop recurse: one frame for
/// each parenthesis, or for each term of a chain of `&&`, `||` or `/`.
const DEPTH_MAX: usize = 64;
const TERMS_MAX: usize = 1000;

pub(super) struct Parser<'a> {
    rest: &'a str,
    /// Open parentheses, and terms parsed.
    depth: usize,
    terms: usize,
    groups: &'a [&'a str],
    /// Error of the first comparison between different kinds.
    unlike: Option<String>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str, groups: &'a [&'a str]) -> Self {
        Self { rest: text, depth: 0, terms: 0, groups, unlike: None }
    }

    pub(super) fn whole(mut self) -> Result<Node, String> {
        let root = self.or()?;
        self.rest = self.rest.trim_start();
        if !self.rest.is_empty() {
            return Err(format!("unexpected '{}': && or || expected", excerpt(self.rest)));
        }
        self.unlike.map_or(Ok(root), Err)
    }

    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest;
        true
    }

    fn or(&mut self) -> Result<Node, String> {
        let mut left = self.and()?;
        while self.eat("||") {
            left = Node::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Node, String> {
        let mut left = self.test()?;
        while self.eat("&&") {
            left = Node::And(Box::new(left), Box::new(self.test()?));
        }
        Ok(left)
    }

    fn test(&mut self) -> Result<Node, String> {
        if self.eat("(") {
            self.depth += 1;
            if self.depth > DEPTH_MAX {
                return Err(format!("more than {DEPTH_MAX} parentheses inside each other"));
            }
            let inner = self.or()?;
            self.depth -= 1;
            return if self.eat(")") { Ok(inner) } else { Err("missing ')'".to_owned()) };
        }
        let (left, left_text) = self.ratio()?;
        // `<=` is before `<` in the table, so the longer operator matches first.
        let Some((_, op)) = OPS.iter().find(|(token, _)| self.eat(token)) else {
            return Err(format!("expected one of <= >= < > == != before '{}'", excerpt(self.rest)));
        };
        let (right, right_text) = self.ratio()?;
        let (left_text, right_text) = (excerpt(left_text), excerpt(right_text));
        if [&left, &right].iter().all(|side| side.is_literal()) {
            // The outcome is the same for every run.
            let what =
                format!("'{left_text}' and '{right_text}' are literals: nothing is measured");
            self.unlike.get_or_insert(what);
        }
        if comparable(&left, &right) {
            return Ok(Node::Test(left, *op, right));
        }
        let (a, b) = (left.kind(), right.kind());
        let unit = match (a, b) {
            (ValueKind::Bare, ValueKind::Time) | (ValueKind::Time, ValueKind::Bare) => {
                "; a time needs a unit, for example 5ms"
            }
            _ => "",
        };
        let (a, b) = (a.word(), b.word());
        let what = format!(
            "'{left_text}' is {a} and '{right_text}' is {b}: they cannot be compared{unit}"
        );
        // Keep only the error: a syntax error further on is reported in preference to it.
        self.unlike.get_or_insert(what);
        Ok(Node::Test(left, *op, right))
    }

    /// Parses a ratio; returns it with its source text.
    fn ratio(&mut self) -> Result<(Term, &'a str), String> {
        self.rest = self.rest.trim_start();
        let from = self.rest;
        let mut left = self.term()?;
        while self.eat("/") {
            let right = self.term()?;
            let (a, b) = (left.kind(), right.kind());
            if a != b && !matches!(b, ValueKind::Bare | ValueKind::Plain) {
                let what = format!("{} cannot be divided by {}", a.word(), b.word());
                self.unlike.get_or_insert(what);
            }
            left = Term::Ratio(Box::new(left), Box::new(right));
        }
        Ok((left, from[..from.len() - self.rest.len()].trim_end()))
    }

    fn word(&mut self) -> String {
        self.rest = self.rest.trim_start();
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '%');
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn term(&mut self) -> Result<Term, String> {
        self.terms += 1;
        if self.terms > TERMS_MAX {
            return Err(format!("more than {TERMS_MAX} terms"));
        }
        let word = self.word();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return number(&word).map(|(n, kind)| Term::Number(n, kind));
        }
        match word.as_str() {
            "overshoot" => return Ok(Term::Overshoot),
            "leaked" => return Ok(Term::Leaked),
            _ => {}
        }
        let Some((_, fun)) = FUNS.iter().find(|(name, _)| *name == word) else {
            return Err(unknown("function", &word, FUNS.iter().map(|f| f.0)));
        };
        if !self.eat("(") {
            return Err(format!("expected '(' after '{}'", excerpt(&word)));
        }
        let inner = self.word();
        if !self.eat(")") {
            return Err(format!("expected ')' after '{}'", excerpt(&inner)));
        }
        // At the first dot: a group name has none, an earlier metric name may.
        let (group, metric) = inner.split_once('.').unwrap_or((&inner, ""));
        if !self.groups.contains(&group) {
            return Err(unknown("group", group, self.groups.iter().copied()));
        }
        let Some((_, known, ..)) = METRICS.iter().find(|m| m.0 == words::canonical(metric)) else {
            return Err(unknown("metric", metric, METRICS.iter().map(|m| m.0)));
        };
        Ok(Term::Over(*fun, group.to_owned(), *known))
    }
}

fn unknown<'a>(what: &str, word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    format!("no {what} '{}'{}", excerpt(word), hint_or_all(word, known))
}

/// Whether two terms may be compared: same kind, or a literal without a unit against a count or a size; 0 always.
fn comparable(a: &Term, b: &Term) -> bool {
    let zero = |t: &Term| matches!(t, Term::Number(n, ValueKind::Bare) if *n == 0.0);
    match (a.kind(), b.kind()) {
        (a, b) if a == b => true,
        (ValueKind::Bare, ValueKind::Plain | ValueKind::Bytes)
        | (ValueKind::Plain | ValueKind::Bytes, ValueKind::Bare) => true,
        _ => zero(a) || zero(b),
    }
}

/// Parses a literal: `1.2`, `5x`, `99.9%`, `1ms`, `4KiB`.
fn number(word: &str) -> Result<(f64, ValueKind), String> {
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    let (digits, unit) = word.split_at(end);
    let n: f64 = digits.parse().map_err(|_| format!("'{}' is not a number", excerpt(word)))?;
    let (scale, kind) = match unit {
        "" => (1.0, ValueKind::Bare),
        "x" => (1.0, ValueKind::Plain),
        "%" => (0.01, ValueKind::Plain),
        // The scale of a unit is the value of "1" with that unit.
        _ => [(Unit::Nanos, ValueKind::Time), (Unit::Bytes, ValueKind::Bytes)]
            .iter()
            .find_map(|(u, kind)| Some((u.parse(&format!("1{unit}")).ok()? as f64, *kind)))
            .ok_or_else(|| format!("'{}': no unit '{}'", excerpt(word), excerpt(unit)))?,
    };
    Ok((n * scale, kind))
}
