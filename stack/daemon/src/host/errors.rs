//! Maps the kernel's errors to those of a flow.

use std::io;

use nix::errno::Errno;
use skbudget_stack::HostError;

pub(super) fn map_io(error: &io::Error) -> HostError {
    map(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

pub(super) fn map(errno: Errno) -> HostError {
    match errno {
        // A connect in progress is no failure: its result arrives as an event.
        Errno::EAGAIN | Errno::EINPROGRESS | Errno::EALREADY | Errno::EINTR => {
            HostError::WouldBlock
        }
        Errno::ECONNREFUSED => HostError::Refused,
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => HostError::HostUnreachable,
        // EINVAL: no connection can be opened to such an address.
        Errno::ENETUNREACH
        | Errno::ENETDOWN
        | Errno::EACCES
        | Errno::EPERM
        | Errno::EINVAL
        | Errno::EAFNOSUPPORT => HostError::NetUnreachable,
        Errno::ETIMEDOUT => HostError::TimedOut,
        Errno::ECONNRESET | Errno::ECONNABORTED | Errno::ENOTCONN => HostError::Reset,
        Errno::EPIPE => HostError::ResetAfterEnd,
        // Descriptors, ports, memory: the stack answers no SYN, so the guest retransmits it.
        _ => HostError::NoResources,
    }
}
