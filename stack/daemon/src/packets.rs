//! Sequenced packets between the processes of a run: a message arrives whole or not at all, and the end is seen.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// Two connected SOCK_SEQPACKET sockets, both closed on exec.
///
/// # Errors
/// When the kernel has no descriptor or memory for them.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
    Ok(socketpair(AddressFamily::Unix, kind, None, flags)?)
}
