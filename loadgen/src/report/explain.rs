//! The meaning of metrics, gates and exit codes, built into the binary.

use std::fmt::Write as _;

use crate::exit::{Exit, Failure};
use crate::gate::words;
use crate::metrics::{Better, METRICS, find};
use crate::units::hint;

/// The topic that lists the terms of a gate condition.
const EXPRESSION: &str = "expression";

const TOPICS: &[(&str, &str)] = &[
    (
        "response",
        "Time from the intended start of a request to the last byte of its response. Requests are due at fixed times \
         whatever happened to the earlier ones (open loop), so a server that stops for a second costs every request \
         due in that second its wait, not one request.",
    ),
    (
        "at-least",
        "'>= 1.2 s': requests that never came back by the end of the phase may make the percentile larger. All that is \
         known of them is that they take longer than they were waited for, and with that time they count, in every \
         file. The percentile is at most what it would be if they took for ever.",
    ),
    (
        "goodput",
        "Bytes that reached the application they were meant for, over the length of the phase.",
    ),
    (
        "stall",
        "The longest time without a byte on a connection that always had more to carry. Both ends of the phase count \
         as ends of a gap.",
    ),
    (
        "delivered",
        "Responses completed within the deadline over requests intended. A starved victim produces no latency samples; \
         this is what shows it.",
    ),
    (
        "slowdown",
        "Goodput alone over goodput with the hog, for the worst victim and its worse direction.",
    ),
    ("p99-inflation", "p99 response with the hog over p99 response alone, for the worst victim."),
    (
        "jain",
        "Jain's index (sum x)^2 / (n sum x^2): 1 when all have the same, 1/n when one has everything. Reported, never \
         gated: with 1000 containers, one of them starved for good, it is 0.999.",
    ),
    (
        "overshoot",
        "The most a budget ever held beyond its hard limit. Under the strict rules: nothing, ever.",
    ),
    (
        "refusals",
        "Segments, connections and queues turned away for lack of memory, by the kernel's names (PruneCalled, \
         TCPRcvQDrop, ...): the proof that memory starved the victims, and not CPU or the link.",
    ),
    (
        "arms",
        "shared: one budget for all, under the kernel's rules (what Linux had before limits per cgroup). container: a \
         budget each, under the strict rules. Both have the same memory in all, the same load and the same link.",
    ),
    (
        "service",
        "Time from the first byte of a request that the socket took to the last byte of its response: what a client \
         that waits for its own requests would measure. It shows little of a server that stops, which is why nothing \
         is judged by it.",
    ),
    (
        "lag",
        "How long after its intended start the generator itself looked at a request. A generator that is late \
         measures itself: the run is inconclusive. 0 in virtual time.",
    ),
    (
        "conservation",
        "Windows add up to totals, and every request intended is completed, outstanding, shed or failed. If not, \
         loadgen has a fault and the run is inconclusive.",
    ),
    (
        "control",
        "The arm that must starve: the same load on one shared budget. If it does not, the load proves nothing, and \
         neither does a subject that passes; the run is inconclusive.",
    ),
    (
        "leaked",
        "Bytes still charged at the end to budgets whose containers are all gone. Must be none: whoever leaves takes \
         along what it held.",
    ),
    (
        "recovery",
        "From the hog's leaving to the first of two windows in a row with 95 % of what the victim had alone, both \
         ways.",
    ),
    (
        "probes",
        "A percentile means something when at least 20 samples lie beyond it: 2000 requests a phase for a p99. With \
         fewer the run is inconclusive.",
    ),
    (
        "compare",
        "Runs are compared in pairs, A B then B A, so that drift falls on both. Worse is: the 95 % bootstrap interval \
         of the median of log(B / A) lies beyond the margin, the effect is above the noise floor (what neighbouring \
         runs of one side differ by), and Wilcoxon's signed ranks are significant after Holm's correction over all \
         metrics asked about. At least 6 pairs; for four metrics at once, 8. Virtual runs have no noise and are \
         compared exactly.",
    ),
];

/// Topics of gates: a word in the gate's name, and the topic. The first match counts.
const GATES: &[(&str, &str)] = &[
    ("(", EXPRESSION),
    ("goodput alone", "control"),
    ("probes", "probes"),
    ("lag", "lag"),
    ("conservation", "conservation"),
    ("starves", "control"),
    ("lack of memory", "refusals"),
    ("slowdown", "slowdown"),
    ("p99", "p99-inflation"),
    ("inflation", "p99-inflation"),
    ("stall", "stall"),
    ("delivered", "delivered"),
    ("overshoot", "overshoot"),
    ("charged to nobody", "leaked"),
    ("intact", "conservation"),
    ("recovery", "recovery"),
    ("jain", "jain"),
    ("goodput", "goodput"),
    ("pressure", "refusals"),
];

/// Explains a metric, gate, exit code or topic; without a name, lists the topics.
///
/// # Errors
/// No topic has that name; the error suggests similar ones.
pub fn explain(topic: Option<&str>) -> Result<String, Failure> {
    let metrics = METRICS.iter().map(|m| m.key).filter(|key| about(key).is_none());
    let topics = TOPICS.iter().map(|t| t.0).chain(metrics).chain([EXPRESSION, "exit"]);
    let Some(name) = topic else { return Ok(contents(topics)) };
    if name == EXPRESSION || name == "expressions" {
        return Ok(words::explain());
    }
    let found = exits(name).or_else(|| topic_or_metric(name)).or_else(|| gate(name));
    // A prefix of a topic gets the full names; otherwise suggest the nearest spelling.
    found.ok_or_else(|| {
        let longer: Vec<_> = topics.clone().filter(|t| t.starts_with(name)).collect();
        let hint = match hint(name, topics) {
            _ if !longer.is_empty() => format!("; there is {}", longer.join(", ")),
            none if none.is_empty() => "; `loadgen explain` lists the topics".to_owned(),
            near => near,
        };
        Failure::Usage(format!("nothing to explain about '{name}'{hint}"))
    })
}

/// Every topic with its first sentence.
fn contents<'a>(topics: impl Iterator<Item = &'a str>) -> String {
    let line = |name: &str| {
        let text = match name {
            EXPRESSION => "what a gate may ask: functions, metrics, operators".to_owned(),
            "exit" => "what the exit codes mean; 0 to 6 and 130 are topics as well".to_owned(),
            _ => topic_or_metric(name).unwrap_or_default(),
        };
        let text = text.strip_prefix(&format!("{name}: ")).unwrap_or(&text);
        // The first sentence of the topic.
        let first = text.split_once(". ").map_or(text, |(first, _)| first);
        format!("{name:20} {}\n", first.trim_end().trim_end_matches('.'))
    };
    let all: String = topics.map(line).collect();
    format!(
        "{all}\nloadgen explain TOPIC says more; a gate's name or an exit code is a topic, too.\n"
    )
}

fn exits(name: &str) -> Option<String> {
    let mut s = String::new();
    if name == "exit" {
        for (exit, what) in Exit::ALL {
            let _ = writeln!(s, "{:>3}  {what}", exit.code());
        }
        let _ = writeln!(s, "GNU make turns every failure into 2: read verdict.json there.");
        return Some(s);
    }
    let code: u8 = name.parse().ok()?;
    let (_, what) = Exit::ALL.iter().find(|(exit, _)| exit.code() == code)?;
    Some(format!("exit code {code}: {what}\n"))
}

/// A name may be both a metric and a topic: print both texts.
fn topic_or_metric(name: &str) -> Option<String> {
    let metric = find(name).map(|m| {
        let better = match m.better {
            Better::Smaller => "smaller",
            Better::Bigger => "bigger",
        };
        let bound = "A tracker keeps it where it is never, nothing or without bound: with what is known from below.";
        format!("{}: {}; {better} is better. {bound}\n", m.key, m.about)
    });
    let text: String = metric.into_iter().chain(about(name)).collect();
    (!text.is_empty()).then_some(text)
}

fn about(name: &str) -> Option<String> {
    TOPICS.iter().find(|(n, _)| *n == name).map(|(_, text)| format!("{text}\n"))
}

fn gate(name: &str) -> Option<String> {
    // Gate names have several words; an unknown single word is a misspelled topic.
    let name = Some(name.to_lowercase()).filter(|n| n.contains(' '))?;
    let (_, topic) = GATES.iter().find(|(word, _)| name.contains(word))?;
    if *topic == EXPRESSION { Some(words::explain()) } else { topic_or_metric(topic) }
}
