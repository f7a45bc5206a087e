//! Process 1 of a container's PID namespace: mounts its /proc, starts the command, reaps what is left to it, hands
//! signals on and ends with the command. The kernel then ends every other process of the namespace.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::AsFd;

use super::sandbox::Orders;
use super::signals::{Caught, Signals, hand_on};
use super::wire::Wire;
use crate::exit::{FAILURE, NOT_EXECUTABLE, NOT_FOUND, SIGNAL_BASE};
use crate::{logger, sys};

/// `lifeline`: ends when the sandbox process does.
pub(super) fn main(lifeline: &Wire, orders: &Orders, command: &[OsString]) -> ExitCode {
    match run(lifeline, orders, command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            logger::report(format!("init: {e}"));
            ExitCode::from(FAILURE)
        }
    }
}

fn run(lifeline: &Wire, orders: &Orders, command: &[OsString]) -> io::Result<u8> {
    let signals = Signals::block()?;
    set_pdeathsig(Signal::SIGKILL)?;
    // The sandbox may have ended before the line above: nobody would kill us.
    if lifeline.is_over() {
        return Ok(FAILURE);
    }
    mount_proc();
    let child = match start(orders, command) {
        Ok(child) => child,
        Err(e) => {
            let code = if e.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            logger::report(format!("{}: {e}", command[0].display()));
            return Ok(code);
        }
    };
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

/// /proc of this PID namespace. Where the kernel forbids it (a container around us hides parts of its own /proc), the
/// command sees the outer one.
fn mount_proc() {
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(none, "/", none, private, none)
        .and_then(|()| mount(Some("proc"), "/proc", Some("proc"), flags, none));
    if let Err(errno) = mounted {
        log::warn!("no /proc of its own for the container: {errno}");
    }
}

fn start(orders: &Orders, command: &[OsString]) -> io::Result<Pid> {
    let mut child = Command::new(&orders.program);
    child.arg0(&command[0]).args(&command[1..]);
    sys::prepare_child(&mut child, Vec::new(), SigSet::empty(), Some(orders.nofile));
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
