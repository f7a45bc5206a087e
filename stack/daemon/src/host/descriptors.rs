//! The process's table of descriptors, and what becomes known when it or something like it is full.

use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{close, pipe2};
use skbudget_stack::HostError;

use super::HostSockets;

/// The kernel doubles a process's table of descriptors when it is full, and with several threads waits for all readers
/// of the old one (expand_fdtable): 5 to 20 ms in which no container of a worker is served. So it grows once, before
/// there are workers, to what the limit allows.
pub(crate) fn grow_descriptor_table() -> io::Result<()> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let last = soft.min(DESCRIPTORS_MAX).saturating_sub(1);
    let (any, _) = pipe2(OFlag::O_CLOEXEC)?;
    // Fails where the last one is taken, and then there is nothing to grow.
    if let Ok(last) = fcntl(any, FcntlArg::F_DUPFD_CLOEXEC(last as i32)) {
        close(last)?;
    }
    Ok(())
}

/// Half a megabyte of kernel memory; beyond that the table grows as it is used.
const DESCRIPTORS_MAX: u64 = 65_536;

impl HostSockets {
    /// Remembers why a connection could not begin, when it was for want of something of ours.
    pub(super) fn note_lack(&mut self, outcome: Result<(), HostError>) {
        if outcome == Err(HostError::NoResources) {
            // Still the failed call's: all that came after it is a close(2) that did not fail.
            self.lack = Some(Errno::last());
        }
    }

    /// What connect(2) lacked since this was last asked: descriptors, ports, memory.
    pub(crate) fn take_lack(&mut self) -> Option<Errno> {
        self.lack.take()
    }
}
