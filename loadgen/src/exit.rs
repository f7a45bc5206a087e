//! How a command can end: exit codes and errors.

use std::fmt;

/// Exit codes of `loadgen`. GNU make turns every failure into 2; `verdict.json` keeps them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All gates passed.
    Passed = 0,
    /// A crash, or an error of input or output.
    Io = 1,
    /// A wrong argument.
    Usage = 2,
    /// A gate of a subject failed.
    GateFailed = 3,
    /// Worse than the baseline.
    Regression = 4,
    /// The measurement proves nothing.
    Inconclusive = 5,
    /// The baseline is missing or not comparable.
    NoBaseline = 6,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl Exit {
    /// Every exit code with its meaning, as `--help` prints it.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Passed, "all gates passed: the control starved, the subject did not"),
        (
            Self::Io,
            "loadgen or the stack crashed, a file could not be written, or another loadgen uses the folder",
        ),
        (Self::Usage, "usage: unknown scenario, key, value or option"),
        (Self::GateFailed, "a gate failed: a neighbour degraded a victim"),
        (Self::Regression, "regression against the baseline"),
        (
            Self::Inconclusive,
            "inconclusive: the control did not starve, the generator could not keep its rate, there are too few samples, \
             or the target cannot run here, for example tap without root or daemon without a daemon",
        ),
        (Self::NoBaseline, "the baseline is missing or not comparable"),
        (
            Self::Interrupted,
            "interrupted (Ctrl-C, SIGTERM, or the terminal hung up): the measurements so far are written",
        ),
    ];

    /// The number that the process returns.
    pub fn code(self) -> u8 {
        self as u8
    }
    /// The code of several runs, in this order: interrupted, failed gate, inconclusive, passed.
    pub fn worst(codes: impl IntoIterator<Item = u8>) -> Self {
        let codes: Vec<u8> = codes.into_iter().collect();
        // A fault outranks a doubt: one run that failed decides, however many others prove nothing.
        let order = [Self::Interrupted, Self::GateFailed, Self::Inconclusive];
        order.into_iter().find(|e| codes.contains(&e.code())).unwrap_or(Self::Passed)
    }
    /// The word for an exit code stored in a result.
    pub fn word_of(code: u8) -> &'static str {
        Self::ALL.iter().find(|(e, _)| e.code() == code).map_or("ERROR", |(e, _)| e.word())
    }
    /// The word of a verdict with this code.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "PASS",
            Self::GateFailed => "FAIL",
            Self::Regression => "REGRESSION",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::NoBaseline => "NO-BASELINE",
            Self::Io | Self::Usage => "ERROR",
            Self::Interrupted => "INTERRUPTED",
        }
    }
}

/// Why a command has no result.
#[derive(Debug)]
pub enum Failure {
    /// An invalid argument; the text names it and what is allowed.
    Usage(String),
    /// An input or output error, or a crash.
    Io(String),
    /// The target cannot run on this machine.
    Unavailable(String),
    /// The baseline is missing, or its scenario, target or parameters differ.
    NoBaseline(String),
    /// The user stopped the run before anything was measured.
    Interrupted,
}

impl Failure {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Io(_) => Exit::Io,
            // Nothing was measured, so nothing failed.
            Self::Unavailable(_) => Exit::Inconclusive,
            Self::NoBaseline(_) => Exit::NoBaseline,
            Self::Interrupted => Exit::Interrupted,
        }
    }
    /// The failure to read a result that is no baseline: an invalid argument.
    pub fn of_argument(self) -> Self {
        match self {
            Self::NoBaseline(why) => Self::Usage(why),
            other => other,
        }
    }
    /// An error of reading or writing `what`.
    pub fn io(what: impl fmt::Display, e: impl fmt::Display) -> Self {
        Self::Io(format!("{what}: {e}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(s) | Self::Io(s) | Self::Unavailable(s) | Self::NoBaseline(s) => {
                f.write_str(s)
            }
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Failure {}
