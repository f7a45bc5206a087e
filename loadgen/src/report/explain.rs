//! What the words mean, in the binary.

use std::fmt::Write as _;

use crate::exit::{Exit, Failure};
use crate::units::nearest;

const TOPICS: &[(&str, &str)] = &[
    (
        "response",
        "Time from the intended start of a request to the last byte of its response. Requests are due at fixed times \
         whatever happened to the earlier ones (open loop), so a server that stops for a second costs every request \
         due in that second its wait, not one request.",
    ),
    (
        "at-least",
        "'>= 1.2 s': the percentile's rank falls among requests that never came back by the end of the phase. All that \
         is known of them is that they take longer than they were waited for; they rank above every request that was \
         answered.",
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
    ("exit", ""),
];

pub fn explain(topic: Option<&str>) -> Result<String, Failure> {
    let mut s = String::new();
    match topic {
        None => {
            for (name, _) in TOPICS {
                let _ = writeln!(s, "loadgen explain {name}");
            }
        }
        Some("exit") => {
            for (exit, what) in Exit::ALL {
                let _ = writeln!(s, "{:>3}  {what}", exit.code());
            }
            let _ = writeln!(s, "GNU make turns every failure into 2: read verdict.json there.");
        }
        Some(name) => {
            let Some((_, text)) = TOPICS.iter().find(|(n, _)| *n == name) else {
                let hint = nearest(name, TOPICS.iter().map(|t| t.0));
                let hint = hint.map_or_else(String::new, |h| format!("; did you mean '{h}'?"));
                return Err(Failure::Usage(format!("nothing to explain about '{name}'{hint}")));
            };
            let _ = writeln!(s, "{text}");
        }
    }
    Ok(s)
}
