//! What the kernel's errors mean for a flow.

use std::io;

use nix::errno::Errno;
use skbudget_stack::HostError;

pub(super) fn map_io(error: &io::Error) -> HostError {
    map(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

pub(super) fn map(errno: Errno) -> HostError {
    match errno {
        Errno::EAGAIN | Errno::EINPROGRESS | Errno::EALREADY | Errno::EINTR => {
            HostError::WouldBlock
        }
        Errno::ECONNREFUSED => HostError::Refused,
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => HostError::HostUnreachable,
        // EINVAL: an address that no connection can be made to.
        Errno::ENETUNREACH
        | Errno::ENETDOWN
        | Errno::EACCES
        | Errno::EPERM
        | Errno::EINVAL
        | Errno::EAFNOSUPPORT => HostError::NetUnreachable,
        Errno::ETIMEDOUT => HostError::TimedOut,
        Errno::ECONNRESET | Errno::ECONNABORTED | Errno::ENOTCONN => HostError::Reset,
        Errno::EPIPE => HostError::ResetAfterEnd,
        _ => HostError::NoResources,
    }
}
