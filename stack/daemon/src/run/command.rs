//! The last step before the command: into its user namespace, with its capabilities, and then it is executed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::sys::signal::SigSet;

use super::sandbox::Orders;
use super::{mounts, users};
use crate::attach::{AttachError, Step};
use crate::caps::{self, CapSet};
use crate::exit::{CANNOT_SET_UP, NOT_EXECUTABLE, NOT_FOUND};
use crate::logger;

/// sd_listen_fds(3): whose the descriptors are.
const LISTEN: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// `users`: the command's user namespace, where there is one.
pub(super) fn main(users: Option<OwnedFd>, orders: &Orders, command: &[OsString]) -> ExitCode {
    if let Err(e) = confine(users, orders) {
        logger::report(format!("command: {e}"));
        return ExitCode::from(CANNOT_SET_UP);
    }
    let mut child = Command::new(&orders.program);
    child.arg0(&command[0]).args(&command[1..]);
    hand_descriptors_on(&mut child, orders.listen);
    // As the caller's other commands start. It fails only for a set that is no set.
    let _ = SigSet::empty().thread_set_mask();
    let e = child.exec();
    logger::report(format!("{}: {e}", command[0].display()));
    let missing = e.kind() == io::ErrorKind::NotFound;
    ExitCode::from(if missing { NOT_FOUND } else { NOT_EXECUTABLE })
}

fn confine(users: Option<OwnedFd>, orders: &Orders) -> Result<(), AttachError> {
    if let Some(users) = users {
        users::enter(users.as_fd()).step("enter the command's user namespace")?;
        mounts::lock().step("new mount namespace")?;
    }
    caps::limit_to(CapSet::docker().with(orders.added)).step("limit the capabilities")
}

/// Descriptors that were meant for `skbudget` go to the command, which finds its own number with them; those that were
/// meant for another process are not announced: that number may be anybody's in here.
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

/// The descriptors that systemd announces are for this process.
pub(super) fn listens() -> bool {
    let pid = std::env::var(LISTEN[0]).ok();
    pid.is_some_and(|pid| pid == std::process::id().to_string())
}
