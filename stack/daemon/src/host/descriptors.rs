//! The process's table of descriptors, and the report of missing local resources.

use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{close, pipe2};
use skbudget_stack::HostError;

use super::HostSockets;

/// Grows the process's table of descriptors to what the limit allows, before there are workers. The kernel doubles a
/// full table, and with several threads waits for all readers of the old one (expand_fdtable): for 5 to 20 ms a worker
/// would serve no container.
pub(crate) fn grow_descriptor_table() -> io::Result<()> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let last = soft.min(DESCRIPTORS_MAX).saturating_sub(1);
    // Any descriptor will do: the copy with the highest number makes the kernel grow the table.
    let (any, _) = pipe2(OFlag::O_CLOEXEC)?;
    // Fails where the last one is in use, which means that the table is large already.
    if let Ok(last) = fcntl(any, FcntlArg::F_DUPFD_CLOEXEC(last as i32)) {
        close(last)?;
    }
    Ok(())
}

/// Bound of that growth, descriptors: half a megabyte of kernel memory. Beyond it the table grows on demand.
const DESCRIPTORS_MAX: u64 = 65_536;

impl HostSockets {
    /// Records why a connection could not be opened, if a local resource was missing.
    pub(super) fn note_lack(&mut self, outcome: Result<(), HostError>) {
        if outcome == Err(HostError::NoResources) {
            // errno is still that of the failed call: only a close(2) that succeeded follows it.
            self.lack = Some(Errno::last());
        }
    }

    /// Returns what a connect(2) lacked since the last call: descriptors, ports, memory.
    pub(crate) fn take_lack(&mut self) -> Option<Errno> {
        self.lack.take()
    }
}
