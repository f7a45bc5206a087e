//! Signals as readable events: the processes of a run block all signals and read them from a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::getpid;

use crate::sys;

/// The blocked signals of this process, as a readable descriptor.
#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
}

/// One signal that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caught {
    /// A child changed its state.
    Child,
    /// Any other signal, by number, because real-time signals have no name.
    Signal { number: u8, sender: u32 },
}

/// The signals that every process of a run blocks from its first instruction on: all but SIGKILL and SIGSTOP, which
/// cannot be blocked. A fault of the process itself (SIGSEGV) still ends it.
pub(super) fn blocked() -> SigSet {
    SigSet::all()
}

impl Signals {
    /// Blocks the signals in the calling thread and in every thread that it starts later.
    pub(super) fn block() -> io::Result<Self> {
        // If the caller ignores SIGCHLD, the kernel would not keep the exit states of our children.
        sys::notice_children()?;
        let set = blocked();
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { fd: SignalFd::with_flags(&set, flags)? })
    }

    /// Reads the next pending signal; `None`: there is none.
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
                // From a write of this process: the write has returned the error already.
                libc::SIGPIPE | libc::SIGXFSZ if sender == std::process::id() => {}
                _ => return Ok(Some(Caught::Signal { number, sender })),
            }
        }
    }

    /// After the command has ended: whether a pending signal ends the run. A signal that stops a job stops this process
    /// here.
    pub(super) fn interrupted(&self) -> io::Result<bool> {
        while let Some(caught) = self.next()? {
            let Caught::Signal { number, .. } = caught else { continue };
            if ends(number) {
                return Ok(true);
            }
            if [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&i32::from(number)) {
                // Blocked signals do not act by themselves.
                let _ = kill(getpid(), Signal::SIGSTOP);
            }
        }
        Ok(false)
    }
}

/// Whether the signal is sent to end the run. A signal that the caller ignores, as nohup does, does not end it.
pub(super) fn ends(number: u8) -> bool {
    let known = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
    known.contains(&i32::from(number)) && !sys::is_ignored(number)
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
