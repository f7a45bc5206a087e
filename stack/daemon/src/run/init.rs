//! Process 1 of a container's PID namespace: mounts its /proc and /sys, starts the command, reaps orphans, forwards
//! signals and ends with the command. The kernel then kills every other process of the namespace. Process 1 has more
//! capabilities than the command, over another user namespace, so the command cannot trace it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid, getpgrp};

use super::mounts::{self, Knobs};
use super::port::{Note, Port, Received, observe};
use super::sandbox::SandboxSpec;
use super::signals::{self, Signals};
use super::{inherited, injection, roles};
use crate::exit::{CANNOT_SET_UP, FAILURE, SIGNAL_BASE};
use crate::{logger, sys};

/// `lifeline`: the port to the sandbox, which closes when that process ends; `inside`: the port on which this process
/// reports the signals that it receives.
pub(super) fn main(
    lifeline: &Port,
    inside: &Port,
    users: Option<OwnedFd>,
    spec: &SandboxSpec,
    command: &[OsString],
) -> ExitCode {
    match run(lifeline, inside, users, spec, command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            logger::report(format!("init: {e}"));
            ExitCode::from(CANNOT_SET_UP)
        }
    }
}

/// Runs until the command has ended. Returns its exit code.
fn run(
    lifeline: &Port,
    inside: &Port,
    users: Option<OwnedFd>,
    spec: &SandboxSpec,
    command: &[OsString],
) -> io::Result<u8> {
    let signals = Signals::block()?;
    set_pdeathsig(Signal::SIGKILL)?;
    // If the sandbox ended before the line above, the kernel does not kill this process.
    if lifeline.receive() == Received::End {
        return Ok(FAILURE);
    }
    // Before the command starts: it must see its own /proc, and neither trace this process nor type into the terminal.
    mounts::set_up(knobs(spec), &spec.resolv_conf);
    set_dumpable(false)?;
    injection::refuse()?;
    let child = inherited::hand_on(false, || start(users, spec, command))?;
    // Drops the signals from before the command: it did not receive them, so they must not be reported as received by
    // its group.
    while signals.next()?.is_some() {}
    loop {
        for change in changes(child)? {
            match change {
                Change::Ended(code) => return Ok(code),
                Change::Stopped => {
                    // The sandbox first: it must know that the command stopped before it is to stop `skbudget`.
                    lifeline.send(Note::Stopped);
                    inside.send(Note::Stopped);
                }
                Change::Continued => lifeline.send(Note::Continued),
            }
        }
        // A signal, SIGCHLD included, or a note.
        wait_for(&signals, inside)?;
        let forward = |note| {
            if let Note::Send(signal) = note {
                send_on(child, signal);
            }
        };
        observe(|| signals.next(), inside, || in_our_group(child), forward)?;
    }
}

/// Whether the command is in the process group of this process, where it was started.
fn in_our_group(command: Pid) -> bool {
    getpgid(Some(command)).is_ok_and(|group| group == getpgrp())
}

/// Sends a signal to the command. Fails only for a command that has ended, which needs no signal.
fn send_on(command: Pid, signal: u8) {
    // A shell in a group of its own stops that group when it suspends itself, so SIGCONT must reach all of it.
    let group = i32::from(signal) == libc::SIGCONT && !in_our_group(command);
    let to = getpgid(Some(command)).ok().filter(|_| group);
    let _ = sys::send_signal(to.map_or(command.as_raw(), |group| -group.as_raw()), signal);
}

/// The parts of /proc that the command may write to.
fn knobs(spec: &SandboxSpec) -> Knobs {
    if spec.root && !spec.privileged { Knobs::Network } else { Knobs::AsOutside }
}

/// Starts the process that becomes the command.
fn start(users: Option<OwnedFd>, spec: &SandboxSpec, command: &[OsString]) -> io::Result<Pid> {
    let fds: Vec<_> = users.iter().map(AsRawFd::as_raw_fd).collect();
    let (mut child, fds) = roles::process(roles::COMMAND, &fds);
    child.arg(serde_json::to_string(spec)?).args(command);
    // The child unblocks the signals when it executes the command.
    sys::prepare_child(&mut child, fds, signals::blocked(), Some(spec.nofile));
    // `changes` reaps it together with all other children.
    Ok(Pid::from_raw(child.spawn()?.id().cast_signed()))
}

/// Blocks until there is a signal or a note.
fn wait_for(signals: &Signals, port: &Port) -> io::Result<()> {
    let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
    match poll(&mut [watch(signals.as_fd()), watch(port.as_fd())], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A change of the command's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Ended(u8),
    Stopped,
    Continued,
}

/// Reaps every dead child. Returns the changes of the command.
fn changes(command: Pid) -> io::Result<Vec<Change>> {
    let mut changes = Vec::new();
    while let Some((pid, status)) = sys::next_child()? {
        if pid != command.as_raw() {
            continue;
        }
        changes.push(if status.continued() {
            Change::Continued
        } else if status.stopped_signal().is_some() {
            Change::Stopped
        } else {
            Change::Ended(exit_code(status))
        });
    }
    Ok(changes)
}

/// The exit code of an ended child in the form that its parent returns: 128 + N after signal N.
pub(super) fn exit_code(status: std::process::ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => SIGNAL_BASE + signal as u8,
        (None, None) => FAILURE,
    }
}
