//! Signals as readable events: the processes of a run block all of them and read them from a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::getpid;

use crate::sys;

/// Blocked signals of this process, to be read.
#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caught {
    /// Some child changed its state.
    Child,
    /// A signal by its number: real-time ones have no name.
    Signal { number: u8, sender: u32 },
}

/// The set that is blocked in every process of a run, from its first instruction on: all but SIGKILL and SIGSTOP,
/// which the kernel keeps for itself. A fault of our own ends the process all the same.
pub(super) fn blocked() -> SigSet {
    SigSet::all()
}

impl Signals {
    /// Blocks them in the calling thread and in every thread it starts from now on.
    pub(super) fn block() -> io::Result<Self> {
        // Where the caller ignores it, the kernel would not keep the states of our children for us.
        sys::notice_children()?;
        let set = blocked();
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { fd: SignalFd::with_flags(&set, flags)? })
    }

    /// The next one that waits.
    pub(super) fn next(&self) -> io::Result<Option<Caught>> {
        loop {
            let info = match self.fd.read_signal() {
                Ok(Some(info)) => info,
                Ok(None) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let (number, sender) = (info.ssi_signo as u8, info.ssi_pid);
            match i32::from(number) {
                libc::SIGCHLD => return Ok(Some(Caught::Child)),
                // Of a write of our own, which failed and was seen to fail.
                libc::SIGPIPE | libc::SIGXFSZ if sender == std::process::id() => {}
                _ => return Ok(Some(Caught::Signal { number, sender })),
            }
        }
    }

    /// When the command has ended: was one received that asks to end? One that asks to stop stops us.
    pub(super) fn interrupted(&self) -> io::Result<bool> {
        while let Some(caught) = self.next()? {
            let Caught::Signal { number, .. } = caught else { continue };
            if ends(number) {
                return Ok(true);
            }
            if [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&i32::from(number)) {
                let _ = kill(getpid(), Signal::SIGSTOP);
            }
        }
        Ok(false)
    }
}

/// Does whoever sends it want the run to end? One that the caller ignores, as nohup does, ends nothing.
pub(super) fn ends(number: u8) -> bool {
    let known = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
    known.contains(&i32::from(number)) && !sys::is_ignored(number)
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
