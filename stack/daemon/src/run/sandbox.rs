//! The process between `skbudget` and the container: single-threaded, because only such a process may enter a user
//! namespace. It makes the namespaces, sends the device out, starts process 1 and stays as its parent.
//!
//! ```text
//! skbudget run ── sandbox ── process 1 ── the command
//!  host's net     host's PIDs   └── all of the container's namespaces ──┘
//! ```
//! Each is killed by the kernel when its parent ends, so nothing outlives `skbudget`, not even by SIGKILL. The
//! container's network stands until the sandbox ends: what the command sent last can still be taken out of it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getegid, geteuid};
use serde::{Deserialize, Serialize};
use skbudget_stack::Tap;

use super::init::exit_code;
use super::signals::{self, Caught, Signals, hand_on};
use super::wire::{Report, Wire};
use super::{EXE, INIT_ARG};
use crate::attach::{self, AttachError, GuestNet, Step};
use crate::exit::{CANNOT_SET_UP, FAILURE};
use crate::{logger, sys};

/// What the sandbox is to do; the command itself follows as arguments, it need not be text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) guest: GuestNet,
    /// Where the command was found.
    pub(super) program: PathBuf,
    /// Limits of open files that `skbudget` was started with: the command's.
    pub(super) nofile: (u64, u64),
}

pub(super) fn main(wire: &Wire, orders: &Orders, command: &[OsString]) -> ExitCode {
    match run(wire, orders, command) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            logger::report(format!("sandbox: {e}"));
            ExitCode::from(FAILURE)
        }
    }
}

fn run(wire: &Wire, orders: &Orders, command: &[OsString]) -> io::Result<u8> {
    let signals = Signals::block()?;
    set_pdeathsig(Signal::SIGKILL)?;
    if wire.is_over() {
        return Ok(FAILURE);
    }
    match set_up(&orders.guest) {
        Ok(tap) => wire.report(&Report::Ready, Some(tap.as_fd()))?,
        Err(AttachError { step, source }) => {
            let (errno, message) = (source.raw_os_error(), source.to_string());
            wire.report(&Report::Failed { step: step.to_owned(), errno, message }, None)?;
            return Ok(CANNOT_SET_UP);
        }
    }
    if !wire.wait_for_go()? {
        return Ok(FAILURE);
    }
    // The other end of this pair lives in process 1, this one as long as we do.
    let (lifeline, theirs) = Wire::pair()?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)?;
    let mut init = start_init(&theirs, orders, command)?;
    drop(theirs);
    let code = look_after(&signals, wire, &mut init)?;
    drop(lifeline);
    // The parent went away first: then nobody asks.
    let _ = wire.report(&Report::Exited { code }, None);
    while wire.wait_for_go()? {}
    Ok(code)
}

/// Container namespace, scratch namespace, device; ends up in the container's.
fn set_up(guest: &GuestNet) -> Result<Tap, AttachError> {
    enter_new_netns()?;
    attach::loopback_up()?;
    let container = attach::current_netns()?;
    unshare(CloneFlags::CLONE_NEWNET).step("new scratch network namespace")?;
    attach::tap_into_from_here(container.as_fd(), guest)
}

/// As root directly; else, or where root may not, as root of a new user namespace.
fn enter_new_netns() -> Result<(), AttachError> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM) => {}
        other => return other.step("new network namespace"),
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).step("new user namespace")?;
    // New credentials clear it.
    set_pdeathsig(Signal::SIGKILL).step("prctl")?;
    fs::write("/proc/self/setgroups", "deny").step("/proc/self/setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).step("/proc/self/uid_map")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).step("/proc/self/gid_map")?;
    unshare(CloneFlags::CLONE_NEWNET).step("new network namespace")
}

fn start_init(lifeline: &Wire, orders: &Orders, command: &[OsString]) -> io::Result<Child> {
    let fd = lifeline.as_fd().as_raw_fd();
    let mut init = Command::new(EXE);
    let (log_fd, log) = logger::handover();
    init.arg0("skbudget").arg(INIT_ARG).arg(log).arg(fd.to_string());
    init.arg(serde_json::to_string(orders)?).args(command);
    let fds = log_fd.into_iter().chain([fd]).collect();
    sys::prepare_child(&mut init, fds, signals::blocked(), None);
    init.spawn()
}

/// Hands signals on until process 1 ends; its code. When `skbudget` is gone, the kernel kills us, which kills it.
fn look_after(signals: &Signals, wire: &Wire, init: &mut Child) -> io::Result<u8> {
    let pid = Pid::from_raw(init.id().cast_signed());
    loop {
        if let Some(status) = init.try_wait()? {
            return Ok(exit_code(status));
        }
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(wire.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if wire.is_over() {
            init.kill()?;
        }
        while let Some(caught) = signals.next()? {
            match caught {
                Caught::Forward(signal) => hand_on(pid, signal),
                Caught::Child | Caught::FromTerminal(_) => {}
            }
        }
    }
}
