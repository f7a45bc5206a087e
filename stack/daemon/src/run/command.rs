//! The last step before the command: this process enters its user namespace, limits its capabilities and executes it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::signal::SigSet;

use super::sandbox::SandboxSpec;
use super::{mounts, users};
use crate::attach::{AttachError, Step};
use crate::caps::{self, CapSet};
use crate::exit::{CANNOT_SET_UP, NOT_EXECUTABLE, NOT_FOUND};
use crate::{logger, sys};

/// Variables of sd_listen_fds(3): the process that the descriptors are for, their number, their names.
const LISTEN: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// Executes the command; returns only on failure. `users`: the command's user namespace, if there is one.
pub(super) fn main(users: Option<OwnedFd>, spec: &SandboxSpec, command: &[OsString]) -> ExitCode {
    if let Err(e) = confine(users, spec) {
        logger::report(format!("command: {e}"));
        return ExitCode::from(CANNOT_SET_UP);
    }
    let mut child = Command::new(&spec.program);
    child.arg0(&command[0]).args(&command[1..]);
    hand_descriptors_on(&mut child, spec.listen);
    sys::prepare_ignoring(&mut child, spec.ignored.clone());
    // The command starts with no signal blocked, as any command of the caller's. The call fails only for an invalid
    // set.
    let _ = SigSet::empty().thread_set_mask();
    let e = child.exec();
    logger::report(format!("{}: {e}", command[0].display()));
    let missing = e.kind() == io::ErrorKind::NotFound;
    ExitCode::from(if missing { NOT_FOUND } else { NOT_EXECUTABLE })
}

/// Puts this process under the command's restrictions.
fn confine(users: Option<OwnedFd>, spec: &SandboxSpec) -> Result<(), AttachError> {
    if let Some(users) = users {
        // First, because the capabilities in the new namespace are limited after it.
        users::enter(users.as_fd()).step("enter the command's user namespace")?;
        mounts::lock().step("new mount namespace")?;
    }
    caps::limit_to(CapSet::docker().with(spec.added)).step("limit the capabilities")
}

/// Passes the descriptors from systemd on. If they were for `skbudget`, they are for the command now, under its own
/// pid. If they were for another process, the variables are removed: in the container that pid may be any process.
fn hand_descriptors_on(child: &mut Command, ours: bool) {
    let [pid, .., pidfd] = LISTEN;
    if ours {
        child.env(pid, std::process::id().to_string()).env_remove(pidfd);
    } else {
        for name in LISTEN {
            child.env_remove(name);
        }
    }
}

/// Whether systemd's descriptors are for this process.
pub(super) fn listens() -> bool {
    let pid = std::env::var(LISTEN[0]).ok();
    pid.is_some_and(|pid| pid == std::process::id().to_string())
}
