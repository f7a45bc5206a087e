//! What `--help` prints after the options: examples of each command, and its exit codes.

use crate::exit::Exit;

pub(crate) const REPRO: &[&str] =
    &["loadgen repro", "loadgen repro --set victims=8 --set hog-hard=64MiB --out out/eight"];
pub(crate) const RUN: &[&str] = &[
    "loadgen run slow-reader",
    "sudo loadgen run step --target tap --out out/step-tap",
    "sudo loadgen run starvation --target daemon --socket /run/skbudget/skbudget.sock",
    "loadgen show step > mine.toml, change its name, then: loadgen run mine.toml",
];
pub(crate) const LIST: &[&str] = &["loadgen list"];
pub(crate) const SHOW: &[&str] = &["loadgen show slow-reader > mine.toml"];
pub(crate) const SWEEP: &[&str] = &["loadgen sweep sweep-n --param containers=10,100"];
pub(crate) const SEARCH: &[&str] =
    &["loadgen search step --param group.hog.stuff.conns --from 1 --to 1000"];
pub(crate) const GATE: &[&str] = &[
    "loadgen gate out/step-1 --baseline old/step-1",
    "loadgen gate out/step-1 --expr 'worst(victim.p99-contended) <= 5ms' --out out/gate",
];
pub(crate) const REPORT: &[&str] =
    &["loadgen report out/step-1 --format html,junit --out out/again"];
pub(crate) const COMPARE: &[&str] = &[
    "loadgen compare old/step-1 out/step-1 --out out/compare",
    "loadgen compare --exec base/loadgen target/release/loadgen --scenario step",
    "sudo loadgen compare --exec --target tap --rounds 10 --set-b group.victim.budget.hard=4MiB",
];
pub(crate) const MERGE: &[&str] = &["loadgen merge out/step-1 out/step-2 --out out/both"];
pub(crate) const SELFTEST: &[&str] = &["loadgen selftest"];
pub(crate) const SCHEMA: &[&str] = &["loadgen schema result > result.schema.json"];
pub(crate) const EXPLAIN: &[&str] = &[
    "loadgen explain",
    "loadgen explain expression",
    "loadgen explain p99-inflation",
    "loadgen explain 5",
];

/// The text for a command that judges nothing: examples only.
pub(crate) fn plain(examples: &[&str]) -> String {
    let mut s = String::from(if examples.len() == 1 { "Example:\n" } else { "Examples:\n" });
    for e in examples {
        s.push_str(&format!("  {e}\n"));
    }
    s.trim_end().to_owned()
}

/// The text for a command that judges: examples and exit codes.
pub(crate) fn judging(examples: &[&str]) -> String {
    format!("{}\n\n{}", plain(examples), codes())
}

/// The list of exit codes.
pub(crate) fn codes() -> String {
    let lines = Exit::ALL.iter().map(|(exit, what)| format!("  {:>3}  {what}", exit.code()));
    format!("Exit codes:\n{}", lines.collect::<Vec<_>>().join("\n"))
}
