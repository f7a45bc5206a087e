//! The words of a condition and their meaning. A metric that `metrics` exports too has the same name in both.

use std::fmt::Write as _;

/// Functions over the containers of a group: name and meaning.
pub const FUNCTIONS: &[(&str, &str)] = &[
    ("worst", "the largest if smaller is better, the smallest if larger is better"),
    ("min", "the smallest"),
    ("max", "the largest"),
    ("sum", "the sum"),
    ("mmr", "the smallest over the largest: 1 when all are equal"),
];

/// Metrics of a container: name, earlier name that is still accepted, and meaning.
pub const METRICS: &[(&str, &str, &str)] = &[
    (
        "throughput-slowdown",
        "slowdown.throughput",
        "solo goodput over goodput beside the hog, in the worse direction",
    ),
    ("p99-inflation", "slowdown.p99", "p99 response beside the hog over solo p99"),
    ("p50-contended", "response.p50", "p50 response beside the hog"),
    ("p99-contended", "response.p99", "p99 response beside the hog"),
    ("p999-contended", "response.p999", "p99.9 response beside the hog"),
    ("max-contended", "response.max", "longest response beside the hog"),
    ("stall", "", "longest time without a byte of bulk transfer beside the hog"),
    (
        "delivered",
        "",
        "share of requests completed within the deadline beside the hog: 1 or 100% is all of them",
    ),
    ("recovery", "", "time to 95 % of solo goodput after the hog left"),
    ("moved", "", "bytes that the stack moved for the container beside the hog"),
    ("held", "", "maximum of the bytes charged at the end of a window"),
    ("held-mean", "held.mean", "mean of the bytes charged beside the hog"),
    ("pressure", "", "time that its budget was under pressure"),
    ("refusals", "", "segments and connections refused for lack of memory"),
    ("flows", "", "connections opened"),
];

/// Metrics of the whole arm, used without a function.
pub const OF_ARM: &[(&str, &str)] = &[
    ("overshoot", "maximum charged beyond a hard limit"),
    ("leaked", "bytes charged at the end to budgets without a container"),
];

/// Replaces the earlier name of a metric by the present one.
pub fn canonical(name: &str) -> &str {
    let found = METRICS.iter().find(|(_, before, _)| *before == name && !name.is_empty());
    found.map_or(name, |(name, ..)| name)
}

/// The page of `explain expression`.
pub fn explain() -> String {
    let mut s = String::from(
        "A condition on one arm: a gate of a scenario's file, or of `gate --expr`.\n\n  \
         worst(victim.p99-inflation) <= 1.2 && min(victim.delivered) == 100%\n  \
         max(hog.held) / max(victim.held) >= 4 || overshoot > 0\n\n\
         function(group.metric), or a metric of the arm, or one over another with /; compared by <= >= < > == !=; joined by \
         && and ||, in brackets where needed. Numbers: 1.2, 5x, 99.9%, 1ms, 4KiB. An unknown value fails.\n",
    );
    let mut list = |head: &str, rows: Vec<(&str, String)>| {
        let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
        let _ = writeln!(s, "\n{head}:");
        for (name, about) in rows {
            let _ = writeln!(s, "  {name:width$}  {about}");
        }
    };
    let plain = |all: &[(&'static str, &'static str)]| {
        all.iter().map(|(name, about)| (*name, (*about).to_owned())).collect::<Vec<_>>()
    };
    list("Functions, over the containers of a group", plain(FUNCTIONS));
    let metric = |(name, before, about): &(&'static str, &'static str, &'static str)| {
        let also =
            if before.is_empty() { String::new() } else { format!(" (earlier name: {before})") };
        (*name, format!("{about}{also}"))
    };
    list("Metrics of a container", METRICS.iter().map(metric).collect());
    list("Metrics of the arm", plain(OF_ARM));
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::metrics;
    use crate::scenario::expr::Expr;

    /// Every explained word parses, by both names; an earlier name is not the key of another exported metric.
    #[test]
    fn every_explained_word_parses() {
        for (name, before, _) in METRICS {
            for name in [name, before].into_iter().filter(|n| !n.is_empty()) {
                for (function, _) in FUNCTIONS {
                    let text = format!("{function}(victim.{name}) != 0");
                    assert!(Expr::parse(&text, &["victim"]).is_ok(), "{text}");
                }
            }
            // An earlier name must not be the key of another exported metric.
            assert!(before.is_empty() || metrics::find(before).is_none(), "{before}");
        }
        for (name, _) in OF_ARM {
            assert!(Expr::parse(&format!("{name} == 0"), &[]).is_ok(), "{name}");
        }
        assert_eq!(canonical("response.p99"), "p99-contended");
        assert_eq!(canonical("stall"), "stall");
    }
}
