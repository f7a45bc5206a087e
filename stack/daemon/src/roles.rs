//! Inner processes: this program again, in a role that no user calls.

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::exit::FAILURE;
use crate::{logger, sys};

/// This program, even if its file was replaced meanwhile.
const EXE: &str = "/proc/self/exe";

/// The command line of a process in that role, and the descriptors that it must keep: `fds`, passed as an argument, and
/// the logger's.
pub(crate) fn process(role: &str, fds: &[RawFd]) -> (Command, Vec<RawFd>) {
    let (log_fd, log) = logger::handover();
    let numbers: Vec<_> = fds.iter().map(ToString::to_string).collect();
    let mut process = Command::new(EXE);
    process.arg0("skbudget").arg(role).arg(log).arg(numbers.join(","));
    (process, log_fd.into_iter().chain(fds.iter().copied()).collect())
}

/// Runs the role of this process if it is one of `roles`. `run` gets the role, the descriptors in the order in which
/// the parent listed them, and the other arguments.
pub(crate) fn enter(
    roles: &[&str],
    run: impl FnOnce(&str, Vec<OwnedFd>, &mut dyn Iterator<Item = OsString>) -> io::Result<ExitCode>,
) -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next()?.into_string().ok()?;
    if !roles.contains(&role.as_str()) {
        return None;
    }
    let code = match logger::join(&args.next().unwrap_or_default()) {
        // Started by hand: there is no logger to join, so this process starts its own for the error.
        Err(_) => logger::start().and_then(|()| Err(by_hand())),
        Ok(()) => text(&mut args)
            .and_then(|list| inherited(&list))
            .and_then(|fds| run(&role, fds, &mut args)),
    };
    let code = code.unwrap_or_else(|e| {
        logger::report(format!("{role}: {e}"));
        ExitCode::from(FAILURE)
    });
    logger::finish();
    Some(code)
}

/// The next argument, as text.
pub(crate) fn text(args: &mut dyn Iterator<Item = OsString>) -> io::Result<String> {
    args.next().and_then(|arg| arg.into_string().ok()).ok_or_else(by_hand)
}

/// The error for arguments that no parent process made.
pub(crate) fn by_hand() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "internal subcommand: it cannot be used directly")
}

/// The descriptors of a list made by [`process`].
fn inherited(list: &str) -> io::Result<Vec<OwnedFd>> {
    let numbers = list.split(',').filter(|number| !number.is_empty());
    let parse =
        |number: &str| number.parse().map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
    numbers.map(|number| sys::inherited_fd(parse(number)?)).collect()
}
