//! The meaning of metrics, gates and exit codes, built into the binary.

use std::fmt::Write as _;

use crate::exit::{Exit, Failure};
use crate::judge::metrics::{Better, METRICS, find};
use crate::scenario::expr::words;
use crate::units::hint;

/// The topic that lists the terms of a gate condition.
const EXPRESSION: &str = "expression";

const TOPICS: &[(&str, &str)] = &[
    (
        "response",
        "Time from the intended start of a request to the last byte of its response. Requests are due at fixed times, \
         independent of earlier ones (open loop): a server that stops for a second delays every request due in that \
         second, not only one.",
    ),
    (
        "at-least",
        "'>= 1.2 s': requests that did not complete by the end of the phase may make the percentile larger. Their \
         latency exceeds their waiting time, and they count with that time in every file. The upper bound is the \
         percentile that results if they take forever.",
    ),
    ("goodput", "Bytes delivered to the receiving application, over the length of the phase."),
    (
        "stall",
        "The longest time without a byte on a connection that always has data to send. A gap may begin or end with \
         the phase.",
    ),
    (
        "delivered",
        "Responses completed within the deadline over requests intended. A starved victim produces no latency samples; \
         this metric reveals it.",
    ),
    (
        "slowdown",
        "Solo goodput over goodput with the hog, for the worst victim in its worse direction.",
    ),
    ("p99-inflation", "p99 response with the hog over solo p99 response, for the worst victim."),
    (
        "jain",
        "Jain's index (sum x)^2 / (n sum x^2): 1 when all shares are equal, 1/n when one container has everything. \
         Reported, never judged: with one of 1000 containers starved completely it is still 0.999.",
    ),
    ("overshoot", "The maximum charged beyond a hard limit. Always 0 under the strict rules."),
    (
        "refusals",
        "Segments and connections refused, and queues pruned, for lack of memory, counted under the kernel's names \
         (PruneCalled, TCPRcvQDrop, ...). They prove that memory starved the victims, not CPU or the link.",
    ),
    (
        "arms",
        "shared: one budget for all, under the kernel's rules (what Linux had before limits per cgroup). container: a \
         budget each, under the strict rules. Both arms have the same total memory, the same load and the same links.",
    ),
    (
        "service",
        "Time from the first byte of a request accepted by the socket to the last byte of its response: the latency \
         that a closed-loop client measures. It hides a server that stops, so no gate uses it.",
    ),
    (
        "lag",
        "Delay from the intended start of a request until the generator handles it. It is part of the response time, so \
         a gate of response times that fails while the lag is above what the gate allows is in doubt, and one that \
         holds, holds, unless the generator was later alone than beside the hog. A lag above 5 ms makes the run inconclusive. On a \
         wall clock, probes and loads run with real-time scheduling where that is permitted (`meta.scheduling`), so \
         that other processes of the machine delay them little. 0 in virtual time.",
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
        "target",
        "The gate fails where the target cannot run: tap needs root, namespaces and /dev/net/tun, daemon needs that and a \
         running `skbudget serve` of the same build, kernel needs root and cgroup v1. Nothing was measured, so the run \
         is inconclusive (exit 5). The virtual target runs everywhere.",
    ),
    (
        "daemon",
        "A target: the containers of a running `skbudget serve`, found by --socket, SKBUDGET_SOCKET or the default \
         path. loadgen attaches namespaces of its own as loadgen-PID-NAME with the budgets of the scenario, and \
         detaches them at the end, also after Ctrl-C; when it is killed, the kernel removes them. A daemon has no \
         budget that containers share, so the control runs in loadgen itself, as on tap, and starves no container of \
         the daemon. The load takes the scheduling policy of the daemon: start the daemon with `chrt -r 1` to keep \
         other processes of the machine out of the measurement. Its other containers may run meanwhile, and take part \
         in what is measured.",
    ),
    (
        "interrupted",
        "A run that was stopped judges no gate: exit 130. Its JUnit file has one case with an error, 'measured to its \
         end', and skips the others, so that a stopped build is never green.",
    ),
    (
        "leaked",
        "Bytes still charged at the end to budgets whose containers have all ended. Must be 0: a container that ends \
         uncharges everything.",
    ),
    (
        "recovery",
        "Time from the departure of the hog to the first of two consecutive steps with 95 % of the mean solo goodput, \
         or with the least of the solo steps if that is lower, in both directions. Steps do not depend on the \
         windows of the charts.",
    ),
    (
        "probes",
        "A percentile is meaningful when at least 20 samples lie beyond it: 2000 requests per phase for a p99. With \
         fewer the run is inconclusive.",
    ),
    (
        "up",
        "A load: bulk transfer from the container to servers that read at a share of the link's rate.",
    ),
    ("down", "A load: bulk transfer to the container from servers that send as much as possible."),
    (
        "probe",
        "A load: requests at fixed times, whatever happens to earlier ones (open loop). Their response times are the \
         latency that gates judge.",
    ),
    (
        "shed",
        "A request that was due and never sent, because as many were outstanding as `probe.outstanding` permits. It \
         counts as not delivered, and with its waiting time.",
    ),
    (
        "stuff",
        "A load: connections on which the container sends to servers that read slowly or never. What they do not read \
         stays in the stack.",
    ),
    (
        "hoard",
        "A load: connections on which servers send and the container reads slowly or never. What it does not read \
         stays in the stack.",
    ),
    (
        "orphans",
        "A load: connections opened at a rate, on each of which the container sends, closes and forgets, to servers \
         that never read. The stack keeps the data without an application.",
    ),
    (
        "accept",
        "A load: clients outside connect to a port of the container and send; the container never accepts.",
    ),
    ("incast", "A load: many servers respond at once, again and again."),
    (
        "flood",
        "A load: handcrafted segments from a guest without TCP, within the advertised windows. Kinds: out-of-order \
         (single bytes with holes between them), tiny (single bytes in order), silent (connections without data).",
    ),
    (
        "churn",
        "Short-lived containers: a new one starts every `every`, and each lives for `life`. They use one budget, one \
         after another.",
    ),
    (
        "compare",
        "Runs are compared in pairs, A B then B A, so that drift affects both sides. B is worse if the 95 % bootstrap \
         interval of the median of log(B / A) lies beyond the margin, the effect is above the noise floor (the \
         difference between neighbouring runs of one side), and Wilcoxon's signed ranks are significant after Holm's \
         correction over all selected metrics. At least 6 pairs; for four metrics at once, 8. Virtual runs have no \
         noise and are compared exactly.",
    ),
];

/// Topics of gates: a word in the gate's name, and the topic. The first match counts.
const GATES: &[(&str, &str)] = &[
    ("(", EXPRESSION),
    ("the target can run here", "target"),
    ("measured to its end", "interrupted"),
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
pub(crate) fn explain(topic: Option<&str>) -> Result<String, Failure> {
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
        Failure::Usage(format!("no topic '{name}'{hint}"))
    })
}

/// Every topic with its first sentence.
fn contents<'a>(topics: impl Iterator<Item = &'a str>) -> String {
    let line = |name: &str| {
        let text = match name {
            EXPRESSION => {
                "the terms of a gate's condition: functions, metrics, operators".to_owned()
            }
            "exit" => "the exit codes; 0 to 6 and 130 are topics too".to_owned(),
            _ => topic_or_metric(name).unwrap_or_default(),
        };
        let text = text.strip_prefix(&format!("{name}: ")).unwrap_or(&text);
        // The first sentence of the topic.
        let first = text.split_once(". ").map_or(text, |(first, _)| first);
        format!("{name:20} {}\n", first.trim_end().trim_end_matches('.'))
    };
    let all: String = topics.map(line).collect();
    format!(
        "{all}\nloadgen explain TOPIC prints the details; names of gates and exit codes are topics too.\n"
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
        let bound = "Files for trackers contain the lower bound where no value is known.";
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of a run without measurements, which no result of a complete run has.
    #[test]
    fn the_gates_of_a_run_that_ends_early_have_a_topic() {
        let unavailable = explain(Some("the target can run here")).unwrap();
        assert!(unavailable.contains("/dev/net/tun"), "{unavailable}");
        let interrupted = explain(Some("measured to its end")).unwrap();
        assert!(interrupted.contains("130"), "{interrupted}");
    }
}
