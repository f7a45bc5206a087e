//! The limit of open files of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::exit::Failure;

/// Raises the soft limit to the hard one, which needs no privilege.
pub(crate) fn raise() -> Result<(), Failure> {
    let fail = |e| Failure::io("RLIMIT_NOFILE", e);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fail)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(fail)?;
    }
    Ok(())
}
