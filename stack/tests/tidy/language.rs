//! The language of comments: plain English of the field, as CONTRIBUTING.md asks for.
//!
//! Words of everyday speech that stand for a dozen things each are counted per 1,000 words of comment. The limits only
//! fall: who writes better comments lowers them.

use crate::{Source, sources};

/// CONTRIBUTING.md has the word to write in place of each.
const VAGUE: &[&str] = &[
    "say",
    "says",
    "said",
    "saying",
    "tell",
    "tells",
    "told",
    "telling",
    "hear",
    "hears",
    "heard",
    "hearing",
    "speak",
    "speaks",
    "spoke",
    "ask",
    "asks",
    "asked",
    "asking",
    "look",
    "looks",
    "looked",
    "looking",
    "stand",
    "stands",
    "stood",
    "standing",
    "who",
    "whom",
    "whose",
    "nobody",
    "somebody",
    "everybody",
    "begin",
    "begins",
    "began",
    "begun",
    "beginning",
    "else",
];

/// Of one package.
struct Limits {
    folder: &'static str,
    /// Vague words in 1,000 words of comment, at most.
    vague: f64,
    /// Lines of product code in 1,000 that are documentation, and comments beside code, at least.
    docs: usize,
    inline: usize,
}

const LIMITS: &[Limits] = &[
    Limits { folder: "controller", vague: 0.5, docs: 190, inline: 30 },
    Limits { folder: "stack", vague: 0.5, docs: 130, inline: 30 },
    Limits { folder: "stack/sim", vague: 0.1, docs: 85, inline: 15 },
    Limits { folder: "stack/sim/seed", vague: 0.1, docs: 150, inline: 5 },
    Limits { folder: "stack/daemon", vague: 0.5, docs: 120, inline: 30 },
    Limits { folder: "stack/daemon/testbed", vague: 0.5, docs: 40, inline: 5 },
    Limits { folder: "loadgen", vague: 0.6, docs: 90, inline: 30 },
    Limits { folder: "benches", vague: 0.5, docs: 85, inline: 30 },
];

/// What the comments of one package come to.
#[derive(Debug, Default)]
struct Comments {
    words: usize,
    vague: usize,
    /// Of product code only.
    lines: usize,
    docs: usize,
    inline: usize,
}

impl Comments {
    fn add(&mut self, source: &Source) {
        let product = source.product().lines().count();
        for (i, line) in lines(&source.text).into_iter().enumerate() {
            let words = line.comment.split(|c: char| !c.is_alphabetic() && c != '\'');
            for word in words.filter(|word| !word.is_empty()) {
                self.words += 1;
                self.vague += usize::from(VAGUE.contains(&word.to_lowercase().as_str()));
            }
            if source.is_test() || i >= product {
                continue;
            }
            self.lines += 1;
            match (line.comment.is_empty(), line.is_doc) {
                (true, _) => {}
                (false, true) => self.docs += 1,
                (false, false) => self.inline += 1,
            }
        }
    }

    fn permille(&self, lines: usize) -> usize {
        lines * 1000 / self.lines.max(1)
    }
}

#[derive(Default)]
struct Line {
    comment: String,
    is_doc: bool,
}

/// The comments of a text line by line. Slashes within strings are none.
fn lines(text: &str) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        if rest.starts_with("//") {
            taken = rest.find('\n').unwrap_or(rest.len());
            let last = lines.last_mut().expect("one is there from the start");
            last.comment.push_str(&rest[..taken]);
            last.is_doc = rest.starts_with("///") || rest.starts_with("//!");
        } else if let Some(length) = literal(rest) {
            taken = length;
            lines.extend(rest[..taken].matches('\n').map(|_| Line::default()));
        } else if c == '\n' {
            lines.push(Line::default());
        }
        rest = &rest[taken..];
    }
    lines
}

/// Bytes of the string or character that `rest` starts with.
fn literal(rest: &str) -> Option<usize> {
    let quoted = |quote: char| {
        let mut chars = rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == '\\' {
                chars.next();
            } else if c == quote {
                return Some(at + 1);
            }
        }
        None
    };
    if rest.starts_with('"') {
        return quoted('"');
    }
    if rest.starts_with("r\"") || rest.starts_with("r#") {
        let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
        let body = rest[1 + hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        return body.find(&end).map(|at| 2 + hashes + at + end.len());
    }
    // A lifetime has no second quote, or it is that of another one further on.
    rest.starts_with('\'')
        .then(|| quoted('\''))
        .flatten()
        .filter(|length| *length <= 12)
        .filter(|length| rest[1..].starts_with('\\') || rest[..*length].chars().count() == 3)
}

#[test]
fn comments_are_found_beside_strings() {
    let text = "//! Head.\nlet url = \"https://a\"; // why\nlet c = '\"'; /// doc\nfn f<'a>(x: &'a str) {} // end\n\
                let raw = r#\"// no\n// no \"#; // yes\n";
    let found: Vec<(String, bool)> = lines(text)
        .into_iter()
        .map(|l| (l.comment, l.is_doc))
        .filter(|l| !l.0.is_empty())
        .collect();
    let expected = [
        ("//! Head.", true),
        ("// why", false),
        ("/// doc", true),
        ("// end", false),
        ("// yes", false),
    ];
    assert_eq!(found, expected.map(|(text, is_doc)| (text.to_owned(), is_doc)));
}

#[test]
fn comments_use_the_words_of_the_field() {
    let sources = sources();
    let mut wrong = Vec::new();
    for limits in LIMITS {
        let of = |folder: &str, s: &Source| s.path.starts_with(&format!("{folder}/"));
        let inner = |s: &Source| {
            LIMITS
                .iter()
                .any(|other| other.folder.len() > limits.folder.len() && of(other.folder, s))
        };
        let mut found = Comments::default();
        for source in sources.iter().filter(|s| of(limits.folder, s) && !inner(s) && !s.is_tidy()) {
            found.add(source);
        }
        let vague = found.vague as f64 * 1000.0 / found.words.max(1) as f64;
        let (docs, inline) = (found.permille(found.docs), found.permille(found.inline));
        let folder = limits.folder;
        println!(
            "{folder}: {vague:.2} vague words in 1,000; docs {docs}, inline {inline} of 1,000 lines"
        );
        if vague > limits.vague {
            wrong
                .push(format!("{folder}: {vague:.2} vague words in 1,000, limit {}", limits.vague));
        }
        if docs < limits.docs {
            wrong
                .push(format!("{folder}: {docs} lines of docs in 1,000, at least {}", limits.docs));
        }
        if inline < limits.inline {
            wrong.push(format!(
                "{folder}: {inline} inline comments in 1,000, at least {}",
                limits.inline
            ));
        }
    }
    crate::none("comments (run with --nocapture for all numbers)", &wrong);
}
