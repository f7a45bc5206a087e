//! The inner processes of a run: this program again, in another role.

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use super::control_channel::ControlChannel;
use super::port::Port;
use super::sandbox::SandboxSpec;
use super::{command, init, relay, sandbox, users};
use crate::cli::OnOff;
use crate::exit::FAILURE;
use crate::{logger, sys};

/// This program, even if its file was replaced meanwhile.
const EXE: &str = "/proc/self/exe";

/// Roles, as the first argument of an inner process. They are no subcommands, because no user calls them.
pub(super) const SANDBOX: &str = "__sandbox";
pub(super) const OWNER: &str = "__owner";
pub(super) const RELAY: &str = "__relay";
pub(super) const INIT: &str = "__init";
pub(super) const COMMAND: &str = "__command";

/// The command line of a process in that role, and the descriptors that it must keep: `fds`, passed as an argument, and
/// the logger's.
pub(super) fn process(role: &str, fds: &[RawFd]) -> (Command, Vec<RawFd>) {
    let (log_fd, log) = logger::handover();
    let numbers: Vec<_> = fds.iter().map(ToString::to_string).collect();
    let mut process = Command::new(EXE);
    process.arg0("skbudget").arg(role).arg(log).arg(numbers.join(","));
    (process, log_fd.into_iter().chain(fds.iter().copied()).collect())
}

/// Runs the role of this process if it is an inner one.
pub fn inner_main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next()?.into_string().ok()?;
    if ![SANDBOX, OWNER, RELAY, INIT, COMMAND].contains(&role.as_str()) {
        return None;
    }
    let code = match logger::join(&args.next().unwrap_or_default()) {
        // Started by hand: there is no logger to join, so this process starts its own for the error.
        Ok(()) => inner(&role, args),
        Err(_) => logger::start().and_then(|()| Err(by_hand())),
    };
    let code = code.unwrap_or_else(|e| {
        logger::report(format!("{role}: {e}"));
        ExitCode::from(FAILURE)
    });
    logger::finish();
    Some(code)
}

/// Parses the arguments of the role and runs it. The descriptors are in the order in which the parent listed them.
fn inner(role: &str, mut args: impl Iterator<Item = OsString>) -> io::Result<ExitCode> {
    let fds = inherited(&text(&mut args)?)?;
    let mut fds = fds.into_iter();
    let channel = |fd: Option<OwnedFd>| fd.map(ControlChannel::from_fd).ok_or_else(by_hand);
    let port = |fd: Option<OwnedFd>| fd.map(Port::from_fd).ok_or_else(by_hand);
    let first = text(&mut args)?;
    if role == RELAY {
        let sandbox = if first == "off" { OnOff::Off } else { OnOff::On };
        return Ok(relay::main(&channel(fds.next())?, sandbox, args.collect()));
    }
    if role == OWNER {
        return Ok(users::owner_main(&channel(fds.next())?, &first));
    }
    let spec: SandboxSpec = serde_json::from_str(&first)?;
    let command: Vec<OsString> = args.collect();
    if command.is_empty() {
        return Err(by_hand());
    }
    Ok(match role {
        SANDBOX => {
            let channel = channel(fds.next())?;
            let apart = port(fds.next())?;
            sandbox::main(&channel, &apart, port(fds.next())?, &spec, &command)
        }
        INIT => {
            let (lifeline, inside) = (port(fds.next())?, port(fds.next())?);
            init::main(&lifeline, &inside, fds.next(), &spec, &command)
        }
        _ => command::main(fds.next(), &spec, &command),
    })
}

/// The next argument, as text.
fn text(args: &mut impl Iterator<Item = OsString>) -> io::Result<String> {
    args.next().and_then(|arg| arg.into_string().ok()).ok_or_else(by_hand)
}

/// The error for arguments that no parent process made.
fn by_hand() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "internal subcommand: it cannot be used directly")
}

/// The descriptors of a list made by [`process`].
fn inherited(list: &str) -> io::Result<Vec<OwnedFd>> {
    let numbers = list.split(',').filter(|number| !number.is_empty());
    let parse =
        |number: &str| number.parse().map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
    numbers.map(|number| sys::inherited_fd(parse(number)?)).collect()
}
