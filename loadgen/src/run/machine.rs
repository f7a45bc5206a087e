//! The machine that made a run, as far as the kernel reports it: for `meta` only, which neither verdicts nor
//! comparisons of virtual runs use.

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use crate::measure::result::Meta;
use crate::run::commit;

/// Collects what is known before a run.
pub(crate) fn describe() -> Meta {
    Meta {
        os: std::env::consts::OS.to_owned(),
        cpus: thread::available_parallelism().map_or(1, |n| n.get() as u64),
        cpu_model: fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| model(&text)),
        kernel: line("/proc/sys/kernel/osrelease"),
        governor: governors(),
        commit: commit::find(),
        command: Some(commit::command(std::env::args_os())),
        ..Meta::default()
    }
}

fn line(path: impl AsRef<std::path::Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Model name of the first processor.
fn model(cpuinfo: &str) -> Option<String> {
    let mut pairs = cpuinfo.lines().filter_map(|l| l.split_once(':'));
    let value =
        pairs.find_map(|(key, value)| (key.trim() == "model name").then(|| value.trim()))?;
    (!value.is_empty()).then(|| value.to_owned())
}

/// All governors in use, separated by commas: one slow core is enough to distort a run.
fn governors() -> Option<String> {
    let policies = fs::read_dir("/sys/devices/system/cpu/cpufreq").ok()?.flatten();
    // Sorted and without duplicates.
    let all: BTreeSet<String> =
        policies.filter_map(|p| line(p.path().join("scaling_governor"))).collect();
    (!all.is_empty()).then(|| all.into_iter().collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_the_first_processors_and_may_be_missing() {
        let text = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.5GHz\n\nmodel name\t: Other\n";
        assert_eq!(model(text).as_deref(), Some("Some CPU @ 2.5GHz"));
        assert_eq!(model("processor\t: 0\nBogoMIPS\t: 50.00\n"), None);
    }
}
