//! Why `skbudget` ends, as an exit code and one line.

use std::fmt;

pub const FAILURE: u8 = 1;
pub const USAGE: u8 = 2;
pub const CANNOT_SET_UP: u8 = 125;
pub const NOT_EXECUTABLE: u8 = 126;
pub const NOT_FOUND: u8 = 127;
/// A command ended by signal N is reported as this plus N, as shells do.
pub const SIGNAL_BASE: u8 = 128;

/// What is said before a non-zero exit that is not the command's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }
    pub fn set_up(message: impl Into<String>) -> Self {
        Self { code: CANNOT_SET_UP, message: message.into() }
    }
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
