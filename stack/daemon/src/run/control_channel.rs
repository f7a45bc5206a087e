//! Messages between `skbudget run` and its sandbox.

use serde::{Deserialize, Serialize};

use super::ring::Tampered;
pub(super) use crate::channel::ControlChannel;

/// From the sandbox, or from its child that makes the namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SandboxReport {
    /// This process is in a new user namespace that has no ids yet.
    MapUsers,
    /// The network is set up. The packet carries the device.
    Ready,
    /// A step failed; nothing is set up.
    Failed { step: String, errno: Option<i32>, message: String },
    /// The command has ended, and with it all processes of its PID namespace. The network still exists.
    Exited { code: u8, tampered: Tampered },
}

/// To the sandbox. It ends when the socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Instruction {
    /// Every id of the caller is mapped.
    UsersMapped,
    /// The ids could not be mapped: map your own.
    MapOneUser,
    /// Start the command.
    StartCommand,
}
