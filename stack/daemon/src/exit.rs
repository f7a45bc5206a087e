//! Exit codes of `skbudget`, and the message that explains them.

use std::fmt;

/// A failure after the container was set up.
pub const FAILURE: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The container could not be set up.
pub const CANNOT_SET_UP: u8 = 125;
/// The command is not executable.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
/// A command that signal N ended has exit code 128 + N, as in shells.
pub const SIGNAL_BASE: u8 = 128;

/// A non-zero exit that is not the command's own, and the message for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// One line for stderr, which names the key or the step that failed.
    pub message: String,
}

impl Failure {
    /// The command line is wrong: the message names the key and what is allowed.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }
    /// The container could not be set up.
    pub fn set_up(message: impl Into<String>) -> Self {
        Self { code: CANNOT_SET_UP, message: message.into() }
    }
    /// Any other failure.
    pub fn other(message: impl Into<String>) -> Self {
        Self { code: FAILURE, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
