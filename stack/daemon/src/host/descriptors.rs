//! The process's table of descriptors.

use std::io;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{close, pipe2};

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
