//! The inner processes of a run.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use super::control_channel::ControlChannel;
use super::port::Port;
use super::sandbox::SandboxSpec;
use super::{command, init, relay, sandbox, users};
use crate::cli::OnOff;
pub(super) use crate::roles::process;
use crate::roles::{by_hand, enter, text};

/// Roles, as the first argument of an inner process. They are no subcommands, because no user calls them.
pub(super) const SANDBOX: &str = "__sandbox";
pub(super) const OWNER: &str = "__owner";
pub(super) const RELAY: &str = "__relay";
pub(super) const INIT: &str = "__init";
pub(super) const COMMAND: &str = "__command";

/// Runs the role of this process if it is an inner one.
pub fn inner_main() -> Option<ExitCode> {
    enter(&[SANDBOX, OWNER, RELAY, INIT, COMMAND], inner)
}

/// Parses the arguments of the role and runs it.
fn inner(
    role: &str,
    fds: Vec<OwnedFd>,
    args: &mut dyn Iterator<Item = OsString>,
) -> io::Result<ExitCode> {
    let mut fds = fds.into_iter();
    let channel = |fd: Option<OwnedFd>| fd.map(ControlChannel::from_fd).ok_or_else(by_hand);
    let port = |fd: Option<OwnedFd>| fd.map(Port::from_fd).ok_or_else(by_hand);
    let first = text(args)?;
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
