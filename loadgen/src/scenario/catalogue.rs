//! The built-in scenarios.

const CATALOGUE: &[(&str, &str)] = &[
    ("starvation", include_str!("catalogue/starvation.toml")),
    ("slow-reader", include_str!("catalogue/slow-reader.toml")),
    ("slow-reader-few-conns", include_str!("catalogue/slow-reader-few-conns.toml")),
    ("stalled-sender", include_str!("catalogue/stalled-sender.toml")),
    ("ooo-flood", include_str!("catalogue/ooo-flood.toml")),
    ("tiny-segments", include_str!("catalogue/tiny-segments.toml")),
    ("idle-hoard", include_str!("catalogue/idle-hoard.toml")),
    ("fork-bomb", include_str!("catalogue/fork-bomb.toml")),
    ("orphan-flood", include_str!("catalogue/orphan-flood.toml")),
    ("accept-hoard", include_str!("catalogue/accept-hoard.toml")),
    ("zero-window", include_str!("catalogue/zero-window.toml")),
    ("incast", include_str!("catalogue/incast.toml")),
    ("many-victims-one-hog", include_str!("catalogue/many-victims-one-hog.toml")),
    ("many-hogs-one-victim", include_str!("catalogue/many-hogs-one-victim.toml")),
    ("bursty-neighbour", include_str!("catalogue/bursty-neighbour.toml")),
    ("step", include_str!("catalogue/step.toml")),
    ("churn", include_str!("catalogue/churn.toml")),
    ("sweep-n", include_str!("catalogue/sweep-n.toml")),
    ("weighted", include_str!("catalogue/weighted.toml")),
    ("priority-inversion", include_str!("catalogue/priority-inversion.toml")),
    ("budget-edge", include_str!("catalogue/budget-edge.toml")),
    ("no-hog", include_str!("catalogue/no-hog.toml")),
    ("aa", include_str!("catalogue/aa.toml")),
];

/// The common base that the others extend; not a scenario itself.
const BASE: &str = include_str!("catalogue/base.toml");

/// The names, in the order of the catalogue.
pub fn names() -> impl Iterator<Item = &'static str> {
    CATALOGUE.iter().map(|(name, _)| *name)
}

/// The file of a built-in scenario.
pub fn text(name: &str) -> Option<&'static str> {
    if name == "base" {
        return Some(BASE);
    }
    CATALOGUE.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}
