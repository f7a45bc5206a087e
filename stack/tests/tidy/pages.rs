//! The rule book and the guide: what comments cite is there, and what the pages name exists.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use crate::{Source, none, sources};

/// The pages with the rules as headings; comments cite their codes.
const RULE_PAGES: &[&str] = &["controller/docs/pressure-model.md", "controller/docs/kernel.md"];

/// The codes of headings such as `### K7 The soft test`.
fn rule_codes() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut codes = Vec::new();
    for page in RULE_PAGES {
        let text = fs::read_to_string(root.join(page)).expect(page);
        let headings = text.lines().filter_map(|line| line.strip_prefix("### "));
        codes.extend(headings.filter_map(|h| cited_codes(h).next().map(str::to_owned)));
    }
    codes
}

/// The comment of a line, if it has one.
fn comment(line: &str) -> &str {
    line.find("//").map_or("", |at| &line[at..])
}

/// Words of one capital letter and one or two digits.
/// Lines that name another source have none: RFCs, HdrHistogram's V2.
fn cited_codes(comment: &str) -> impl Iterator<Item = &str> {
    let other_book = ["RFC", "Histogram", "histogram"].iter().any(|book| comment.contains(book));
    let is_code = |word: &&str| {
        let digits = word.strip_prefix(|c: char| c.is_ascii_uppercase()).unwrap_or_default();
        (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let words = comment.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.');
    words.map(|word| word.trim_end_matches('.')).filter(is_code).filter(move |_| !other_book)
}

#[test]
fn a_cited_rule_has_a_heading() {
    let codes = rule_codes();
    let mut sorted = codes.clone();
    sorted.sort();
    sorted.dedup();
    assert!(
        sorted.len() == codes.len() && codes.len() > 30,
        "each rule has one heading: {codes:?}"
    );
    let mut found = Vec::new();
    for source in sources() {
        // The vectors there have numbers with an S.
        let vectors = source.path.starts_with("controller/tests/strict_vectors");
        for (i, line) in source.text.lines().enumerate() {
            for code in cited_codes(comment(line)) {
                let known = codes.iter().any(|c| c == code) || vectors && code.starts_with('S');
                if !known {
                    found.push(format!("{}:{}: {code}", source.path, i + 1));
                }
            }
        }
    }
    none(&format!("cited, and no heading in {}", RULE_PAGES.join(", ")), &found);
}

#[test]
fn a_heading_with_a_code_is_cited() {
    let sources = sources();
    let lines = sources.iter().filter(|s| !s.is_tidy()).flat_map(|s| s.text.lines());
    let cited: HashSet<&str> = lines.flat_map(|line| cited_codes(comment(line))).collect();
    let unused: Vec<String> =
        rule_codes().into_iter().filter(|c| !cited.contains(c.as_str())).collect();
    none(
        "no comment cites it: cite it where it is kept, or take the code off the heading",
        &unused,
    );
}

#[test]
fn comments_cite_what_is_in_the_repository() {
    let papers = [
        "kernel notes",
        "kernel-notes",
        "loadgen-notes",
        "design section",
        "pressure model section",
    ];
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !s.is_tidy()) {
        for (i, line) in source.text.lines().enumerate() {
            if papers.iter().any(|paper| comment(line).contains(paper)) {
                found.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
            }
        }
    }
    none("a paper that is not here", &found);
}

/// Names of a page that do not exist: words that end in `.rs`, and in table rows the functions (`name`) that follow a
/// file.
fn missing_names(page: &str, sources: &[Source]) -> Vec<String> {
    let mut missing = Vec::new();
    let folders = ["", "stack/", "stack/src/", "controller/src/"];
    let is =
        |source: &Source, name: &str| folders.iter().any(|f| source.path == format!("{f}{name}"));
    let file = |name: &str| sources.iter().find(|source| is(source, name));
    let joins = |c: char| c.is_alphanumeric() || "_./".contains(c);
    for line in page.lines() {
        let mut last: Option<&Source> = None;
        for word in line.split(|c| !joins(c)).filter(|w| w.ends_with(".rs")) {
            if file(word).is_none() {
                missing.push(format!("{word}: no such file"));
            }
        }
        // Between backticks: every second part.
        let row = line.trim_start_matches("//! ").starts_with('|');
        for name in line.split('`').skip(1).step_by(2).filter(|_| row) {
            if name.ends_with(".rs") {
                last = file(name);
            } else if let Some(source) = last
                && !source.text.contains(&format!("fn {name}("))
            {
                missing.push(format!("{name}: no such function in {}", source.path));
            }
        }
    }
    missing
}

#[test]
fn the_pages_name_files_and_functions_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let sources = sources();
    let read = |page: &str| fs::read_to_string(root.join(page)).expect(page);
    let head = read("stack/src/lib.rs")
        .lines()
        .filter(|l| l.starts_with("//!"))
        .collect::<Vec<_>>()
        .join("\n");
    none("stack/src/lib.rs", &missing_names(&head, &sources));
    for page in RULE_PAGES {
        none(page, &missing_names(&read(page), &sources));
    }
}

#[test]
fn the_guide_lists_the_steps_of_ci() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let guide = fs::read_to_string(root.join("CONTRIBUTING.md")).expect("the guide");
    let ci = fs::read_to_string(root.join(".ci/run")).expect("the steps");
    let steps =
        ci.lines().filter_map(|line| line.trim().strip_prefix("step \"")?.split('"').next());
    // The step of each group contains the group's name.
    let steps: Vec<String> = steps.map(|step| step.replace("$name", "GROUP")).collect();
    assert!(steps.len() > 10, "{steps:?}");
    let missing: Vec<String> =
        steps.into_iter().filter(|s| !guide.contains(&format!("| `{s}` |"))).collect();
    none("steps of .ci/run without a line in CONTRIBUTING.md", &missing);
}
