//! Process 1 of a container's PID namespace: mounts its /proc and /sys, starts the command, reaps what is left to it,
//! hands signals on and ends with the command. The kernel then ends every other process of the namespace. It has more
//! capabilities than the command, over another user namespace, so the command cannot trace it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::mounts::{self, Knobs};
use super::roles;
use super::sandbox::Orders;
use super::signals::{Caught, Signals, hand_on};
use super::wire::Wire;
use crate::exit::{FAILURE, SIGNAL_BASE};
use crate::{logger, sys};

/// `lifeline`: ends when the sandbox process does.
pub(super) fn main(
    lifeline: &Wire,
    users: Option<OwnedFd>,
    orders: &Orders,
    command: &[OsString],
) -> ExitCode {
    match run(lifeline, users, orders, command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            logger::report(format!("init: {e}"));
            ExitCode::from(FAILURE)
        }
    }
}

fn run(
    lifeline: &Wire,
    users: Option<OwnedFd>,
    orders: &Orders,
    command: &[OsString],
) -> io::Result<u8> {
    let signals = Signals::block()?;
    set_pdeathsig(Signal::SIGKILL)?;
    // The sandbox may have ended before the line above: nobody would kill us.
    if lifeline.is_over() {
        return Ok(FAILURE);
    }
    mounts::set_up(knobs(orders));
    set_dumpable(false)?;
    let child = start(users, orders, command)?;
    loop {
        wait_for(&signals)?;
        while let Some(caught) = signals.next()? {
            match caught {
                Caught::Child => {}
                Caught::Forward(signal) => hand_on(child, signal),
                Caught::FromTerminal(_) => {}
            }
        }
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
    }
}

fn knobs(orders: &Orders) -> Knobs {
    match (orders.root && !orders.privileged, orders.network()) {
        (false, _) => Knobs::AsOutside,
        (true, true) => Knobs::Network,
        (true, false) => Knobs::None,
    }
}

fn start(users: Option<OwnedFd>, orders: &Orders, command: &[OsString]) -> io::Result<Pid> {
    let fds: Vec<_> = users.iter().map(AsRawFd::as_raw_fd).collect();
    let (mut child, fds) = roles::process(roles::COMMAND, &fds);
    child.arg(serde_json::to_string(orders)?).args(command);
    sys::prepare_child(&mut child, fds, SigSet::empty(), Some(orders.nofile));
    // Reaped below with everything else: the handle is not needed.
    Ok(Pid::from_raw(child.spawn()?.id().cast_signed()))
}

fn wait_for(signals: &Signals) -> io::Result<()> {
    let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes every dead child; the command's code when it is among them.
fn reap(command: Pid) -> io::Result<Option<u8>> {
    let mut code = None;
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        match status {
            WaitStatus::Exited(pid, exit) if pid == command => code = Some(exit as u8),
            WaitStatus::Signaled(pid, signal, _) if pid == command => {
                code = Some(SIGNAL_BASE + signal as i32 as u8);
            }
            _ => {}
        }
    }
}

/// The code of an ended child as its parent passes it on.
pub(super) fn exit_code(status: std::process::ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => SIGNAL_BASE + signal as u8,
        (None, None) => FAILURE,
    }
}
