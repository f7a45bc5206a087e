//! Signals as readable events: the three processes of a run block them and read them from a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

/// What is handed on to the command. Those of the terminal's job control (SIGTSTP, SIGTTIN, SIGTTOU, SIGCONT) keep
/// their effect on all of us alike: everything runs in the caller's process group.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// Blocked signals of this process, to be read.
#[derive(Debug)]
pub(super) struct Signals {
    fd: SignalFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caught {
    /// Some child changed its state.
    Child,
    /// To be handed on.
    Forward(Signal),
    /// The terminal's doing: the whole foreground group has it already, the command included.
    FromTerminal(Signal),
}

/// The set that is blocked in every process of a run, from its first instruction on.
pub(super) fn blocked() -> SigSet {
    let mut set: SigSet = FORWARDED.into_iter().collect();
    set.add(Signal::SIGCHLD);
    set
}

impl Signals {
    /// Blocks them in the calling thread and in every thread it starts from now on.
    pub(super) fn block() -> io::Result<Self> {
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
            let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
            return Ok(Some(match signal {
                Signal::SIGCHLD => Caught::Child,
                _ if info.ssi_code == libc::SI_KERNEL => Caught::FromTerminal(signal),
                _ => Caught::Forward(signal),
            }));
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One that is gone already needs no signal.
pub(super) fn hand_on(child: Pid, signal: Signal) {
    let _ = kill(child, signal);
}
