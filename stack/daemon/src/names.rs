//! Names of running containers: each is held by an abstract unix socket, which the kernel forgets with its process,
//! however that ends.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::unistd::geteuid;

/// A name taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct NameHold {
    _socket: OwnedFd,
}

/// `None`: another process of this user has it (in this network namespace).
pub(crate) fn hold(name: &str) -> io::Result<Option<NameHold>> {
    let address = UnixAddr::new_abstract(format!("skbudget/{}/{name}", geteuid()).as_bytes())?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket::socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    match socket::bind(fd.as_raw_fd(), &address) {
        Ok(()) => Ok(Some(NameHold { _socket: fd })),
        Err(Errno::EADDRINUSE) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_once_and_free_afterwards() {
        let name = format!("test-{}", std::process::id());
        let first = hold(&name).unwrap();
        assert!(first.is_some());
        assert!(hold(&name).unwrap().is_none());
        drop(first);
        assert!(hold(&name).unwrap().is_some());
    }
}
