//! Readers that follow the rules of other programs, independent of the writers.

use std::collections::BTreeMap;

use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// A line of an interval log.
#[derive(Debug)]
pub(crate) struct LogLine {
    pub(crate) tag: Option<String>,
    pub(crate) start: f64,
    pub(crate) length: f64,
    pub(crate) max: f64,
    pub(crate) encoded: String,
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) version: bool,
    pub(crate) start_time: Option<f64>,
    pub(crate) base_time: Option<f64>,
    pub(crate) lines: Vec<LogLine>,
}

/// The rules of Java's HistogramLogReader: tokens end at commas, white space and line ends; a token with a leading `#`
/// is a comment, one with a leading `"StartTimestamp"` the legend, `Tag=` a tag; then three numbers and the histogram.
pub(crate) fn java_log(text: &str) -> Log {
    let mut log = Log::default();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            let second = comment.split(' ').nth(1).and_then(|n| n.parse().ok());
            log.version |= comment.starts_with("[Histogram log format version 1.");
            if comment.starts_with("[StartTime:") {
                log.start_time = second;
            }
            if comment.starts_with("[BaseTime:") {
                log.base_time = second;
            }
            continue;
        }
        if line.starts_with("\"StartTimestamp\"") {
            continue;
        }
        let is_break = |c: char| c == ',' || c.is_whitespace();
        let mut tokens = line.split(is_break).filter(|t| !t.is_empty()).peekable();
        let tag = tokens.next_if(|t| t.starts_with("Tag=")).map(|t| t[4..].to_owned());
        let mut number = || tokens.next().unwrap().parse::<f64>().expect("a number");
        let (start, length, max) = (number(), number(), number());
        let encoded = tokens.next().expect("a histogram").to_owned();
        assert_eq!(tokens.next(), None, "more on the line: {line}");
        assert!(start >= 0.0 && length > 0.0);
        log.lines.push(LogLine { tag, start, length, max, encoded });
    }
    log
}

pub(crate) fn histogram(encoded: &str) -> Histogram<u64> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64");
    // decodeFromCompressedByteBuffer accepts only this cookie.
    assert_eq!(bytes[..4], [0x1c, 0x84, 0x93, 0x14]);
    Deserializer::new().deserialize(&mut bytes.as_slice()).expect("a histogram")
}

/// plotFiles: trimmed lines without a leading `#`, split at spaces only; lines of exactly four fields count, with the
/// value first and 1/(1-p) last.
pub(crate) fn plot_files(text: &str) -> Vec<(f64, f64)> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let rows = lines.map(|l| l.split(' ').filter(|f| !f.is_empty()).collect::<Vec<_>>());
    let mut rows = rows.filter(|r| r.len() == 4);
    assert_eq!(rows.next().expect("a header")[0], "Value");
    rows.map(|r| (r[0].parse().expect("a value"), r[3].parse().expect("an axis"))).collect()
}

#[derive(Debug, Default)]
pub(crate) struct Suite {
    pub(crate) cases: Vec<Case>,
}

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) class: String,
    /// `failure`, `error` or `skipped`.
    pub(crate) outcome: Option<String>,
}

/// Well-formed, nested as JUnit's consumers expect, with correct counts in each suite.
pub(crate) fn junit(text: &str) -> Vec<Suite> {
    let attribute = |e: &BytesStart<'_>, name: &str| -> String {
        let a =
            e.try_get_attribute(name).expect("attributes").unwrap_or_else(|| panic!("no {name}"));
        a.value.into_owned()
    };
    let (mut suites, mut counts) = (Vec::<Suite>::new(), Vec::<[usize; 3]>::new());
    let mut reader = Reader::from_str(text);
    let mut path: Vec<String> = Vec::new();
    loop {
        let event = reader.read_event().expect("well-formed");
        let (element, empty) = match &event {
            Event::Start(e) => (e, false),
            Event::Empty(e) => (e, true),
            Event::End(_) => {
                path.pop();
                continue;
            }
            Event::Eof => break,
            _ => continue,
        };
        let name = element.name().as_ref().to_owned();
        let place = path.join("/");
        match name.as_str() {
            "testsuites" => assert_eq!(place, ""),
            "testsuite" => {
                assert_eq!(place, "testsuites");
                let number = |n: &str| attribute(element, n).parse().expect("a count");
                counts.push([number("tests"), number("failures"), number("errors")]);
                suites.push(Suite::default());
            }
            "properties" => assert_eq!(place, "testsuites/testsuite"),
            "property" => {
                assert_eq!(place, "testsuites/testsuite/properties");
                attribute(element, "value");
            }
            "testcase" => {
                assert_eq!(place, "testsuites/testsuite");
                let (name, class) = (attribute(element, "name"), attribute(element, "classname"));
                suites.last_mut().unwrap().cases.push(Case { name, class, outcome: None });
            }
            "failure" | "error" | "skipped" => {
                assert_eq!(place, "testsuites/testsuite/testcase");
                assert!(!attribute(element, "message").is_empty());
                suites.last_mut().unwrap().cases.last_mut().unwrap().outcome = Some(name.clone());
            }
            other => panic!("an element '{other}'"),
        }
        if !empty {
            path.push(name);
        }
    }
    assert!(path.is_empty());
    for (suite, count) in suites.iter().zip(counts) {
        let of = |o: &str| suite.cases.iter().filter(|c| c.outcome.as_deref() == Some(o)).count();
        assert_eq!([suite.cases.len(), of("failure"), of("error")], count);
    }
    suites
}

#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// OpenMetrics 1.0: one block per family, its metadata first and at most once, names and labels by the grammar, a unit
/// at the end of the name, cumulative histograms with `+Inf` equal to `_count`, no duplicate sample, `# EOF` last.
pub(crate) fn openmetrics(text: &str) -> BTreeMap<String, Family> {
    let body = text.strip_suffix("# EOF\n").expect("ends with # EOF");
    assert!(!body.contains("# EOF") && !body.contains("\n\n"));
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in body.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let (what, name, rest) = (words.next(), words.next().expect("a name"), words.next());
            match what {
                Some("TYPE") => {
                    assert!(is_name(name), "{name}");
                    let kind = rest.expect("a type").to_owned();
                    assert!(["gauge", "histogram", "info", "unknown"].contains(&kind.as_str()));
                    let family = Family { kind, samples: Vec::new() };
                    assert!(families.insert(name.to_owned(), family).is_none(), "twice: {name}");
                    current = name.to_owned();
                }
                Some("UNIT") => {
                    assert!(name == current && name.ends_with(&format!("_{}", rest.unwrap())));
                }
                Some("HELP") => assert!(name == current && rest.is_some()),
                _ => panic!("{line}"),
            }
            continue;
        }
        let sample = sample(line);
        let family = families.get_mut(&current).expect("metadata first");
        let suffix =
            sample.name.strip_prefix(&current).unwrap_or_else(|| panic!("{line} in {current}"));
        match family.kind.as_str() {
            "histogram" => assert!(["_bucket", "_count", "_sum"].contains(&suffix), "{line}"),
            _ => assert_eq!(suffix, "", "{line}"),
        }
        assert!(
            seen.insert((sample.name.clone(), format!("{:?}", sample.labels))),
            "twice: {line}"
        );
        family.samples.push(sample);
    }
    families.values().filter(|f| f.kind == "histogram").for_each(cumulative);
    families
}

fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

fn sample(line: &str) -> Sample {
    let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("{line}"));
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    let mut chars = rest.chars();
    loop {
        let key: String = chars.by_ref().take_while(|c| *c != '=').collect();
        assert!(is_name(&key) && !key.contains(':'), "{line}");
        assert_eq!(chars.next(), Some('"'), "{line}");
        let mut value = String::new();
        loop {
            match chars.next().expect("a closing quote") {
                '\\' => value.push(match chars.next() {
                    Some('n') => '\n',
                    Some(c @ ('\\' | '"')) => c,
                    other => panic!("escape {other:?} in {line}"),
                }),
                '"' => break,
                c => value.push(c),
            }
        }
        assert!(labels.insert(key, value).is_none(), "{line}");
        match chars.next() {
            Some(',') => {}
            Some('}') => break,
            other => panic!("{other:?} in {line}"),
        }
    }
    let value = chars.as_str().strip_prefix(' ').expect("one space");
    Sample { name: name.to_owned(), labels, value: value.parse().expect("a number") }
}

fn cumulative(f: &Family) {
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for s in &f.samples {
        let mut labels = s.labels.clone();
        let bound = labels.remove("le");
        let key = format!("{labels:?}");
        if s.name.ends_with("_bucket") {
            let bound = bound.expect("le").replace("+Inf", "inf").parse().expect("a bound");
            groups.entry(key).or_default().push((bound, s.value));
        } else if s.name.ends_with("_count") {
            counts.insert(key, s.value);
        }
    }
    for (key, buckets) in groups {
        assert!(buckets.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1), "{key}");
        let last = buckets.last().expect("buckets");
        assert!(last.0.is_infinite() && last.1 == counts[&key], "{key}");
    }
}

/// RFC 4180.
pub(crate) fn csv(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quoted) {
            ('"', true) if chars.next_if_eq(&'"').is_some() => field.push('"'),
            ('"', _) => quoted = !quoted,
            (',', false) => row.push(std::mem::take(&mut field)),
            ('\n', false) => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            (c, _) => field.push(c),
        }
    }
    assert!(!quoted && row.is_empty() && field.is_empty(), "ends with a line end");
    rows
}
