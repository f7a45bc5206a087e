//! The circumstances of a run.

use serde::{Deserialize, Serialize};

/// The circumstances of a run. No verdict depends on them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Version of this program.
    pub loadgen_version: String,
    /// Start of the run, milliseconds since 1970 UTC.
    pub started_unix_ms: u64,
    /// Duration of all runs on the wall clock, milliseconds.
    pub elapsed_ms: u64,
    /// Operating system.
    pub os: String,
    /// Number of processors that the process may use.
    pub cpus: u64,
    /// Model name of the first processor. `null`, as the two below, if the machine does not report it.
    #[serde(default)]
    pub cpu_model: Option<String>,
    /// Release of the kernel.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Frequency governors of the processors, separated by commas.
    #[serde(default)]
    pub governor: Option<String>,
    /// Scheduling of the measuring threads and their loads: `real-time`, or `ordinary` where that is not permitted.
    /// `null` in virtual time.
    #[serde(default)]
    pub scheduling: Option<String>,
    /// The commit that CI names, or of the repository around the current folder.
    #[serde(default)]
    pub commit: Option<String>,
    /// The command line as typed.
    #[serde(default)]
    pub command: Option<String>,
}

impl Meta {
    /// The machine that made the run, as one line of text for people.
    pub(crate) fn machine(&self) -> String {
        let mut words = self.os.clone();
        if let Some(kernel) = &self.kernel {
            words.push_str(&format!(" {kernel}"));
        }
        words.push_str(&format!(", {} CPUs", self.cpus));
        if let Some(model) = &self.cpu_model {
            words.push_str(&format!(" ({model})"));
        }
        if let Some(governor) = &self.governor {
            words.push_str(&format!(", governor {governor}"));
        }
        if let Some(scheduling) = &self.scheduling {
            words.push_str(&format!(", {scheduling} scheduling"));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_values_are_omitted() {
        let mut m = Meta { os: "linux".to_owned(), cpus: 2, ..Meta::default() };
        assert_eq!(m.machine(), "linux, 2 CPUs");
        m.kernel = Some("6.1.0".to_owned());
        m.cpu_model = Some("X".to_owned());
        m.governor = Some("performance".to_owned());
        assert_eq!(m.machine(), "linux 6.1.0, 2 CPUs (X), governor performance");
        m.scheduling = Some("ordinary".to_owned());
        assert!(m.machine().ends_with(", governor performance, ordinary scheduling"));
    }
}
